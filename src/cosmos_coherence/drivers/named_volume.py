"""One volume of the engine, asked for by its name alone: nothing else is looked at, so that it takes milliseconds."""

from __future__ import annotations

from cosmos_coherence.drivers import docker_facts
from cosmos_coherence.drivers.engine import Engine
from cosmos_coherence.drivers.reach import Reach
from cosmos_coherence.model import Volume


def find(engine: Engine, reach: Reach, project: str, name: str) -> Volume | None:
    """The volume of the project that is called so in its Compose file, or in full by the engine; None where that does
    not tell. Raises as ``Engine.ask`` does."""
    for full in (f"{project}_{name}", name):
        facts = engine.volume(full)
        if facts is not None and docker_facts.volumes_of(project, [facts], []):
            return docker_facts.volume_of(facts, project, reach.volume(facts))
    return None
