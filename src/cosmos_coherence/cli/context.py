"""From the options of a call to settings and a runtime."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from cosmos_coherence import errors

if TYPE_CHECKING:
    from cosmos_coherence.drivers.runtime import Runtime
    from cosmos_coherence.model import Manifest
    from cosmos_coherence.parts import BackupReader
    from cosmos_coherence.settings import Settings


class Given(msgspec.Struct, frozen=True):
    """The options that come before the verb."""

    directory: Path = Path()
    project: str | None = None
    config: Path | None = None
    docker_host: str | None = None
    files: tuple[Path, ...] = ()
    debug: bool = False


given = Given()
"""Those of this call; set once by the parser."""


def options() -> tuple[str, ...]:
    """The options before the verb, as they have to be said to another process of this program in this folder."""
    pairs = {"--directory": given.directory.resolve(), "--project": given.project, "--config": given.config,
             "--docker-host": given.docker_host}  # fmt: skip
    said = [word for name, value in pairs.items() if value is not None for word in (name, str(value))]
    return (*said, *(word for file in given.files for word in ("--file", str(file))), *["--debug"][: given.debug])


def settings(*, keep_within: str | None = None) -> Settings:
    """The settings of this call; without one, a folder with a ``stack.json`` is a stack of plain processes."""
    from msgspec import structs

    from cosmos_coherence import settings as declaration

    folder = given.directory.resolve()
    if not folder.is_dir():
        raise errors.NotFound(f"there is no folder {folder}", remedy="Name the project's folder with --directory.")
    runtime = "process" if (folder / "stack.json").exists() else None
    found = declaration.load(
        folder,
        file=given.config,
        stack__project=given.project,
        docker_host=given.docker_host,
        stack__runtime=runtime,
        retention__keep_within=keep_within,
    )
    if _alone(found):
        return structs.replace(found, stack=structs.replace(found.stack, runtime="process"))
    return found


def _alone(found: Settings) -> str:
    """The name of a project that is nothing but folders which its settings name; empty when there is more to it."""
    from cosmos_coherence.drivers import compose

    folder = found.stack.directory
    more = given.files or (folder / "stack.json").exists() or compose.files_of(folder)
    if more or not found.source or any(source.kind not in ("files", "sqlite") for source in found.source):
        return ""
    if found.stack.project and found.stack.runtime == "docker":
        return ""  # a stack of the engine that is named, with folders beside it
    return found.stack.project or compose.project_of(folder)


def runtime(found: Settings, *, files: tuple[Path, ...] | None = None, project: str | None = None) -> Runtime:
    """The door to the stack of these settings. ``project`` counts where neither settings nor Compose files name one."""
    folder = found.stack.directory
    if found.stack.runtime == "process":
        from cosmos_coherence.drivers.local import LocalRuntime

        return LocalRuntime(folder, alone="" if (folder / "stack.json").exists() else project or _alone(found))
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


def project(found: Settings) -> str | None:
    """The project of this folder; None where nothing here says which it is, as on a host that lost everything."""
    folder = found.stack.directory
    if found.stack.project:
        return found.stack.project
    if found.stack.runtime == "process":
        from cosmos_coherence.drivers import stackfile

        return _alone(found) or stackfile.read(folder).project
    from cosmos_coherence.drivers import compose

    chosen = tuple((folder / f).resolve() for f in given.files) or compose.files_of(folder)
    return compose.project_of(folder, chosen) if chosen else None


def state(found: Settings) -> Path | None:
    """The stack's state directory; None where there is no stack, or where it cannot be reached from here."""
    try:
        return runtime(found).state_directory()
    except errors.CosmosError:
        return None


def found_state(found: Settings) -> Path | None:
    """The same for a verb that only looks: None also where there is none yet."""
    try:
        return runtime(found).found_state_directory()
    except errors.CosmosError:
        return None


def backups(found: Settings) -> Path:
    """The folder of the archives."""
    return found.stack.directory / found.backup.directory


def archive(name: str, found: Settings) -> Path | None:
    """The archive of that name: a file name or a path; ``latest`` or an id where there is no repository.

    None when it is to be looked for in the repository; ``NotFound`` when there is neither.
    """
    from cosmos_coherence.archive.listing import find_archive

    if found.repository.url and not name.endswith(".tar.gz"):
        return None
    return find_archive(name, (Path.cwd(), backups(found)))


def manifest(name: str, found: Settings) -> Manifest:
    """What the backup of that name says of itself. ``NotFound``, ``Damaged`` and the repository's errors."""
    from cosmos_coherence.archive.manifest import read_manifest
    from cosmos_coherence.flow import store

    if (file := archive(name, found)) is not None:
        return read_manifest(file)
    repository = store.open_repository(found)
    return store.manifest_of(repository, store.find(repository, name, project(found)))


@contextmanager
def opened(name: str, found: Settings) -> Iterator[BackupReader]:
    """The backup of that name, opened for restoring. An archive is unpacked beside the others, and proven first."""
    from cosmos_coherence.archive.reader import ArchiveReader
    from cosmos_coherence.flow import store
    from cosmos_coherence.flow.recover import RESTORE_SPOOL
    from cosmos_coherence.storage import local

    if (file := archive(name, found)) is None:
        with store.open_backup(found, name, project=project(found)) as reader:
            yield reader
        return
    with local.spool(backups(found), RESTORE_SPOOL) as spool, ArchiveReader.open_archive(file, spool) as reader:
        yield reader
