"""Which archives lie in a folder, and which one a person means."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from cosmos_coherence import errors, manifests
from cosmos_coherence.archive.manifest import read_manifest
from cosmos_coherence.archive.names import LATEST, SAFETY_PREFIX, SPOOL_PREFIX
from cosmos_coherence.model import Manifest
from cosmos_coherence.storage import local

_ENDING = ".tar.gz"
_ID = re.compile(rf"(?:{SAFETY_PREFIX})?(\d{{8}}_\d{{6}})", re.ASCII)


class ArchiveInfo(msgspec.Struct, frozen=True):
    """One archive of ours on the disk."""

    id: str
    """Its name without the ending; that of a safety backup begins with ``safety-``."""
    path: Path
    size: int
    manifest: Manifest

    @property
    def safety(self) -> bool:
        """Made by a restore before it overwrote anything."""
        return self.manifest.safety

    @property
    def complete(self) -> bool:
        """Nothing is missing."""
        return self.manifest.complete

    @property
    def made_s(self) -> float:
        """When it was made, as its name says: seconds since the epoch."""
        made = _made(self.id)
        assert made is not None
        return made.timestamp()


def list_archives(directory: Path) -> tuple[ArchiveInfo, ...]:
    """The archives of ours in a folder, oldest first; everything else there is ignored.

    The manifest beside an archive is read; where it is missing or broken, the one inside. An archive of ours that has
    neither is not listed but named by ``unreadable``.
    """
    found = [_info(path) for path in _archives(directory)]
    return tuple(sorted((info for info in found if info is not None), key=lambda info: (info.made_s, info.id)))


def unreadable(directory: Path) -> tuple[Path, ...]:
    """The files that bear the name of an archive of ours, but whose manifest cannot be read."""
    return tuple(path for path in _archives(directory) if _info(path) is None)


def leftovers(directory: Path) -> tuple[Path, ...]:
    """What runs that were killed left in a folder of archives: spools, temporary files, manifests without archive."""
    known = {path.name.removesuffix(_ENDING) for path in _archives(directory)}
    found: list[Path] = []
    for path in _names(directory):
        spool = path.name.startswith(SPOOL_PREFIX) and path.is_dir()
        temporary = path.name.startswith(".") and path.name.endswith(".tmp") and path.is_file()
        lonely = path.suffix == ".json" and _made(path.stem) is not None and path.stem not in known
        if spool or temporary or lonely:
            found.append(path)
    return tuple(found)


def find_archive(name: str, directories: Sequence[Path]) -> Path:
    """The archive that a person calls ``latest``, by its id, its file name or a path; ``directories`` in their order.

    ``NotFound`` when none of them has it.
    """
    for directory in directories:
        for candidate in (name, name + _ENDING, SAFETY_PREFIX + name + _ENDING):
            path = directory / candidate  # an absolute name stays itself
            if path.is_file():
                return path
    where = " or ".join(str(directory) for directory in directories)
    raise errors.NotFound(f"there is no backup {name} in {where}", remedy="`cosmos list` shows the backups.")


def _archives(directory: Path) -> list[Path]:
    return [
        path
        for path in _names(directory)
        if path.name != LATEST
        and path.name.endswith(_ENDING)
        and _made(path.name.removesuffix(_ENDING)) is not None
        and path.is_file()
        and not path.is_symlink()
    ]


def _names(directory: Path) -> list[Path]:
    if not directory.exists():
        return []
    with local.translated(f"listing {directory}"):
        return sorted(directory.iterdir())


def _info(path: Path) -> ArchiveInfo | None:
    name = path.name.removesuffix(_ENDING)
    try:
        with local.translated(f"reading {path}"):
            size = path.stat().st_size
            beside = path.with_name(f"{name}.json").read_bytes() if path.with_name(f"{name}.json").is_file() else b""
        manifest = _decoded(beside) or read_manifest(path)
    except errors.CosmosError:
        return None
    if name != (SAFETY_PREFIX if manifest.safety else "") + manifest.id:
        return None
    return ArchiveInfo(name, path, size, manifest)


def _decoded(text: bytes) -> Manifest | None:
    try:
        return manifests.decode(text)
    except errors.CosmosError:
        return None


def _made(name: str) -> datetime | None:
    if not (found := _ID.fullmatch(name)):
        return None
    try:
        return datetime.strptime(found[1], "%Y%m%d_%H%M%S").replace(tzinfo=UTC)
    except ValueError:
        return None
