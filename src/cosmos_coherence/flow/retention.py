"""Old archives go after a good run, and only as a plan says that was made first."""

from __future__ import annotations

from pathlib import Path

from cosmos_coherence.archive import listing
from cosmos_coherence.archive import retention as archive_retention


def plan(directory: Path, *, keep_within_s: float, now_s: float) -> archive_retention.RetentionPlan:
    """What would be kept and what would go."""
    return archive_retention.plan_retention(listing.list_archives(directory), now_s, keep_within_s)


def apply(directory: Path, *, keep_within_s: float, now_s: float) -> tuple[str, ...]:
    """Plan, then remove what the plan names; the ids that went."""
    planned = plan(directory, keep_within_s=keep_within_s, now_s=now_s)
    archive_retention.apply(planned)
    return tuple(archive.id for archive in planned.remove)
