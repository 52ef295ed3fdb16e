"""Walk a tree and tell of all that is in it.

By folder descriptors and never along a link, so whatever is swapped in meanwhile, it stays inside its root. Neither the
depth of a tree nor the length of a path has a limit: coming back from very deep folders, it begins anew from the root.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, Protocol

from cosmos_coherence.drivers.bulk_stat import AT_ONCE, BulkStat, packed_device
from cosmos_coherence.drivers.folders import FOLDER_FLAGS, GONE, names_in

DEEPEST: Final = 100
"""Folders that are open at a time."""


class Counter(Protocol):
    """Who is told what a walk meets. Paths are bytes, relative to the root, which is ``b""``."""

    unreadable: int
    """Names that could not be looked at."""

    def fresh(self) -> Counter:
        """An empty one of the same kind, for another process."""
        ...

    def merge(self, other: Any) -> None:
        """Take over what one of the same kind was told in another process."""
        ...

    def folder(self, path: bytes, blocks: int) -> None:
        """There is a folder, which itself takes so many blocks."""
        ...

    def enter(self, folder: int, path: bytes) -> None:
        """This open folder is going to be listed."""
        ...

    def take(self, seen: BulkStat, names: Sequence[bytes], path: bytes, device: int) -> list[bytes]:
        """These names are in the folder ``path``. Returns the paths of those that are folders, to be entered. What lies
        on another device than the root's does not count."""
        ...


class Walk:
    """Tells ``counter`` what lies below ``root``. ``todo`` holds the paths of the folders that are to be entered."""

    def __init__(self, root: Path | int, counter: Counter, *, alone: bool = False) -> None:
        """``alone``: no other thread of this process is kept waiting."""
        self.root = os.dup(root) if isinstance(root, int) else os.open(root, FOLDER_FLAGS & ~os.O_NOFOLLOW)
        self.device = packed_device(os.fstat(self.root).st_dev)
        self.counter = counter
        self.todo: list[bytes] = []
        self.names = 0
        self._seen = BulkStat(alone=alone)
        self._chain: deque[tuple[bytes, int]] = deque()

    def begin(self) -> None:
        """The root itself is counted, and is what is to be entered first."""
        self.counter.folder(b"", os.fstat(self.root).st_blocks)
        self.todo.append(b"")

    def step(self) -> None:
        """Enter the folder that was found last."""
        path = self.todo.pop()
        try:
            folder = self.opened(path)
            self.counter.enter(folder, path)
            listed = names_in(folder)
        except OSError as error:
            if error.errno not in GONE:
                self.counter.unreadable += 1
            return
        self.names += len(listed)
        self.look(folder, path, listed)

    def look(self, folder: int, path: bytes, names: Sequence[bytes]) -> None:
        """Tell of these names of the open folder ``path``."""
        for at in range(0, len(names), AT_ONCE):
            there, refused = self._seen.look(folder, names[at : at + AT_ONCE])
            self.counter.unreadable += refused
            self.todo += self.counter.take(self._seen, there, path, self.device)

    def opened(self, path: bytes) -> int:
        """The open folder. Those above it stay open too, as long as what comes lies below them. ``OSError``."""
        chain = self._chain
        while chain and path != chain[-1][0] and not path.startswith(chain[-1][0] + b"/"):
            os.close(chain.pop()[1])
        at, folder = chain[-1] if chain else (b"", self.root)
        for step in path[len(at) :].lstrip(b"/").split(b"/") if path != at else ():
            folder = os.open(step, FOLDER_FLAGS, dir_fd=folder)
            at = at + b"/" + step if at else step
            chain.append((at, folder))
            if len(chain) > DEEPEST:
                os.close(chain.popleft()[1])
        return folder

    def close(self) -> None:
        """Give the descriptors back."""
        for _, folder in self._chain:
            os.close(folder)
        self._chain.clear()
        os.close(self.root)
