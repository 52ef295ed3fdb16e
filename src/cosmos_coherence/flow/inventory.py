"""Which backups there are of a stack, wherever they are kept."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from cosmos_coherence.archive import listing
from cosmos_coherence.archive.listing import ArchiveInfo
from cosmos_coherence.archive.retention import Dated
from cosmos_coherence.flow import store
from cosmos_coherence.flow.store import Kept
from cosmos_coherence.model import Manifest
from cosmos_coherence.settings import Settings

if TYPE_CHECKING:
    from cosmos_coherence.repository.repository import Repository


class Entry(msgspec.Struct, frozen=True):
    """One backup of a listing."""

    name: str
    """What a person calls it by: the file of an archive, the id of a backup in the repository."""
    size: int
    """Bytes: of the archive; of the parts before deduplication in a repository."""
    manifest: Manifest

    @property
    def summary(self) -> str:
        """Name and pause, for a sentence."""
        return f"{self.name}, pause {self.manifest.pause_ms:.1f} ms"


def backups(settings: Settings, directory: Path, *, project: str | None) -> tuple[tuple[Entry, ...], tuple[str, ...]]:
    """The backups in the repository (of that project) and the archives of the folder, oldest first, and a sentence for
    each snapshot of the repository that cannot be read.

    Raises as ``store.open_repository``.
    """
    found = [_of_archive(archive) for archive in listing.list_archives(directory)]
    damaged: tuple[str, ...] = ()
    if store.configured(settings):
        repository = store.open_repository(settings)
        found += [_of_repository(repository, kept) for kept in store.kept(repository, project)]
        damaged = store.damaged(repository)
    return tuple(sorted(found, key=lambda entry: (entry.manifest.instant, entry.name))), damaged


def newest(settings: Settings, directory: Path, *, project: str | None, complete: bool = False) -> Entry | None:
    """The newest backup that is no safety backup, of the complete ones alone if wanted; None when there is none.

    Raises as ``backups``.
    """
    archive = next((a for a in reversed(listing.list_archives(directory)) if _counts(a, complete)), None)
    found = [_of_archive(archive)] if archive else []
    if store.configured(settings):
        repository = store.open_repository(settings)
        kept = next((k for k in reversed(store.kept(repository, project)) if _counts(k, complete)), None)
        found += [_of_repository(repository, kept)] if kept else []
    return max(found, key=lambda entry: entry.manifest.instant, default=None)


def _counts(backup: Dated, complete: bool) -> bool:
    return not backup.safety and (backup.complete or not complete)


def _of_archive(archive: ArchiveInfo) -> Entry:
    return Entry(archive.path.name, archive.size, archive.manifest)


def _of_repository(repository: Repository, kept: Kept) -> Entry:
    manifest = store.manifest_of(repository, kept)
    return Entry(kept.id, sum(file.size for part in manifest.parts for file in part.files), manifest)
