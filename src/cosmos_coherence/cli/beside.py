"""When the volumes cannot be reached from here, the same call runs in a container beside them."""

from __future__ import annotations

import sys
from pathlib import Path

from cosmos_coherence.drivers.runtime import Runtime
from cosmos_coherence.settings import Settings


def needed(runtime: Runtime, settings: Settings) -> str:
    """Why the volumes cannot be reached from here, as a clause; empty when they can."""
    if settings.stack.runtime == "process":
        return ""
    from cosmos_coherence.drivers import container, docker

    assert isinstance(runtime, docker.DockerRuntime)
    return container.needs_container(runtime)


def volumes(
    runtime: Runtime, settings: Settings, *, paths: tuple[Path, ...] = (), arguments: tuple[str, ...] | None = None
) -> int | None:
    """Run this very call again in a container and return its exit status; None when that is not needed.

    ``paths``: folders outside the project's own that the call reads or writes; those of the repository, of the
    secrets that open it and of whoever is told of alarms come along by themselves. ``arguments``: another call.
    """
    if not (reason := needed(runtime, settings)):
        return None
    from cosmos_coherence.drivers import container, docker
    from cosmos_coherence.flow import alarm, store

    assert isinstance(runtime, docker.DockerRuntime)
    print(f"running in a container of {settings.image}: {reason}", file=sys.stderr)  # noqa: T201
    return container.rerun(
        runtime,
        arguments or tuple(sys.argv[1:]),
        image=settings.image,
        directory=settings.stack.directory,
        extra_paths=(*paths, *store.places(settings), *alarm.places(settings)),
    )
