"""The ledger of the schedule: one row a job, whole after a kill at any moment."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
import pytest

from cosmos_coherence import errors
from cosmos_coherence.drivers import owner as owners
from cosmos_coherence.history import ledger as ledgers
from cosmos_coherence.history.ledger import FILE, Ledger, look
from support.program import SOURCE

NOW = datetime(2026, 5, 1, 2, tzinfo=UTC)
_WRITER = """
import sys
from datetime import UTC, datetime
from pathlib import Path
from cosmos_coherence.history.ledger import Ledger
ledger, now = Ledger(Path(sys.argv[1])), datetime(2026, 5, 1, 2, tzinfo=UTC)
print("ready", flush=True)
while True:
    ledger.begin("backup", now, since=now)
    ledger.end("backup", now, "done")
"""


def test_a_run_from_its_beginning_to_its_end(tmp_path: Path) -> None:
    book = Ledger(tmp_path)
    book.seen("backup", NOW)
    book.seen("backup", NOW + timedelta(days=1))
    assert book.states()["backup"].since == NOW
    book.begin("backup", NOW, since=NOW, attempt=2)
    state = look(tmp_path)["backup"]
    assert (state.open, state.running, state.attempt) == (True, True, 2)
    book.end("backup", NOW + timedelta(minutes=1), "failed", said="no", retryable=True)
    state = book.states()["backup"]
    assert (state.outcome, state.said, state.retryable, state.open) == ("failed", "no", True, False)
    book.end("backup", NOW, "done")
    assert book.states()["backup"].outcome == "failed", "an end is an end"
    book.pass_over("backup", NOW + timedelta(hours=1))
    assert book.states()["backup"].since == NOW + timedelta(hours=1)


def test_a_run_of_a_living_process_keeps_others_out_and_that_of_a_dead_one_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    book = Ledger(tmp_path)
    book.begin("backup", NOW, since=NOW)
    with monkeypatch.context() as other:
        other.setattr(ledgers, "_ourselves", lambda: msgspec.structs.replace(owners.ourselves(), pid=1))
        with pytest.raises(errors.Locked, match=f"backup is under way, pid {os.getpid()} since 2026-05-01T02"):
            book.begin("backup", NOW, since=NOW)
        other.setattr(owners, "lives", lambda _owner: False)
        book.begin("backup", NOW, since=NOW)
    assert not look(tmp_path)["backup"].running


def test_who_only_looks_makes_nothing(tmp_path: Path) -> None:
    assert look(tmp_path) == {} == look(None)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / FILE).write_bytes(b"no database")
    assert look(tmp_path) == {}


@pytest.mark.parametrize("damage", [b"no database at all", b"SQLite format 3\0" + b"\xff" * 5000])
def test_a_damaged_one_is_set_aside_and_the_schedule_begins_anew(tmp_path: Path, damage: bytes) -> None:
    (tmp_path / FILE).write_bytes(damage)
    book = Ledger(tmp_path)
    book.seen("backup", NOW)
    assert book.states()["backup"].since == NOW
    assert (tmp_path / "schedule.damaged").read_bytes() == damage


def test_a_row_that_makes_no_sense_is_set_aside_too(tmp_path: Path) -> None:
    book = Ledger(tmp_path)
    with book._opened() as rows:
        rows.execute("INSERT INTO job (name, since) VALUES ('backup', 'yesterday')")
    with pytest.raises(errors.ConfigurationError):
        book.states()
    assert book.states() == {}


def test_a_folder_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(errors.ConfigurationError, match=FILE):
        Ledger(tmp_path / "none").states()


def test_killed_at_any_moment_it_can_be_read(tmp_path: Path) -> None:
    for pause in (0.0, 0.01, 0.03, 0.05, 0.1):
        writer = subprocess.Popen(
            [sys.executable, "-c", _WRITER, tmp_path], stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": str(SOURCE)},
        )  # fmt: skip
        assert writer.stdout and writer.stdout.readline() == b"ready\n"
        time.sleep(pause)
        writer.send_signal(signal.SIGKILL)
        writer.communicate()
        state = Ledger(tmp_path).states().get("backup")
        assert state is None or not state.running
    assert not (tmp_path / "schedule.damaged").exists()
