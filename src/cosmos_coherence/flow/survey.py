"""Look at a stack with everything that discovery needs to know about folders."""

from __future__ import annotations

from pathlib import Path

from cosmos_coherence import errors
from cosmos_coherence.discover.coverage import Coverage, Looks, cover
from cosmos_coherence.drivers import process
from cosmos_coherence.flow import store
from cosmos_coherence.model import Stack
from cosmos_coherence.settings import Settings
from cosmos_coherence.sources.tree_scan import looks_like_database
from cosmos_coherence.volumes.usage import folder_size


def survey(stack: Stack, settings: Settings, *, backups: Path) -> Coverage:
    """What a backup of this stack holds and what it does not."""
    looks = Looks(holds=looks_like_database, size=folder_size, tracked=_tracked_by_git)
    return cover(stack, settings.source, looks, backups=(backups, *store.local_folder(settings)))


def _tracked_by_git(path: Path) -> bool:
    """Whether git keeps any file of this folder, so that it can be had back without a backup."""
    folder, name = (path, ".") if path.is_dir() else (path.parent, path.name)
    try:
        listed = process.run(
            ["git", "-c", "safe.directory=*", "-C", str(folder), "ls-files", "--", name], limit=1 << 20
        )
    except errors.CommandFailed:
        return False  # no git here, or no work tree: then only a backup has it
    return bool(listed.strip())
