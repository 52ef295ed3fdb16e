"""What goes wrong, struck at a step of a run that is under way, and lifted when the run has ended."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from cosmos_coherence import errors
from cosmos_coherence.cut.journal import Journal, RestoreRecord
from cosmos_coherence.drivers import process
from support.door import Door
from support.embedded_stack import EmbeddedStack
from support.fault_cases import Fault
from support.faulty import FaultyStack
from support.small_disk import fill
from support.waiting import eventually

SLOW_S = 2.0
"""Longer than the budget of a cut, shorter than anybody waits for a server."""


@dataclass(frozen=True)
class Surroundings:
    """What a fault can get at."""

    stack: FaultyStack
    backend: Door | None = None
    """In front of the repository's server."""
    engine: Door | None = None
    """In front of the engine's socket."""


Lift = Callable[[], object]
Strike = Callable[[Surroundings], Lift]
"""Does it, makes sure that it is done, and returns what ends it."""


def exception(_: Surroundings) -> Lift:
    raise errors.CommandFailed("broken on purpose")


def full_disk(around: Surroundings) -> Lift:
    """The one disk on which everything lies: data, state, backups and repository."""
    disk = around.stack.folder.parent
    ballast = disk / "ballast"
    fill(disk, ballast)

    def lift() -> None:
        ballast.unlink()
        _as_restarted(around.stack, "db")  # it may have ended of that

    return lift


def dead(service: str) -> Strike:
    def strike(around: Surroundings) -> Lift:
        pid = leader(around.stack, service)
        os.killpg(pid, signal.SIGKILL)
        assert eventually(lambda: service not in around.stack.running())
        return lambda: _as_restarted(around.stack, service)

    return strike


def slow_postgres(around: Surroundings) -> Lift:
    """Everybody in the server stands still, but for the one that lets clients in."""
    pid = leader(around.stack, "db")
    sessions = [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    assert sessions
    for session in sessions:
        _signal(session, signal.SIGSTOP)
    assert any(facts.state in "tT" for session in sessions if (facts := process.facts(session)))

    def on() -> None:
        for session in sessions:
            _signal(session, signal.SIGCONT)

    timer = threading.Timer(SLOW_S, on)
    timer.start()
    return timer.join


def slow_redis(around: Surroundings) -> Lift:
    assert isinstance(around.stack, EmbeddedStack)
    assert around.stack.redis("CLIENT", "PAUSE", str(int(SLOW_S * 1000)), "ALL") == "OK"
    return lambda: None


def shut(which: Callable[[Surroundings], Door | None]) -> Strike:
    def strike(around: Surroundings) -> Lift:
        door = which(around)
        assert door is not None
        assert door.is_open
        assert door.passed, "nobody has come through this door"
        door.shut()
        return door.open

    return strike


STRIKES: Mapping[Fault, Strike] = {
    "exception": exception,
    "full disk": full_disk,
    "lost engine": shut(lambda around: around.engine),
    "dead PostgreSQL": dead("db"),
    "dead Redis": dead("redis"),
    "slow PostgreSQL": slow_postgres,
    "slow Redis": slow_redis,
    "dead backend": shut(lambda around: around.backend),
}
"""All but ``kill -9``, which the program has to do to itself."""


def leader(stack: FaultyStack, service: str) -> int:
    return int((stack.folder / "run" / f"{service}.pid").read_text().split()[0])


def _signal(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def _as_restarted(stack: FaultyStack, service: str) -> None:
    """As a restart policy would; not what a restore has stopped that still has to be taken back."""
    halfway = Journal(stack.runtime.state_directory()).pending(RestoreRecord)
    if service not in stack.running() and all(note.record.phase == "proven" for note in halfway):
        stack.runtime.start([service])
        stack.runtime.wait_ready([service])
