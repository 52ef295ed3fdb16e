"""The demo's writer and ballast on the embedded stack: what they write can be checked, whatever happens to them."""

from __future__ import annotations

import hashlib
import os
import re
import signal
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from cosmos_coherence import errors
from cosmos_coherence.cut import freezer
from cosmos_coherence.drivers import embedded
from cosmos_coherence.drivers.local import LocalRuntime
from cosmos_coherence.flow import demo_data, demo_writer
from support.waiting import eventually

pytestmark = [pytest.mark.postgres, pytest.mark.redis]

SERVERS = ["db", "redis"]
WRITERS = 2
PSQL = ["psql", "--no-psqlrc", "--no-align", "--tuples-only", "--set=ON_ERROR_STOP=1", "--dbname", embedded.DATABASE]


@pytest.fixture
def runtime() -> Iterator[LocalRuntime]:
    with tempfile.TemporaryDirectory(prefix="cosmos-test-") as name:
        Path(name).chmod(0o711)
        runtime = embedded.lay_out_demo(Path(name) / "demo", writers=WRITERS, rate=0)
        try:
            runtime.start(SERVERS)
            runtime.wait_ready(SERVERS)
            yield runtime
        finally:
            runtime.destroy()


def sql(runtime: LocalRuntime, statement: str) -> list[list[str]]:
    with runtime.run("db", [*PSQL, "--command", statement]) as child:
        return [line.split("|") for line in child.stdout.read().decode().splitlines()]


def redis(runtime: LocalRuntime, *words: str) -> str:
    with runtime.run("redis", ["redis-cli", *words]) as child:
        return child.stdout.read().decode().strip()


def lines(runtime: LocalRuntime, writer: int) -> list[bytes]:
    path = runtime.folder / "volumes/files" / demo_writer.log_name(writer)
    return path.read_bytes().splitlines(keepends=True) if path.exists() else []


def counts(runtime: LocalRuntime, writer: int) -> tuple[int, int, int]:
    """How far PostgreSQL, Redis and the file are, each with every k up to there and the right payload."""
    rows = sql(runtime, f"SELECT k, payload FROM sequence_log WHERE writer = {writer} ORDER BY k")
    assert rows == [[str(k), demo_writer.payload(writer, k)] for k in range(1, len(rows) + 1)]
    cached = int(redis(runtime, "GET", demo_writer.counter_key(writer)) or 0)
    for k in {1, cached // 2, cached} - {0}:
        assert redis(runtime, "GET", demo_writer.entry_key(writer, k)) == demo_writer.payload(writer, k)
    written = lines(runtime, writer)
    assert written == [demo_writer.log_line(writer, k) for k in range(1, len(written) + 1)]
    return len(rows), cached, len(written)


def assert_one_instant(runtime: LocalRuntime) -> None:
    for writer in range(WRITERS):
        rows, keys, written = counts(runtime, writer)
        assert rows >= keys >= written >= rows - 1


def written(runtime: LocalRuntime, more_than: int) -> bool:
    return all(len(lines(runtime, writer)) > more_than for writer in range(WRITERS))


def test_writes_in_order_and_goes_on_where_it_was(runtime: LocalRuntime) -> None:
    runtime.start(["writer"])
    assert eventually(lambda: written(runtime, 50))
    runtime.stop(["writer"])
    before = [counts(runtime, writer) for writer in range(WRITERS)]
    assert all(len(set(found)) == 1 for found in before), "it was asked to stop, and did not finish its last k"
    runtime.start(["writer"])
    assert eventually(lambda: written(runtime, max(max(before)) + 20))
    runtime.stop(["writer"])
    assert_one_instant(runtime)


def test_held_at_any_moment_the_stores_are_of_one_instant(runtime: LocalRuntime) -> None:
    runtime.start(["writer"])
    for round_ in range(5):
        assert eventually(lambda more=20 * round_: written(runtime, more))
        targets = runtime.hold_targets([s for s in runtime.stack().services if s.name == "writer"])
        try:
            freezer.freeze_all(targets, within_s=10)
            assert_one_instant(runtime)
        finally:
            freezer.thaw_all(targets)


def test_killed_it_completes_what_is_behind(runtime: LocalRuntime) -> None:
    runtime.start(["writer"])
    for round_ in range(3):
        assert eventually(lambda more=20 * round_ + 20: written(runtime, more))
        os.killpg(int((runtime.folder / "run/writer.pid").read_text().split()[0]), signal.SIGKILL)
        assert eventually(lambda: runtime.stack().service("writer").state == "exited")  # type: ignore[union-attr]
        assert eventually(
            lambda: sql(runtime, "SELECT count(*) FROM pg_stat_activity WHERE query ~ '^INSERT'") == [["0"]]
        )
        assert_one_instant(runtime)
        runtime.start(["writer"])


def test_catches_up_stores_that_are_behind(runtime: LocalRuntime) -> None:
    runtime.start(["writer"])
    assert eventually(lambda: written(runtime, 30))
    runtime.stop(["writer"])
    rows, _, _ = counts(runtime, 0)
    redis(runtime, "SET", demo_writer.counter_key(0), str(rows - 3))
    redis(runtime, "DEL", *(demo_writer.entry_key(0, rows - n) for n in range(3)))
    log = runtime.folder / "volumes/files" / demo_writer.log_name(0)
    os.truncate(log, log.stat().st_size - 100)  # in the middle of a line
    runtime.start(["writer"])
    assert eventually(lambda: len(lines(runtime, 0)) > rows)
    runtime.stop(["writer"])
    assert len(set(counts(runtime, 0))) == 1


def test_goes_on_when_its_servers_come_back(runtime: LocalRuntime) -> None:
    runtime.start(["writer"])
    assert eventually(lambda: written(runtime, 10))
    for server in SERVERS:
        runtime.stop([server])
        before = max(len(lines(runtime, writer)) for writer in range(WRITERS))
        runtime.start([server])
        runtime.wait_ready([server])
        assert eventually(lambda more=before + 5: written(runtime, more))
    runtime.stop(["writer"])
    assert_one_instant(runtime)
    assert not re.search("Traceback", (runtime.folder / "logs/writer.log").read_text())


def test_without_redis(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "find_redis", lambda **_: None)
    with tempfile.TemporaryDirectory(prefix="cosmos-test-") as name:
        Path(name).chmod(0o711)
        runtime = embedded.lay_out_demo(Path(name) / "demo", writers=WRITERS)
        try:
            runtime.start(["db", "writer"])
            assert eventually(lambda: written(runtime, 5))
        finally:
            runtime.destroy()


# ------------------------------------------------------------------------------------------------------ ballast
def test_ballast_fills_all_three_stores_once(runtime: LocalRuntime) -> None:
    demo_data.seed(runtime)
    tables = "SELECT sum((xpath('/row/n/text()', query_to_xml(format('SELECT count(*) AS n FROM %s', oid::regclass),"
    tables += (
        " true, true, '')))[1]::text::int) FROM pg_class WHERE relkind = 'r' AND relnamespace = 'ballast'::regnamespace"
    )
    assert sql(runtime, tables) == [["21505"]]
    assert sql(runtime, "SELECT last_value FROM ballast.numbers") == [["3097"]]
    sizes = [int(redis(runtime, "-n", database, "DBSIZE")) for database in ("0", "1")]
    assert sum(sizes) == demo_data.KEYS and all(sizes)
    kinds = {redis(runtime, "TYPE", f"ballast:{i}") for i in range(10)}
    assert kinds >= {"string", "hash", "list", "set", "zset", "stream"}
    files = runtime.folder / "volumes/files/ballast"
    assert len(list(files.rglob("file-*.bin"))) == demo_data.FILES
    with pytest.raises(errors.CommandFailed):
        demo_data.seed(runtime)


def test_ballast_follows_from_its_number(tmp_path: Path) -> None:
    for name, number in (("a", 1), ("b", 1), ("c", 2)):
        demo_data.seed_files(tmp_path / name, number=number)
    assert digest(tmp_path / "a") == digest(tmp_path / "b") != digest(tmp_path / "c")
    assert list(demo_data.redis_commands(1)) == list(demo_data.redis_commands(1)) != list(demo_data.redis_commands(2))
    sparse = (tmp_path / "a/sparse.img").stat()
    assert sparse.st_blocks * 512 < sparse.st_size
    with pytest.raises(errors.Refused):
        demo_data.seed_files(tmp_path / "a")


def digest(root: Path) -> str:
    total = hashlib.sha256()
    for path in sorted(root.rglob("*")):
        status = path.lstat()
        total.update(
            os.fsencode(path.relative_to(root)) + b"%o %d %d" % (status.st_mode, status.st_mtime_ns, status.st_nlink)
        )
        total.update(path.read_bytes() if stat.S_ISREG(status.st_mode) else b"")
    return total.hexdigest()
