"""Two processes at one repository: both may add at once, and nobody removes while somebody adds."""

from __future__ import annotations

import os
import random
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cosmos_coherence import errors
from cosmos_coherence.repository import layout, locks, prune
from cosmos_coherence.repository.check import check
from cosmos_coherence.repository.writer import RepositoryWriter
from cosmos_coherence.storage.folder import FolderBackend
from support import small_backups
from support.restic import VERSIONS, restic
from support.small_backups import PROJECT, back_up, extracted, grow, on_disk, opened

ROUNDS = 3


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    small_backups.quick_to_open(monkeypatch)
    small_backups.many_small_packs(monkeypatch)
    monkeypatch.setattr(locks, "_SETTLE_S", 0.05)


@pytest.fixture
def repository(tmp_path: Path) -> FolderBackend:
    backend = FolderBackend(tmp_path / "repository")
    small_backups.new(backend)
    return backend


class Other:
    """Another process, which does its work as far as it is let."""

    def __init__(self, work: Callable[[Other], None]) -> None:
        self._theirs, ours = os.pipe()
        theirs, self._ours = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            self._theirs, self._ours = theirs, ours
            try:
                work(self)
            except BaseException:  # noqa: BLE001 - a child must never go on as the test
                traceback.print_exc()
                os._exit(3)
            os._exit(0)
        os.close(ours)
        os.close(theirs)

    def say(self) -> None:
        os.write(self._ours, b".")

    def hear(self) -> None:
        assert os.read(self._theirs, 1) == b".", "the other process has ended"

    def end(self) -> None:
        os.close(self._ours)
        status = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        os.close(self._theirs)
        assert status == 0


@contextmanager
def other(work: Callable[[Other], None]) -> Iterator[Other]:
    started = Other(work)
    try:
        yield started
    finally:
        started.end()


def test_both_back_up_at_once(repository: FolderBackend, tmp_path: Path, rng: random.Random) -> None:
    """Much of what they store is the same, so that each meets what the other has only half done."""
    wanted = {}
    ids = small_backups.identities()
    shared = rng.randbytes(200_000)
    for _ in range(ROUNDS):
        jobs = []
        for number in range(2):
            root, identity = tmp_path / f"root-{number}", next(ids)
            grow(root, rng, files=20, size=9_000)
            (root / "shared").write_bytes(shared[rng.randrange(1_000) :])
            stream = shared + rng.randbytes(50_000)
            wanted[identity] = on_disk(root, stream)
            jobs.append((root, identity, stream))

        def run(mine: Other, job: tuple[Path, str, bytes]) -> None:
            root, identity, stream = job
            mine.hear()
            back_up(opened(repository), root, identity, work=tmp_path, stream=stream)

        both = [Other(lambda mine, job=job: run(mine, job)) for job in jobs]
        for each in both:
            each.say()
        for each in both:
            each.end()
    found = opened(repository)
    listed = found.snapshots()
    assert {layout.backup_id(each.snapshot) for each in listed} == wanted.keys()
    for each in listed:
        assert extracted(found, each, tmp_path / each.id) == wanted[layout.backup_id(each.snapshot) or ""]
    report = check(found, read_share=1.0)
    assert report.sound, report.faults
    assert not list(repository.list("locks"))
    for version in VERSIONS:
        restic(version, tmp_path / f"home-{version}").check(tmp_path / "repository")


def test_no_prune_while_a_backup_runs(repository: FolderBackend, tmp_path: Path, rng: random.Random) -> None:
    grow(tmp_path / "root", rng)
    first = back_up(opened(repository), tmp_path / "root", "20240101_000000", work=tmp_path)
    opened(repository).remove_snapshot(first.id)

    def backup(mine: Other) -> None:
        writer = RepositoryWriter(opened(repository), "20240101_000001", PROJECT, tmp_path / "spool")
        with writer.stream("database.sql") as out:
            out.write(b"so far")
            mine.say()
            mine.hear()
        writer.abort()

    before = sorted(stored.name for stored in repository.list("data"))
    with other(backup) as running:
        running.hear()
        with pytest.raises(errors.Locked, match=f"pid {running.pid}"):
            locks.acquire(opened(repository), exclusive=True)
        assert sorted(stored.name for stored in repository.list("data")) == before
        running.say()
    with locks.acquire(opened(repository), exclusive=True) as lock:
        prune.apply(found := opened(repository), prune.plan(found), lock)
    assert not list(repository.list("data"))


def test_no_backup_while_a_prune_runs(repository: FolderBackend, tmp_path: Path, rng: random.Random) -> None:
    root = tmp_path / "root"
    for number in range(2):
        grow(root, rng)
        last = back_up(opened(repository), root, f"20240101_00000{number}", work=tmp_path, stream=rng.randbytes(9_000))
    opened(repository).remove_snapshot(opened(repository).snapshots()[0].id)
    wanted = on_disk(root, b"")

    def prune_slowly(mine: Other) -> None:
        stopped = False

        def progress(step: str, done: int, of: int) -> None:
            nonlocal stopped
            if step == "remove data" and not stopped:
                stopped = True
                mine.say()
                mine.hear()

        found = opened(repository)
        with locks.acquire(found, exclusive=True) as lock:
            prune.apply(found, prune.plan(found, max_unused=0), lock, progress=progress)
        assert stopped

    with other(prune_slowly) as running:
        running.hear()
        with pytest.raises(errors.Locked, match=f"exclusively by .*pid {running.pid}"):
            back_up(opened(repository), root, "20240101_000002", work=tmp_path)
        assert len(opened(repository).snapshots()) == 1
        running.say()
    made = back_up(opened(repository), root, "20240101_000003", work=tmp_path)
    found = opened(repository)
    assert extracted(found, made, tmp_path / "made") == wanted
    assert extracted(found, last, tmp_path / "last")[1] == wanted[1]
    report = check(found, read_share=1.0)
    assert report.sound, report.faults
    restic("0.19", tmp_path / "home").check(tmp_path / "repository")
