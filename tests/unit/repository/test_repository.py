"""Saving, loading, snapshots, checking, pruning, copying: on a store in memory."""

from __future__ import annotations

import functools
import hashlib
import os
import random
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cosmos_coherence import errors
from cosmos_coherence.repository import (
    adopt,
    copying,
    gotext,
    locks,
    packs,
    prune,
    reach,
    saver,
    small_files,
    snapshots,
    trees,
)
from cosmos_coherence.repository.blob import id_of
from cosmos_coherence.repository.check import BUCKETS, bucket, check
from cosmos_coherence.repository.repository import Repository
from cosmos_coherence.repository.snapshots import Snapshot
from cosmos_coherence.storage.backend import Kind
from support.memory_backend import MemoryBackend
from support.saving import save_folder

PASSWORD = "right-Horse-9"


class Dying(MemoryBackend):
    """Does what changes it ``alive`` times, then nothing any more."""

    alive = 1 << 30

    def save(self, kind: Kind, name: str, content: Sequence[bytes | bytearray | memoryview]) -> None:
        self._live()
        super().save(kind, name, content)

    def remove(self, kind: Kind, name: str) -> None:
        self._live()
        super().remove(kind, name)

    def _live(self) -> None:
        self.alive -= 1
        if self.alive < 0:
            raise errors.BackendUnavailable("dead")


def new(backend: MemoryBackend | None = None) -> Repository:
    return Repository.init(backend or MemoryBackend(), PASSWORD, generated=True)


def store(repository: Repository, files: dict[str, bytes], seconds: int = 0, workers: int = 0) -> str:
    """A snapshot of these files in one folder."""
    with repository.saver(workers=workers) as out:
        nodes = []
        for name, content in sorted(files.items()):
            blobs = [out.save("data", content[at : at + 5000]).hex() for at in range(0, len(content), 5000)]
            nodes.append(trees.node(name.encode(), "file", size=len(content), content=blobs))
        below = out.save("tree", trees.encode(nodes))
        top = out.save("tree", trees.encode([trees.node(b"folder", "dir", subtree=below.hex())]))
    made = Snapshot(
        time=gotext.format_time(seconds * 10**9), tree=top.hex(), paths=["/folder"], hostname="h", tags=["t"]
    )
    return repository.save_snapshot(made)


def read(repository: Repository, snapshot: str) -> dict[str, bytes]:
    (folder,) = repository.load_tree(repository.load_snapshot(snapshot).tree_id)
    assert folder.subtree is not None
    nodes = repository.load_tree(bytes.fromhex(folder.subtree))
    return {node.name: b"".join(repository.load_blob("data", blob) for blob in node.blobs) for node in nodes}


def again(repository: Repository) -> Repository:
    return Repository(repository.backend, repository.opened, repository.config)


def sound(repository: Repository) -> None:
    report = check(again(repository), read_share=1)
    assert report.sound, report.faults


@pytest.fixture
def files(rng: random.Random) -> dict[str, bytes]:
    return {f"file-{number}": rng.randbytes(rng.randint(0, 20_000)) for number in range(20)}


# ------------------------------------------------------------------------------------------ opening, saving
def test_it_opens_with_its_password_only(files: dict[str, bytes]) -> None:
    backend = MemoryBackend()
    snapshot = store(new(backend), files)
    opened = Repository.open(backend, PASSWORD)
    assert read(opened, snapshot) == files
    with pytest.raises(errors.WrongPassword):
        Repository.open(backend, "wrong")
    with pytest.raises(errors.NotFound):
        Repository.open(MemoryBackend(), PASSWORD)
    with pytest.raises(errors.Refused):
        new(backend)
    del backend.files["config"]
    with pytest.raises(errors.Damaged, match="config"):
        Repository.open(backend, PASSWORD)


def test_an_init_that_was_killed_can_be_repeated() -> None:
    backend = Dying()
    backend.alive = 1
    with pytest.raises(errors.BackendUnavailable):
        new(backend)
    assert list(backend.list("keys"))
    backend.alive = 1 << 30
    store(new(backend), {"a": b"x"})
    assert Repository.open(backend, PASSWORD).snapshots()
    assert sum(1 for _ in backend.list("keys")) == 1
    del backend.files["config"]
    with pytest.raises(errors.Refused):
        new(backend)


def test_of_two_that_init_at_once_one_is_told() -> None:
    class Raced(MemoryBackend):
        def save(self, kind: Kind, name: str, content: Sequence[bytes | bytearray | memoryview]) -> None:
            if kind == "config":
                super().save(kind, name, [bytes(sum(map(len, content)))])  # the other one was here
            super().save(kind, name, content)

    with pytest.raises(errors.Refused):
        new(Raced())


@pytest.mark.parametrize("workers", [0, 1, 4])
def test_equal_blobs_are_stored_once(workers: int, rng: random.Random) -> None:
    repository = new()
    content = rng.randbytes(100_000)
    with repository.saver(workers=workers) as out:
        ids = {out.save("data", bytearray(content)) for _ in range(20)}
        pending = [out.submit("data", content, lambda: None) for _ in range(20)]
        assert {each.id() for each in pending} == ids == {id_of(content)}
        assert out.save("tree", content) in ids  # another kind, another blob
    assert (out.added.data_blobs, out.added.tree_blobs) == (1, 1)
    with again(repository).saver(workers=workers) as out:
        out.save("data", content)
    assert out.added.data_blobs == 0
    sound(repository)


def test_packs_are_finished_at_their_size_and_few_are_left_over(
    rng: random.Random, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packs, "TARGET_SIZE", 50_000)
    repository = new()
    with repository.saver(workers=4) as out:
        for _ in range(200):
            out.save("data", rng.randbytes(5_000))
    sizes = sorted(stored.size for stored in repository.backend.list("data"))
    assert 18 <= len(sizes) <= 24, sizes
    assert sizes[-1] < 60_000
    sound(repository)


def test_no_thread_is_started_before_it_is_needed_and_none_is_left() -> None:
    before = threading.active_count()
    repository = Repository.open(new().backend, PASSWORD)
    out = repository.saver(workers=3)
    assert threading.active_count() == before
    with out:
        out.save("data", b"x")
    assert threading.active_count() == before


@pytest.mark.parametrize("workers", [0, 2])
def test_a_failing_store_is_told_by_every_later_call(workers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packs, "TARGET_SIZE", 1000)
    backend = Dying()
    repository = new(backend)
    backend.alive = 2
    with pytest.raises(errors.BackendUnavailable), repository.saver(workers=workers) as out:
        for number in range(1000):
            out.save("data", os.urandom(600) + b"%d" % number)
    with pytest.raises(errors.BackendUnavailable):
        out.save("data", b"x")
    with pytest.raises(errors.BackendUnavailable):
        out.flush()
    backend.alive = 1 << 30
    sound(repository)


def test_an_interrupted_run_loses_nothing_that_was_uploaded(
    monkeypatch: pytest.MonkeyPatch, rng: random.Random
) -> None:
    monkeypatch.setattr(packs, "TARGET_SIZE", 10_000)
    monkeypatch.setattr(saver, "INDEX_BYTES", 30_000)
    repository, content = new(), [rng.randbytes(4_000) for _ in range(30)]
    with pytest.raises(KeyboardInterrupt), repository.saver(workers=2) as out:
        for plain in content:
            out.save("data", plain)
        raise KeyboardInterrupt
    assert check(again(repository)).unused_packs == 0
    uploaded = len(again(repository).index)
    with again(repository).saver() as out:
        for plain in content:
            out.save("data", plain)
    assert out.added.data_blobs == 30 - uploaded
    sound(repository)


def test_packs_of_a_killed_run_are_adopted(files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packs, "TARGET_SIZE", 20_000)
    backend = MemoryBackend()
    repository = new(backend)
    snapshot = store(repository, files)
    for path in [path for path in backend.files if path.startswith(("index/", "snapshots/"))]:
        del backend.files[path]
    junk = hashlib.sha256(b"junk").hexdigest()
    backend.save("data", junk, [b"junk" * 30])
    fresh = again(repository)
    assert adopt.adopt(fresh) == sum(1 for _ in backend.list("data")) - 1 > 3
    assert adopt.adopt(fresh) == 0
    with again(repository).saver() as out:
        for content in files.values():
            for at in range(0, len(content), 5000):
                out.save("data", content[at : at + 5000])
    assert out.added.data_blobs == 0
    assert store(again(repository), files) != snapshot
    sound(repository)


def test_a_blob_that_came_after_the_index_was_read_is_found(files: dict[str, bytes]) -> None:
    repository = new()
    other = again(repository)
    assert len(other.index) == 0
    assert read(other, store(repository, files)) == files


def test_where_one_place_is_damaged_the_other_is_used(files: dict[str, bytes]) -> None:
    backend = MemoryBackend()
    repository = new(backend)
    one = again(repository)
    _ = one.index
    snapshot = store(repository, files)
    store(one, files)  # it does not know the first one's packs: everything is there twice
    for path in [path for path in backend.files if path.startswith("data/")][:2]:
        backend.files[path] = bytes(len(backend.files[path]))
    assert read(again(repository), snapshot) == files


def test_a_reader_survives_a_prune_by_somebody_else(files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packs, "TARGET_SIZE", 20_000)
    repository, first, second = two_snapshots(MemoryBackend(), files)
    reader = again(repository)
    wanted = read(reader, second)
    repository.remove_snapshot(first)
    assert pruned(again(repository), max_unused=0).repack
    assert read(reader, second) == wanted


# ------------------------------------------------------------------------------------------------ snapshots
def test_snapshots_are_listed_and_found(files: dict[str, bytes]) -> None:
    repository = new()
    ids = [store(repository, files, seconds) for seconds in (30, 10, 20)]
    listed = repository.snapshots()
    assert [each.id for each in listed] == [ids[1], ids[2], ids[0]]
    assert snapshots.find(listed).id == ids[0]
    assert snapshots.find(listed, ids[1][:10]).id == ids[1]
    assert snapshots.find(listed, host="h", tags=["t"], paths=["/folder"]).id == ids[0]
    for missing in ({"wanted": "0000000000"}, {"host": "other"}, {"tags": ["x"]}, {"paths": ["/x"]}):
        with pytest.raises(errors.NotFound):
            snapshots.find(listed, **missing)  # type: ignore[arg-type]
    with pytest.raises(errors.UsageError):
        snapshots.find(listed, ids[0][:2])
    repository.remove_snapshot(ids[0])
    assert snapshots.find(repository.snapshots()).id == ids[2]


@given(st.binary(max_size=100))
def test_what_is_no_snapshot_is_damage(junk: bytes) -> None:
    with pytest.raises(errors.Damaged):
        snapshots.decode(junk)


# -------------------------------------------------------------------------------------------------- damage
def test_every_removed_file_is_missed_or_harmless(files: dict[str, bytes]) -> None:
    backend = MemoryBackend()
    store(new(backend), files)
    for path, content in list(backend.files.items()):
        del backend.files[path]
        try:
            missed = not check(Repository.open(backend, PASSWORD)).sound
        except errors.CosmosError:
            missed = True
        assert missed or path.startswith("snapshots/"), path
        backend.files[path] = content


@functools.cache
def _small() -> dict[str, bytes]:
    backend = MemoryBackend()
    store(new(backend), {"a": b"hello" * 300, "b": os.urandom(200)})
    return backend.files


@settings(max_examples=50, deadline=None)
@given(st.data())
def test_every_flipped_bit_and_every_cut_is_found(data: st.DataObject) -> None:
    backend = MemoryBackend()
    backend.files = dict(_small())
    paths = sorted(backend.files, key=lambda path: (path.split("/")[0], len(backend.files[path])))
    path = paths[data.draw(st.integers(0, 1000)) % len(paths)]
    changed = bytearray(backend.files[path])
    at = data.draw(st.integers(0, 1 << 20)) % len(changed)
    if data.draw(st.booleans()):
        changed[at] ^= 1 << data.draw(st.integers(0, 7))
    else:
        del changed[at:]
    backend.files[path] = bytes(changed)
    try:
        report = check(Repository.open(backend, PASSWORD), read_share=1)
    except errors.CosmosError:
        return
    assert not report.sound


def test_a_rotating_share_reads_everything_in_a_hundred_days(
    monkeypatch: pytest.MonkeyPatch, rng: random.Random
) -> None:
    monkeypatch.setattr(packs, "TARGET_SIZE", 200)
    repository = new()
    with repository.saver(workers=0) as out:
        for _ in range(60):
            out.save("data", rng.randbytes(250))
    reports = [check(repository, read_share=0.01, day=day) for day in range(BUCKETS)]
    assert sum(report.packs_read for report in reports) == 60
    assert (
        check(repository, read_share=0.01, day=0).packs_read == check(repository, read_share=0.01, day=100).packs_read
    )
    assert sum(check(repository, read_share=0.25, day=day).packs_read for day in range(4)) == 60
    assert check(repository, read_share=1).packs_read == 60
    assert {bucket(bytes(32)), bucket(b"\xff" * 32)} == {0, 99}


# --------------------------------------------------------------------------------------------------- prune
def pruned(repository: Repository, **how: float) -> prune.Plan:
    with locks.acquire(repository, exclusive=True, refresh=False) as lock:
        planned = prune.plan(repository, **how)
        prune.apply(repository, planned, lock)
    return planned


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "_SETTLE_S", 0.001)


def two_snapshots(backend: MemoryBackend, files: dict[str, bytes]) -> tuple[Repository, str, str]:
    repository = new(backend)
    first = store(repository, files, 1)
    changed = dict(list(files.items())[::2]) | {"new": os.urandom(9_000)}
    return repository, first, store(repository, changed, 2)


def test_prune_removes_what_nobody_needs(files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packs, "TARGET_SIZE", 20_000)
    backend = MemoryBackend()
    repository, first, second = two_snapshots(backend, files)
    assert pruned(again(repository)).empty
    wanted = read(repository, second)
    repository.remove_snapshot(first)
    before = sum(stored.size for stored in backend.list("data"))
    planned = pruned(again(repository), max_unused=0)
    after = sum(stored.size for stored in backend.list("data"))
    assert planned.freed_size > 0
    assert abs(before - after - planned.freed_size) < 3_000  # but for headers
    assert read(again(repository), second) == wanted
    report = check(again(repository), read_share=1)
    assert report.sound, report.faults
    assert report.unused_packs == 0
    assert not list(backend.list("locks"))
    assert pruned(again(repository), max_unused=0).empty


def test_prune_killed_at_every_step_loses_nothing(files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packs, "TARGET_SIZE", 20_000)
    monkeypatch.setattr(prune, "INDEX_BLOBS", 10)
    backend = Dying()
    repository, first, second = two_snapshots(backend, files)
    wanted = read(repository, second)
    repository.remove_snapshot(first)
    begin = dict(backend.files)
    for step in range(1000):
        backend.files = dict(begin)
        backend.alive = step
        try:
            pruned(again(repository), max_unused=0)
            break
        except errors.BackendUnavailable:
            backend.alive = 1 << 30
        sound(repository)
        assert read(again(repository), second) == wanted
        locks.unlock(repository, every=True)
        pruned(again(repository), max_unused=0)  # and it comes to an end
        sound(repository)
    assert step > 10
    assert read(again(repository), second) == wanted


def test_prune_refuses_where_something_is_missing(files: dict[str, bytes]) -> None:
    backend = MemoryBackend()
    repository = new(backend)
    store(repository, files)
    path = max((path for path in backend.files if path.startswith("data/")), key=lambda path: len(backend.files[path]))
    del backend.files[path]
    before = dict(backend.files)
    with pytest.raises(errors.Damaged):
        pruned(again(repository))
    assert backend.files == before


def test_prune_does_not_apply_an_old_plan(files: dict[str, bytes]) -> None:
    repository, first, _ = two_snapshots(MemoryBackend(), files)
    repository.remove_snapshot(first)
    planned = prune.plan(repository, max_unused=0)
    store(again(repository), {"late": b"x" * 100})
    with locks.acquire(repository, exclusive=True, refresh=False) as lock, pytest.raises(errors.Refused):
        prune.apply(repository, planned, lock)
    sound(repository)


# ---------------------------------------------------------------------------------------------------- copy
def test_copies_are_equal_and_made_once(files: dict[str, bytes]) -> None:
    repository, first, second = two_snapshots(MemoryBackend(), files)
    target = new()
    done = copying.copy(repository, target, [first, second])
    assert set(done.snapshots) == {first, second}
    for source, copy in done.snapshots.items():
        assert read(again(target), copy) == read(repository, source)
        assert target.load_snapshot(copy).original == source
    sound(target)
    once_more = copying.copy(repository, again(target), [first, second])
    assert (once_more.blobs, set(once_more.skipped)) == (0, {first, second})
    with pytest.raises(errors.NotFound):
        copying.copy(repository, target, ["0" * 64])
    with pytest.raises(errors.UsageError):
        copying.copy(repository, again(repository), [first])


@pytest.mark.parametrize("how", ["lost", "cut", "flipped"])
def test_a_damaged_snapshot_stays_behind_and_keeps_no_other_from_being_copied(
    files: dict[str, bytes], how: str
) -> None:
    """It is the oldest, and it fails before the folder that all have is copied: the others must bring that along."""
    backend, target = MemoryBackend(), new()
    repository = new(backend)
    second = store(repository, files, 2)
    before = set(backend.files)
    first, third = beside(repository, second, os.urandom(9_000), 1), beside(repository, second, os.urandom(9_000), 3)
    place = next(repository.index.places("data", next(iter(only(repository, first, second)))))
    path = f"data/{place.pack.hex()[:2]}/{place.pack.hex()}"
    assert path in set(backend.files) - before
    damage(backend, path, how)
    done = copying.copy(again(repository), target, [first, second, third])
    assert list(done.damaged) == [first]
    assert first[:8] in done.damaged[first]
    assert set(done.snapshots) == {second, third}
    sound(target)
    assert read(again(target), done.snapshots[second]) == files


def test_a_snapshot_that_cannot_be_read_is_named_and_the_others_are_copied(files: dict[str, bytes]) -> None:
    repository, first, second = two_snapshots(backend := MemoryBackend(), files)
    damage(backend, f"snapshots/{first}", "cut")
    target = new()
    done = copying.copy(again(repository), target, [second])
    assert list(done.snapshots) == [second]
    assert [first[:8] in sentence for sentence in done.unreadable] == [True]
    damage(target.backend, f"snapshots/{done.snapshots[second]}", "cut")
    assert list(copying.copy(repository, again(target), [second]).snapshots) == [second], (
        "what is lost there comes anew"
    )


def test_a_blob_that_is_damaged_in_one_pack_is_taken_from_another(files: dict[str, bytes]) -> None:
    backend, target = MemoryBackend(), new()
    repository = new(backend)
    packs_before = set(backend.files)
    other = Repository.open(backend, PASSWORD)
    _ = other.index  # empty: it stores everything a second time
    first = store(repository, files, 1)
    once = {path for path in set(backend.files) - packs_before if path.startswith("data/")}
    second = store(other, files | {"more": b"x"}, 2)
    damage(backend, max(once, key=lambda path: len(backend.files[path])), "flipped")
    done = copying.copy(again(repository), target, [first, second])
    assert done.damaged == {}
    assert read(again(target), done.snapshots[first]) == files


def beside(repository: Repository, snapshot: str, content: bytes, seconds: int) -> str:
    """A snapshot with the folder of another one and a file beside it."""
    found = repository.load_snapshot(snapshot)
    with repository.saver(workers=0) as out:
        file = trees.node(b"a", "file", size=len(content), content=[out.save("data", content).hex()])
        top = out.save("tree", trees.encode([file, *repository.load_tree(found.tree_id)]))
    return repository.save_snapshot(
        Snapshot(time=gotext.format_time(seconds * 10**9), tree=top.hex(), paths=["/folder"], hostname="h")
    )


def only(repository: Repository, one: str, other: str) -> set[bytes]:
    """The data that one snapshot has and the other has not."""

    def blobs(snapshot: str) -> set[bytes]:
        found = reach.trees(repository.load_tree, [repository.load_snapshot(snapshot).tree_id])
        return {blob for _, nodes in found for node in nodes for blob in node.blobs}

    return blobs(one) - blobs(other)


def damage(backend: MemoryBackend, path: str, how: str) -> None:
    data = backend.files.pop(path)
    if how == "cut":
        backend.files[path] = data[: len(data) // 2]
    elif how == "flipped":  # somewhere in each of its blobs
        backend.files[path] = bytes(byte ^ (at % 997 == 5) for at, byte in enumerate(data))


# -------------------------------------------------------------------------------------------------- folders
def test_a_folder_is_saved_again_by_its_metadata(
    tmp_path: Path, rng: random.Random, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "root"
    (root / "sub").mkdir(parents=True)
    (root / "a").write_bytes(rng.randbytes(1000))
    (root / "sub" / "large").write_bytes(rng.randbytes(3_000_000))
    repository = new()
    with repository.saver() as out:
        first = save_folder(repository, out, root)
    assert first.files == 2
    monkeypatch.setattr(small_files, "open_file", None)
    with repository.saver() as out:
        second = save_folder(repository, out, root, before=first.state)
    assert (second.tree, out.added.data_blobs) == (first.tree, 0)
    monkeypatch.undo()
    (root / "a").write_bytes(b"other")
    with repository.saver() as out:
        third = save_folder(repository, out, root, before=first.state)
    assert out.added.data_blobs == 1
    assert third.state.names[b"sub/large"] is first.state.names[b"sub/large"]
    with pytest.raises(errors.CaptureFailed, match="nowhere"), repository.saver() as out:
        save_folder(repository, out, root / "nowhere")
    sound(repository)
