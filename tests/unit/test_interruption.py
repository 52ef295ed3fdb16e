"""Ctrl-C at every line of what must not be torn by it."""

from __future__ import annotations

import gc
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from cosmos_coherence import interruption
from cosmos_coherence.cut.journal import Journal, SpoolRecord
from cosmos_coherence.drivers import process
from cosmos_coherence.interruption import Thread, Timer, uninterrupted


@pytest.fixture(autouse=True)
def _handlers() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def struck(act: Callable[[], object]) -> Iterator[None]:
    """Carry it out again and again, with Ctrl-C at its first line, its second, ..., until it has no more of them."""
    number = 0
    while True:
        number += 1
        left = number

        def line(_frame: FrameType, event: str, _of: Any) -> Any:
            nonlocal left
            if event == "line":
                left -= 1
                if left == 0:
                    signal.raise_signal(signal.SIGINT)
            return line

        before = sys.gettrace()
        interruption.listen()
        gc.disable()  # what is raised while something is collected is lost by the interpreter itself
        try:
            sys.settrace(line)
            try:
                act()
            finally:
                sys.settrace(before)
                gc.enable()
        except KeyboardInterrupt:
            yield
            continue
        assert left > 0, "it was struck and did not say so"
        break
    assert number > 3


@pytest.mark.parametrize("kind", [Thread, Timer])
def test_a_thread_whose_start_is_struck_can_be_awaited(kind: type[Thread]) -> None:
    made: list[Thread] = []

    def act() -> None:
        made.append(Timer(0, lambda: None) if kind is Timer else Thread(target=lambda: None))
        made[-1].start()

    for _ in struck(act):
        for thread in made:
            thread.join()
            assert not thread.is_alive()
        made.clear()


def test_what_is_struck_in_the_block_is_heard_at_its_end() -> None:
    done: list[str] = []

    def act() -> None:
        done.clear()
        with uninterrupted():
            done.append("begun")
            done.append("ended")

    for _ in struck(act):
        assert done in ([], ["begun", "ended"])


def test_no_obligation_stays_that_nobody_knows_of(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    for _ in struck(lambda: journal.open(SpoolRecord("run", "/nowhere"))):
        assert [*(tmp_path / "journal").iterdir()] == []


def test_no_program_stays_that_nobody_knows_of() -> None:
    tasks = Path(f"/proc/self/task/{threading.get_native_id()}/children")
    before = tasks.read_text()
    kept: list[process.LocalChild] = []
    for _ in struck(lambda: kept.append(process.start(["sleep", "60"]))):
        while kept:  # struck when it was ours already
            kept.pop().kill()
        assert tasks.read_text() == before
    kept.pop().kill()


def test_a_second_request_does_not_strike() -> None:
    interruption.listen()
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGTERM)
    with uninterrupted():
        signal.raise_signal(signal.SIGTERM)
    signal.raise_signal(signal.SIGINT)


def test_what_was_ignored_stays_so() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    interruption.listen()
    signal.raise_signal(signal.SIGHUP)
