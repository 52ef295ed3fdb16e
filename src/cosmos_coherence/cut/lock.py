"""The run lock: one run at a time on a stack; a lease with an owner, a host and an expiry.

Two files. On ``NAME.lock`` the kernel holds a lock, tied to the open file: whoever sees that file on this machine, on
the host or in a container, sees the lock, and it goes by itself when its owner dies. Machines that share a folder may
not share such locks, so ``NAME.lease`` beside it says who the owner is, and is touched while the owner lives. A lease
of another machine that nobody has touched for its time is nobody's. Its age is told by the disk that it lies on, so
clocks of machines may differ, and a clock that jumps is right again with the next touch.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import secrets
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import msgspec

from cosmos_coherence import errors, interruption
from cosmos_coherence.cut.journal import unusable
from cosmos_coherence.drivers import disk
from cosmos_coherence.drivers import owner as owners

EXPIRY_S: Final = 300.0
REFRESH_S: Final = 30.0
SETTLE_S: Final = 0.5
"""After a lease was taken from another machine: who else took it must be seen by then."""
_NO_LOCKS: Final = {errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS}
_NO_LINKS: Final = {errno.EPERM, errno.ENOTSUP, errno.EMLINK, errno.ENOSYS}


_held: Final[set[int]] = set()
"""Open files that hold a lock. A forked child would hold it, too, and for a moment longer than we live."""


def _close_in_child() -> None:
    for handle in _held:
        os.close(handle)
    _held.clear()


os.register_at_fork(after_in_child=_close_in_child)


class Holder(msgspec.Struct, frozen=True):
    """Who has a lock."""

    run: str
    what: str
    owner: owners.Owner
    since: str
    """RFC 3339, UTC."""
    expiry_s: float
    """Seconds without a sign of life after which it is nobody's."""
    token: str

    def __str__(self) -> str:
        return f"{self.what} {self.run}, pid {self.owner.pid} on {self.owner.host}, since {self.since}"


class Lease:
    """A lock that is held."""

    def __init__(self, path: Path, holder: Holder) -> None:
        self._path, self._holder = path, holder
        self._stop = threading.Event()
        self._thread: interruption.Thread | None = None

    def keep(self) -> None:
        """Show from now on that the owner lives, from a thread of its own: not before the last fork, and within
        ``EXPIRY_S`` seconds. May be called again.

        Should the lease be lost all the same, because this machine slept and another took it, the run is interrupted.
        """
        if self._thread is None:
            self._thread = interruption.Thread(target=self._keep, name=self._path.name, daemon=True)
            self._thread.start()

    def release(self) -> None:
        """Let go of it. Never raises: a lease that cannot be removed expires."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
        with contextlib.suppress(OSError):
            if _read(self._path) == self._holder:
                self._path.unlink()

    def _keep(self) -> None:
        while not self._stop.wait(REFRESH_S):
            with contextlib.suppress(OSError):  # tried again, long before it expires
                if _read(self._path) != self._holder:
                    os.kill(os.getpid(), signal.SIGINT)  # not this thread: the main one has to wake up
                    return
                os.utime(self._path)


@contextmanager
def run_lock(directory: Path, *, run: str, what: str) -> Iterator[Lease]:
    """Hold the run lock of the state folder ``directory`` for the run ``run``, which is a ``what`` (a verb).

    Raises ``Locked`` at once, naming the owner, when another run has it. Processes that are started or forked meanwhile
    do not inherit it.
    """
    with lease(directory, "run", run=run, what=what) as held:
        yield held


@contextmanager
def lease(directory: Path, name: str, *, run: str, what: str) -> Iterator[Lease]:
    """As ``run_lock``, for the lock ``name`` of that folder."""
    path, signed = directory / f"{name}.lock", directory / f"{name}.lease"
    try:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise unusable(path, error) from error
    _held.add(handle)
    try:
        try:
            held = Lease(signed, _take(handle, signed, run, what))
        except OSError as error:
            raise unusable(signed, error) from error
        try:
            yield held
        finally:
            held.release()
    finally:
        # Closing lets go of it. The file stays: removing it could take the lock away from under the next owner.
        _held.discard(handle)
        os.close(handle)


def holder(directory: Path, name: str = "run") -> Holder | None:
    """Who has that lock now, as far as can be seen without trying it; nothing is made, and nothing raised."""
    path = directory / f"{name}.lease"
    with contextlib.suppress(OSError):
        if (found := _read(path)) is not None:
            living = owners.lives(found.owner)
            young = abs(time.time() - path.stat().st_mtime) < found.expiry_s
            return found if living or (living is None and young) else None
    return None


def _take(handle: int, path: Path, run: str, what: str) -> Holder:
    sees_all = _lock(handle, path)
    since = datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
    mine = Holder(run, what, owners.ourselves(), since, EXPIRY_S, secrets.token_hex(8))
    draft = path.with_name(f".{path.name}.{mine.token}")
    _write(draft, msgspec.json.encode(mine))
    try:
        try:
            os.link(draft, path)
        except FileExistsError:
            before = _read(path)
            ours = before is not None and before.owner.boot == mine.owner.boot
            alone = sees_all and (ours or disk.is_local(handle))
            if not alone and _is_held(path, before, now_s=draft.stat().st_mtime):
                raise _locked(before) from None
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            before, alone = None, False
            if path.exists() and _is_held(path, before := _read(path), now_s=draft.stat().st_mtime):
                raise _locked(before) from None
        else:
            return mine
        draft.replace(path)
        if not alone:
            time.sleep(SETTLE_S)
            if (now := _read(path)) != mine:
                raise _locked(now)
        return mine
    finally:
        draft.unlink(missing_ok=True)


def _lock(handle: int, path: Path) -> bool:
    """Take the kernel's lock; whether there is such a thing here. ``Locked`` when another process has it."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise _locked(_read(path)) from None
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        return False
    return True


def _is_held(path: Path, found: Holder | None, *, now_s: float) -> bool:
    """Whether somebody whom the kernel does not show us has it. One that cannot be read is judged by its age, too.

    A time in the far future says as little of a living owner as one in the far past: both are of before the clock
    was set.
    """
    living = owners.lives(found.owner) if found else None
    if living is not None:
        return living
    try:
        return abs(now_s - path.stat().st_mtime) < (found.expiry_s if found else EXPIRY_S)
    except FileNotFoundError:
        return False


def _write(draft: Path, data: bytes) -> None:
    handle = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    with os.fdopen(handle, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(handle)


def _read(path: Path) -> Holder | None:
    """What a lease says; None when there is none, or one that cannot be read."""
    try:
        with path.open("rb") as file:
            return msgspec.json.decode(file.read(4096), type=Holder)
    except (FileNotFoundError, msgspec.MsgspecError):
        return None


def _locked(found: Holder | None) -> errors.Locked:
    return errors.Locked(f"another run{f' ({found})' if found else ''} is under way")
