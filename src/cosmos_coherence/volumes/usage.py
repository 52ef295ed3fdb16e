"""How much a folder holds."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Usage:
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
    systems mounted below are not entered.
    """
    files = unreadable = 0
    seen: set[tuple[int, int]] = set()
    start = root.stat()
    waiting = [os.fsencode(root)]
    total, folders = start.st_blocks * 512, 1
    while waiting:
        try:
            with os.scandir(waiting.pop()) as found:
                entries = list(found)
        except FileNotFoundError:
            continue
        except OSError:
            unreadable += 1
            continue
        for entry in entries:
            try:
                status = entry.stat(follow_symlinks=False)
            except OSError:
                continue
            if stat.S_ISDIR(status.st_mode):
                if status.st_dev == start.st_dev:
                    waiting.append(entry.path)
                    total, folders = total + status.st_blocks * 512, folders + 1
                continue
            if status.st_nlink > 1:
                if (status.st_dev, status.st_ino) in seen:
                    continue
                seen.add((status.st_dev, status.st_ino))
            total, files = total + status.st_blocks * 512, files + 1
    return Usage(total, files, folders, unreadable)


def folder_size(root: Path) -> int:
    """Bytes that the tree below ``root`` takes on disk, 0 when it cannot be looked at."""
    try:
        return measure_tree(root).bytes
    except OSError:
        return 0
