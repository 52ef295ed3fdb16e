"""How much a folder holds."""

from __future__ import annotations

from pathlib import Path

import msgspec


class Usage(msgspec.Struct, frozen=True):
    """What the tree below a folder takes, hard links once, sparse files by their blocks."""

    bytes: int
    """On disk, folders themselves included, as ``du -s --block-size=1`` counts."""
    files: int
    """Everything that is no folder; a file with several names counts once."""
    folders: int
    unreadable: int = 0
    """Names that could not be looked at: the figures are a lower bound then."""


def measure_tree(root: Path) -> Usage:
    """Measure the tree below ``root``. What vanishes meanwhile counts nothing; links are not followed; other file
    systems mounted below are not entered. ``OSError`` when the root itself cannot be opened.
    """
    from cosmos_coherence.volumes.walkers import count_tree

    return count_tree(root).usage


def folder_size(root: Path) -> int:
    """Bytes that the tree below ``root`` takes on disk, 0 when it cannot be looked at."""
    try:
        return measure_tree(root).bytes
    except OSError:
        return 0
