"""What fingerprints are made of."""

from __future__ import annotations

import hashlib
import random

import pytest
from blake3 import blake3

from cosmos_coherence import content_digest
from cosmos_coherence.content_digest import SMALL, ContentDigest


@pytest.mark.parametrize("size", [0, 1, SMALL - 1, SMALL, SMALL + 1, 3 * SMALL])
def test_small_is_sha256_and_large_is_blake3_however_it_comes(size: int, rng: random.Random) -> None:
    content = rng.randbytes(size)
    wanted = (hashlib.sha256 if size <= SMALL else blake3)(content).hexdigest()
    assert content_digest.of(content) == wanted
    digest, at = ContentDigest(), 0
    while at < size:
        step = rng.choice([1, 1000, SMALL // 2, SMALL, 2 * SMALL])
        digest.update(memoryview(content)[at : at + step])
        at += step
    assert digest.hexdigest() == wanted


@pytest.mark.parametrize("count", [-1, 0, 5, SMALL + 1, 5 << 20])
def test_a_hole_counts_as_zeros(count: int) -> None:
    digest = ContentDigest()
    digest.update(b"before")
    digest.zeros(count)
    digest.update(b"after")
    assert digest.hexdigest() == content_digest.of(b"before" + bytes(max(0, count)) + b"after")


def test_nothing_has_the_digest_of_nothing() -> None:
    assert ContentDigest().hexdigest() == content_digest.EMPTY == content_digest.of(b"")


def test_the_border_never_moves() -> None:
    """The digests of files in backups that were made would not be right any more."""
    assert SMALL == 524_287
