"""Measurements, on SQLite and on a real PostgreSQL alike, and their way there through the spool."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import text

from cosmos_coherence import errors
from cosmos_coherence.history import database, measurements, runs, segments
from cosmos_coherence.history.models import Base
from cosmos_coherence.model import Measurement
from cosmos_coherence.settings import HistorySettings, ServeSettings
from support import stores

HOUR, DAY = 3600.0, 86400.0
NOW = 1_800_000_000.0


@pytest.fixture
def engine(empty):
    database.migrate(empty)
    return empty


def size(taken: float, value: float = 1.0, subject: str = "volume:v", name: str = "bytes") -> Measurement:
    return Measurement(taken, subject, name, value)


def everything(engine) -> set[Measurement]:
    with database.opened(engine) as connection:
        rows = connection.execute(text("SELECT taken, subject, name, value FROM measurement"))
        return {Measurement(*row) for row in rows}


# -------------------------------------------------------------------------------------------------- the history
def test_the_same_measurement_twice_is_one(engine):
    several = [size(NOW), size(NOW), size(NOW + 0.1), size(NOW, name="files"), size(NOW, subject="volume:w")]
    assert measurements.add(engine, several) == 4
    assert measurements.add(engine, [*several, size(NOW + 9)]) == 1
    assert measurements.add(engine, []) == 0
    assert len(everything(engine)) == 5


def test_series_and_latest(engine):
    measurements.add(engine, [size(NOW + n, n) for n in (3, 1, 2)])
    measurements.add(engine, [size(NOW + 2.5, 7, name="files"), size(NOW - 900, 5, subject="disk:/")])
    assert measurements.series(engine, "volume:v", "bytes", NOW + 2) == ((NOW + 2, 2.0), (NOW + 3, 3.0))
    assert set(measurements.latest(engine)) == {
        size(NOW + 3, 3), size(NOW + 2.5, 7, name="files"), size(NOW - 900, 5, subject="disk:/"),
    }  # fmt: skip
    assert measurements.series(engine, "volume:none", "bytes", 0) == ()


def test_numbers_come_back_to_the_last_bit(engine):
    exact = [size(NOW + 0.123456, 2.0**53 + 2), size(NOW + 1 / 3, math.pi), size(NOW + 1, -1e-300)]
    measurements.add(engine, exact)
    assert everything(engine) == set(exact)


def test_names_are_text_and_never_a_part_of_a_query(engine):
    hostile = size(NOW, subject="volume:'; DROP TABLE measurement; --", name='"%s :x')
    assert measurements.add(engine, [hostile]) == 1
    assert measurements.series(engine, hostile.subject, hostile.name, 0) == ((NOW, 1.0),)


def test_a_thousand_at_once(engine):
    assert measurements.add(engine, [size(NOW + n, n) for n in range(2500)]) == 2500
    assert measurements.add(engine, [size(NOW + n, n) for n in range(2500)]) == 0


def expected(rows: set[Measurement], now: float, kept: HistorySettings) -> set[Measurement]:
    """What thinning leaves, worked out one by one."""
    hours, days = (now - kept.every) // HOUR * HOUR, (now - kept.hourly) // DAY * DAY
    left = {m for m in rows if m.taken >= now - kept.daily}
    for period, before in ((HOUR, hours), (DAY, days)):
        groups: dict[tuple[str, str, float], list[Measurement]] = {}
        for each in sorted(left, key=lambda m: m.taken):
            if each.taken < before:
                groups.setdefault((each.subject, each.name, each.taken // period), []).append(each)
        for group in groups.values():
            last = group[-1]
            low = min(group, key=lambda m: (m.value, -m.taken))
            high = max(group, key=lambda m: (m.value, m.taken))
            left -= set(group) - {last, low, high}
    return left


ROWS = st.sets(
    st.builds(
        Measurement,
        taken=st.integers(0, 240).map(lambda quarter: NOW - quarter * 1103.0),
        subject=st.sampled_from(["volume:v", "disk:/"]),
        name=st.sampled_from(["bytes", "files"]),
        value=st.integers(0, 3).map(float),
    ),
    max_size=60,
)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=ROWS, later=st.integers(0, 60).map(lambda hours: NOW + hours * 1900.0))
def test_thinning_keeps_the_last_the_lowest_and_the_highest_of_each_hour_and_day(engine, rows, later):
    kept = HistorySettings(every=6 * HOUR, hourly=30 * HOUR, daily=60 * HOUR)
    unique = {(m.subject, m.name, m.taken): m for m in rows}
    with database.opened(engine) as connection:
        connection.execute(text("DELETE FROM measurement"))
    measurements.add(engine, unique.values())
    gone = measurements.thin(engine, NOW, kept)
    left = everything(engine)
    assert left == expected(set(unique.values()), NOW, kept)
    assert gone == len(unique) - len(left)
    assert measurements.thin(engine, NOW, kept) == 0
    measurements.thin(engine, later, kept)  # thinned in two steps is thinned in one
    assert everything(engine) == expected(set(unique.values()), later, kept)


def test_two_years_of_a_number_stay_small(engine):
    kept = HistorySettings()
    rows = [size(NOW - n * 900, math.sin(n)) for n in range(5 * 96)]  # five days, every quarter of an hour
    rows += [size(NOW - 40 * DAY - n * 7200, float(n)) for n in range(60)]  # five days, at another time of the year
    rows += [size(NOW - 800 * DAY)]
    measurements.add(engine, rows)
    measurements.thin(engine, NOW, kept)
    left = everything(engine)
    assert len([m for m in left if m.taken >= NOW - 2 * DAY]) == len([m for m in rows if m.taken >= NOW - 2 * DAY])
    assert len([m for m in left if NOW - 6 * DAY < m.taken < NOW - 2 * DAY - HOUR]) <= 3 * 24 * 3
    assert len([m for m in left if m.taken < NOW - 39 * DAY]) <= 3 * 6
    assert min(m.taken for m in left) > NOW - 730 * DAY


# ------------------------------------------------------------------------------------------------- the migration
def test_a_history_of_the_last_version_is_brought_forward_with_its_runs(empty):
    config = Config()
    config.set_main_option("script_location", "cosmos_coherence.history:migrations")
    with database.opened(empty) as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "0001")
    report = (
        b'{"project":"p","run":"r1","verb":"backup","status":"done","exit_status":0,'
        b'"started_at":"2026-01-01T00:00:00+00:00","ended_at":"2026-01-01T00:00:10+00:00"}'
    )
    runs.add(empty, [report])
    database.migrate(empty)
    assert [run.run for run in runs.recent(empty)] == ["r1"]
    assert measurements.add(empty, [size(NOW)]) == 1
    with database.opened(empty) as connection:
        assert MigrationContext.configure(connection).get_current_revision() == "0002"


# ----------------------------------------------------------------------------------------------------- the spool
def put(folder: Path, *several: Measurement, **options) -> int:
    return segments.append(folder, several, **options)


def test_the_spool_is_drained_once_and_kept_aside(engine, tmp_path):
    folder = tmp_path / "spool"
    assert segments.drain(folder, engine) == segments.Drained()
    put(folder, size(NOW), size(NOW, name="files"))
    put(folder, size(NOW + 1))
    assert segments.waiting(folder) == 2
    assert segments.drain(folder, engine).added == 3
    assert (segments.waiting(folder), len(list((folder / "done").iterdir()))) == (0, 2)
    assert segments.drain(folder, engine).added == 0
    assert list(segments.read(folder)) == [size(NOW), size(NOW, name="files"), size(NOW + 1)]
    assert list(segments.read(folder, since=NOW + 1)) == [size(NOW + 1)]


def test_a_restored_database_learns_again_what_came_after_its_backup(engine, tmp_path):
    folder = tmp_path / "spool"
    for n in range(5):
        put(folder, size(NOW + n, n))
        segments.drain(folder, engine)
    with database.opened(engine) as connection:
        connection.execute(text("DELETE FROM measurement WHERE value > 1"))  # as it was at that backup
    put(folder, size(NOW + 9))
    assert segments.drain(folder, engine).added == 4
    with database.opened(engine) as connection:
        Base.metadata.drop_all(connection)
        connection.execute(text("DROP TABLE alembic_version"))
    assert segments.drain(folder, engine).added == 6


def test_a_history_that_has_thinned_is_not_filled_again(engine, tmp_path):
    folder = tmp_path / "spool"
    put(folder, *[size(NOW - n, n) for n in range(600, 0, -1)])
    segments.drain(folder, engine)
    measurements.thin(engine, NOW + 10 * DAY)
    assert len(everything(engine)) <= 6
    assert segments.drain(folder, engine).added == 0


@pytest.mark.parametrize(
    "bad",
    [
        b"", b"{", b"[", b"\x00\xff", b"{}", b'[{"taken":1}]', b'[{"taken":1,"subject":"","name":"b","value":1}]',
        b'[{"taken":-1,"subject":"s","name":"b","value":1}]', b'[{"taken":1e300,"subject":"s","name":"b","value":1}]',
        b'[{"taken":1,"subject":"s","name":"b","value":null}]', b'[{"taken":1,"subject":"s","name":"b","value":1e999}]',
        b'[{"taken":1,"subject":"a\\u0000b","name":"b","value":1}]', b"[" * 100_000,
        b'[{"taken":1,"subject":"' + b"x" * 301 + b'","name":"b","value":1}]',
        b'[{"taken":1,"subject":"a\\nb","name":"b","value":1}]',
    ],
)  # fmt: skip
def test_garbage_in_the_spool_is_set_aside_and_stops_nobody_else(empty, tmp_path, bad):
    if empty.dialect.name == "postgresql" and len(bad) < 100_000:
        return  # what is refused never reaches a database
    folder = tmp_path / "spool"
    put(folder, size(NOW))
    (folder / "0-bad.json").write_bytes(bad)
    assert segments.drain(folder, empty) == segments.Drained(1, ("0-bad.json",))
    assert (folder / "0-bad.damaged").read_bytes() == bad
    assert segments.drain(folder, empty) == segments.Drained()


def test_what_no_database_can_hold_is_written_so_that_it_can(engine, tmp_path):
    folder = tmp_path / "spool"
    names = ["volume:" + "x" * 400, "volume:" + "x" * 401, "disk:/a\nb", "disk:/a\tb", "disk:/\udcff", "disk:/a\x00"]
    assert put(folder, *[size(NOW, subject=name) for name in names], size(NOW, math.nan), size(NOW, math.inf)) == 0
    assert segments.drain(folder, engine).added == len(names)
    kept = {m.subject for m in everything(engine)}
    assert len(kept) == len(names)
    assert all(len(name) <= 300 and name.isprintable() for name in kept)


def test_the_spool_is_bounded_and_says_what_it_dropped(tmp_path):
    folder = tmp_path / "spool"
    for n in range(10):
        assert put(folder, size(NOW + n)) == 0
    assert put(folder, size(NOW + 99), limit=4 * 4096) == 7
    assert [m.taken - NOW for m in segments.read(folder)] == [7, 8, 9, 99]


def test_old_segments_leave_the_spool(tmp_path):
    engine = database.connect(ServeSettings(), tmp_path)
    folder = tmp_path / "spool"
    put(folder, size(NOW))
    segments.drain(folder, engine)
    (kept,) = (folder / "done").iterdir()
    os.utime(kept, (time.time() - 100, time.time() - 100))
    segments.drain(folder, engine, keep_s=1000)
    assert kept.exists()
    segments.drain(folder, engine, keep_s=10)
    assert not kept.exists()


WRITER = """
import sys, time
from pathlib import Path
from cosmos_coherence.history import segments
from cosmos_coherence.model import Measurement
n = 0
while True:
    segments.append(Path(sys.argv[1]), [Measurement(float(n), "s", f"n{k}", 1.0) for k in range(50)])
    n += 1
    print(n, flush=True)
"""


def test_a_writer_that_is_killed_leaves_whole_segments_only(tmp_path, rng):
    folder, told = tmp_path / "spool", 0
    for _ in range(4):
        writer = subprocess.Popen([sys.executable, "-c", WRITER, str(folder)], stdout=subprocess.PIPE)
        assert writer.stdout
        for _ in range(rng.randint(3, 30)):
            writer.stdout.readline()
            told += 1
        writer.send_signal(signal.SIGKILL)
        told += len(writer.stdout.readlines())
        writer.stdout.close()
        writer.wait()
    whole = [path for path in folder.glob("*.json") if not path.name.startswith(".")]
    assert told <= len(whole) <= told + 4
    assert len(list(segments.read(folder))) == 50 * len(whole)
    engine = database.connect(ServeSettings(), tmp_path)
    assert segments.drain(folder, engine).damaged == ()


@pytest.mark.postgres
def test_a_database_that_is_killed_in_mid_drain_loses_nothing_and_has_nothing_twice(tmp_path, rng, monkeypatch):
    """Killed with SIGKILL after a random number of batches, started again on the same data, drained again."""
    folder = tmp_path / "spool"
    wanted = set()
    for n in range(60):
        several = [size(NOW + n, k, subject=f"volume:{k}") for k in range(40)]
        put(folder, *several)
        wanted |= set(several)
    monkeypatch.setattr(segments, "_BATCH", 4)
    with stores.postgres() as server:
        engine = database.connect(
            ServeSettings(database_url=server.database(), database_password_file=server.password_file)
        )
        plain, strikes = measurements.add, [rng.randint(1, 4), rng.randint(5, 8)]
        calls = 0

        def struck(engine, rows):
            nonlocal calls
            calls += 1
            if calls in strikes:
                server.kill()
            return plain(engine, rows)

        monkeypatch.setattr(measurements, "add", struck)
        for _ in strikes:
            with pytest.raises(errors.ServiceDown):
                segments.drain(folder, engine)
            assert segments.waiting(folder) > 0
            put(folder, late := size(NOW + 1000 + calls))  # measured while it is down
            wanted.add(late)
            server.start()
        segments.drain(folder, engine)
        assert segments.waiting(folder) == 0
        assert everything(engine) == wanted
