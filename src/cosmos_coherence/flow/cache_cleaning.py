"""``cosmos volume clean``: a cache is emptied while its program runs."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

from cosmos_coherence import errors
from cosmos_coherence.cut.lock import run_lock
from cosmos_coherence.drivers.folders import GONE, Folders
from cosmos_coherence.drivers.runtime import Runtime
from cosmos_coherence.flow import named_volume, volumes
from cosmos_coherence.model import Volume
from cosmos_coherence.sources import tree_scan
from cosmos_coherence.volumes.cache import LABEL, is_cache
from cosmos_coherence.volumes.usage import Usage, measure_tree


class CleanPlan(msgspec.Struct, frozen=True):
    """What is going to be cleared."""

    volume: Volume
    holds: Usage
    """What is in it now."""


def plan_clean(runtime: Runtime, name: str) -> CleanPlan:
    """Raises ``NotFound`` for an unknown volume, and ``Refused`` for one that nobody has marked as a cache."""
    stack = runtime.stack()
    volume = named_volume.find(stack, name)
    if not is_cache(volume, stack.project):
        raise errors.Refused(
            f"volume {volume.name} is not marked as a cache",
            remedy=f'If all in it may go, give it the label `{LABEL}: "true"` in the Compose file.',
        )
    return CleanPlan(volume, measure_tree(volumes.files_of(volume)))


def clean(runtime: Runtime, plan: CleanPlan, *, run: str) -> Usage:
    """Remove every file of it; what is left. Folders stay: their programs have made them when they started.

    No link is followed, and nothing is entered that is mounted inside. Raises ``Refused`` when something cannot be
    removed; what is gone by then is gone.
    """
    root: Path = volumes.files_of(plan.volume)
    with run_lock(runtime.state_directory(), run=run, what="volume clean"), Folders(root) as folders:
        for path, found in sorted(tree_scan.walk(root).names.items()):
            if found.kind == "dir":
                continue
            try:
                folder, step = folders.parent(path)
                os.unlink(step, dir_fd=folder)
            except OSError as error:
                if error.errno not in GONE:
                    raise errors.Refused(
                        f"{tree_scan.show(path)} in {root} cannot be removed: {error.strerror}",
                        remedy="Run as root, or look whether the volume is mounted read-only.",
                    ) from error
        return measure_tree(root)
