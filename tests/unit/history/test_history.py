"""The history, on SQLite and on a real PostgreSQL: the same promises on both."""

from __future__ import annotations

import json
import os
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from cosmos_coherence import errors
from cosmos_coherence.flow.events import Story
from cosmos_coherence.flow.remember import encode
from cosmos_coherence.history import database, record, runs, spool
from cosmos_coherence.history.models import Base
from cosmos_coherence.settings import ServeSettings
from support import stores


@pytest.fixture
def engine(empty):
    return empty


def report(run="20260101_000000", verb="backup", minutes=0, **fields) -> bytes:
    ended = datetime(2026, 1, 1, tzinfo=UTC) + timedelta(minutes=minutes)
    base = {
        "project": "p", "run": run, "verb": verb, "status": "done", "exit_status": 0, "seconds": 1.5, "size": 5 * 2**33,
        "started_at": (ended - timedelta(seconds=1)).isoformat(), "ended_at": ended.isoformat(), "pause_ms": 12.5,
    }  # fmt: skip
    return json.dumps(base | fields).encode()


def put(folder, data: bytes) -> None:
    run = json.loads(data)
    folder.mkdir(exist_ok=True)
    (folder / f"{run['run']}-{run['verb']}.json").write_bytes(data)


def test_a_real_report_of_a_flow_is_kept_and_read_back(engine):
    story = Story(verb="backup", run="20260102_030405", project="shop")
    made = story.report("done", backup="20260102_030405", size=42, pause_ms=17.25)
    database.migrate(engine)
    assert runs.add(engine, [encode(made)]) == 1
    (found,) = runs.recent(engine)
    assert (found.project, found.run, found.verb, found.size, found.pause_ms) == (
        "shop", "20260102_030405", "backup", 42, 17.25,
    )  # fmt: skip
    assert found.ended == datetime.fromisoformat(made.ended_at)


def test_the_models_are_what_the_migrations_build(engine):
    database.migrate(engine)
    database.migrate(engine)
    with database.opened(engine) as connection:
        assert compare_metadata(MigrationContext.configure(connection), Base.metadata) == []


def test_a_history_of_a_newer_version_is_refused_and_left_alone(engine):
    database.migrate(engine)
    runs.add(engine, [report()])
    with database.opened(engine) as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(errors.Unsupported):
        database.migrate(engine)
    assert len(runs.recent(engine)) == 1


def test_several_may_migrate_at_once(engine):
    if engine.dialect.name == "sqlite":
        return  # one program has one state directory
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: database.migrate(engine), range(4)))


def test_a_report_is_kept_once(engine):
    database.migrate(engine)
    assert runs.add(engine, [report(), report(), report(verb="restore")]) == 2
    assert runs.add(engine, [report(status="failed"), report(run="20260101_000001", minutes=1)]) == 1
    assert runs.recent(engine)[0].name == "20260101_000001-backup"
    assert {r.status for r in runs.recent(engine)} == {"done"}


def test_recent_latest_and_counts(engine):
    database.migrate(engine)
    several = [report(run=f"r{n}", minutes=n, status="failed" if n == 3 else "done") for n in range(6)]
    runs.add(engine, [*several, report(run="r9", minutes=2, project="q")])
    assert [r.run for r in runs.recent(engine, limit=2)] == ["r5", "r4"]
    assert {(r.project, r.status, r.run) for r in runs.latest(engine)} == {
        ("p", "done", "r5"), ("p", "failed", "r3"), ("q", "done", "r9"),
    }  # fmt: skip
    assert runs.Count("p", "backup", "done", 5) in runs.counts(engine)


def test_the_spool_is_drained_once_and_kept_aside(engine, tmp_path):
    folder = tmp_path / "spool"
    assert spool.drain(folder, engine) == spool.Drained()
    put(folder, report())
    put(folder, report(run="20260101_000001", minutes=1))
    assert spool.drain(folder, engine).added == 2
    assert not list(folder.glob("*.json"))
    assert spool.drain(folder, engine).added == 0
    assert len(runs.recent(engine)) == 2


def test_a_restored_database_learns_again_what_came_after_its_backup(engine, tmp_path):
    folder = tmp_path / "spool"
    put(folder, report())
    spool.drain(folder, engine)
    with database.opened(engine) as connection:
        Base.metadata.drop_all(connection)
        connection.exec_driver_sql("DROP TABLE alembic_version")
    put(folder, report(verb="restore", minutes=5))
    assert spool.drain(folder, engine).added == 2
    assert [r.verb for r in runs.recent(engine)] == ["restore", "backup"]


@pytest.mark.parametrize(
    "bad",
    [
        b"", b"{", b"[]", report(project=""), report(verb="x" * 101), report(project="a\x00b"), report(size=-1),
        report(ended_at="yesterday"), report(ended_at="2026-01-01T00:00:00"), report(size=2**70),
    ],
)  # fmt: skip
def test_a_file_that_is_no_report_stops_nobody_else(engine, tmp_path, bad):
    folder = tmp_path / "spool"
    put(folder, report())
    (folder / "0-bad.json").write_bytes(bad)
    assert spool.drain(folder, engine) == spool.Drained(1, ("0-bad.json",))
    assert (folder / "0-bad.damaged").read_bytes() == bad
    assert spool.drain(folder, engine) == spool.Drained()


def test_old_files_leave_the_spool(engine, tmp_path):
    folder = tmp_path / "spool"
    put(folder, report())
    spool.drain(folder, engine)
    (kept,) = (folder / "done").iterdir()
    os.utime(kept, (time.time() - 100, time.time() - 100))
    spool.drain(folder, engine, keep_s=1000)
    assert kept.exists()
    spool.drain(folder, engine, keep_s=10)
    assert not kept.exists()


def test_with_the_database_down_every_file_stays(tmp_path):
    folder = tmp_path / "spool"
    put(folder, report())
    engine = database.connect(
        ServeSettings(database_url=f"postgresql+psycopg://cosmos@127.0.0.1:{stores.free_port()}/x")
    )
    with pytest.raises(errors.ServiceDown):
        spool.drain(folder, engine)
    assert [p.name for p in folder.iterdir()] == ["20260101_000000-backup.json"]


@pytest.mark.postgres
def test_a_wrong_password_is_an_error_that_does_not_tell_it(server, tmp_path):
    wrong = tmp_path / "wrong"
    wrong.write_text("battery-staple\n")
    engine = database.connect(ServeSettings(database_url=server.database(), database_password_file=wrong))
    with pytest.raises(errors.ServiceDown) as caught:
        database.migrate(engine)
    assert "battery" not in caught.value.message


def test_without_any_database_the_configuration_is_wrong(tmp_path):
    with pytest.raises(errors.ConfigurationError):
        database.connect(ServeSettings())
    with pytest.raises(errors.ConfigurationError):
        database.connect(ServeSettings(database_url="postgresql://x@y/z", database_password_file=tmp_path / "none"))


def test_sizes_of_parts_are_read_from_the_report():
    parts = [{"name": "config", "kind": "config", "files": [{"path": "a", "size": 3, "sha256": ""}], "fingerprint": {}}]
    assert record.read(report(parts=parts)).parts[0].size == 3
