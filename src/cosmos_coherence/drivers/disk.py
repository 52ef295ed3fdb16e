"""The disk that a folder lies on: of what kind it is, and having everything on it."""

from __future__ import annotations

import ctypes
import os
from typing import Final

_MEMORY: Final = frozenset({0x01021994, 0x858458F6})  # tmpfs, ramfs
_LOCAL: Final = _MEMORY | {0xEF53, 0x58465342, 0x9123683E, 0xF2F52010, 0x2FC12FC1}  # ext, xfs, btrfs, f2fs, zfs


def sync(folder: int) -> None:
    """Write everything of the file system that holds this open folder to its disk. Raises ``OSError``."""
    if ctypes.CDLL(None, use_errno=True).syncfs(folder) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def is_local(descriptor: int) -> bool:
    """Whether nobody changes the disk of this open file or folder but through this kernel; False when in doubt."""
    return _magic(descriptor) in _LOCAL


def is_memory(descriptor: int) -> bool:
    """Whether its files lie in memory only: writing to one that is mapped never moves its times."""
    return _magic(descriptor) in _MEMORY


def _magic(descriptor: int) -> int:
    room = ctypes.create_string_buffer(256)
    if ctypes.CDLL(None, use_errno=True).fstatfs(descriptor, room) != 0:
        return 0
    return int.from_bytes(room.raw[:8], "little") & 0xFFFFFFFF
