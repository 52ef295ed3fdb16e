"""The content of a file as a stream, put together from its runs of data."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO, Final, Protocol

from cosmos_coherence.sources import tree_scan

_BUFFER: Final = 1 << 20


class Store(Protocol):
    """Where the bytes of a ``content`` lie."""

    def read_at(self, position: int, room: memoryview) -> int:
        """Fill ``room`` from there as far as possible and say how much."""
        ...


def content(store: Store, size: int, runs: Sequence[tuple[int, int, int]]) -> BinaryIO:
    """A seekable file of exactly ``size`` bytes made of runs (offset, length, position in the store), zeros elsewhere.

    A store that ends early reads as zeros too: a live file that shrinks under its reader has changed, is read again,
    and must not disturb the writer of the tree meanwhile. ``OSError`` comes out as ``CaptureFailed``.
    """
    return io.BufferedReader(_Content(store, size, runs), max(1, min(size, _BUFFER)))


class OpenFile:
    """A file's descriptor as a ``Store``. ``path`` and ``root`` are for the sentence when it cannot be read."""

    def __init__(self, file: int, path: bytes, root: Path) -> None:
        self._file, self._path, self._root = file, path, root

    def read_at(self, position: int, room: memoryview) -> int:
        """Read there. Raises ``CaptureFailed``."""
        try:
            return os.preadv(self._file, [room], position)
        except OSError as error:
            raise tree_scan.unreadable(self._path, self._root, error) from error


class _Content(io.RawIOBase):
    def __init__(self, store: Store, size: int, runs: Sequence[tuple[int, int, int]]) -> None:
        self._store, self._size, self._runs = store, size, runs
        self._at = self._run = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        self._at, self._run = max(0, start + offset), 0
        return self._at

    def readinto(self, buffer: bytearray | memoryview, /) -> int:  # type: ignore[override]
        while self._run < len(self._runs) and self._at >= sum(self._runs[self._run][:2]):
            self._run += 1
        offset, length, position = self._runs[self._run] if self._run < len(self._runs) else (self._size, 0, 0)
        inside = self._at >= offset
        room = memoryview(buffer)[: max(0, (offset + length if inside else offset) - self._at)]
        done = self._store.read_at(position + self._at - offset, room) if inside and room else 0
        if done == 0:
            room[:] = bytes(len(room))
            done = len(room)
        self._at += done
        return done
