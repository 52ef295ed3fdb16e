"""From the options of a call to settings and a runtime."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cosmos_coherence import errors

if TYPE_CHECKING:
    from cosmos_coherence.drivers.runtime import Runtime
    from cosmos_coherence.settings import Settings


@dataclass(frozen=True, slots=True)
class Given:
    """The options that come before the verb."""

    directory: Path = Path()
    project: str | None = None
    config: Path | None = None
    docker_host: str | None = None
    files: tuple[Path, ...] = ()
    debug: bool = False


given = Given()
"""Those of this call; set once by the parser."""


def settings() -> Settings:
    """The settings of this call; without one, a folder with a ``stack.json`` is a stack of plain processes."""
    from cosmos_coherence import settings as declaration

    folder = given.directory.resolve()
    if not folder.is_dir():
        raise errors.NotFound(f"there is no folder {folder}", remedy="Name the project's folder with --directory.")
    runtime = "process" if (folder / "stack.json").exists() else None
    return declaration.load(
        folder,
        file=given.config,
        stack__project=given.project,
        docker_host=given.docker_host,
        stack__runtime=runtime,
    )


def runtime(found: Settings, *, files: tuple[Path, ...] | None = None, project: str | None = None) -> Runtime:
    """The door to the stack of these settings. ``project`` counts where neither settings nor Compose files name one."""
    folder = found.stack.directory
    if found.stack.runtime == "process":
        from cosmos_coherence.drivers.local import LocalRuntime

        return LocalRuntime(folder)
    from cosmos_coherence.drivers.docker import DockerRuntime, project_of

    chosen = given.files if files is None else files
    compose_files = tuple((folder / f).resolve() for f in chosen) or None
    return DockerRuntime(
        found.stack.project or project or project_of(folder, compose_files),
        directory=folder,
        config_files=compose_files,
        docker_host=found.docker_host,
        image=found.image,
        state_directory=found.state_directory,
    )


def backups(found: Settings) -> Path:
    """The folder of the archives."""
    return found.stack.directory / found.backup.directory


def archive(name: str, found: Settings) -> Path:
    """The archive of that name: ``latest``, an id, a file name or a path. ``NotFound`` when there is none."""
    from cosmos_coherence.archive.listing import find_archive

    return find_archive(name, (Path.cwd(), backups(found)))
