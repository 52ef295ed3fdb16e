"""The named steps of everything that changes something: one list, in the order in which they are taken.

A run tells each of them just before it is taken (``Story.begin``, ``Story.cut``, the progress of a prune). The fault
harness in ``tests/faults`` breaks a run at every name that stands here, and fails when a run tells another.
"""

from __future__ import annotations

from typing import Final, Literal

from cosmos_coherence.cut import hold

BackupStep = Literal[
    "recover", "plan", "prepare", "hold", "capture", "pack", "verify", "publish", "export", "retention"
]
RestoreStep = Literal[
    "recover", "create", "safety", "stage", "stop", "swap", "compare", "start", "probe", "finish", "undo"
]

CUT: Final[tuple[str, ...]] = tuple(f"hold: {name}" for name in hold.STEPS)
"""Inside ``hold``, while the writers stand still; each just after it was taken."""
BACKUP: Final[tuple[str, ...]] = (
    "recover", "plan", "prepare", "hold", *CUT, "capture", "pack", "verify", "publish", "export", "retention",
)  # fmt: skip
"""``export`` only where an archive is wanted beside the repository."""
RESTORE: Final[tuple[str, ...]] = (
    "recover", "create", "safety", "stage", "stop", "swap", "compare", "start", "probe", "finish",
)  # fmt: skip
UNDO: Final = "undo"
"""Of a restore, instead of the rest, when any step before ``finish`` fails."""
PRUNE: Final[tuple[str, ...]] = ("plan", "repack", "index", "remove index", "remove data")
"""``repack`` and the removals are told once for each file."""
