"""What a host knows of its past: from the history where there is one, from the spool where it does not answer."""

from __future__ import annotations

import pytest

from cosmos_coherence.cut.lock import run_lock
from cosmos_coherence.flow import history
from cosmos_coherence.flow.events import Story
from cosmos_coherence.flow.remember import MEASUREMENTS, SPOOL, encode
from cosmos_coherence.history import database, measurements, segments
from cosmos_coherence.model import Measurement
from cosmos_coherence.settings import HistorySettings, ServeSettings
from support import stores

NOW = 1_800_000_000.0
NOBODY = ServeSettings(database_url="postgresql+psycopg://cosmos@127.0.0.1:1/x")


def size(taken: float, value: float) -> Measurement:
    return Measurement(taken, "disk:/", "used_bytes", value)


def put(state, *several: Measurement) -> None:
    segments.append(state / SPOOL / MEASUREMENTS, several)


@pytest.fixture(scope="module")
def server():
    with stores.postgres() as found:
        yield found


def test_what_is_in_the_history_and_what_waits_are_read_as_one(tmp_path):
    put(tmp_path, size(NOW, 1.0))
    assert history.fill(tmp_path, ServeSettings(), HistorySettings(every=1e11, hourly=1e11, daily=1e11)) == ""
    put(tmp_path, size(NOW + 60, 2.0), Measurement(NOW, "disk:/", "free_bytes", 9.0))
    assert history.series(tmp_path, ServeSettings(), ("disk:/", "disk:/x"), "used_bytes", 0) == {
        "disk:/": ((NOW, 1.0), (NOW + 60, 2.0)), "disk:/x": (),
    }  # fmt: skip
    assert {m.value for m in history.latest(tmp_path, ServeSettings())} == {2.0, 9.0}


def test_while_the_history_does_not_answer_the_spool_tells(tmp_path):
    put(tmp_path, size(NOW, 1.0))
    history.fill(tmp_path, ServeSettings(), HistorySettings())
    put(tmp_path, size(NOW + 60, 2.0))
    assert history.fill(tmp_path, NOBODY, HistorySettings())
    assert history.series(tmp_path, NOBODY, ("disk:/",), "used_bytes", 0)["disk:/"] == ((NOW, 1.0), (NOW + 60, 2.0))
    assert history.latest(tmp_path, NOBODY) == (size(NOW + 60, 2.0),)


def test_the_newest_runs_come_from_the_reports_too(tmp_path):
    report = Story(verb="backup", run="r1", project="shop").report("done")
    (tmp_path / SPOOL).mkdir()
    (tmp_path / SPOOL / "r1-backup.json").write_bytes(encode(report))
    (tmp_path / SPOOL / "r2-backup.json").write_bytes(b"{")
    for serving in (ServeSettings(), NOBODY):
        counts, newest = history.finished(tmp_path, serving)
        assert (counts, [run.run for run in newest]) == ((), ["r1"])
    history.fill(tmp_path, ServeSettings(), HistorySettings())
    counts, newest = history.finished(tmp_path, ServeSettings())
    assert ([count.runs for count in counts], [run.run for run in newest]) == ([1], ["r1"])


@pytest.mark.postgres
def test_a_call_on_the_host_takes_nothing_from_a_history_that_is_served(tmp_path, server):
    agent = ServeSettings(database_url=server.database(), database_password_file=server.password_file)
    put(tmp_path, size(NOW, 1.0))
    assert history.fill(tmp_path, agent, HistorySettings()) == ""
    put(tmp_path, size(NOW + 60, 2.0))
    assert "only the agent knows" in history.fill(tmp_path, ServeSettings(), HistorySettings())
    assert history.latest(tmp_path, ServeSettings()) == (size(NOW + 60, 2.0),)
    assert not (tmp_path / "history.sqlite").exists()
    assert history.fill(tmp_path, agent, HistorySettings()) == ""
    engine = database.connect(agent)
    assert [value for _, value in measurements.series(engine, "disk:/", "used_bytes", 0)] == [1.0, 2.0]


def test_while_a_restore_runs_nothing_is_written_to_a_served_history(tmp_path) -> None:
    """It may be among what is restored, and is compared with the backup then."""
    with run_lock(tmp_path, run="r", what="restore"):
        assert "waits for the restore r" in history.fill(tmp_path, NOBODY, HistorySettings())
    with run_lock(tmp_path, run="b", what="backup"):
        assert "waits" not in history.fill(tmp_path, NOBODY, HistorySettings())
