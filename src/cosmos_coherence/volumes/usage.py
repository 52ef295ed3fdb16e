"""How much a folder holds."""

from __future__ import annotations

import os
import stat
from pathlib import Path


def folder_size(root: Path) -> int:
    """Bytes that the files below ``root`` take on disk: hard links once, sparse files by their blocks.

    What vanishes or cannot be read meanwhile counts nothing. Links are not followed.
    """
    total = 0
    seen: set[tuple[int, int]] = set()
    waiting = [os.fsencode(root)]
    while waiting:
        try:
            with os.scandir(waiting.pop()) as found:
                entries = list(found)
        except OSError:
            continue
        for entry in entries:
            try:
                status = entry.stat(follow_symlinks=False)
            except OSError:
                continue
            if stat.S_ISDIR(status.st_mode):
                waiting.append(entry.path)
                continue
            if status.st_nlink > 1:
                if (status.st_dev, status.st_ino) in seen:
                    continue
                seen.add((status.st_dev, status.st_ino))
            total += status.st_blocks * 512
    return total
