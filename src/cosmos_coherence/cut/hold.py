"""The cut: hold the writers, anchor every source at one instant, release."""

from __future__ import annotations

import contextlib
import gc
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime

import msgspec

from cosmos_coherence import errors, interruption
from cosmos_coherence.cut import freezer
from cosmos_coherence.cut.journal import HoldRecord, Journal
from cosmos_coherence.cut.watchdog import Watchdog
from cosmos_coherence.drivers import priority
from cosmos_coherence.model import HoldTarget

STEPS = ("journalled", "armed", "holding", "frozen", "anchored", "thawed", "released", "closed")
"""What ``step`` of ``take_cut`` is told, in this order; before ``holding`` nothing stands still."""

_SWITCH_S = 0.0002
_LATE_S = 5.0
"""How long an anchor that missed the budget is awaited, once the stack runs again, to tell how long it took."""
_REST_S = 0.5
"""What an anchor left waits so long for the release at most: it holds something, too."""

Anchor = Callable[[], Callable[[], None] | None]
"""Fixes the state of one source. What it returns is done when the writers were released, or after half a second."""


class Cut(msgspec.Struct, frozen=True):
    """One instant that was taken."""

    instant_ns: int
    """All writers stood still at this moment, and did until every source was anchored."""
    pause_ms: float
    """From the first freeze to the last release; 0 when there was nobody to hold."""
    anchored_ms: Mapping[str, float]
    """How long after the instant each source was anchored."""
    held: tuple[str, ...]

    @property
    def instant(self) -> str:
        """The instant in RFC 3339 with microseconds, UTC."""
        return _rfc3339(self.instant_ns)


def take_cut(
    targets: Sequence[HoldTarget],
    anchors: Mapping[str, Anchor],
    *,
    journal: Journal,
    watchdog: Watchdog,
    run: str,
    max_pause_s: float,
    step: Callable[[str], None] = lambda name: None,
) -> Cut:
    """Hold the targets, call all anchors (by source) in parallel, release: one attempt.

    What the anchors leave to be done is done when it returns.

    Whatever happens, the targets are released, at ``max_pause_s`` seconds at the latest, also from an anchor that still
    runs, from Ctrl-C (which is raised after the release), and by the watchdog should this program die. ``step`` is
    called with the name of each of ``STEPS`` just taken; after ``holding`` the first freeze comes next.

    Raises ``CutFailed`` with the measured times when an anchor failed or was not done at the release, when what it left
    failed, when a target did not stand still or ran again too early, when the watchdog is gone. An anchor that was late
    may still run then: its source has to be closed. A target that could not be released stays in the journal, for
    ``release_leftovers``.
    """
    # In a thread of its own: Ctrl-C strikes the main thread only, and so cannot tear a release in two.
    with _Crew(anchors) as crew, ThreadPoolExecutor(1, "cut", initializer=priority.come_first) as apart:
        with interruption.uninterrupted():
            cut = apart.submit(_take, tuple(targets), crew, journal, watchdog, run, max_pause_s, step)
        return cut.result()


def release_leftovers(journal: Journal) -> list[str]:
    """Release what earlier runs left held, and say in sentences what was done. The caller holds the run lock.

    Raises ``CutFailed``, after all were tried, when something could not be released; it stays in the journal.
    """
    done: list[str] = []
    faults: list[errors.CutFailed] = []
    for note in journal.pending(HoldRecord):
        try:
            freezer.thaw_all(note.record.targets)
        except errors.CutFailed as error:
            faults.append(error)
            continue
        note.close()
        names = ", ".join(target.name for target in note.record.targets) or "nothing"
        done.append(f"released {names}, held by run {note.record.run} since {note.record.since}")
    done += [
        f"{path} is damaged, so what it asked for was not done: see that nothing is paused, then remove it"
        for path in journal.broken()
    ]
    if faults:
        raise errors.CutFailed("; ".join(error.message for error in faults), remedy=faults[0].remedy)
    return done


def _take(
    targets: tuple[HoldTarget, ...],
    crew: _Crew,
    journal: Journal,
    watchdog: Watchdog,
    run: str,
    max_pause_s: float,
    step: Callable[[str], None],
) -> Cut:
    note = journal.open(HoldRecord(run, targets, _rfc3339(time.time_ns())))
    try:
        step("journalled")
        if targets:  # else it has nothing to release, and need not be waited for
            watchdog.arm(targets, max_pause_s)
        step("armed")
        if targets:
            watchdog.hold()
    except BaseException:
        note.close()  # nothing was frozen
        raise
    began = time.perf_counter()
    deadline = time.monotonic() + max_pause_s
    with _undisturbed():
        try:
            step("holding")
            freezer.freeze_all(targets, within_s=deadline - time.monotonic())
            instant_ns, instant = time.time_ns(), time.perf_counter()
            step("frozen")
            crew.anchor(deadline)
            step("anchored")
            over = crew.unfinished() or time.monotonic() >= deadline
            moved = () if over else freezer.still_running(targets, within_s=deadline - time.monotonic())
        finally:
            freezer.thaw_all(targets)
            crew.release()
            pause_ms = (time.perf_counter() - began) * 1000 if targets else 0.0
            step("thawed")
            watchdog.released()
            step("released")
            note.close()
            step("closed")
    anchored_ms = crew.measure(instant)
    if over:
        each = [f"{name} {ms:.0f} ms" for name, ms in anchored_ms.items()]
        each += [f"{name} not yet" for name in crew.unfinished()]
        raise errors.CutFailed(
            f"the budget of {max_pause_s * 1000:.0f} ms was over before every source was anchored; the writers stood "
            f"still for {pause_ms:.0f} ms (to freeze them {(instant - began) * 1000:.0f} ms, {', '.join(each)})"
        )
    crew.settle()
    if moved:
        raise errors.CutFailed(f"{', '.join(moved)} ran again before every source was anchored")
    return Cut(instant_ns, pause_ms, anchored_ms, tuple(target.name for target in targets))


class _Crew:
    """The anchors, each in a thread that already runs and waits for the word: starting one would cost pause."""

    def __init__(self, anchors: Mapping[str, Anchor]) -> None:
        self._word, self._released = threading.Event(), threading.Event()
        self._dismissed = False
        self._anchored = {name: threading.Event() for name in anchors}
        self._ended: dict[str, float] = {}
        self._failed: dict[str, BaseException] = {}
        # Daemons: a source that hangs must not keep the program from ending.
        self._threads = {
            name: interruption.Thread(target=self._run, args=(name, act), name=f"anchor {name}", daemon=True)
            for name, act in anchors.items()
        }

    def __enter__(self) -> _Crew:
        for thread in self._threads.values():
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._dismissed = True
        self._word.set()
        self._released.set()

    def anchor(self, deadline: float) -> None:
        """Give the word; return when all are anchored, or at the deadline (monotonic)."""
        self._word.set()
        self._await(deadline)

    def release(self) -> None:
        """What the anchors have left may be done: before, it would take the processor from those that are awaited."""
        self._released.set()

    def unfinished(self) -> list[str]:
        return [name for name, anchored in self._anchored.items() if not anchored.is_set()]

    def measure(self, instant: float) -> dict[str, float]:
        """Milliseconds after the instant, of those that are anchored; late ones get a while to become so."""
        self._await(time.monotonic() + _LATE_S)
        return {name: (ended - instant) * 1000 for name, ended in sorted(self._ended.items())}

    def settle(self) -> None:
        """Return when what they left is done. Raises ``CutFailed`` when one failed or does not come to an end."""
        deadline = time.monotonic() + _LATE_S
        for name, thread in self._threads.items():
            thread.join(max(deadline - time.monotonic(), 0.0))
            if thread.is_alive():
                raise errors.CutFailed(f"{name} was anchored, but not done {_LATE_S:.0f} s after the release")
        if self._failed:
            each = "; ".join(f"{name} could not be anchored: {error}" for name, error in sorted(self._failed.items()))
            first = next(iter(self._failed.values()))
            raise errors.CutFailed(each, remedy=getattr(first, "remedy", None)) from first

    def _await(self, deadline: float) -> None:
        for anchored in self._anchored.values():
            anchored.wait(max(deadline - time.monotonic(), 0.0))

    def _run(self, name: str, act: Anchor) -> None:
        priority.come_first()
        self._word.wait()
        if self._dismissed:
            return
        try:
            rest = act()
        except BaseException as error:  # noqa: BLE001 - told by settle
            self._failed[name], rest = error, None
        self._ended[name] = time.perf_counter()
        self._anchored[name].set()
        try:
            if rest is not None:
                self._released.wait(_REST_S)
                rest()
        except BaseException as error:  # noqa: BLE001 - told by settle
            self._failed[name] = error


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """No garbage collection; and an anchor that has its answer need not wait long for one that computes."""
    enabled, switching = gc.isenabled(), sys.getswitchinterval()
    gc.disable()
    sys.setswitchinterval(_SWITCH_S)
    try:
        yield
    finally:
        sys.setswitchinterval(switching)
        if enabled:
            gc.enable()


def _rfc3339(ns: int) -> str:
    moment = datetime.fromtimestamp(ns // 1_000_000_000, UTC).replace(microsecond=ns // 1000 % 1_000_000)
    return moment.isoformat(timespec="microseconds").replace("+00:00", "Z")
