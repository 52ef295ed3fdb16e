"""A backup is killed with its writers held and its watchdog dead; whoever looks at the stack next heals it first."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import pytest

from cosmos_coherence.cut import freezer
from cosmos_coherence.cut.journal import HoldRecord, Journal, SpoolRecord
from cosmos_coherence.cut.lock import run_lock
from cosmos_coherence.flow import recover
from cosmos_coherence.history.ledger import Ledger
from support.faulty import FaultyStack
from support.program import SOURCE, cosmos
from support.trees import looks
from support.waiting import eventually

PATHS = os.pathsep.join([str(SOURCE), str(Path(__file__).parents[1])])
SPEC = {
    "project": "small",
    "volumes": {"files": {}},
    "services": [
        {
            "name": "writer",
            "argv": ["sh", "-c", "while :; do echo >>log; sleep 0.01; done"],
            "volumes": [{"volume": "files"}],
        }
    ],
}
_KILLED = """
import os, signal, sys
from pathlib import Path
from support.faulty import FaultyStack

def step(name):
    if name == "hold: frozen":
        children = Path("/proc/self/task", str(os.getpid()), "children").read_text().split()
        assert children, "there is no watchdog"
        for pid in children:
            os.kill(int(pid), signal.SIGKILL)
        os.kill(os.getpid(), signal.SIGKILL)

FaultyStack(Path(sys.argv[1]), "small").backup(step)
"""


class Small(FaultyStack):
    """One writer, which writes beside its volume, so that what is in that can be compared."""

    @property
    def files(self) -> Path:
        return self.folder / "volumes" / "files"

    def moves(self) -> bool:
        before = self._size()
        return eventually(lambda: self._size() > before, within_s=5)

    def _size(self) -> int:
        return (self.folder / "log").stat().st_size

    def held(self) -> bool:
        return not freezer.still_running(self._frozen, within_s=1)

    @property
    def _frozen(self):
        return [t for note in self.journal.pending(HoldRecord) for t in note.record.targets]

    @property
    def journal(self) -> Journal:
        return Journal(self.folder / ".cosmos")

    def left_held(self) -> None:
        killed = subprocess.run(
            [sys.executable, "-c", _KILLED, self.folder], env={**os.environ, "PYTHONPATH": PATHS}, capture_output=True
        )
        assert killed.returncode == -signal.SIGKILL, killed.stderr
        assert self.held() and self._frozen

    def call(self, verb: str):
        ended = cosmos("-C", str(self.folder), verb, "--json")
        json.loads(ended.stdout)
        return ended

    @contextmanager
    def agent(self, *, overdue: bool) -> Iterator[Path]:
        """It runs until the block ends, in which it must not; the file of all that it says."""
        said = self.folder.parent / "said"
        if overdue:
            Ledger(self.folder / ".cosmos").pass_over("backup", datetime(2020, 1, 1, tzinfo=UTC))
        with said.open("wb") as out:
            running = subprocess.Popen(
                [sys.executable, "-m", "cosmos_coherence.cli.main", "-C", str(self.folder), "serve", "agent"],
                env={**os.environ, "PYTHONPATH": PATHS}, stdin=subprocess.DEVNULL, stdout=out, stderr=out,
            )  # fmt: skip
        try:
            yield said
            running.terminate()
            assert running.wait(timeout=30) == 0, said.read_text()
        finally:
            running.kill()
            running.wait()


@pytest.fixture
def stack(tmp_path: Path) -> Iterator[Small]:
    folder = tmp_path / "stack"
    (folder / "volumes" / "files").mkdir(parents=True)
    (folder / "volumes" / "files" / "a").write_text("old")
    (folder / "stack.json").write_text(json.dumps(SPEC))
    made = Small(folder, "small")
    made.runtime.start(["writer"])
    try:
        assert eventually((folder / "log").exists)
        yield made
    finally:
        made.runtime.destroy()


@pytest.mark.parametrize("verb", ["status", "doctor"])
def test_a_verb_that_looks_lets_go_of_what_is_held(stack: Small, verb: str) -> None:
    stack.left_held()
    told = stack.call(verb)
    assert "healed first: released writer, held by run" in told.stderr
    assert stack.moves()
    assert stack.files_left() == []


def test_the_agent_heals_when_it_starts(stack: Small) -> None:
    stack.left_held()
    with stack.agent(overdue=False) as said:
        assert stack.moves()
        assert eventually(lambda: stack.files_left() == [])
    assert "released writer, held by run" in said.read_text()
    assert stack.published() == [], "it was not the backup that healed"


def test_a_half_restore_is_taken_back_and_one_that_cannot_be_ends_nobody(stack: Small) -> None:
    archive = Path(stack.backup().path)
    (stack.files / "a").write_text("newer")
    before = looks(stack.files)
    stack.killed_at("start", "restore", archive)
    (journal,) = stack.files.glob(".cosmos-restore-*/journal")
    whole = journal.read_bytes()
    journal.write_bytes(b"nobody wrote this")
    told = stack.call("status")
    assert told.returncode == 0
    assert "not everything that a run left behind could be healed" in told.stderr
    with stack.agent(overdue=True) as said:
        assert eventually(lambda: '"restore-failed"' in said.read_text()), "it does not come to its backup"
    assert "not everything that a run left behind could be healed" in said.read_text()
    journal.write_bytes(whole)
    assert "was taken back" in stack.call("status").stderr
    assert looks(stack.files) == before
    assert stack.moves()
    assert stack.restore(archive).status == "done"
    assert (stack.files / "a").read_text() == "old"


def test_what_a_living_run_holds_is_its_own(stack: Small) -> None:
    stack.left_held()
    with run_lock(stack.folder / ".cosmos", run="r1", what="backup"):
        told = stack.call("status")
        assert "healed" not in told.stderr
        with stack.agent(overdue=True) as said:
            assert eventually(lambda: '"locked"' in said.read_text()), "it does not go on"
        assert stack.held() and stack.journal.pending(SpoolRecord)
    assert "healed first: released writer" in stack.call("status").stderr
    assert stack.moves()


def test_with_nothing_left_nothing_is_locked_or_made(stack: Small) -> None:
    stack.call("health")
    assert not (stack.folder / ".cosmos").exists()
    stack.backup()
    state = stack.folder / ".cosmos"
    before = {path: path.stat().st_mtime_ns for path in (state, *state.rglob("*"))}
    for verb in ("status", "health"):
        assert "healed" not in stack.call(verb).stderr
    assert {path: path.stat().st_mtime_ns for path in (state, *state.rglob("*"))} == before


def test_without_the_volumes_the_writers_are_released_and_the_rest_is_named(stack: Small) -> None:
    stack.left_held()
    told: list[str] = []

    def heal(reach: recover.Reachable) -> None:
        state = stack.folder / ".cosmos"
        recover.heal_first(stack.runtime, state, run="r1", backups=stack.backups, reach=reach, tell=told.append)

    heal("nothing")
    assert stack.held() and stack.journal.pending(HoldRecord)
    assert told.pop().endswith("can be healed from here: run `cosmos recover`")
    heal("writers")
    assert stack.moves()
    assert [type(note.record) for note in stack.journal.pending()] == [SpoolRecord]
    assert told[0].startswith("released writer")
    assert told[-1].endswith("can be healed from here: run `cosmos recover`")
