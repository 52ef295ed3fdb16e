"""Make containers and processes stand still, and let go of them again.

Knows nothing but ``HoldTarget`` and the standard library, so that the watchdog, which imports little else, starts fast
and can release what a dead program held. A target that has ended meanwhile cannot write: it counts as frozen, and
there is nothing of it to release. Every call may be repeated.
"""

from __future__ import annotations

import errno
import json
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

from cosmos_coherence import errors
from cosmos_coherence.model import HoldMeans, HoldTarget

RELEASE_S = 10.0
"""Seconds that one release may take before it is given up as failed; the engine may be busy."""

_POLL_S = 0.0003
_SETTLE_S = 0.1
"""The engine has its own word on a container right after this time."""
_STUCK_S = 0.005
"""A freeze that met a process just being started can wait for ever: one of the two stands still, the other waits for it
and does not count as frozen (seen with `docker exec` on cgroup 1, and with vfork). So let go after this time, freeze
again, and wait twice as long."""
_BY_HAND = "Run `cosmos recover`; by hand, `docker unpause NAME` or `kill -CONT PID` lets go of it."


def freeze(target: HoldTarget, *, within_s: float = RELEASE_S) -> None:
    """As ``freeze_all``, for one target."""
    freeze_all((target,), within_s=within_s)


def thaw(target: HoldTarget) -> None:
    """As ``thaw_all``, for one target."""
    thaw_all((target,))


def is_frozen(target: HoldTarget, *, within_s: float = RELEASE_S) -> bool:
    """As ``still_running``, for one target: whether nothing of it can run."""
    return not still_running((target,), within_s=within_s)


def freeze_all(targets: Sequence[HoldTarget], *, within_s: float) -> None:
    """Freeze in parallel, and return when every thread of every process of every target stands still.

    Raises ``CutFailed`` naming the targets that could not be frozen or did not stand still within ``within_s`` seconds.
    Some are frozen then, and it is the caller who releases all.
    """
    deadline = time.monotonic() + within_s
    attempt = _Attempt()
    attempt.aside(_of(targets, "engine"), lambda target: _pause(target, deadline))
    attempt.each(_of(targets, "cgroup1", "cgroup2"), lambda target: _write_cgroup(target, freeze=True))
    _stop_sessions(_of(targets, "signal"), deadline, attempt)
    attempt.each(_of(targets, "cgroup1", "cgroup2"), lambda target: _await_frozen(target, deadline))
    attempt.end(f"could not be frozen within {max(within_s, 0) * 1000:.0f} ms")


def thaw_all(targets: Sequence[HoldTarget]) -> None:
    """Release in parallel whatever exists of the targets, whether it is frozen, half frozen or not at all.

    Raises ``CutFailed`` after all were tried, naming those that exist and could not be released.
    """
    deadline = time.monotonic() + RELEASE_S
    attempt = _Attempt()
    attempt.each(_of(targets, "cgroup1", "cgroup2"), lambda target: _write_cgroup(target, freeze=False))
    attempt.aside(_of(targets, "engine"), lambda target: _unpause(target, deadline))
    _continue_sessions(_of(targets, "signal"), attempt)
    attempt.each(
        _of(targets, "cgroup1", "cgroup2"),
        lambda target: _await_thawed(target, deadline),
    )
    attempt.end("could not be released", remedy=_BY_HAND)


def still_running(targets: Sequence[HoldTarget], *, within_s: float) -> tuple[str, ...]:
    """Names of the targets of which something can run at this moment.

    Raises ``CutFailed`` when that cannot be told within ``within_s`` seconds.
    """
    deadline = time.monotonic() + within_s
    attempt = _Attempt()
    running: list[str] = []

    def look(target: HoldTarget) -> None:
        held = _paused(target, deadline) if target.means == "engine" else _cgroup_frozen(target, gone=True)
        if not held:
            running.append(target.name)

    attempt.aside(_of(targets, "engine"), look)
    attempt.each(_of(targets, "cgroup1", "cgroup2"), look)
    running += [target.name for target, process in _members(_of(targets, "signal")) if not _stopped(process.pid)]
    attempt.end("could not be looked at")
    return tuple(sorted(set(running)))


# ----------------------------------------------------------------------------------------- many targets at once
class _Attempt:
    """One act on many targets: what goes wrong with one never keeps the others from being tried."""

    def __init__(self) -> None:
        self.faults: dict[str, str] = {}
        self._threads: list[threading.Thread] = []

    def failed(self, target: HoldTarget, error: OSError) -> None:
        self.faults.setdefault(target.name, error.strerror or str(error) or type(error).__name__)

    def each(self, targets: Sequence[HoldTarget], act: Callable[[HoldTarget], None]) -> None:
        for target in targets:
            try:
                act(target)
            except OSError as error:
                self.failed(target, error)

    def aside(self, targets: Sequence[HoldTarget], act: Callable[[HoldTarget], None]) -> None:
        for target in targets:
            thread = threading.Thread(target=self.each, args=((target,), act), daemon=True)
            self._threads.append(thread)
            thread.start()

    def end(self, what: str, *, remedy: str | None = None) -> None:
        for thread in self._threads:
            thread.join()
        if self.faults:
            each = "; ".join(f"{name} {what}: {why}" for name, why in sorted(self.faults.items()))
            raise errors.CutFailed(each, remedy=remedy)


def _of(targets: Sequence[HoldTarget], *means: HoldMeans) -> list[HoldTarget]:
    return [target for target in targets if target.means in means]


def _pass(moment: float, deadline: float, why: str = "") -> None:
    if time.monotonic() >= deadline:
        raise TimeoutError(why or "it took too long")
    time.sleep(moment)


# -------------------------------------------------------------------------------------------------- by cgroup
def _write_cgroup(target: HoldTarget, *, freeze: bool) -> None:
    if target.means == "cgroup1":
        file, word = "freezer.state", b"FROZEN" if freeze else b"THAWED"
    else:
        file, word = "cgroup.freeze", b"1" if freeze else b"0"
    try:
        handle = os.open(f"{target.where}/{file}", os.O_WRONLY)
        try:
            os.write(handle, word)
        finally:
            os.close(handle)
    except OSError as error:
        if not _vanished(error):
            raise


def _cgroup_frozen(target: HoldTarget, *, gone: bool) -> bool:
    try:
        if target.means == "cgroup1":
            return _read(f"{target.where}/freezer.state") == b"FROZEN\n"
        return b"frozen 1\n" in _read(f"{target.where}/cgroup.events")
    except OSError as error:
        if _vanished(error):
            return gone
        raise


def _await_frozen(target: HoldTarget, deadline: float) -> None:
    began, patience = time.monotonic(), _STUCK_S
    while not _cgroup_frozen(target, gone=True):
        _pass(_POLL_S, deadline)
        if target.means == "cgroup1" and time.monotonic() >= began + patience:
            _write_cgroup(target, freeze=False)
            _pass(_POLL_S, deadline)
            _write_cgroup(target, freeze=True)
            began, patience = time.monotonic(), patience * 2


def _await_thawed(target: HoldTarget, deadline: float) -> None:
    while _cgroup_frozen(target, gone=False):
        _pass(_POLL_S, deadline)


def _vanished(error: OSError) -> bool:
    # ENODEV and ESRCH: it was removed while its file was open.
    return error.errno in (errno.ENOENT, errno.ENODEV, errno.ESRCH)


def _read(path: str) -> bytes:
    handle = os.open(path, os.O_RDONLY)
    try:
        return os.read(handle, 4096)
    finally:
        os.close(handle)


# -------------------------------------------------------------------------------------------------- by signal
class _Process(NamedTuple):
    pid: int
    birth: int
    """Clock tick of its start; with the pid it names one process for ever."""
    group: int
    session: int


def _stop_sessions(targets: Sequence[HoldTarget], deadline: float, attempt: _Attempt) -> None:
    """SIGSTOP works later than it is sent, and a process may have forked just before: look again until a look finds
    nobody who was not told before it, and all of them stopped."""
    told: set[_Process] = set()
    began, patience = time.monotonic(), _STUCK_S
    while members := _members(targets):
        fresh = [(target, process) for target, process in members if process not in told]
        _tell(fresh, signal.SIGSTOP, attempt)
        told.update(process for _, process in fresh)
        moving = [target for target, process in members if not _stopped(process.pid)]
        if attempt.faults or not (fresh or moving):
            return
        if time.monotonic() >= deadline:
            for target in moving:
                attempt.failed(target, TimeoutError("it took too long"))
            return
        if time.monotonic() >= began + patience:
            _tell(members, signal.SIGCONT, attempt)
            told.clear()
            began, patience = time.monotonic(), patience * 2
        time.sleep(_POLL_S)


def _continue_sessions(targets: Sequence[HoldTarget], attempt: _Attempt) -> None:
    _tell(_members(targets), signal.SIGCONT, attempt)


def _tell(members: Sequence[tuple[HoldTarget, _Process]], number: signal.Signals, attempt: _Attempt) -> None:
    for target, process in members:
        attempt.each((target,), lambda _, process=process: _send(process, number))  # type: ignore[misc]


def _send(process: _Process, number: signal.Signals) -> None:
    try:
        handle = os.pidfd_open(process.pid)
    except ProcessLookupError:
        return
    try:
        # The handle is tied to one process: when it is still the one that was seen, no other can get the signal.
        if _look(process.pid) == process:
            signal.pidfd_send_signal(handle, number)
    except ProcessLookupError:
        pass
    finally:
        os.close(handle)


def _members(targets: Sequence[HoldTarget]) -> list[tuple[HoldTarget, _Process]]:
    """All processes of the targets' sessions and groups.

    As long as one of them lives the kernel gives the leader's id to nobody else, so they are found when the leader has
    ended, too. A leader with another birth is another program that got the id later: left alone, with all its own.
    """
    if not targets:
        return []
    processes = [process for pid in _numbers("/proc") if (process := _look(pid)) is not None]
    births = {process.pid: process.birth for process in processes}
    ours = {int(target.id): target for target in targets if births.get(int(target.id), target.birth) == target.birth}
    return [
        (target, process)
        for process in processes
        if (target := ours.get(process.session) or ours.get(process.group)) is not None
    ]


def _numbers(folder: str) -> list[int]:
    with os.scandir(folder) as entries:
        return [int(entry.name) for entry in entries if entry.name.isdigit()]


def _look(pid: int) -> _Process | None:
    try:
        fields = _read(f"/proc/{pid}/stat").rpartition(b")")[2].split()
    except OSError:
        return None
    return _Process(pid, int(fields[19]), int(fields[2]), int(fields[3]))


def _stopped(pid: int) -> bool:
    """Whether every thread is stopped, or has ended."""
    try:
        threads = _numbers(f"/proc/{pid}/task")
    except OSError:
        return True
    return all(_thread_stopped(f"/proc/{pid}/task/{thread}/stat") for thread in threads)


def _thread_stopped(path: str) -> bool:
    try:
        return _read(path).rpartition(b")")[2].split()[0] in (b"T", b"t", b"Z", b"X")
    except OSError:
        return True


# -------------------------------------------------------------------------------------------------- by the engine
# The engine learns a moment after its answer that a container was paused or released (seen: 1 in 300), and refuses in
# that gap what would be right. So each act ends only when the engine's own word on the container agrees with it.
def _pause(target: HoldTarget, deadline: float) -> None:
    while True:
        _, why = _ask(target, "POST", "pause", deadline)
        if _paused(target, deadline):
            return
        _pass(_POLL_S, deadline, why)


def _unpause(target: HoldTarget, deadline: float) -> None:
    released = refused = False
    while True:
        status, why = _ask(target, "POST", "unpause", deadline)
        released = released or status == 204
        state = _state(target, deadline)
        if state.get("Paused"):
            _pass(_POLL_S, deadline, why)
        elif released or refused or not state.get("Running"):
            return
        else:  # not paused, it says: true, or about to change
            refused = True
            _pass(_SETTLE_S, deadline, why)


def _paused(target: HoldTarget, deadline: float) -> bool:
    state = _state(target, deadline)
    return bool(state.get("Paused") or not state.get("Running"))


def _state(target: HoldTarget, deadline: float) -> dict[str, bool]:
    """The engine's word on the container; nothing for one that is gone."""
    status, body = _ask(target, "GET", "json", deadline)
    if status == 404:
        return {}
    if status != 200:
        raise OSError(body)
    try:
        return dict(json.loads(body)["State"])
    except (ValueError, KeyError, TypeError) as error:
        raise OSError("the engine's answer cannot be read") from error


def _ask(target: HoldTarget, method: str, what: str, deadline: float) -> tuple[int, str]:
    # By hand and in HTTP/1.0, where the end of the answer is the end of the connection: http.client would take longer
    # to import than a watchdog may take to start.
    with socket.socket(socket.AF_UNIX) as door:
        door.settimeout(max(deadline - time.monotonic(), 0.001))
        door.connect(target.where)
        door.sendall(f"{method} /containers/{target.id}/{what} HTTP/1.0\r\nContent-Length: 0\r\n\r\n".encode())
        answer = b"".join(iter(lambda: door.recv(65536), b""))
    head, _, body = answer.partition(b"\r\n\r\n")
    words = head.split(None, 2)
    if len(words) < 2 or not words[1].isdigit():
        raise OSError("the engine's answer cannot be read")
    return int(words[1]), body.decode(errors="replace").strip()
