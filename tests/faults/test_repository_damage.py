"""A damaged repository is never taken for a whole one, whatever byte it is, and never restored as something else."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from cosmos_coherence import errors
from cosmos_coherence.flow import known
from cosmos_coherence.repository import keys
from cosmos_coherence.repository.check import check
from cosmos_coherence.repository.repository import Repository
from support import small_backups
from support.memory_backend import MemoryBackend
from support.small_backups import OTHER_PASSWORD, back_up, extracted, grow, on_disk, opened, seen

OURS = (errors.Damaged, errors.NotFound, errors.WrongPassword)
"""All that damage may end in; ``Hostile`` is ``Damaged``."""
SAMPLE = 200


@dataclass(frozen=True)
class Small:
    """A repository with a few backups, and what a restore of each must see."""

    files: dict[str, bytes]
    whole: dict[str, list[object]]
    disk: dict[str, tuple[Any, ...]]
    root: Path
    """The folder, as the last backup has it."""

    def positions(self) -> list[tuple[str, int]]:
        return [(path, at) for path, content in sorted(self.files.items()) for at in range(len(content))]


@pytest.fixture(scope="module", autouse=True)
def quick() -> Iterator[None]:
    with small_backups.patched() as patch:
        small_backups.quick_to_open(patch)
        small_backups.many_small_packs(patch, pack=4_000, chunk=500)
        yield


@pytest.fixture(scope="module")
def small(quick: None, tmp_path_factory: pytest.TempPathFactory) -> Small:
    work = tmp_path_factory.mktemp("small")
    rng, root, ids = random.Random(1), work / "root", small_backups.identities()
    backend = MemoryBackend()
    keys.create(backend, OTHER_PASSWORD, small_backups.new(backend).key, generated=True)
    whole, disk = {}, {}
    for _ in range(3):
        grow(root, rng, files=6, size=1_200)
        stream = rng.randbytes(900)
        listed = back_up(opened(backend), root, next(ids), work=work, stream=stream)
        whole[listed.id] = seen(opened(backend), listed)
        disk[listed.id] = on_disk(root, stream)
    kinds = Counter(path.split("/")[0] for path in backend.files)
    assert kinds["data"] > 5, kinds
    assert {**kinds, "data": 0} == {"config": 1, "keys": 2, "snapshots": 3, "index": 3, "data": 0}
    assert sum(map(len, backend.files.values())) < 150_000
    assert any(b"sums" in node.file_name for node in opened(backend).load_tree(_root(opened(backend))))
    return Small(dict(backend.files), whole, disk, root)


def _root(repository: Repository) -> bytes:
    return repository.snapshots()[-1].snapshot.tree_id


def is_found(backend: MemoryBackend) -> bool:
    """Whether opening it, or reading all of it, says that something is wrong."""
    try:
        return not check(opened(backend), read_share=1.0).sound
    except OURS:
        return True


def is_restored(backend: MemoryBackend, small: Small, told: Counter[str]) -> bool:
    """Whether any backup can still be restored; each that can is what it was, to the byte."""
    try:
        repository = opened(backend)
        listed = repository.snapshots()
    except OURS as error:
        told[type(error).__name__] += 1
        return False
    restored = 0
    for each in listed:
        try:
            found = seen(repository, each)
        except OURS as error:
            told[type(error).__name__] += 1
            continue
        assert found == small.whole[each.id], f"{each.id} is restored as something else"
        told["exact"] += 1
        restored += 1
    return restored > 0


def with_damage(small: Small, path: str, change: Callable[[bytes], bytes | None]) -> MemoryBackend:
    backend = MemoryBackend()
    backend.files = dict(small.files)
    changed = change(backend.files.pop(path))
    if changed is not None:
        backend.files[path] = changed
    return backend


def flipped(at: int, bit: int) -> Callable[[bytes], bytes]:
    return lambda content: content[:at] + bytes([content[at] ^ 1 << bit]) + content[at + 1 :]


def sweep(small: Small, positions: list[tuple[str, int]], rng: random.Random) -> Counter[str]:
    told: Counter[str] = Counter()
    for path, at in positions:
        bit = rng.randrange(8)
        for what, change in (("flipped", flipped(at, bit)), ("cut", lambda content, at=at: content[:at])):
            backend = with_damage(small, path, change)
            assert is_found(backend), f"{what} at {at} of {path} (bit {bit}) is not found"
            is_restored(backend, small, told)
            told[what] += 1
    return told


def test_the_whole_one_is_sound_and_restores(small: Small, tmp_path: Path) -> None:
    backend = with_damage(small, "config", lambda content: content)
    assert not is_found(backend)
    assert is_restored(backend, small, Counter())
    repository = opened(backend)
    for number, listed in enumerate(repository.snapshots()):
        assert extracted(repository, listed, tmp_path / f"{number}") == small.disk[listed.id]


def test_a_sample_of_flipped_bits_and_cuts(small: Small, rng: random.Random) -> None:
    told = sweep(small, rng.sample(small.positions(), SAMPLE), rng)
    assert told["flipped"] == told["cut"] == SAMPLE
    assert told["exact"] and told["Damaged"]  # both ways to be right come up


def test_both_ends_of_every_file(small: Small, rng: random.Random) -> None:
    ends = [(path, at) for path, content in small.files.items() for at in (0, len(content) - 1)]
    assert sweep(small, ends, rng)["flipped"] == 2 * len(small.files)


@pytest.mark.soak
@pytest.mark.timeout(7200)
def test_every_byte_and_every_cut(small: Small, rng: random.Random) -> None:
    told = sweep(small, small.positions(), rng)
    print(f"{len(small.files)} files, {len(small.positions())} bytes: {dict(told)}")
    assert told["flipped"] == len(small.positions())


def test_a_restore_onto_a_disk_is_exact_or_says_that_it_is_not_whole(
    small: Small, rng: random.Random, tmp_path: Path
) -> None:
    """The way of ``cosmos restore --to``, which writes pack by pack and leaves what it has when it breaks off."""
    packs = [path for path in small.files if path.startswith("data/")]
    told: Counter[str] = Counter()
    for number, path in enumerate(rng.choices(packs, k=12)):
        backend = with_damage(small, path, flipped(rng.randrange(len(small.files[path])), rng.randrange(8)))
        repository = opened(backend)
        for listed in repository.snapshots():
            try:
                found = extracted(repository, listed, tmp_path / f"{number}-{listed.id[:8]}")
            except OURS as error:
                assert (tmp_path / f"{number}-{listed.id[:8]}").exists() == ("is not whole" in error.message)
                told["broken off"] += 1
            else:
                assert found == small.disk[listed.id]
                told["exact"] += 1
    assert told["broken off"] and told["exact"]


# ---------------------------------------------------------------------------------------------------- removed files
def test_every_removed_file_is_missed(small: Small, tmp_path: Path) -> None:
    """A snapshot by what the host knows; a second key, which nothing else refers to, by nobody."""
    missed: Counter[str] = Counter()
    state = tmp_path / "state"
    whole = with_damage(small, "config", lambda content: content)
    known.missing(state, opened(whole), small_backups.PROJECT)
    for path in small.files:
        kind = path.split("/")[0]
        backend = with_damage(small, path, lambda content: None)
        told: Counter[str] = Counter()
        is_restored(backend, small, told)
        if kind == "snapshots":
            gone, _ = known.missing(state, opened(backend), small_backups.PROJECT)
            assert [each.snapshot for each in gone] == [path.rpartition("/")[2]]
            assert told["exact"] == 2
        elif kind == "keys":
            opens = [is_opened(backend, password) for password in (small_backups.PASSWORD, OTHER_PASSWORD)]
            assert sorted(opens) == [False, True]
        else:
            assert is_found(backend), f"{path} is not missed"
        missed[kind] += 1
    assert set(missed) == {"config", "keys", "snapshots", "index", "data"}


def test_a_backup_after_a_pack_was_lost_is_whole(small: Small, tmp_path: Path) -> None:
    """Nothing new is built on what is gone: it is stored again. What the old ones lack is told all the same."""
    wanted = on_disk(small.root, b"")
    for number, path in enumerate(path for path in small.files if path.startswith("data/")):
        backend = with_damage(small, path, lambda content: None)
        made = back_up(opened(backend), small.root, f"20250101_0000{number:02}", work=tmp_path)
        repository = opened(backend)
        assert extracted(repository, made, tmp_path / f"{number}") == wanted
        assert any(fault.kind == "pack" for fault in check(repository).faults)
    assert number > 5


def is_opened(backend: MemoryBackend, password: str) -> bool:
    try:
        Repository.open(backend, password)
    except errors.WrongPassword:
        return False
    return True


def test_without_any_key_it_is_no_repository(small: Small) -> None:
    backend = with_damage(small, "config", lambda content: content)
    backend.files = {path: content for path, content in backend.files.items() if not path.startswith("keys/")}
    with pytest.raises(errors.NotFound):
        opened(backend)


def test_two_files_that_were_exchanged_are_found(small: Small) -> None:
    """Each is whole and sealed with the right key, and is not what its name says."""
    for kind in ("keys", "snapshots", "index", "data"):
        one, two = [path for path in sorted(small.files) if path.startswith(f"{kind}/")][:2]
        backend = with_damage(small, one, lambda content, two=two: small.files[two])
        backend.files[two] = small.files[one]
        assert is_found(backend), kind
        is_restored(backend, small, Counter())
