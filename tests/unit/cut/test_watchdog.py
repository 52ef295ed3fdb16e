"""The watchdog's own process: it releases when the program is gone or late, and never otherwise."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cosmos_coherence import errors
from cosmos_coherence.cut import freezer
from cosmos_coherence.cut.watchdog import Watchdog
from cosmos_coherence.drivers import process
from support import counters
from support.counters import Counters

LONG_S = 120.0


@pytest.fixture
def writer(tmp_path: Path) -> Iterator[Counters]:
    with counters.local(tmp_path / "counters") as found:
        yield found


def started() -> tuple[process.LocalChild, Watchdog]:
    child = process.start([sys.executable, "-P", "-m", "cosmos_coherence.cut.watchdog"], stdin=True)
    return child, Watchdog(child.stdin, child.stdout, child)


def test_it_releases_at_the_budget_and_again_what_is_frozen_later(writer: Counters) -> None:
    child, watchdog = started()
    with watchdog:
        watchdog.arm((writer.target,), 0.2)
        watchdog.hold()
        freezer.freeze(writer.target)
        assert child.stdout.readline() == b"expired\n"
        assert writer.moving()
        freezer.freeze(writer.target)  # a program that lost its way
        assert writer.moving()
        watchdog.released()
        watchdog.arm((writer.target,), LONG_S)  # another round
        watchdog.hold()
        freezer.freeze(writer.target)
        assert writer.still()
        freezer.thaw(writer.target)
        watchdog.released()


def test_it_releases_when_the_program_goes_without_a_word(writer: Counters) -> None:
    child, watchdog = started()
    watchdog.arm((writer.target,), LONG_S)
    watchdog.hold()
    freezer.freeze(writer.target)
    child.wait()  # end of its input
    assert writer.moving()


def test_it_leaves_alone_what_the_program_has_released(writer: Counters) -> None:
    child, watchdog = started()
    watchdog.arm((writer.target,), 0.1)
    watchdog.hold()
    watchdog.released()
    freezer.freeze(writer.target)  # somebody else's
    with watchdog:
        pass
    child.wait()
    assert writer.still()
    freezer.thaw(writer.target)


def test_signals_that_end_programs_do_not_end_it(writer: Counters) -> None:
    child, watchdog = started()
    with watchdog:
        watchdog.arm((writer.target,), 0.3)
        watchdog.hold()
        freezer.freeze(writer.target)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            os.kill(child.pid, number)
        assert child.stdout.readline() == b"expired\n"
        assert writer.moving()
        watchdog.released()


def test_it_is_in_a_session_of_its_own() -> None:
    child, watchdog = started()
    with watchdog:
        watchdog.arm((), LONG_S)
        assert os.getsid(child.pid) == child.pid != os.getsid(0)


def test_nothing_is_held_without_it() -> None:
    child, watchdog = started()
    child.kill()
    with pytest.raises(errors.CutFailed, match="watchdog has ended"):
        watchdog.arm((), LONG_S)
    with pytest.raises(errors.CutFailed, match="watchdog has ended"):
        watchdog.hold()
    watchdog.released()


def test_it_starts_without_what_makes_the_program_slow() -> None:
    loaded = subprocess.run(
        [sys.executable, "-P", "-c", "import cosmos_coherence.cut.watchdog, sys; print(*sys.modules)"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout.split()
    assert not {"subprocess", "http.client", "pydantic", "docker", "logging", "asyncio"} & set(loaded)
