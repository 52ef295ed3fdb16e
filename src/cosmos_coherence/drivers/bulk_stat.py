"""The status of many names at once.

The interpreter's own calls make an object of some twenty numbers for each name; where a million are looked at to add up
four of those numbers, that takes longer than the system itself. Here the system writes into one piece of memory, out
of which whole columns are read.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Callable, Sequence
from itertools import repeat
from typing import Any, Final

AT_ONCE: Final = 256
"""Names that are looked at in one go, so that what is known of them stays in the processor's own memory."""
_SIZE: Final = 256  # of `struct statx`, on every machine
_NOT_FOLLOWED: Final = 0x100 | 0x800  # AT_SYMLINK_NOFOLLOW, AT_NO_AUTOMOUNT
_WANTED: Final = 0x1 | 0x2 | 0x4 | 0x40 | 0x100 | 0x200 | 0x400  # type, mode, nlink, mtime, ino, size, blocks


class BulkStat:
    """Room for ``AT_ONCE`` names. Links are not followed. For one thread at a time."""

    def __init__(self, *, alone: bool = False) -> None:
        """``alone``: no other thread is kept waiting, so that the interpreter's lock need not be given away."""
        libc = ctypes.PyDLL(None) if alone else ctypes.CDLL(None)
        self._statx: Callable[..., int] = getattr(libc, "statx", lambda *_: -1)
        room = ctypes.create_string_buffer(_SIZE * AT_ONCE)
        self._places: list[Any] = [ctypes.byref(room, _SIZE * number) for number in range(AT_ONCE)]
        raw = memoryview(room).cast("B")
        wide, middle, narrow = raw.cast("Q"), raw.cast("I"), raw.cast("H")
        self._links, self._modes = middle[4::64], narrow[14::128]
        self._inodes, self._sizes, self._blocks = wide[4::32], wide[5::32], wide[6::32]
        self._mtimes, self._devices = raw.cast("q")[14::32], wide[17::32]
        self._count = 0

    def look(self, folder: int, names: Sequence[bytes]) -> tuple[Sequence[bytes], int]:
        """Look at these names (``AT_ONCE`` at most) of an open folder. Returns those that are there, whose columns can
        be read from now on, and the number of those that may not be looked at."""
        said = list(map(self._statx, repeat(folder), names, repeat(_NOT_FOLLOWED), repeat(_WANTED), self._places))
        self._count = len(names)
        return (names, 0) if not any(said) else self._one_by_one(folder, names)

    def _one_by_one(self, folder: int, names: Sequence[bytes]) -> tuple[Sequence[bytes], int]:
        """Somebody has removed one of them, or forbids to look, or this system does not know the call."""
        there: list[bytes] = []
        refused = 0
        for name in names:
            try:
                found = os.stat(name, dir_fd=folder, follow_symlinks=False)
            except FileNotFoundError:
                continue
            except OSError:
                refused += 1
                continue
            at = len(there)
            self._links[at], self._modes[at], self._inodes[at] = found.st_nlink, found.st_mode, found.st_ino
            self._sizes[at], self._blocks[at], self._mtimes[at] = found.st_size, found.st_blocks, int(found.st_mtime)
            self._devices[at] = packed_device(found.st_dev)
            there.append(name)
        self._count = len(there)
        return there, refused

    def blocks(self) -> list[int]:
        """Of 512 bytes each."""
        return self._blocks[: self._count].tolist()

    def sizes(self) -> list[int]:
        """As a reader sees them."""
        return self._sizes[: self._count].tolist()

    def modes(self) -> list[int]:
        """Kind and rights."""
        return self._modes[: self._count].tolist()

    def links(self) -> list[int]:
        """How many names each file has."""
        return self._links[: self._count].tolist()

    def inodes(self) -> list[int]:
        """Their numbers."""
        return self._inodes[: self._count].tolist()

    def mtimes(self) -> list[int]:
        """Seconds since the epoch."""
        return self._mtimes[: self._count].tolist()

    def devices(self) -> list[int]:
        """As ``packed_device`` writes them."""
        return self._devices[: self._count].tolist()


def packed_device(device: int) -> int:
    """A device's number in the form in which columns have it."""
    pair = os.major(device).to_bytes(4, sys.byteorder) + os.minor(device).to_bytes(4, sys.byteorder)
    return int.from_bytes(pair, sys.byteorder)
