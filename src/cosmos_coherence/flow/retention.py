"""Old backups go after a good run, and only as a plan says that was made first."""

from __future__ import annotations

from pathlib import Path

import msgspec

from cosmos_coherence import errors
from cosmos_coherence.archive import listing
from cosmos_coherence.archive import retention as archives
from cosmos_coherence.archive.listing import ArchiveInfo
from cosmos_coherence.archive.retention import RetentionPlan
from cosmos_coherence.flow import known, store
from cosmos_coherence.flow.store import Kept
from cosmos_coherence.settings import Settings


class Retention(msgspec.Struct, frozen=True):
    """What would be kept and what would go, in both places."""

    archives: RetentionPlan[ArchiveInfo]
    repository: RetentionPlan[Kept]

    @property
    def keep(self) -> tuple[str, ...]:
        """The ids that stay."""
        return (*(each.id for each in self.archives.keep), *(each.id for each in self.repository.keep))

    @property
    def remove(self) -> tuple[str, ...]:
        """The ids that go."""
        return (*(each.id for each in self.archives.remove), *(each.id for each in self.repository.remove))


def plan(settings: Settings, directory: Path, *, project: str | None, now_s: float) -> Retention:
    """Plan, and touch nothing. Archives of the folder; in the repository the backups of this project alone."""
    within = settings.retention.keep_within
    held: tuple[Kept, ...] = ()
    if store.configured(settings) and project:
        held = store.kept(store.open_repository(settings), project)
    return Retention(
        archives.plan_retention(listing.list_archives(directory), now_s, within),
        archives.plan_retention(held, now_s, within),
    )


def apply(
    settings: Settings, directory: Path, *, project: str | None, now_s: float, state: Path | None
) -> tuple[str, ...]:
    """Plan, then remove what the plan names; the ids that went. Data in the repository go with the next prune.

    ``state`` is the stack's state directory, whose record of backups (``known``) is told; None where there is none.
    """
    planned = plan(settings, directory, project=project, now_s=now_s)
    archives.apply(planned.archives)
    if planned.repository.remove:
        from cosmos_coherence.repository import locks

        repository = store.open_repository(settings)
        with locks.acquire(repository, exclusive=False):
            for each in planned.repository.remove:
                if state:  # first: what is gone and still known would be missed for ever
                    known.forget(state, repository.config.id, each.snapshot)
                try:
                    repository.remove_snapshot(each.snapshot)
                except errors.CosmosError:
                    if state:
                        known.add(state, repository, each.project, known.Backup(each.id, each.snapshot))
                    raise
    return planned.remove
