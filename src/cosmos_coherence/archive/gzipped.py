"""Gzip in both directions, with bounded memory: compressed by several threads, read back with every checksum."""

from __future__ import annotations

import io
import struct
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor, Future
from typing import BinaryIO

from isal import igzip_lib, isal_zlib

from cosmos_coherence import errors

MEMBER = 1024 * 1024
"""Plain bytes of one gzip member: members are compressed on their own and simply follow each other."""
_LEVEL = 2
_CHUNK = 128 * 1024
_STORED_HEADER = bytes.fromhex("1f8b08000000000000ff")
_LARGEST_BLOCK = 0xFFFF
_LAST_BLOCK = struct.pack("<BHH", 1, 0, 0xFFFF)


def compress(plain: bytes | bytearray | memoryview) -> bytes:
    """One whole gzip member."""
    return igzip_lib.compress(plain, _LEVEL, igzip_lib.COMP_GZIP)


def decompress(member: bytes) -> bytes:
    """The plain bytes of members that this program has just written."""
    return igzip_lib.decompress(member, igzip_lib.DECOMP_GZIP)


class StoredGzip:
    """Makes a gzip file of bytes that are compressed already: stored blocks and a checksum, nothing more."""

    def __init__(self) -> None:
        self._head = _STORED_HEADER
        self._crc = 0
        self._size = 0

    def pack(self, plain: bytes) -> bytes:
        """The next bytes of the file."""
        pieces: list[bytes | memoryview] = [self._head]
        self._head = b""
        self._crc = isal_zlib.crc32(plain, self._crc)
        self._size += len(plain)
        view = memoryview(plain)
        for at in range(0, len(plain), _LARGEST_BLOCK):
            block = view[at : at + _LARGEST_BLOCK]
            pieces += (struct.pack("<BHH", 0, len(block), ~len(block) & 0xFFFF), block)
        return b"".join(pieces)

    def end(self) -> bytes:
        """The last bytes of the file."""
        return self._head + _LAST_BLOCK + struct.pack("<II", self._crc, self._size & 0xFFFFFFFF)


class ParallelGzip:
    """Compresses members in a pool of threads, at most ``ahead`` at once, and hands them on in the order they came."""

    def __init__(self, pool: Executor, ahead: int) -> None:
        self._pool, self._ahead = pool, ahead
        self._under_way: deque[tuple[Future[bytes], Callable[[bytes], object]]] = deque()

    def put(self, plain: bytes | bytearray, then: Callable[[bytes], object]) -> None:
        """Compress ``plain``, which the caller must not change any more, and call ``then`` with the member.

        ``then`` runs in the thread of the caller, here or in ``flush``."""
        self._under_way.append((self._pool.submit(compress, plain), then))
        self._settle(self._ahead)

    def flush(self) -> None:
        """Wait until every member was handed on."""
        self._settle(0)

    def _settle(self, allowed: int) -> None:
        while len(self._under_way) > allowed:
            future, then = self._under_way.popleft()
            then(future.result())


class Gunzip:
    """The plain bytes of a gzip file: all its members and nothing else, each checksum verified.

    Raises ``Damaged`` for bytes that are no gzip or are cut short, and ``Hostile`` as soon as more than ``limit``
    plain bytes come out.
    """

    def __init__(self, file: BinaryIO, limit: int | None = None) -> None:
        self._file, self._limit = file, limit
        self._member = igzip_lib.IgzipDecompressor(flag=igzip_lib.DECOMP_GZIP)
        self._buffer, self._at = b"", 0
        self.total = 0
        """Plain bytes that came out so far, those still buffered included."""

    def read(self, size: int) -> bytes:
        """The next ``size`` bytes; fewer only at the end."""
        pieces: list[bytes] = []
        while size:
            if self._at == len(self._buffer):
                self._buffer, self._at = self._more(), 0
                if not self._buffer:
                    break
            piece = self._buffer[self._at : self._at + size]
            self._at += len(piece)
            size -= len(piece)
            pieces.append(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def exactly(self, size: int) -> bytes:
        """The next ``size`` bytes, or ``Damaged``."""
        data = self.read(size)
        if len(data) != size:
            raise errors.Damaged("the file ends too early")
        return data

    def skip(self, size: int) -> None:
        """Pass over ``size`` bytes, or ``Damaged``."""
        while size:
            size -= len(self.exactly(min(size, MEMBER)))

    def _more(self) -> bytes:
        while True:
            given = b""
            if self._member.eof:
                given = self._member.unused_data or self._fill()
                if not given:
                    return b""
                self._member = igzip_lib.IgzipDecompressor(flag=igzip_lib.DECOMP_GZIP)
            elif self._member.needs_input:
                given = self._fill()
                if not given:
                    raise errors.Damaged("the compressed file ends too early")
            try:
                plain = self._member.decompress(given, MEMBER)
            except igzip_lib.IsalError as error:  # type: ignore[misc]  # the stub calls the class an instance
                raise errors.Damaged("the compressed bytes are damaged") from error
            if plain:
                self.total += len(plain)
                if self._limit is not None and self.total > self._limit:
                    raise errors.Hostile(f"a file unpacks to more than the {self._limit} bytes it declares")
                return plain

    def _fill(self) -> bytes:
        try:
            return self._file.read(_CHUNK)
        except OSError as error:
            raise errors.Damaged(f"the file cannot be read: {error.strerror}") from error


class Slice(io.RawIOBase):
    """The next ``size`` bytes of a stream as a file; ``Damaged`` when it ends before."""

    def __init__(self, stream: Gunzip, size: int) -> None:
        super().__init__()
        self._stream = stream
        self.left = size
        """Bytes not read yet."""

    def readable(self) -> bool:
        """It is read only."""
        return True

    def read(self, size: int | None = -1) -> bytes:
        """Up to ``size`` bytes, all that is left without one."""
        wanted = self.left if size is None or size < 0 else min(size, self.left)
        data = self._stream.exactly(wanted)
        self.left -= len(data)
        return data

    def readall(self) -> bytes:
        """All that is left."""
        return self.read()

    def readinto(self, buffer: bytearray | memoryview, /) -> int:  # type: ignore[override]
        """Fill ``buffer`` as far as there are bytes."""
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def pass_over(self) -> None:
        """Skip what nobody read, and read nothing more afterwards."""
        self._stream.skip(self.left)
        self.left = 0
