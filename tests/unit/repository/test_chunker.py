"""Cutting."""

from __future__ import annotations

import io
import random
from collections.abc import Callable

import pytest
from pyfastcdc.py.fastcdc import FastCDC

from cosmos_coherence.repository import chunker
from cosmos_coherence.repository.crypto import Key

SEED = 0x1234_5678_9ABC


def cut_all(data: bytes, size: Callable[[], int] = lambda: 1 << 30, buffers: int = 2) -> list[bytes]:
    stream, pool, found = io.BytesIO(data), chunker.Pool(buffers), []
    for chunk in chunker.chunks(lambda room: stream.readinto(room[: size()]), pool, chunker.cutter(SEED)):
        found.append(bytes(chunk.data))
        chunk.release()
    return found


def sample(rng: random.Random, size: int) -> bytes:
    return rng.randbytes(size // 2) + bytes(size // 4) + b"some text over and over\n" * (size // 96)


@pytest.mark.parametrize("size", [0, 1, chunker.MIN_SIZE, chunker.MIN_SIZE + 1, 8 << 20, (8 << 20) + 1, 40_000_000])
def test_chunks_are_the_stream_and_within_bounds(size: int, rng: random.Random) -> None:
    data = sample(rng, size)
    found = cut_all(data)
    assert b"".join(found) == data
    assert all(len(chunk) <= chunker.MAX_SIZE for chunk in found)
    assert all(len(chunk) >= chunker.MIN_SIZE for chunk in found[:-1])


@pytest.mark.parametrize("size", [8 << 20, 16 << 20])
def test_zeros_are_cut_at_the_maximum(size: int) -> None:
    assert set(cut_all(bytes(size))) == {bytes(8 << 20)}


def test_the_cuts_depend_on_the_content_alone(rng: random.Random) -> None:
    data = sample(rng, 30_000_000)
    whole = cut_all(data)
    assert cut_all(data, lambda: rng.randint(1, 3_000_000)) == whole
    assert cut_all(data, lambda: 65536, buffers=5) == whole
    assert len(whole) > 5


def test_an_insertion_moves_only_the_chunks_around_it(rng: random.Random) -> None:
    data = rng.randbytes(30_000_000)
    before, after = cut_all(data), cut_all(data[:10_000_000] + b"inserted" + data[10_000_000:])
    assert len(set(before) - set(after)) <= 3


def test_the_cuts_are_those_of_the_slow_twin(rng: random.Random) -> None:
    data = rng.randbytes(5_000_000)
    twin = FastCDC(1 << 20, min_size=chunker.MIN_SIZE, max_size=chunker.MAX_SIZE, normalized_chunking=1, seed=SEED)
    assert [len(chunk) for chunk in cut_all(data)] == [chunk.length for chunk in twin.cut_buf(data)]


def test_each_repository_cuts_elsewhere(rng: random.Random) -> None:
    one, two = chunker.seed_of(Key.new()), chunker.seed_of(Key.new())
    data = memoryview(rng.randbytes(8 << 20))
    assert one != two
    assert 0 < one < 1 << 63
    assert chunker.cutter(one)(data) != chunker.cutter(two)(data)


def test_an_error_of_the_stream_passes_and_buffers_come_back() -> None:
    pool = chunker.Pool(1)

    def broken(room: memoryview) -> int:
        raise OSError("gone")

    with pytest.raises(OSError, match="gone"):
        list(chunker.chunks(broken, pool, chunker.cutter(SEED)))
    assert len(pool.take()) == chunker.MAX_SIZE  # would wait for ever otherwise
