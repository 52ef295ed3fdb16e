"""Packs: many sealed blobs of one kind in one file, with a sealed header at its end.

After "Pack Format" of the restic design document.
"""

from __future__ import annotations

import hashlib
import mmap
import struct
from collections.abc import Iterator, Sequence
from typing import Final

import msgspec

from cosmos_coherence import errors
from cosmos_coherence.repository.blob import Blob, BlobKind, Id
from cosmos_coherence.repository.crypto import OVERHEAD, Buffer, Sealer
from cosmos_coherence.storage.backend import Backend

TARGET_SIZE: Final = 16 << 20
"""A pack that has as many bytes of blobs is finished."""
MAX_BLOBS: Final = 100_000
"""A pack of as many blobs is finished: its header stays far below the limit."""
MAX_HEADER: Final = 16 << 20
"""Readers of the format refuse longer headers."""

_PLAIN: Final = struct.Struct("<BI32s")
_COMPRESSED: Final = struct.Struct("<BII32s")
_LENGTH: Final = struct.Struct("<I")
_TREE, _ZSTD = 1, 2  # bits of the type
_HEADER_ROOM: Final = MAX_BLOBS * _COMPRESSED.size + OVERHEAD + _LENGTH.size
_ROOM: Final = TARGET_SIZE + (8 << 20) + OVERHEAD + _HEADER_ROOM
_HASHED_AT_ONCE: Final = 256 << 10


class Pack(msgspec.Struct, frozen=True):
    """A finished pack. ``content`` belongs to the builder and is valid until its ``reset``."""

    id: Id
    blobs: tuple[Blob, ...]
    content: memoryview

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return len(self.content)


class Builder:
    """Gathers blobs of one kind, sealed straight into the buffer of the pack that they become. One thread at a time."""

    def __init__(self, kind: BlobKind) -> None:
        self.kind = kind
        self._buffer = memoryview(b"")
        self._blobs: list[Blob] = []
        self._end = self._hashed = 0
        self._hash = hashlib.sha256()

    def __len__(self) -> int:
        return len(self._blobs)

    @property
    def size(self) -> int:
        """Bytes of blobs so far."""
        return self._end

    @property
    def full(self) -> bool:
        """Whether it is time to ``finish``."""
        return self._end >= TARGET_SIZE or len(self._blobs) >= MAX_BLOBS

    def fits(self, other: Builder) -> bool:
        """Whether ``absorb`` has room for what the other one holds."""
        return self._end + other._end <= TARGET_SIZE and len(self) + len(other) <= MAX_BLOBS

    def add(self, blob_id: Id, stored: Buffer, plain_length: int, sealer: Sealer) -> int:
        """Seal ``stored`` behind the others; how many bytes it takes. ``plain_length`` is 0 unless it is compressed."""
        length = len(stored) + OVERHEAD
        self._reserve(length)
        sealer.seal_into(stored, self._buffer[self._end : self._end + length])
        self._append(Blob(self.kind, blob_id, self._end, length, plain_length))
        return length

    def add_sealed(self, blob: Blob, sealed: Buffer) -> None:
        """Take a blob over as it is sealed already, by this repository's key."""
        self._reserve(len(sealed))
        self._buffer[self._end : self._end + len(sealed)] = sealed
        self._append(blob._replace(offset=self._end))

    def absorb(self, other: Builder) -> None:
        """Take over all that another one holds; it is as new afterwards."""
        for blob, sealed in other.sealed():
            self.add_sealed(blob, sealed)
        other.reset()

    def sealed(self) -> Iterator[tuple[Blob, memoryview]]:
        """What it holds, as it is sealed."""
        for blob in self._blobs:
            yield blob, self._buffer[blob.offset : blob.offset + blob.length]

    def finish(self, sealer: Sealer) -> Pack:
        """Add the header. The next thing to call is ``reset``."""
        header = _encode_header(self._blobs)
        length = len(header) + OVERHEAD
        self._reserve(length + _LENGTH.size)
        end = self._end + length
        room = self._buffer
        sealer.seal_into(header, room[self._end : end])
        room[end : end + _LENGTH.size] = _LENGTH.pack(length)
        self._end = end + _LENGTH.size
        self._hash.update(room[self._hashed : self._end])
        return Pack(self._hash.digest(), tuple(self._blobs), room[: self._end])

    def reset(self) -> None:
        """Be empty again and keep the buffer, unless it was an extraordinary one."""
        if len(self._buffer) > _ROOM:
            self._buffer = memoryview(b"")
        self._blobs = []
        self._end = self._hashed = 0
        self._hash = hashlib.sha256()

    def _append(self, blob: Blob) -> None:
        self._blobs.append(blob)
        self._end = blob.offset + blob.length
        if self._end - self._hashed >= _HASHED_AT_ONCE:  # while it is in the processor's cache
            self._hash.update(self._buffer[self._hashed : self._end])
            self._hashed = self._end

    def _reserve(self, count: int) -> None:
        if self._end + count > len(self._buffer):
            # Only a folder with very many names makes a blob that is larger than a pack's usual room.
            larger = memoryview(_lazy(max(_ROOM, self._end + count + _HEADER_ROOM)))
            larger[: self._end] = self._buffer[: self._end]
            self._buffer = larger


def _lazy(size: int) -> mmap.mmap:
    """Zeros that take memory only from where something is written to them; those of a ``bytearray`` take all of it."""
    return mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)


def read_header(backend: Backend, pack: Id, size: int, sealer: Sealer) -> tuple[Blob, ...]:
    """The blobs of a stored pack of ``size`` bytes. Raises ``Damaged``, and the backend's errors."""
    name = pack.hex()
    if size < _LENGTH.size + OVERHEAD:
        raise errors.Damaged(f"pack {name[:8]} is too short")
    # One request is enough for most packs.
    guess = min(size, 64 << 10)
    tail = backend.load("data", name, size - guess, guess)
    length = header_length(tail[-_LENGTH.size :], size, name)
    if length + _LENGTH.size > len(tail):
        tail = backend.load("data", name, size - length - _LENGTH.size, length + _LENGTH.size)
    return decode_header(tail[-length - _LENGTH.size : -_LENGTH.size], size, name, sealer)


def header_length(field: Buffer, size: int, name: str) -> int:
    """The sealed header's length from the last four bytes of a pack of ``size`` bytes. Raises ``Damaged``."""
    (length,) = _LENGTH.unpack(field)
    if not OVERHEAD <= length <= min(MAX_HEADER, size - _LENGTH.size):
        raise errors.Damaged(f"pack {name[:8]} has a header of {length} bytes")
    return int(length)


def decode_header(sealed: Buffer, size: int, name: str, sealer: Sealer) -> tuple[Blob, ...]:
    """The blobs that the sealed header of a pack of ``size`` bytes names. ``Damaged`` unless they fill it exactly."""
    try:
        plain = sealer.open(sealed)
    except errors.Damaged as error:
        raise errors.Damaged(f"the header of pack {name[:8]} cannot be read: {error}") from error
    blobs: list[Blob] = []
    at = offset = 0
    while at < len(plain):
        kind: BlobKind = "tree" if plain[at] & _TREE else "data"
        entry = _COMPRESSED if plain[at] & _ZSTD else _PLAIN
        if plain[at] > _TREE | _ZSTD or at + entry.size > len(plain):
            raise errors.Damaged(f"the header of pack {name[:8]} makes no sense")
        _, length, *plain_length, blob_id = entry.unpack_from(plain, at)
        if length < OVERHEAD or plain_length == [0]:
            raise errors.Damaged(f"the header of pack {name[:8]} has an impossible length")
        blobs.append(Blob(kind, blob_id, offset, length, plain_length[0] if plain_length else 0))
        at += entry.size
        offset += length
    if offset + len(sealed) + _LENGTH.size != size:
        raise errors.Damaged(f"the header of pack {name[:8]} does not fit its size")
    return tuple(blobs)


def _encode_header(blobs: Sequence[Blob]) -> bytes:
    return b"".join(
        _COMPRESSED.pack(_ZSTD | (blob.kind == "tree"), blob.length, blob.plain_length, blob.id)
        if blob.plain_length
        else _PLAIN.pack(blob.kind == "tree", blob.length, blob.id)
        for blob in blobs
    )


def size_of_header(blobs: int, compressed: int) -> int:
    """Bytes at the end of a pack of ``blobs`` blobs of which ``compressed`` are compressed."""
    return blobs * _PLAIN.size + compressed * 4 + OVERHEAD + _LENGTH.size
