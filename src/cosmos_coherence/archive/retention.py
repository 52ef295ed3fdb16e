"""Which backups may go. Planned without touching anything, then done."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Generic, Protocol, TypeVar

import msgspec

from cosmos_coherence.archive.listing import ArchiveInfo
from cosmos_coherence.storage import local


class Dated(Protocol):
    """What retention asks of a backup."""

    @property
    def id(self) -> str:
        """Its name among the others."""
        ...

    @property
    def made_s(self) -> float:
        """When it was made, seconds since the epoch."""
        ...

    @property
    def safety(self) -> bool:
        """Made by a restore before it overwrote anything."""
        ...

    @property
    def complete(self) -> bool:
        """Nothing is missing."""
        ...


D = TypeVar("D", bound=Dated)


class RetentionPlan(msgspec.Struct, Generic[D], frozen=True):
    """What stays and what goes, oldest first."""

    keep: tuple[D, ...]
    remove: tuple[D, ...]


def plan_retention(archives: Iterable[D], now_s: float, keep_within_s: float) -> RetentionPlan[D]:
    """Remove what was made more than ``keep_within_s`` seconds before ``now_s`` (seconds since the epoch).

    Always kept: what is dated in the future, the newest good one, and the newest of all. Good is complete and no safety
    backup; what is dated in the future is neither the newest nor good.
    """
    ordered = sorted(archives, key=lambda archive: (archive.made_s, archive.id))
    past = [archive for archive in ordered if archive.made_s <= now_s]
    backups = [archive for archive in past if not archive.safety]
    good = [archive for archive in backups if archive.complete]
    spared = {archive.id for newest in (past[-1:], backups[-1:], good[-1:]) for archive in newest}
    remove = tuple(a for a in past if now_s - a.made_s > keep_within_s and a.id not in spared)
    gone = {archive.id for archive in remove}
    return RetentionPlan(tuple(a for a in ordered if a.id not in gone), remove)


def apply(plan: RetentionPlan[ArchiveInfo]) -> None:
    """Remove the archives of the plan and the manifests beside them. What is gone already is fine.

    ``Refused`` when we may not. The archive goes last: one without its manifest is whole, and goes next time.
    """
    for archive in plan.remove:
        with local.translated(f"removing {archive.path}"):
            archive.path.with_name(f"{archive.id}.json").unlink(missing_ok=True)
            archive.path.unlink(missing_ok=True)
    for folder in {archive.path.parent for archive in plan.remove}:
        local.sync_folder(folder)
