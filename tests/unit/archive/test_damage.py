"""A damaged archive is never taken for a whole one, whatever byte it is."""

from __future__ import annotations

import os
from pathlib import Path
from random import Random

import pytest

from cosmos_coherence import errors
from cosmos_coherence.archive.reader import ArchiveReader
from cosmos_coherence.archive.verify import verify_archive
from unit.archive.building import make_archive


def _contents(file: Path, spool: Path) -> list[object]:
    """Everything that a restore would see."""
    with ArchiveReader.open_archive(file, spool) as reader:
        seen: list[object] = [reader.manifest]
        for name in reader.names():
            if name == "configs" or name.startswith("volumes/"):
                seen += [(entry, content and content.read()) for entry, content in reader.tree(name)]
            else:
                with reader.open(name) as stream:
                    seen.append(stream.read())
        return seen


def _survives(damaged: bytes, tmp_path: Path) -> list[object] | None:
    file = tmp_path / "damaged.tar.gz"
    file.write_bytes(damaged)
    try:
        verify_archive(file)
        return _contents(file, tmp_path / "spool")
    except errors.Damaged:
        assert not (tmp_path / "spool").exists()
        return None


def _sweep(tmp_path: Path, offsets: list[int], bits: range) -> None:
    file = make_archive(tmp_path)
    whole = file.read_bytes()
    expected = _contents(file, tmp_path / "spool")
    harmless = 0
    for offset in (offset % len(whole) for offset in offsets):
        for bit in bits:
            flipped = bytearray(whole)
            flipped[offset] ^= 1 << bit
            found = _survives(bytes(flipped), tmp_path)
            assert found is None or found == expected, f"bit {bit} of byte {offset}"
            harmless += found is not None
        assert _survives(whole[:offset], tmp_path) is None, f"cut at {offset}"
    assert harmless < 100 + len(offsets) * len(bits) // 100  # time and system in the gzip header, spare bits of a block


def test_a_sample_of_flipped_bits_and_cuts(tmp_path: Path) -> None:
    seed = int.from_bytes(os.urandom(4))
    print(f"seed {seed}")
    random = Random(seed)
    _sweep(tmp_path, [*range(12), *(random.randrange(1 << 30) for _ in range(150)), -1, -5, -9, -13], range(0, 8, 3))


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_every_bit_and_every_cut(tmp_path: Path) -> None:
    size = make_archive(tmp_path / "measure").stat().st_size
    _sweep(tmp_path, list(range(size)), range(8))
