"""kill -9 of the program at every step of a cut: the writers go on, and the next run finds and closes what was open."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from msgspec import structs

from cosmos_coherence.cut.hold import STEPS, release_leftovers
from cosmos_coherence.cut.journal import Journal
from support import counters
from support.counters import Counters

POINTS = [*STEPS, "anchor"]
LONG_S = 120.0
"""A budget that cannot run out here: what releases the writers is that the program's death was noticed."""

_PROGRAM = """
import json, os, sys, time
from pathlib import Path
from cosmos_coherence.cut.hold import take_cut
from cosmos_coherence.cut.journal import Journal
from cosmos_coherence.cut.watchdog import Watchdog
from cosmos_coherence.model import HoldTarget

state, target, point, number, budget_s = sys.argv[1:]

def step(name):
    if name == point:
        os.kill(os.getpid(), int(number))
        time.sleep(0.2)  # a stop comes a moment later; nothing of the cut may happen in between

with Watchdog.start() as watchdog:
    take_cut((HoldTarget(**json.loads(target)),), {"a": lambda: step("anchor")}, journal=Journal(Path(state)),
             watchdog=watchdog, run="20260101_020000", max_pause_s=float(budget_s), step=step)
"""


def program(writer: Counters, state: Path, point: str, number: int, budget_s: float) -> subprocess.Popen[bytes]:
    target = json.dumps(structs.asdict(writer.target))
    return subprocess.Popen([sys.executable, "-c", _PROGRAM, str(state), target, point, str(number), str(budget_s)])


def assert_killed_and_healed(writer: Counters, state: Path, point: str) -> None:
    killed = program(writer, state, point, signal.SIGKILL, LONG_S)
    assert killed.wait(timeout=60) == -signal.SIGKILL, "the fault was planned and did not happen"
    assert writer.moving()
    journal = Journal(state)
    assert len(journal.pending()) == (0 if point == "closed" else 1)
    assert len(release_leftovers(journal)) == (0 if point == "closed" else 1)
    assert writer.moving()
    assert journal.pending() == ()
    assert release_leftovers(journal) == []


@pytest.mark.parametrize("point", POINTS)
def test_processes_go_on(tmp_path: Path, point: str) -> None:
    with counters.local(tmp_path / "counters") as writer:
        assert_killed_and_healed(writer, tmp_path, point)


@pytest.mark.docker
@pytest.mark.parametrize("means", ["cgroup", "engine"])
def test_containers_go_on(tmp_path: Path, means: str) -> None:
    with counters.engine() as client, counters.contained(tmp_path / "counters", client, means) as writer:
        for point in POINTS:
            assert_killed_and_healed(writer, tmp_path, point)


@pytest.mark.parametrize("point", ["holding", "frozen", "anchor", "anchored"])
def test_processes_go_on_at_the_budget_when_the_program_hangs(tmp_path: Path, point: str) -> None:
    with counters.local(tmp_path / "counters") as writer:
        hanging = program(writer, tmp_path, point, signal.SIGSTOP, 2.0)
        try:
            stopped = os.waitid(os.P_PID, hanging.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
            assert stopped is not None
            assert stopped.si_code == os.CLD_STOPPED, "the fault was planned and did not happen"
            time.sleep(2.5)  # over the budget
            assert writer.moving()  # by the watchdog: the program has not moved since
            hanging.send_signal(signal.SIGCONT)
            assert hanging.wait(timeout=60) == 1  # too late for its instant
            assert writer.moving()
            assert Journal(tmp_path).pending() == ()  # what it froze after all, it released
        finally:
            hanging.kill()
            hanging.wait()
