"""Cutting a stream into chunks where its content says so, so that an insertion moves only the chunks around it.

FastCDC, seeded with a secret of the repository: the public table of the method would let the sizes of chunks tell which
known file they are of. What the format asks for is only that a chunk has at most 8 MiB.
"""

from __future__ import annotations

import hashlib
import hmac
import queue
import threading
from collections.abc import Callable, Iterator
from typing import BinaryIO, Final, Protocol, cast

from pyfastcdc import FastCDC

from cosmos_coherence import content_digest
from cosmos_coherence.repository.crypto import Key

MIN_SIZE: Final = content_digest.SMALL + 1
MAX_SIZE: Final = 8 << 20
_AVERAGE: Final = 1 << 20  # on top of the minimum

Readinto = Callable[[memoryview], int]


class Pool:
    """Reusable buffers of ``size`` bytes, at most ``count`` of them at a time: what bounds the memory of a backup.

    They are made when first needed. Safe to use from several threads.
    """

    def __init__(self, count: int, size: int = MAX_SIZE) -> None:
        self.size = size
        self._left = count
        self._free: queue.SimpleQueue[bytearray] = queue.SimpleQueue()
        self._lock = threading.Lock()

    def take(self) -> bytearray:
        """A buffer, as soon as there is one."""
        try:
            return self._free.get_nowait()
        except queue.Empty:
            with self._lock:
                if self._left:
                    self._left -= 1
                    return bytearray(self.size)
        return self._free.get()

    def give(self, buffer: bytearray) -> None:
        """Give one back."""
        self._free.put(buffer)


class Chunk:
    """Bytes of a pooled buffer, valid until ``release``, which has to be called once."""

    __slots__ = ("_share", "data")

    def __init__(self, data: memoryview, share: _Share) -> None:
        self.data = data
        self._share = share

    def release(self) -> None:
        """The bytes are not needed any more."""
        self._share.drop()


class Cutter(Protocol):
    """Says where the first chunk of a buffer ends; its length when nothing in it is an end."""

    def __call__(self, data: memoryview, /) -> int:
        """The length of the first chunk."""
        ...


def seed_of(master: Key) -> int:
    """The repository's seed, 63 bits of a hash of the master key: the same for every host that writes to it."""
    secret = master.encrypt + master.mac_k + master.mac_r
    return int.from_bytes(hmac.digest(secret, b"cosmos-coherence chunker 1", hashlib.sha256)[:8], "little") >> 1


def cutter(seed: int) -> Cutter:
    """A cutter for one thread. It never cuts below 512 KiB or above 8 MiB."""
    method = FastCDC(_AVERAGE, min_size=MIN_SIZE, max_size=MAX_SIZE, normalized_chunking=1, seed=seed)

    def cut(data: memoryview) -> int:
        return next(iter(method.cut_buf(data))).length

    return cut


def chunks(readinto: Readinto, pool: Pool, cut: Cutter) -> Iterator[Chunk]:
    """Cut everything that ``readinto`` gives until it gives nothing.

    The cuts depend on the content alone, never on how the reads come. Holds one buffer of the pool, and those of
    chunks that were not released yet; the consumer must be able to release while it waits, or the pool must hold two.
    Errors of ``readinto`` pass.
    """
    buffer = pool.take()
    share = _Share(pool, buffer)
    try:
        start = end = 0
        over = False
        while True:
            while not over and end < len(buffer):
                count = readinto(memoryview(buffer)[end:])
                over, end = not count, end + count
            if start == end and over:
                return
            length = cut(memoryview(buffer)[start:end]) if start < end else 0
            if start + length == end and not over and length < MAX_SIZE:
                # No end in sight: the rest goes to the start of another buffer and is read on from there.
                following = pool.take()
                following[:length] = memoryview(buffer)[start:end]
                share.drop()
                buffer, share = following, _Share(pool, following)
                start, end = 0, length
                continue
            share.add()
            yield Chunk(memoryview(buffer)[start : start + length], share)
            start += length
    finally:
        share.drop()


def reader(stream: BinaryIO) -> Readinto:
    """``chunks`` reads with this from a file object."""
    into = getattr(stream, "readinto", None)
    if into is not None:
        return cast(Readinto, into)

    def read(room: memoryview) -> int:
        data = stream.read(len(room))
        room[: len(data)] = data
        return len(data)

    return read


class _Share:
    """Counts who still uses a buffer, and gives it back when nobody does."""

    def __init__(self, pool: Pool, buffer: bytearray) -> None:
        self._pool, self._buffer = pool, buffer
        self._users = 1
        self._lock = threading.Lock()

    def add(self) -> None:
        with self._lock:
            self._users += 1

    def drop(self) -> None:
        with self._lock:
            self._users -= 1
            last = self._users == 0
        if last:
            self._pool.give(self._buffer)
