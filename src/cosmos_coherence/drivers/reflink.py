"""Clones of open files where the file system shares blocks between files (Btrfs, XFS): whole in no time, no byte read.

A clone has no name. Nobody sees it, it lies on the file's own file system, and the kernel removes it when it is closed,
also by the death of the program: nothing is left to clean up.
"""

from __future__ import annotations

import fcntl
import os
import struct
from contextlib import suppress
from typing import Final

_CLONE: Final = 0x40049409
_GET_FLAGS: Final = 0x80086601
_SET_FLAGS: Final = 0x40086602
_NO_COPY_ON_WRITE: Final = 0x00800000
"""``chattr +C`` of Btrfs, usual for databases: such a file is only cloned into one that has it too."""


def is_offered(folder: int) -> bool:
    """Whether files of this open folder can be cloned. Nothing is left of the trial."""
    try:
        trial = _unnamed(folder)
    except OSError:
        return False
    try:
        os.close(clone(trial, folder))
    except OSError:
        return False
    finally:
        os.close(trial)
    return True


def clone(file: int, folder: int) -> int:
    """A descriptor of a new file with the content of an open one, holes included, both below the same mount as the
    open ``folder``.

    What is still to be written of the file goes to its disk first, so that has to be little. Raises ``OSError`` where
    this cannot be had.
    """
    copy = _unnamed(folder)
    try:
        with suppress(OSError):
            if (flags := _flags(file)) & _NO_COPY_ON_WRITE:
                fcntl.ioctl(copy, _SET_FLAGS, struct.pack("l", _flags(copy) | flags & _NO_COPY_ON_WRITE))
        fcntl.ioctl(copy, _CLONE, file)
    except OSError:
        os.close(copy)
        raise
    return copy


def _unnamed(folder: int) -> int:
    return os.open(".", os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600, dir_fd=folder)


def _flags(file: int) -> int:
    return int(struct.unpack("l", fcntl.ioctl(file, _GET_FLAGS, bytes(8)))[0])
