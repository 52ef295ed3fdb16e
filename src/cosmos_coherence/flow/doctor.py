"""Does this machine have what a run needs: looked at one by one, and nothing is changed."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Callable
from pathlib import Path

import cosmos_coherence
from cosmos_coherence import errors
from cosmos_coherence.archive import listing
from cosmos_coherence.cut.journal import Journal
from cosmos_coherence.drivers import compose, container, docker
from cosmos_coherence.drivers.runtime import Runtime
from cosmos_coherence.health import checks, disk
from cosmos_coherence.health.checks import CheckResult, Health
from cosmos_coherence.settings import Settings

OLDEST_PYTHON = (3, 11)
_LIMIT_S = 15.0


def examine(open_runtime: Callable[[], Runtime], settings: Settings, *, backups: Path) -> Health:
    """Python, engine, Compose, stack, reach of the volumes, the folder of the archives, leftovers of crashes.

    Whatever is amiss is a failed check that says what to do; nothing is raised.
    """

    def stack() -> str:
        found = open_runtime().stack()
        return f"{found.project}, {len(found.services)} services, {len(found.volumes)} volumes"

    looks: dict[str, Callable[[], str]] = {"program": _program, "stack": stack}
    if settings.stack.runtime == "docker":
        looks |= {
            "engine": lambda: _engine(_docker(open_runtime)),
            "compose": lambda: f"version {compose.version(docker_host=settings.docker_host)}",
            "volumes": lambda: _reach(_docker(open_runtime), settings.image),
        }
    looks |= {"backups": lambda: _writable(backups), "leftovers": lambda: _leftovers(open_runtime(), backups)}
    found = checks.run({name: _check(name, look) for name, look in looks.items()}, limit_s=_LIMIT_S)
    results = (*found.checks, disk.check_disk(backups, settings.backup.min_free))
    return Health(checks.worst(results), results)


def _check(name: str, look: Callable[[], str]) -> checks.Check:
    def check() -> CheckResult:
        try:
            return CheckResult(name, "ok", look())
        except errors.CosmosError as error:
            return CheckResult(name, "fail", f"{error.message}. {error.remedy}")

    return check


def _program() -> str:
    if sys.version_info < OLDEST_PYTHON:
        raise errors.Unsupported(f"Python {platform.python_version()} is too old", remedy="Install 3.11 or newer.")
    return f"cosmos-coherence {cosmos_coherence.__version__}, Python {platform.python_version()}"


def _docker(open_runtime: Callable[[], Runtime]) -> docker.DockerRuntime:
    runtime = open_runtime()
    assert isinstance(runtime, docker.DockerRuntime)
    return runtime


def _engine(runtime: docker.DockerRuntime) -> str:
    return f"version {runtime.engine.ask('version')['Version']} at {runtime.engine.host}"


def _reach(runtime: docker.DockerRuntime, image: str) -> str:
    reason = container.needs_container(runtime)
    if not reason:
        return "can be read and written from here"
    try:
        runtime.engine.ask("inspect_image", image)
    except errors.NotFound as error:
        raise errors.NotFound(
            f"{reason}, and the engine has no image {image}", remedy="Build it (`make images`), or run as root."
        ) from error
    return f"through a container of {image}: {reason}"


def _writable(backups: Path) -> str:
    there = next(path for path in (backups.absolute(), *backups.absolute().parents) if path.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK) or os.statvfs(there).f_flag & os.ST_RDONLY:
        raise errors.Refused(
            f"{there} cannot be written", remedy="Run as its owner, or choose another folder with `backup.directory`."
        )
    return str(backups) if there == backups.absolute() else f"{backups}, which the first backup makes"


def _leftovers(runtime: Runtime, backups: Path) -> str:
    if runtime.kind == "docker" and (reason := container.needs_container(_docker(lambda: runtime))):
        return f"not looked at from here: {reason}"
    journal = Journal(runtime.state_directory())
    left = [*(type(note.record).__name__ for note in journal.pending()), *map(str, journal.broken())]
    left += [str(path) for path in listing.leftovers(backups)]
    if left:
        raise errors.CosmosError(
            f"{len(left)} left by a run that is under way or was killed",
            remedy="If none is under way, `cosmos recover` heals them.",
        )
    return "none"
