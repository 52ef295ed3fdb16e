"""One cut: the writers stand still at the instant and until every source is anchored, and go on whatever happens."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from cosmos_coherence import errors
from cosmos_coherence.cut import freezer, hold
from cosmos_coherence.cut.hold import Anchor, Cut, release_leftovers, take_cut
from cosmos_coherence.cut.journal import HoldRecord, Journal
from cosmos_coherence.cut.watchdog import Watchdog
from cosmos_coherence.drivers import process
from cosmos_coherence.model import HoldTarget
from support import counters
from support.counters import Counters

LONG_S = 120.0
STEPS = ["journalled", "armed", "holding", "frozen", "anchored", "thawed", "released", "closed"]


class Bench:
    """Writers, a journal, and a cut over them."""

    def __init__(self, writer: Counters, directory: Path) -> None:
        self.writer, self.journal = writer, Journal(directory)
        self.targets: tuple[HoldTarget, ...] = (writer.target,)
        self.steps: list[str] = []

    def cut(
        self,
        watchdog: Watchdog,
        anchors: dict[str, Anchor],
        *,
        budget_s: float = LONG_S,
        at: dict[str, Callable[[], object]] | None = None,
    ) -> Cut:
        def step(name: str) -> None:
            self.steps.append(name)
            (at or {}).get(name, int)()

        return take_cut(
            self.targets,
            anchors,
            journal=self.journal,
            watchdog=watchdog,
            run="20260101_020000",
            max_pause_s=budget_s,
            step=step,
        )


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    with counters.local(tmp_path / "counters") as writer:
        yield Bench(writer, tmp_path)


def started() -> tuple[process.LocalChild, Watchdog]:
    child = process.start([sys.executable, "-P", "-m", "cosmos_coherence.cut.watchdog"], stdin=True)
    return child, Watchdog(child.stdin, child.stdout, child)


@contextmanager
def silent_watchdog() -> Iterator[Watchdog]:
    """One that is always ready and never does anything: what is released then, the program released."""
    answer, ask = os.pipe(), os.pipe()
    os.write(answer[1], b"ready\n")
    with ExitStack() as stack:
        for handle in (ask[0], answer[1]):
            stack.callback(os.close, handle)
        out, into = os.fdopen(answer[0], "rb"), os.fdopen(ask[1], "wb")
        yield Watchdog(stack.enter_context(into), stack.enter_context(out))


def test_writers_stand_still_from_the_instant_until_all_is_anchored(bench: Bench) -> None:
    def anchor() -> None:
        assert bench.writer.still()
        assert freezer.is_frozen(bench.writer.target)

    before_ns = time.time_ns()
    with Watchdog.start() as watchdog:
        cut = bench.cut(watchdog, {"postgres/db": anchor, "redis/redis": anchor})
        assert bench.writer.moving()
        again = bench.cut(watchdog, {"postgres/db": anchor})
    assert before_ns < cut.instant_ns < again.instant_ns < time.time_ns()
    assert cut.held == ("writer",)
    assert set(cut.anchored_ms) == {"postgres/db", "redis/redis"}
    assert all(50 <= ms < cut.pause_ms for ms in cut.anchored_ms.values())  # still() takes 50 ms
    assert cut.instant.endswith("Z")
    assert len(cut.instant) == len("2026-01-01T02:00:00.000000Z")
    assert bench.writer.moving()
    assert bench.journal.pending() == ()
    assert bench.steps == STEPS * 2


def test_anchors_run_at_the_same_time(bench: Bench) -> None:
    together = threading.Barrier(3, timeout=30)

    def anchor() -> None:
        together.wait()

    with Watchdog.start() as watchdog:
        bench.cut(watchdog, dict.fromkeys("abc", anchor))


def test_the_journal_knows_the_targets_before_the_first_freeze_and_until_the_last_thaw(bench: Bench) -> None:
    def known() -> None:
        (note,) = Journal(bench.journal._folder.parent).pending(HoldRecord)
        assert note.record.targets == bench.targets

    def known_and_moving() -> None:
        known()
        assert bench.writer.moving()

    with Watchdog.start() as watchdog:
        bench.cut(
            watchdog,
            {"a": known},
            at=dict.fromkeys(("journalled", "armed", "holding", "thawed", "released"), known_and_moving),
        )


@pytest.mark.parametrize("name", STEPS)
def test_a_failure_at_any_step_leaves_nothing_held(bench: Bench, name: str) -> None:
    def fail() -> None:
        raise RuntimeError("on purpose")

    with pytest.raises(RuntimeError, match="on purpose"), Watchdog.start() as watchdog:
        bench.cut(watchdog, {"a": lambda: None}, at={name: fail})
    assert bench.steps[-1] == name or name in ("holding", "frozen", "anchored")
    assert bench.writer.moving()
    release_leftovers(bench.journal)
    assert bench.journal.pending() == ()


def test_a_failed_anchor_fails_the_cut_with_its_own_words(bench: Bench) -> None:
    def fail() -> None:
        raise errors.ServiceDown("redis does not answer", remedy="Start it.")

    with (
        Watchdog.start() as watchdog,
        pytest.raises(errors.CutFailed, match="redis/redis could not be anchored: redis does not answer") as caught,
    ):
        bench.cut(watchdog, {"redis/redis": fail, "postgres/db": lambda: None})
    assert caught.value.remedy == "Start it."
    assert bench.writer.moving()
    assert bench.journal.pending() == ()


def test_even_an_anchor_that_ends_its_thread_fails_the_cut(bench: Bench) -> None:
    with Watchdog.start() as watchdog, pytest.raises(errors.CutFailed, match="a could not be anchored"):
        bench.cut(watchdog, {"a": sys.exit})


def test_at_the_budget_the_program_releases_while_an_anchor_still_runs_and_says_how_long_it_took(bench: Bench) -> None:
    def slow() -> None:
        assert bench.writer.moving()  # only ends once the writers go on

    with (
        silent_watchdog() as watchdog,
        pytest.raises(
            errors.CutFailed, match=r"budget of 1000 ms .*\(to freeze them \d+ ms, quick \d+ ms, slow \d+ ms\)"
        ),
    ):
        bench.cut(watchdog, {"slow": slow, "quick": lambda: None}, budget_s=1.0)
    assert bench.writer.moving()
    assert bench.journal.pending() == ()


def test_writers_that_do_not_stand_still_in_time_fail_the_cut_before_anything_is_anchored(
    bench: Bench, tmp_path: Path
) -> None:
    anchored: list[str] = []
    bench.targets += (HoldTarget("engine", "web", where=str(tmp_path / "no.sock"), id="0" * 64),)
    child, watchdog = started()
    with pytest.raises(errors.CutFailed, match="web could not be released"), watchdog:
        bench.cut(watchdog, {"a": lambda: anchored.append("a")})
    assert process.facts(child.pid) is not None  # it goes on trying
    child.kill()
    assert anchored == []
    assert bench.writer.moving()
    # what could not be released is still known, and tried again each time
    assert len(bench.journal.pending(HoldRecord)) == 1
    with pytest.raises(errors.CutFailed, match="web could not be released"):
        release_leftovers(bench.journal)
    assert len(bench.journal.pending(HoldRecord)) == 1
    bench.journal.pending()[0].close()


def test_what_an_anchor_leaves_to_be_done_is_done_after_the_release(bench: Bench) -> None:
    done: list[str] = []

    def rest() -> None:
        assert bench.writer.moving()  # only ends once the writers go on
        done.append("rest")

    with silent_watchdog() as watchdog:
        cut = bench.cut(watchdog, {"a": lambda: rest, "b": lambda: None})
    assert done == ["rest"]
    assert set(cut.anchored_ms) == {"a", "b"}


def test_what_an_anchor_leaves_to_be_done_does_not_wait_for_the_slowest_of_the_others(bench: Bench) -> None:
    done = threading.Event()

    def slow() -> None:
        assert done.wait(60)
        assert bench.writer.still()

    with silent_watchdog() as watchdog:
        bench.cut(watchdog, {"a": lambda: done.set, "slow": slow})
    assert done.is_set()


def test_what_an_anchor_leaves_to_be_done_may_fail_the_cut(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails() -> None:
        raise errors.ServiceDown("redis does not answer", remedy="Start it.")

    with Watchdog.start() as watchdog:
        with pytest.raises(errors.CutFailed, match="a could not be anchored: redis does not answer") as caught:
            bench.cut(watchdog, {"a": lambda: fails})
        assert caught.value.remedy == "Start it."
        ended = threading.Event()
        monkeypatch.setattr(hold, "_LATE_S", 0.1)
        try:
            with pytest.raises(errors.CutFailed, match="a was anchored, but not done"):
                bench.cut(watchdog, {"a": lambda: ended.wait})
        finally:
            ended.set()
    assert bench.writer.moving()
    assert bench.journal.pending() == ()


def test_a_writer_that_someone_else_let_go_fails_the_cut(bench: Bench) -> None:
    with Watchdog.start() as watchdog, pytest.raises(errors.CutFailed, match="writer ran again before"):
        bench.cut(watchdog, {"a": lambda: freezer.thaw(bench.writer.target)})
    assert bench.journal.pending() == ()


@pytest.mark.parametrize("name", ["journalled", "armed"])
def test_without_a_watchdog_nothing_is_frozen(bench: Bench, name: str) -> None:
    child, watchdog = started()

    def kill() -> None:
        os.kill(child.pid, signal.SIGKILL)
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)

    with (
        watchdog,
        pytest.raises(errors.CutFailed, match="watchdog has ended"),
    ):
        bench.cut(watchdog, {"a": lambda: None}, at={name: kill})
    assert "holding" not in bench.steps
    assert bench.journal.pending() == ()


@pytest.mark.parametrize("name", ["holding", "frozen", "anchored"])
def test_a_watchdog_killed_during_the_hold_is_not_missed(bench: Bench, name: str) -> None:
    child, watchdog = started()
    with watchdog:
        bench.cut(watchdog, {"a": lambda: None}, at={name: lambda: os.kill(child.pid, signal.SIGKILL)})
    assert bench.writer.moving()
    assert bench.journal.pending() == ()


def test_ctrl_c_is_raised_after_the_release(bench: Bench) -> None:
    def interrupt() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        assert bench.writer.still()

    with Watchdog.start() as watchdog, pytest.raises(KeyboardInterrupt):
        bench.cut(watchdog, {"a": interrupt})
    assert bench.steps == STEPS
    assert bench.writer.moving()
    assert bench.journal.pending() == ()


def test_with_nobody_to_hold_sources_are_anchored_all_the_same(tmp_path: Path) -> None:
    anchored: list[str] = []
    with Watchdog.start() as watchdog:
        cut = take_cut(
            (),
            {"a": lambda: anchored.append("a")},
            journal=Journal(tmp_path),
            watchdog=watchdog,
            run="r",
            max_pause_s=LONG_S,
        )
    assert (anchored, cut.held, cut.pause_ms) == (["a"], (), 0.0)


@pytest.mark.docker
@pytest.mark.parametrize("means", ["cgroup", "engine"])
def test_containers_stand_still_from_the_instant_until_all_is_anchored(tmp_path: Path, means: str) -> None:
    with counters.engine() as client, counters.contained(tmp_path / "counters", client, means) as writer:
        bench = Bench(writer, tmp_path)

        def anchor() -> None:
            assert writer.still()

        with Watchdog.start() as watchdog:
            assert bench.cut(watchdog, {"a": anchor}).held == (writer.target.name,)
        assert writer.moving()
        assert bench.journal.pending() == ()


def test_leftovers_are_released_and_a_damaged_note_is_named(bench: Bench) -> None:
    bench.journal.open(HoldRecord("20260101_020000", bench.targets, "2026-01-01T02:00:00Z"))
    freezer.freeze(bench.writer.target)
    damaged = bench.journal._folder / "00000000000000000001-x.json"
    damaged.write_bytes(b"{}")
    done = release_leftovers(bench.journal)
    assert done[0] == "released writer, held by run 20260101_020000 since 2026-01-01T02:00:00Z"
    assert str(damaged.with_suffix(".broken")) in done[1]
    assert bench.writer.moving()
    assert bench.journal.pending() == ()
