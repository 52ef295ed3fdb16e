"""The contents that an anchor kept: read, one after another in one file that has no name, or cloned where the file
system does that, to be read later."""

from __future__ import annotations

import errno
import mmap
import os
import tempfile
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import BinaryIO, Final

from cosmos_coherence import errors
from cosmos_coherence.drivers import reflink
from cosmos_coherence.sources import tree_clone, tree_read

_MIB: Final = 1 << 20
_IN_MEMORY: Final = 64 * _MIB
"""They are kept in memory up to here, then in a temporary file."""


class Held:
    """What was kept so far, by path."""

    def __init__(self, spool: Path, expected: int) -> None:
        """Made before the hold: memory for about the ``expected`` bytes is there then, and need not be found in it."""
        self._file = tempfile.TemporaryFile(dir=str(spool))  # noqa: SIM115 - closed by close
        self._place = spool
        size = min(_IN_MEMORY, 2 * expected + _MIB)
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | mmap.MAP_POPULATE
        self._memory = memoryview(mmap.mmap(-1, size, flags=flags))
        self._end = 0
        """So much was read: the first of it lies in memory, the rest in the file."""
        self._clones: dict[bytes, tree_read.OpenFile] = {}
        self._opened: list[int] = []
        self._runs: dict[bytes, Sequence[tuple[int, int, int]]] = {}
        self._page = memoryview(bytearray(_MIB))

    def take(
        self, path: bytes, file: int, runs: Sequence[tuple[int, int]], root: Path, *, clones: int | None = None
    ) -> None:
        """Keep these (offset, length) runs of the open file at ``path`` in ``root``.

        ``clones``: an open folder whose files can be cloned. Raises ``CaptureFailed``, or ``NoRoom``.
        """
        if clones is not None and self._clone(path, file, root, clones):
            self._runs[path] = [(offset, length, offset) for offset, length in runs]
        else:
            self._read(path, tree_read.OpenFile(file, path, root), runs)

    def _clone(self, path: bytes, file: int, root: Path, folder: int) -> bool:
        if len(self._opened) >= tree_clone.MOST or os.fstat(file).st_size < tree_clone.SIZE:
            return False
        try:
            self._opened.append(reflink.clone(file, folder))
        except OSError:  # no room, or a file of another kind: reading it does, or says what is wrong
            return False
        self._clones[path] = tree_read.OpenFile(self._opened[-1], path, root)
        return True

    def _read(self, path: bytes, source: tree_read.Store, runs: Sequence[tuple[int, int]]) -> None:
        kept: list[tuple[int, int, int]] = []
        self._runs[path] = kept
        try:
            for offset, length in runs:
                done = 0
                while done < length:
                    memory = self._memory[self._end :]
                    into = (memory or self._page)[: length - done]
                    got = source.read_at(offset + done, into)
                    if got == 0:
                        break
                    if not memory:
                        self._file.write(into[:got])
                    kept.append((offset + done, got, self._end))
                    self._end += got
                    done += got
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise errors.NoRoom(f"no room in {self._place} for what changed last: {error.strerror}") from error
            raise errors.CaptureFailed(f"{self._place} cannot be written: {error.strerror}") from error

    def paths(self) -> Collection[bytes]:
        """What was taken, in that order."""
        return self._runs.keys()

    def content(self, path: bytes, size: int) -> BinaryIO:
        """The content of a file of this size."""
        return tree_read.content(self._clones.get(path, self), size, self._runs[path])

    def read_at(self, position: int, room: memoryview) -> int:
        """As ``tree_read.Store`` says."""
        if part := self._memory[position : position + len(room)]:
            room[: len(part)] = part
            return len(part)
        self._file.seek(position - len(self._memory))
        return int(self._file.readinto(room))

    def close(self) -> None:
        """Forget it all."""
        self._file.close()
        self._memory = memoryview(b"")
        while self._opened:
            os.close(self._opened.pop())
