"""The agent: one small loop that starts each job when it is due, as a process of its own.

It needs no database: what it has to know lies in the ledger in the state folder. A process for each job, since their
memory goes with it, a measurement goes on beside a backup, and what kills a job does not kill the schedule.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Protocol

from msgspec.structs import replace

from cosmos_coherence import errors
from cosmos_coherence.flow import schedule
from cosmos_coherence.flow.schedule import Due, Rhythm
from cosmos_coherence.history.ledger import JobState, Ledger

LONGEST_SLEEP_S = 30.0
"""A suspended machine or a moved clock is noticed within this time."""
POLL_S = 0.5
"""So soon it is noticed that a job has ended."""
GRACE_S = 8.0
"""So long a job has to go back when the agent is told to stop. Compose gives ten seconds in all."""


class Running(Protocol):
    """A job's process."""

    pid: int

    def status(self) -> int | None:
        """Its exit status; None while it runs."""
        ...

    def send(self, number: int) -> None:
        """Send it a signal."""
        ...


class Within:
    """A job that the agent does in a thread of its own, so that what it has learnt stays."""

    def __init__(self, work: Callable[[], int]) -> None:
        self.pid = os.getpid()
        self._status = 1
        self._thread = threading.Thread(target=self._run, args=(work,), name="job", daemon=True)
        self._thread.start()

    def status(self) -> int | None:
        """As ``Running`` says; 1 when it raised."""
        return None if self._thread.is_alive() else self._status

    def send(self, number: int) -> None:
        """It ends with the agent, and harms nothing by that: it only looks."""

    def _run(self, work: Callable[[], int]) -> None:
        try:
            self._status = work()
        except errors.CosmosError as error:
            self._status = error.exit_status


def utc_now() -> datetime:
    """The present moment."""
    return datetime.now(UTC)


class Agent:
    """The schedule at work."""

    def __init__(
        self,
        rhythms: Sequence[Rhythm],
        ledger: Ledger,
        start: Callable[[str], Running],
        *,
        together: frozenset[str] = frozenset(),
        tell: Callable[[str], None] = print,
        now: Callable[[], datetime] = utc_now,
    ) -> None:
        """``rhythms`` in the order of precedence; ``start`` starts the job of a name; those ``together`` do not wait
        for others."""
        self._rhythms, self._ledger, self._start = tuple(rhythms), ledger, start
        self._together, self._tell, self._now = together, tell, now
        self._running: dict[str, Running] = {}
        self._states: dict[str, JobState] = {}
        self._since: dict[str, datetime] = {}
        """What this process knows of it, should the ledger not be writable: nothing is started over and over."""
        self._said = ""

    def run(self, stop: threading.Event) -> None:
        """Start what is due, until ``stop`` is set; then the jobs under way are interrupted. Raises nothing that the
        catalogue knows."""
        try:
            while not stop.is_set():
                wait_s = self._turn()
                if not stop.is_set():
                    stop.wait(wait_s)
        finally:
            self._interrupt()

    def _turn(self) -> float:
        """One look at everything; seconds until the next."""
        self._bury()
        now = self._now()
        self._read(now)
        dues = {rhythm.name: self._due(rhythm, now) for rhythm in self._rhythms}
        for rhythm in self._rhythms:
            due = dues[rhythm.name]
            if now < due.at:
                continue
            if self._is_running(rhythm.name):
                self._pass_over(rhythm, due, now)
            elif rhythm.name in self._together or not self._others():
                self._begin(rhythm, due, now)
        if self._running:
            return POLL_S
        nearest = min((self._due(rhythm, now).at for rhythm in self._rhythms), default=now + timedelta(days=1))
        return min(LONGEST_SLEEP_S, max(POLL_S, (nearest - now) / timedelta(seconds=1)))

    def _read(self, now: datetime) -> None:
        """The ledger as it is. One that cannot be read leaves what is known."""
        with self._telling():
            for rhythm in self._rhythms:
                if rhythm.name not in self._states:
                    self._ledger.seen(rhythm.name, rhythm.covered(now))
            self._states = self._ledger.states()
        for rhythm in self._rhythms:
            state = self._states.setdefault(rhythm.name, JobState(rhythm.name, rhythm.covered(now)))
            if max(state.since, self._since.get(rhythm.name, state.since)) > now + schedule.STEP_BACK:
                self._tell(f"the clock was set back: {rhythm.name} counts from now")
                self._count_from(rhythm, now)
            if state.open and rhythm.name not in self._running and not state.running:
                self._tell(f"{rhythm.name} of {state.started} was cut off; it is made up for")
                with self._telling():
                    self._ledger.end(rhythm.name, now, "cut off", said="its process ended before it did")
                    self._states[rhythm.name] = self._ledger.states()[rhythm.name]

    def _due(self, rhythm: Rhythm, now: datetime) -> Due:
        known = self._states[rhythm.name]
        if (since := self._since.get(rhythm.name)) and since > known.since:
            known = JobState(rhythm.name, since)
        return schedule.due(rhythm, known, now)

    def _is_running(self, name: str) -> bool:
        return name in self._running or self._states[name].running

    def _others(self) -> list[str]:
        """Jobs under way for which others wait."""
        return [r.name for r in self._rhythms if r.name not in self._together and self._is_running(r.name)]

    def _pass_over(self, rhythm: Rhythm, due: Due, now: datetime) -> None:
        self._tell(f"{rhythm.name} was due at {due.at:%Y-%m-%d %H:%M:%S} UTC while it still runs: passed over")
        self._count_from(rhythm, now)

    def _count_from(self, rhythm: Rhythm, now: datetime) -> None:
        self._since[rhythm.name] = since = rhythm.covered(now)
        self._states[rhythm.name] = replace(self._states[rhythm.name], since=since)
        with self._telling():
            self._ledger.pass_over(rhythm.name, since)

    def _begin(self, rhythm: Rhythm, due: Due, now: datetime) -> None:
        why = {"regular": "", "retry": f", try {due.attempt}", "cut off": ", which was cut off"}[due.why]
        self._tell(f"{rhythm.name} begins{why}")
        self._since[rhythm.name] = rhythm.covered(now)
        with self._telling():
            self._running[rhythm.name] = self._start(rhythm.name)

    def _bury(self) -> None:
        """Take note of the jobs that have ended, also of those that could not say so themselves."""
        for name, running in list(self._running.items()):
            if (status := running.status()) is None:
                continue
            del self._running[name]
            with self._telling():
                state = self._ledger.states().get(name)
                if state is not None and state.owner is not None and state.owner.pid == running.pid:
                    if state.open:
                        self._tell(f"{name} was cut off: its process ended with status {status}")
                        self._ledger.end(name, self._now(), "cut off", said=f"its process ended with status {status}")
                    del self._since[name]
                elif status != errors.Locked.exit_status:  # else somebody else has it under way
                    said = f"ended with status {status} before it began"
                    self._tell(f"{name} {said}")
                    self._ledger.begin(name, self._now(), since=self._since[name])
                    self._ledger.end(name, self._now(), "failed", said=said)

    def _interrupt(self) -> None:
        """End the jobs under way: they go back, and when they do not in time the next start heals."""
        for running in self._running.values():
            running.send(signal.SIGTERM)
        end = time.monotonic() + GRACE_S
        while self._running and time.monotonic() < end:
            time.sleep(0.05)
            self._bury()
        for running in self._running.values():
            running.send(signal.SIGKILL)

    @contextlib.contextmanager
    def _telling(self) -> Iterator[None]:
        """What the catalogue knows is said, once while it stays the same, and the loop goes on."""
        try:
            yield
        except errors.CosmosError as error:
            if error.message != self._said:
                self._tell(f"error: {error.message}")
            self._said = error.message
