"""Which pack holds which blob: compact in memory, and as the format's index files.

The files are as in "Indexing" of the restic design document. In memory a blob is a record of 48 bytes in a bucket
chosen by the first bits of its id; a lookup is one search through a bucket, a few microseconds however many blobs there
are. Together that is less than 64 bytes for a blob.
"""

from __future__ import annotations

import struct
import threading
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Annotated, Final

import msgspec

from cosmos_coherence import errors
from cosmos_coherence.repository.blob import Blob, BlobKind, Id, Location
from cosmos_coherence.repository.crypto import OVERHEAD, Buffer

_RECORD: Final = struct.Struct("<32s4I")  # id, pack and kind, offset, sealed length, plain length
_FIRST: Final = struct.Struct(">I")
_SIZE: Final = _RECORD.size
_IS_TREE: Final = 1 << 31
_KIND_BYTE: Final = 35
_BUCKETS: Final = 256
_CROWDED: Final = 64
"""Records in a bucket on average before there are twice as many buckets."""
_MOST: Final = (1 << 32) - 1
_TOGETHER: Final = 1000
"""Ids that are looked up at a time."""
_GONE: Final = bytearray()


class Index:
    """The blobs of a repository. Safe to use from several threads."""

    def __init__(self) -> None:
        self._buckets = [bytearray() for _ in range(_BUCKETS)]
        self._bits = _BUCKETS.bit_length() - 1
        self._count = 0
        self._packs: list[Id] = []
        self._numbers: dict[Id, int] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return self._count

    def has(self, kind: BlobKind, blob_id: Id) -> bool:
        """Whether the blob is in a pack."""
        with self._lock:
            bucket = self._bucket(blob_id)
            at = bucket.find(blob_id)
            while at >= 0:
                if at % _SIZE == 0 and (bucket[at + _KIND_BYTE] >= 0x80) == (kind == "tree"):
                    return True
                at = bucket.find(blob_id, at + 1)
        return False

    def missing(self, kind: BlobKind, ids: Iterable[str]) -> set[str]:
        """Those of these blobs, in hex, that are in no pack; what is no id is not either."""
        found: set[str] = set()
        wanted, left = kind == "tree", iter(ids)
        while texts := list(islice(left, _TOGETHER)):
            with self._lock:
                buckets, shift = self._buckets, 32 - self._bits
                for text, blob_id in zip(texts, _ids_or_none(texts), strict=True):
                    if not blob_id:
                        found.add(text)
                        continue
                    bucket = buckets[_FIRST.unpack_from(blob_id)[0] >> shift]
                    at = bucket.find(blob_id)
                    while at >= 0 and (at % _SIZE or (bucket[at + _KIND_BYTE] >= 0x80) != wanted):
                        at = bucket.find(blob_id, at + 1)
                    if at < 0:
                        found.add(text)
        return found

    def find(self, kind: BlobKind, blob_id: Id) -> Location | None:
        """Where the blob lies; the first place when there are several."""
        return self.find_all(kind, (blob_id,))[0]

    def find_all(self, kind: BlobKind, ids: Iterable[Id]) -> list[Location | None]:
        """``find`` for each of them."""
        found: list[Location | None] = []
        wanted = kind == "tree"
        with self._lock:
            buckets, packs, shift = self._buckets, self._packs, 32 - self._bits
            for blob_id in ids:
                bucket = buckets[int.from_bytes(blob_id[:4], "big") >> shift]
                at = bucket.find(blob_id)
                while at >= 0 and (at % _SIZE or (bucket[at + _KIND_BYTE] >= 0x80) != wanted):
                    at = bucket.find(blob_id, at + 1)
                if at < 0:
                    found.append(None)
                else:
                    _, word, offset, length, plain_length = _RECORD.unpack_from(bucket, at)
                    found.append(Location(packs[word & ~_IS_TREE], Blob(kind, blob_id, offset, length, plain_length)))
        return found

    def places(self, kind: BlobKind, blob_id: Id) -> Iterator[Location]:
        """Everywhere that the blob lies."""
        with self._lock:
            bucket = self._bucket(blob_id)
            found = []
            at = bucket.find(blob_id)
            while at >= 0:
                if at % _SIZE == 0:
                    found.append(self._location(bucket, at))
                at = bucket.find(blob_id, at + 1)
        return (place for place in found if place.blob.kind == kind)

    def add(self, pack: Id, blobs: Iterable[Blob]) -> None:
        """Take in the blobs of a pack; those known to be there already are passed over."""
        with self._lock:
            number, known = self._number(pack)
            shift = 32 - self._bits
            for kind, blob_id, offset, length, plain_length in blobs:
                word = number | _IS_TREE if kind == "tree" else number
                record = _RECORD.pack(blob_id, word, offset, length, plain_length)
                bucket = self._buckets[int.from_bytes(blob_id[:4], "big") >> shift]
                if known and bucket.find(record) >= 0:
                    continue
                bucket += record
                self._count += 1
            while self._count > len(self._buckets) * _CROWDED:
                self._spread()

    def add_file(self, plain: Buffer) -> None:
        """Take in what an index file names. Raises ``Damaged``, and has taken in nothing then."""
        try:
            file = msgspec.json.decode(plain, type=_File)
            packs = [(_id(pack.id), pack.blobs, _ids([blob.id for blob in pack.blobs])) for pack in file.packs]
        except (msgspec.MsgspecError, UnicodeDecodeError, ValueError) as error:
            raise errors.Damaged(f"not an index: {error}") from error
        with self._lock:
            while self._count + sum(len(ids) for _, _, ids in packs) > len(self._buckets) * _CROWDED:
                self._spread()
            buckets, shift = self._buckets, 32 - self._bits
            for pack, blobs, ids in packs:
                number, known = self._number(pack)
                tree = number | _IS_TREE
                records = [
                    _RECORD.pack(i, tree if b.type == "tree" else number, b.offset, b.length, b.uncompressed_length)
                    for i, b in zip(ids, blobs, strict=True)
                ]
                if known:
                    records = [record for record in dict.fromkeys(records) if self._bucket(record).find(record) < 0]
                for record, (first,) in zip(records, map(_FIRST.unpack_from, records), strict=True):
                    buckets[first >> shift].extend(record)
                self._count += len(records)

    def packs(self) -> tuple[Id, ...]:
        """Every pack that is known."""
        with self._lock:
            return tuple(self._packs)

    def has_pack(self, pack: Id) -> bool:
        """Whether a pack is known."""
        return pack in self._numbers

    def __iter__(self) -> Iterator[Location]:
        """Every place of every blob, in no particular order. Nothing may be added meanwhile."""
        for bucket in self._buckets:
            for at in range(0, len(bucket), _SIZE):
                yield self._location(bucket, at)

    def by_pack(self) -> dict[Id, list[Blob]]:
        """The blobs of each pack, in their order in it. Takes several times the memory of the index."""
        found: dict[Id, list[Blob]] = {pack: [] for pack in self._packs}
        for pack, blob in self:
            found[pack].append(blob)
        for blobs in found.values():
            blobs.sort(key=lambda blob: blob.offset)
        return found

    def memory(self) -> int:
        """Bytes that the records and their buckets take."""
        return sum(bucket.__sizeof__() for bucket in self._buckets) + self._buckets.__sizeof__()

    def _number(self, pack: Id) -> tuple[int, bool]:
        """The number of a pack, and whether it was known."""
        number = self._numbers.get(pack)
        if number is not None:
            return number, True
        number = self._numbers[pack] = len(self._packs)
        self._packs.append(pack)
        return number, False

    def _bucket(self, blob_id: Id) -> bytearray:
        return self._buckets[int.from_bytes(blob_id[:4], "big") >> (32 - self._bits)]

    def _location(self, bucket: bytearray, at: int) -> Location:
        blob_id, word, offset, length, plain_length = _RECORD.unpack_from(bucket, at)
        kind: BlobKind = "tree" if word & _IS_TREE else "data"
        return Location(self._packs[word & ~_IS_TREE], Blob(kind, blob_id, offset, length, plain_length))

    def _spread(self) -> None:
        self._bits += 1
        spread: list[bytearray] = []
        byte, bit = divmod(self._bits - 1, 8)
        mask = 0x80 >> bit
        for number, bucket in enumerate(self._buckets):
            halves: tuple[list[bytearray], list[bytearray]] = [], []
            for at in range(0, len(bucket), _SIZE):
                halves[bool(bucket[at + byte] & mask)].append(bucket[at : at + _SIZE])
            spread += (bytearray().join(half) for half in halves)  # exactly as large as they are
            self._buckets[number] = _GONE  # so that the old and the new are never there together
        self._buckets = spread


class _BlobJson(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    id: str
    type: BlobKind
    offset: Annotated[int, msgspec.Meta(ge=0, le=_MOST)]
    length: Annotated[int, msgspec.Meta(ge=OVERHEAD, le=_MOST)]
    uncompressed_length: Annotated[int, msgspec.Meta(ge=0, le=_MOST)] = 0


class _PackJson(msgspec.Struct, frozen=True, gc=False):
    id: str
    blobs: list[_BlobJson]


class _File(msgspec.Struct, frozen=True, omit_defaults=True):
    packs: list[_PackJson]
    supersedes: list[str] = []


PackBlobs = tuple[Id, Sequence[Blob]]
"""A pack and what is in it."""


def encode(packs: Iterable[PackBlobs], supersedes: Iterable[Id] = ()) -> bytes:
    """The JSON of an index file that names these packs and replaces those index files."""
    return msgspec.json.encode(
        _File(
            [_PackJson(pack.hex(), [_encode(blob) for blob in blobs]) for pack, blobs in packs],
            [i.hex() for i in supersedes],
        )
    )


def decode(plain: Buffer) -> tuple[list[PackBlobs], tuple[Id, ...]]:
    """What an index file names, and what it replaces. Raises ``Damaged``."""
    try:
        file = msgspec.json.decode(plain, type=_File)
        packs: list[PackBlobs] = [(_id(pack.id), [_decode(blob) for blob in pack.blobs]) for pack in file.packs]
        return packs, tuple(map(_id, file.supersedes))
    except (msgspec.MsgspecError, UnicodeDecodeError, ValueError, RecursionError) as error:
        raise errors.Damaged(f"not an index: {error}") from error


def _ids(texts: Sequence[str]) -> list[Id]:
    """The ids that are written there. ``ValueError`` unless each is 64 hex digits."""
    together = bytes.fromhex("".join(texts))
    if len(together) != 32 * len(texts) or set(map(len, texts)) - {64}:  # spaces do not count
        raise ValueError("an id is not 64 hex digits")
    return [together[at : at + 32] for at in range(0, len(together), 32)]


def _ids_or_none(texts: Sequence[str]) -> list[Id]:
    """The same, with nothing in the place of what is none."""
    try:
        return _ids(texts)
    except ValueError:
        return [_ids_or_none([text])[0] for text in texts] if len(texts) > 1 else [b""]


def _encode(blob: Blob) -> _BlobJson:
    return _BlobJson(blob.id.hex(), blob.kind, blob.offset, blob.length, blob.plain_length)


def _decode(blob: _BlobJson) -> Blob:
    return Blob(blob.type, _id(blob.id), blob.offset, blob.length, blob.uncompressed_length)


def _id(text: str) -> Id:
    return _ids([text])[0]
