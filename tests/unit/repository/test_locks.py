"""Locks."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
import time
from typing import Any

import msgspec
import pytest

from cosmos_coherence import errors
from cosmos_coherence.repository import gotext, locks
from cosmos_coherence.repository.repository import Repository
from support.memory_backend import MemoryBackend


@pytest.fixture
def repository(monkeypatch: pytest.MonkeyPatch) -> Repository:
    monkeypatch.setattr(locks, "_SETTLE_S", 0.01)
    return Repository.init(MemoryBackend(), "right-Horse-9", generated=True)


def foreign(repository: Repository, *, age_s: float = 0, **fields: Any) -> str:
    """Somebody else's lock."""
    made = locks.LockFile(
        time=gotext.format_time(time.time_ns() - int(age_s * 1e9)), **{"hostname": "elsewhere", "pid": 77, **fields}
    )
    return repository.envelope().save(repository.backend, "locks", msgspec.json.encode(made)).hex()


def names(repository: Repository) -> set[str]:
    return {stored.name for stored in repository.backend.list("locks")}


def test_shared_ones_live_together_and_an_exclusive_one_alone(repository: Repository) -> None:
    with locks.acquire(repository), locks.acquire(repository):
        assert len(locks.held(repository)) == 2
        with pytest.raises(errors.Locked, match=f"pid {os.getpid()}.* since 20"):
            locks.acquire(repository, exclusive=True)
        assert len(names(repository)) == 2
    with locks.acquire(repository, exclusive=True):
        for exclusive in (False, True):
            with pytest.raises(errors.Locked, match="exclusively by"):
                locks.acquire(repository, exclusive=exclusive)
    assert not names(repository)


def test_one_that_does_not_settle_sees_the_other_before_it_is_relied_on(repository: Repository) -> None:
    with locks.acquire(repository, settle=False, refresh=False) as lock:
        lock.ensure()
        lock.ensure()
    lock = locks.acquire(repository, settle=False, refresh=False)
    other = foreign(repository, exclusive=True)  # it came after we had looked
    with pytest.raises(errors.Locked, match="exclusively by"):
        lock.ensure()
    assert names(repository) == {other}
    with pytest.raises(errors.Locked):
        lock.ensure()
    with pytest.raises(AssertionError):
        locks.acquire(repository, exclusive=True, settle=False)


def test_of_two_that_come_together_not_both_get_it(repository: Repository) -> None:
    got: list[locks.Lock] = []

    def come() -> None:
        with contextlib.suppress(errors.Locked):
            got.append(locks.acquire(repository, exclusive=True))

    for _ in range(5):
        both = [threading.Thread(target=come) for _ in range(2)]
        for thread in both:
            thread.start()
        for thread in both:
            thread.join()
        assert len(got) <= 1
        for lock in got:
            lock.release()
        got.clear()
        assert not names(repository)


def test_old_ones_are_cleared_and_young_ones_are_not(repository: Repository) -> None:
    old, young = foreign(repository, age_s=1801), foreign(repository, age_s=1700)
    with locks.acquire(repository):
        assert old not in names(repository)
        assert young in names(repository)
    assert locks.unlock(repository) == 0
    assert locks.unlock(repository, every=True) == 1


def test_a_dead_process_is_known_only_here(repository: Repository) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    here = {"boot_id": locks._boot_id(), "pid_namespace": locks._pid_namespace()}
    assert all(here.values())
    dead = foreign(repository, exclusive=True, pid=ended.pid, **here)
    living = foreign(repository, pid=os.getpid(), **here)
    other_boot = foreign(repository, pid=ended.pid, boot_id="x", pid_namespace=here["pid_namespace"])
    nothing_known = foreign(repository, pid=ended.pid)
    with locks.acquire(repository):
        assert dead not in names(repository)
        assert {living, other_boot, nothing_known} < names(repository)


def test_a_lock_is_kept_fresh_and_told_when_it_is_lost(repository: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "REFRESH_S", 0.01)
    with locks.acquire(repository) as lock:
        (first,) = names(repository)
        end = time.monotonic() + 20
        while first in names(repository):
            assert time.monotonic() < end
            time.sleep(0.005)
        lock.ensure()
    assert not names(repository)
    with pytest.raises(errors.Locked):
        lock.ensure()
    lock.release()

    with locks.acquire(repository, refresh=False) as lock:
        locks.unlock(repository, every=True)
        with pytest.raises(errors.Locked, match="removed"):
            lock.ensure()
        monkeypatch.setattr(locks, "_UNSURE_S", -1.0)
        with pytest.raises(errors.Locked, match="fresh"):
            lock.ensure()


def test_a_lock_that_was_taken_away_does_not_come_back(repository: Repository) -> None:
    with locks.acquire(repository, exclusive=True, refresh=False) as lock:
        lock.refresh()
        lock.ensure()
        locks.unlock(repository, every=True)
        with pytest.raises(errors.Locked, match="removed"):
            lock.refresh()
        with locks.acquire(repository, exclusive=True, refresh=False):
            lock.refresh()
            with pytest.raises(errors.Locked):
                lock.ensure()
            assert len(names(repository)) == 1


def test_one_waits(repository: Repository) -> None:
    name = foreign(repository, exclusive=True)
    threading.Timer(0.2, repository.backend.remove, ("locks", name)).start()
    with locks.acquire(repository, wait_s=30):
        pass


def test_an_unreadable_lock_locks_and_an_empty_one_does_not(repository: Repository) -> None:
    backend = repository.backend
    assert isinstance(backend, MemoryBackend)
    backend.files["locks/" + "0" * 64] = b""
    with locks.acquire(repository):
        pass
    backend.files["locks/" + "1" * 64] = b"junk"
    with pytest.raises(errors.Locked, match="cannot be read"):
        locks.acquire(repository)
    assert locks.unlock(repository) == 0


def test_letting_go_never_raises(repository: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    lock = locks.acquire(repository)

    def broken(*_: object) -> None:
        raise errors.BackendUnavailable("gone")

    monkeypatch.setattr(repository.backend, "remove", broken)
    lock.release()


def test_one_that_could_not_be_removed_is_nobodys(repository: Repository) -> None:
    """A process that lives long, such as the agent, would lock itself out for half an hour."""
    backend = repository.backend
    lock = locks.acquire(repository, exclusive=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(backend, "remove", _gone)
        lock.release()
    assert len([*backend.list("locks")]) == 1
    with locks.acquire(repository, exclusive=True):
        assert len([*backend.list("locks")]) == 1


def _gone(*_: object) -> None:
    raise errors.BackendUnavailable("gone")


def test_who_forks_meets_no_thread_of_ours(repository: Repository) -> None:
    alone = threading.active_count()
    with locks.acquire(repository) as lock:
        assert threading.active_count() == alone + 1
        with lock.without_thread():
            assert threading.active_count() == alone
        assert threading.active_count() == alone + 1
        lock.ensure()
    assert threading.active_count() == alone
    with locks.acquire(repository, refresh=False) as lock, lock.without_thread():
        pass
    assert threading.active_count() == alone
