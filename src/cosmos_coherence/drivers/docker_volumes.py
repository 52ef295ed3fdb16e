"""The engine's volumes: who uses them, which are nobody's, and making one that is lost."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping

from msgspec.structs import replace

from cosmos_coherence import errors
from cosmos_coherence.drivers import docker_facts
from cosmos_coherence.drivers.docker_facts import Facts
from cosmos_coherence.drivers.engine import Engine
from cosmos_coherence.drivers.reach import Reach
from cosmos_coherence.model import Volume, VolumeRecord


def users(engine: Engine) -> Mapping[str, tuple[str, ...]]:
    """As ``Runtime.volume_users``."""
    found: dict[str, list[str]] = {}
    for container in engine.ask("containers", all=True):
        for name in docker_facts.volumes_in(container):
            found.setdefault(name, []).append(docker_facts.name_of(container))
    return {name: tuple(sorted(containers)) for name, containers in found.items()}


def anonymous(engine: Engine, project: str, reach: Reach) -> tuple[Volume, ...]:
    """As ``Runtime.anonymous_volumes``."""
    used = users(engine)
    return tuple(
        docker_facts.volume_of(facts, project, reach.volume(facts))
        for facts in engine.ask("volumes")["Volumes"] or []
        if docker_facts.is_anonymous(facts) and facts["Name"] not in used
    )


def created(engine: Engine, record: VolumeRecord, *, declares: Callable[[VolumeRecord], bool]) -> Facts:
    """What the engine says of the volume, which is made if it is not there. ``declares``: whether a Compose file says
    so; errors as ``DockerRuntime.create_volume``."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]+", record.name):
        raise errors.ConfigurationError(f"{record.name!r} cannot be the name of a volume")
    try:
        facts: Facts = engine.ask("inspect_volume", record.name)
    except errors.NotFound:
        if "device" in record.options and not declares(record):
            raise errors.Refused(
                f"volume {record.name} would lie at {record.options['device']}, which no Compose file says",
                remedy=f"If that is right, create it first: docker volume create --name {record.name} ...",
            ) from None
        options, labels = dict(record.options) or None, dict(record.labels) or None
        facts = engine.ask("create_volume", record.name, driver=record.driver, driver_opts=options, labels=labels)
    return facts


def labelled(volume: Volume, declared: Iterable[VolumeRecord]) -> Volume:
    """With the labels that the Compose files give it by now: the engine does not change those of one that is there."""
    said = next((record.labels for record in declared if record.name == volume.name), {})
    return replace(volume, labels={**said, **volume.labels}) if said else volume


def lost(record: VolumeRecord) -> Volume:
    """One that the Compose files name and the engine does not have."""
    return Volume(record.name, record.short, record.driver, record.options, record.labels, exists=False)
