"""Locks on a repository, as restic makes them ("Locks" of its design document): files that everybody looks at.

A new lock is written, and after a moment the others are read again, so of two that come together at least one sees the
other. A lock says when it was last refreshed; one that is too old is nobody's.
"""

from __future__ import annotations

import contextlib
import os
import random
import socket
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Final

import msgspec

from cosmos_coherence import errors, interruption
from cosmos_coherence.repository import gotext
from cosmos_coherence.repository.keys import username
from cosmos_coherence.repository.repository import Repository

REFRESH_S: Final = 300.0
STALE_S: Final = 1800.0
_RETRY_S: Final = 10.0
_UNSURE_S: Final = 1500.0
"""A lock that was not refreshed for so long may soon be taken for stale: we do not rely on it any more."""
_SETTLE_S: Final = 0.2
_UNREADABLE_TRIES: Final = 3

_abandoned: Final[set[str]] = set()
"""Locks of this process that it let go of and could not remove: nobody's, though their owner lives."""


class LockFile(msgspec.Struct, frozen=True, kw_only=True):
    """What a lock says about its owner; the last two fields are ours, restic passes over them."""

    time: str
    exclusive: bool = False
    hostname: str = ""
    username: str = ""
    pid: int = 0
    uid: int = 0
    gid: int = 0
    boot_id: str = ""
    pid_namespace: str = ""

    @property
    def owner(self) -> str:
        """Who it is and since when, for people."""
        how = "exclusively by " if self.exclusive else "by "
        return f"{how}{self.username or '?'} on {self.hostname or '?'} (pid {self.pid}) since {self.time}"

    def is_stale(self, now_ns: int) -> bool:
        """Whether it is nobody's: too old, or of a process that is gone and could only have run beside us.

        A host name and a process id mean nothing between containers; the boot and the process namespace do.
        """
        if now_ns - gotext.parse_time(self.time) > STALE_S * 1e9:
            return True
        here = self.boot_id and (self.boot_id, self.pid_namespace) == (_boot_id(), _pid_namespace())
        return bool(here) and not _is_alive(self.pid)


class Lock:
    """A lock that is held. A context manager that lets go of it."""

    def __init__(self, repository: Repository, *, exclusive: bool, refresh: bool, settle: bool) -> None:
        self.exclusive = exclusive
        self._settled = False
        self._repository = repository
        self._name: str | None = None
        self._refreshed = self._written = 0.0
        self._mutex = threading.Lock()
        self._stop = threading.Event()
        self._thread: interruption.Thread | None = None
        self._take(settle)
        if refresh:
            self.start_refreshing()

    def __enter__(self) -> Lock:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def start_refreshing(self) -> None:
        """Keep it fresh from a thread of its own; left out until then by who has to fork first."""
        if self._thread is None:
            self._thread = interruption.Thread(target=self._keep, name="repository lock", daemon=True)
            self._thread.start()

    @contextlib.contextmanager
    def without_thread(self) -> Iterator[None]:
        """No thread of ours runs in this block: who forks there forks all that there is. To be left within seconds."""
        running = self._thread is not None
        self._halt()
        try:
            yield
        finally:
            self._stop.clear()
            if running:
                self.start_refreshing()

    def ensure(self) -> None:
        """Raise ``Locked`` unless the lock is still ours.

        Called before anything that relies on it is published or removed. Raises the backend's errors too.
        """
        self._settle()
        with self._mutex:
            name, age = self._name, _clock() - self._refreshed
        if name is None or age > _UNSURE_S:
            raise errors.Locked("the lock on the repository was not kept fresh and may be lost")
        try:
            self._repository.backend.size("locks", name)
        except errors.NotFound:
            raise errors.Locked("the lock on the repository was removed by somebody else") from None

    def refresh(self) -> None:
        """Write it anew, then remove the old one. Raises ``Locked`` when that is gone, and the backend's errors."""
        with self._mutex:
            old = self._name
            if old is None:
                return
            try:
                self._repository.backend.size("locks", old)
            except errors.NotFound:
                # Somebody took it for stale, and may have relied on that: it must not come back.
                self._name = None
                raise errors.Locked("the lock on the repository was removed by somebody else") from None
            self._write()
            self._remove(old)

    def release(self) -> None:
        """Let go of it. Never raises: a lock that cannot be removed is stale from then on. May be called again."""
        self._halt()
        with self._mutex:
            name, self._name = self._name, None
        if name is not None:
            with contextlib.suppress(Exception):
                self._remove(name)

    def _halt(self) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _remove(self, name: str) -> None:
        try:
            self._repository.backend.remove("locks", name)
        except BaseException:
            _abandoned.add(name)
            raise

    def _take(self, settle: bool) -> None:
        self._look()
        try:
            self._write()
        except BaseException:
            self.release()
            raise
        if settle:
            self._settle()

    def _settle(self) -> None:
        """Look for others a second time, when those that came with us must be visible."""
        if self._settled:
            return
        try:
            time.sleep(max(0.0, self._written + _SETTLE_S - _clock()))
            self._look()
        except BaseException:
            self.release()
            raise
        self._settled = True

    def _look(self) -> None:
        for name, lock in _others(self._repository, self._name):
            if lock is None:
                raise errors.Locked(
                    f"the repository has a lock that cannot be read ({name[:8]})",
                    remedy="Run the command again; if it stays, `cosmos unlock --all` when nothing else is running.",
                )
            if self.exclusive or lock.exclusive:
                raise errors.Locked(
                    f"the repository is locked {lock.owner}",
                    remedy="Wait until it has ended. A lock that nobody refreshes goes by itself after 30 minutes.",
                )

    def _write(self) -> None:
        began = _clock()
        lock = LockFile(
            time=datetime.now(UTC).isoformat().replace("+00:00", "Z"),
            exclusive=self.exclusive,
            hostname=socket.gethostname(),
            username=username(),
            pid=os.getpid(),
            uid=os.geteuid(),
            gid=os.getegid(),
            boot_id=_boot_id(),
            pid_namespace=_pid_namespace(),
        )
        envelope = self._repository.envelope()
        self._name = envelope.save(self._repository.backend, "locks", msgspec.json.encode(lock)).hex()
        self._refreshed, self._written = began, _clock()

    def _keep(self) -> None:
        wait = REFRESH_S
        while not self._stop.wait(wait):
            try:
                self.refresh()
                wait = REFRESH_S
            except Exception:  # noqa: BLE001 - tried again; ``ensure`` knows how old the lock is
                wait = _RETRY_S


def acquire(
    repository: Repository,
    *,
    exclusive: bool = False,
    wait_s: float = 0.0,
    refresh: bool = True,
    settle: bool = True,
) -> Lock:
    """Lock the repository: shared to read and to add, exclusive to remove. Stale locks of others are cleared.

    Without ``settle``, for shared locks only, it does not wait to see whether somebody else came at the same moment:
    ``ensure`` does, and until then only what nobody relies on may be done: reading, and storing packs. An index read
    after this returns is not older than the lock.

    Tries for ``wait_s`` seconds. Raises ``Locked`` naming who has it and since when, and the backend's errors.
    """
    assert settle or not exclusive, "an exclusive lock is relied on at once"
    end = time.monotonic() + wait_s
    while True:
        try:
            return Lock(repository, exclusive=exclusive, refresh=refresh, settle=settle)
        except errors.Locked:
            if (left := end - time.monotonic()) <= 0:
                raise
            time.sleep(min(left, random.uniform(0.5, 2.0)))  # noqa: S311 - so that two do not collide for ever


def unlock(repository: Repository, *, every: bool = False) -> int:
    """Remove the locks that are stale, or ``every`` one; how many. Raises the backend's errors."""
    before = {stored.name for stored in repository.backend.list("locks")}
    if every:
        for name in before:
            repository.backend.remove("locks", name)
        return len(before)
    for _ in _others(repository, None):
        pass
    return len(before - {stored.name for stored in repository.backend.list("locks")})


def held(repository: Repository) -> tuple[LockFile, ...]:
    """The locks that somebody has. Clears the stale ones. Raises the backend's errors."""
    return tuple(lock for _, lock in _others(repository, None) if lock is not None)


def _others(repository: Repository, own: str | None) -> Iterator[tuple[str, LockFile | None]]:
    """Every lock but ``own`` that is not stale, None for one that cannot be read; stale ones are removed."""
    now = time.time_ns()
    for stored in list(repository.backend.list("locks")):
        if stored.name == own or not stored.size:  # an upload that some stores show before it is whole
            continue
        try:
            lock = _patiently(lambda name=stored.name: _load(repository, name))  # type: ignore[misc]
        except errors.NotFound:
            continue
        if lock is not None and (stored.name in _abandoned or lock.is_stale(now)):
            with contextlib.suppress(errors.CosmosError):
                repository.backend.remove("locks", stored.name)
                _abandoned.discard(stored.name)
            continue
        yield stored.name, lock


def _load(repository: Repository, name: str) -> LockFile:
    plain = repository.envelope().load(repository.backend, "locks", name)
    try:
        lock = msgspec.json.decode(plain, type=LockFile)
        gotext.parse_time(lock.time)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise errors.Damaged(f"not a lock: {error}") from error
    return lock


def _patiently(load: Callable[[], LockFile]) -> LockFile | None:
    for _ in range(_UNREADABLE_TRIES):
        try:
            return load()
        except errors.Damaged:
            time.sleep(_SETTLE_S)
    return None


def _clock() -> float:
    # Goes on while the machine sleeps, as the age of our lock does for everybody else.
    return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic()


def _boot_id() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
    except OSError:
        return ""


def _pid_namespace() -> str:
    try:
        return str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        return ""


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0) if pid > 0 else None
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True
    return True
