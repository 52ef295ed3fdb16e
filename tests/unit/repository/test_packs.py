"""Packs and the index."""

from __future__ import annotations

import contextlib
import hashlib
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cosmos_coherence import errors
from cosmos_coherence.repository import index, packs
from cosmos_coherence.repository.blob import Blob, BlobKind, id_of
from cosmos_coherence.repository.crypto import OVERHEAD, Key, Sealer
from cosmos_coherence.repository.envelope import Envelope
from cosmos_coherence.repository.index import Index
from support.memory_backend import MemoryBackend

KEY = Key.new()
PLAIN = st.lists(st.binary(max_size=200), max_size=8)
KINDS: st.SearchStrategy[BlobKind] = st.sampled_from(["data", "tree"])
IDS = st.binary(min_size=32, max_size=32)


def packed(kind: BlobKind, blobs: list[bytes]) -> tuple[packs.Pack, bytes]:
    envelope, builder = Envelope(KEY), packs.Builder(kind)
    for plain in blobs:
        builder.add(id_of(plain), *envelope.pack(plain), envelope.sealer)
    pack = builder.finish(envelope.sealer)
    return pack, bytes(pack.content)


@given(KINDS, PLAIN)
def test_a_pack_says_what_is_in_it(kind: BlobKind, plain: list[bytes]) -> None:
    pack, content = packed(kind, plain)
    assert hashlib.sha256(content).digest() == pack.id
    backend, envelope = MemoryBackend(), Envelope(KEY)
    backend.save("data", pack.id.hex(), [content])
    blobs = packs.read_header(backend, pack.id, len(content), envelope.sealer)
    assert blobs == pack.blobs
    for blob, each in zip(blobs, plain, strict=True):
        assert blob.kind == kind
        assert blob.size == len(each)
        assert envelope.unpack(blob, content[blob.offset : blob.offset + blob.length]) == each
    compressed = sum(1 for blob in blobs if blob.plain_length)
    assert len(content) == sum(blob.length for blob in blobs) + packs.size_of_header(len(blobs), compressed)


def test_what_does_not_shrink_is_stored_as_it_is(rng: object) -> None:
    noise = hashlib.sha256(b"x").digest()
    pack, _ = packed("data", [noise, bytes(1000)])
    assert [blob.plain_length for blob in pack.blobs] == [0, 1000]


@given(PLAIN, st.data())
def test_changed_packs_end_in_our_errors(plain: list[bytes], data: st.DataObject) -> None:
    pack, content = packed("data", plain)
    changed = bytearray(content)
    bit = data.draw(st.integers(0, len(changed) * 8 - 1))
    changed[bit // 8] ^= 1 << bit % 8
    del changed[data.draw(st.integers(0, len(changed))) :]
    backend, sealer = MemoryBackend(), Sealer(KEY)
    backend.files[f"data/{pack.id.hex()[:2]}/{pack.id.hex()}"] = bytes(changed)
    try:
        found = packs.read_header(backend, pack.id, len(changed), sealer)
    except errors.Damaged:
        return
    assert found == pack.blobs  # the bit was in a blob


@given(st.binary(max_size=120), st.integers(0, 1 << 32))
def test_a_header_of_one_who_has_the_key_is_not_believed_either(plain: bytes, size: int) -> None:
    sealer = Sealer(KEY)
    with pytest.raises(errors.Damaged):
        packs.decode_header(sealer.seal(plain + b"\x04"), size, "name", sealer)


def test_impossible_headers() -> None:
    sealer = Sealer(KEY)
    for plain in (struct.pack("<BI32s", 0, 5, bytes(32)), struct.pack("<BII32s", 2, 50, 0, bytes(32)), b"\x00"):
        with pytest.raises(errors.Damaged):
            packs.decode_header(sealer.seal(plain), 50 + len(plain) + OVERHEAD + 4, "name", sealer)
    with pytest.raises(errors.Damaged):
        packs.header_length(struct.pack("<I", 1 << 31), 1 << 32, "name")


def test_builders_are_absorbed_and_grow_for_a_large_tree() -> None:
    envelope = Envelope(KEY)
    one, two = packs.Builder("tree"), packs.Builder("tree")
    huge = bytes(40 << 20)
    one.add(id_of(b"a"), b"a", 0, envelope.sealer)
    two.add(id_of(b"b"), b"b", 0, envelope.sealer)
    assert one.fits(two)
    one.absorb(two)
    assert not len(two)
    one.add(id_of(huge), huge, 0, envelope.sealer)
    assert one.full
    pack = one.finish(envelope.sealer)
    assert [blob.size for blob in pack.blobs] == [1, 1, 40 << 20]
    last = pack.blobs[1]
    assert envelope.unpack(last, pack.content[last.offset : last.offset + last.length]) == b"b"
    assert hashlib.sha256(pack.content).digest() == pack.id


# ----------------------------------------------------------------------------------------------------- index
BLOBS = st.lists(
    st.builds(
        Blob,
        KINDS,
        IDS,
        st.integers(0, 2**32 - 1),
        st.integers(OVERHEAD, 2**32 - 1),
        st.integers(0, 2**32 - 1),
    ),
    max_size=20,
)


@given(st.lists(st.tuples(IDS, BLOBS), max_size=4), st.lists(IDS, max_size=2))
def test_an_index_file_comes_back(found: list[tuple[bytes, list[Blob]]], old: list[bytes]) -> None:
    encoded = index.encode(found, old)
    assert index.decode(encoded) == (found, tuple(old))
    at_once, one_by_one = Index(), Index()
    for _ in range(2):
        at_once.add_file(encoded)
        for pack, blobs in found:
            one_by_one.add(pack, blobs)
        assert sorted(at_once) == sorted(one_by_one)
        assert len(at_once) == len(one_by_one)
        assert at_once.packs() == one_by_one.packs()


@given(st.lists(st.tuples(IDS, BLOBS), max_size=4), st.data())
def test_a_changed_index_file_ends_in_our_errors(found: list[tuple[bytes, list[Blob]]], data: st.DataObject) -> None:
    changed = bytearray(index.encode(found))
    changed[data.draw(st.integers(0, len(changed) - 1))] = data.draw(st.integers(0, 255))
    del changed[data.draw(st.integers(0, len(changed))) :]
    expected = None
    with contextlib.suppress(errors.Damaged):
        expected = index.decode(changed)
    read = Index()
    with contextlib.suppress(errors.Damaged):
        read.add_file(changed)
        assert expected is not None
        assert set(read.packs()) == {pack for pack, _ in expected[0]}


@pytest.mark.parametrize(
    "blob",
    [
        '{"id":"00","type":"data","offset":0,"length":40}',
        '{"id":"%s","type":"other","offset":0,"length":40}' % ("0" * 64),
        '{"id":"%s","type":"data","offset":-1,"length":40}' % ("0" * 64),
        '{"id":"%s","type":"data","offset":0,"length":3}' % ("0" * 64),
        '{"id":"%s","type":"data","offset":0,"length":4294967296}' % ("0" * 64),
    ],
)
def test_impossible_entries(blob: str) -> None:
    plain = f'{{"packs":[{{"id":"{"1" * 64}","blobs":[{blob}]}}]}}'.encode()
    with pytest.raises(errors.Damaged):
        index.decode(plain)
    read = Index()
    with pytest.raises(errors.Damaged):
        read.add_file(plain)
    assert not read.packs()


def test_many_blobs_are_found_and_small(rng: object) -> None:
    known = Index()
    wanted = {}
    for number in range(60):
        blobs = [
            Blob("tree" if at % 7 == 0 else "data", hashlib.sha256(b"%d %d" % (number, at)).digest(), at * 50, 50, at)
            for at in range(1000)
        ]
        pack = hashlib.sha256(b"%d" % number).digest()
        known.add(pack, blobs)
        known.add(pack, blobs)  # a second index file that says the same
        wanted.update(dict.fromkeys(((blob.kind, blob.id) for blob in blobs), pack))
    assert len(known) == len(wanted) == 60_000
    assert all(known.has(kind, blob) and known.find(kind, blob).pack == pack for (kind, blob), pack in wanted.items())  # type: ignore[union-attr]
    assert not any(known.has("tree" if kind == "data" else "data", blob) for kind, blob in wanted)
    assert known.memory() / len(known) < 64
    assert sum(len(blobs) for blobs in known.by_pack().values()) == 60_000
    assert {place.blob.id for place in known} == {blob for _, blob in wanted}


def test_a_blob_may_lie_in_several_packs() -> None:
    known, blob = Index(), Blob("data", b"\x01" * 32, 0, 40, 0)
    known.add(b"a" * 32, [blob])
    known.add(b"b" * 32, [blob._replace(offset=7)])
    assert [(place.pack[:1], place.blob.offset) for place in known.places("data", blob.id)] == [(b"a", 0), (b"b", 7)]
    assert not known.has("data", b"\x01" * 31 + b"\x02")
    assert known.missing("data", [blob.id.hex(), "02" * 32, "zz", ""]) == {"02" * 32, "zz", ""}
    assert known.missing("tree", [blob.id.hex()]) == {blob.id.hex()}
    found = known.find("data", blob.id)
    assert found is not None
    assert (found.pack, known.find("tree", blob.id)) == (b"a" * 32, None)
