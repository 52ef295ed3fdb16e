"""A stack that is lost altogether is built again from the backup's own files."""

from __future__ import annotations

from pathlib import Path

import msgspec

from cosmos_coherence import errors
from cosmos_coherence.drivers.runtime import Runtime
from cosmos_coherence.model import Manifest, Stack
from cosmos_coherence.parts import BackupReader
from cosmos_coherence.sources.volume import ConfigRestorer


class Rebuilt(msgspec.Struct, frozen=True):
    """What the stack is to be made from."""

    compose_files: tuple[Path, ...] = ()
    """The Compose files that were in use at the backup; empty when the stack is there and says itself."""
    written: bool = False
    """Configuration files that were missing have been written."""


def from_nothing(runtime: Runtime, directory: Path, reader: BackupReader, *, run: str, dry_run: bool) -> Rebuilt:
    """Bring back the configuration files that are missing, and say which Compose files make the stack.

    A stack with containers is left alone: they know which files they were made from. Without containers the files of
    the backup count, so that production stays production. ``NotFound`` when there is nothing to build from.
    """
    if _containers(runtime):
        return Rebuilt()
    manifest = reader.manifest
    if manifest.runtime != "docker":
        return Rebuilt()
    if not manifest.config_files:
        return Rebuilt()
    files = tuple(directory / name for name in manifest.config_files)
    missing = [f for f in files if not f.exists()]
    config = manifest.part("config")
    if missing and (dry_run or config is None):
        names = ", ".join(str(f) for f in missing)
        raise errors.NotFound(
            f"the stack's Compose files are not here: {names}",
            remedy="A restore without --dry-run writes them from the backup."
            if config
            else "Run this in the project's folder; the backup does not hold its configuration.",
        )
    if config is not None and not dry_run:
        restorer = ConfigRestorer(config, directory, run, overwrite=False)
        restorer.stage(reader)
        restorer.swap()
        restorer.finish()
    return Rebuilt(files, written=bool(missing))


def _containers(runtime: Runtime) -> bool:
    try:
        stack: Stack = runtime.stack()
    except errors.NotFound:
        return False
    return any(s.state != "missing" for s in stack.services)


def project_named(manifest: Manifest, directory: Path) -> str | None:
    """The project's name for a folder that holds no Compose file of its own."""
    standard = ("compose.yaml", "compose.yml", "docker-compose.yml", "docker-compose.yaml")
    return None if any((directory / name).exists() for name in standard) else manifest.project
