"""What the engine says of containers and images beyond what a stack is: who runs in them, what they were made of."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

from cosmos_coherence import errors
from cosmos_coherence.drivers.docker_facts import Facts
from cosmos_coherence.drivers.engine import Engine


def container(engine: Engine, name: str) -> Facts | None:
    """One container, as the engine inspects it; None when it is gone."""
    try:
        found: Facts = engine.ask("inspect_container", name)
    except errors.NotFound:
        return None
    return found


def image(engine: Engine, name: str) -> tuple[Facts, Sequence[str]] | None:
    """An image and the commands that made its layers, the newest first; None when it is gone."""
    try:
        found: Facts = engine.ask("inspect_image", name)
        made = [str(layer.get("CreatedBy") or "") for layer in engine.ask("history", name)]
    except errors.NotFound:
        return None
    return found, made


def users_of_processes(engine: Engine, name: str) -> frozenset[str] | None:
    """The users, by number, that the processes of a running container have; None when that cannot be told."""
    with contextlib.suppress(errors.CosmosError, LookupError, ValueError):
        said = engine.ask("top", name, ps_args="-eo pid,uid")
        column = [str(title).upper() for title in said["Titles"]].index("UID")
        return frozenset(str(row[column]).strip() for row in said["Processes"] or ())
    return None
