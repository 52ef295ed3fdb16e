"""Pieces of bytes, read as one file."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import BinaryIO, cast

from cosmos_coherence.repository.crypto import Buffer

_BUFFER = 1 << 16


def joined(pieces: Iterator[Buffer]) -> BinaryIO:
    """The pieces one after another; each is asked for when the one before has been read. What they raise passes."""
    return cast(BinaryIO, io.BufferedReader(_Joined(pieces), _BUFFER))


class _Joined(io.RawIOBase):
    def __init__(self, pieces: Iterator[Buffer]) -> None:
        self._pieces, self._rest = pieces, memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray | memoryview, /) -> int:  # type: ignore[override]
        room = memoryview(buffer)
        while not self._rest:
            piece = next(self._pieces, None)
            if piece is None:
                return 0
            self._rest = memoryview(piece)
        count = min(len(room), len(self._rest))
        room[:count] = self._rest[:count]
        self._rest = self._rest[count:]
        return count
