"""The run lock: one run at a time on a stack.

The kernel holds it, tied to the open file: whoever sees the same file, on the host or in a container, sees the lock,
and it goes by itself when its owner dies. What is written inside only tells people who the owner is.
"""

from __future__ import annotations

import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from cosmos_coherence import errors
from cosmos_coherence.cut.journal import unusable


class _Owner(msgspec.Struct, frozen=True):
    run: str
    what: str
    host: str
    pid: int
    since: str


@contextmanager
def run_lock(directory: Path, *, run: str, what: str) -> Iterator[None]:
    """Hold the lock of the state folder ``directory`` for the run ``run``, which is a ``what`` (a verb).

    Raises ``Locked`` at once, naming the owner, when another run has it. Processes that are started meanwhile do not
    inherit it.
    """
    path = directory / "run.lock"
    try:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise unusable(path, error) from error
    try:
        _take(handle, path)
        since = datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
        _sign(handle, path, msgspec.json.encode(_Owner(run, what, socket.gethostname(), os.getpid(), since)))
        yield
    finally:
        # Closing lets go of it. The file stays: removing it could take the lock away from under the next owner.
        os.close(handle)


def _take(handle: int, path: Path) -> None:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise errors.Locked(f"another run{_owner(handle)} is under way") from None
    except OSError as error:
        raise unusable(path, error) from error


def _sign(handle: int, path: Path, owner: bytes) -> None:
    try:
        os.ftruncate(handle, 0)
        os.pwrite(handle, owner, 0)
    except OSError as error:
        raise unusable(path, error) from error


def _owner(handle: int) -> str:
    try:
        owner = msgspec.json.decode(os.pread(handle, 4096, 0), type=_Owner)
    except (OSError, msgspec.MsgspecError):
        return ""  # it is just signing
    return f" ({owner.what} {owner.run}, pid {owner.pid} on {owner.host}, since {owner.since})"
