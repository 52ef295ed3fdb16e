"""What the Redis source and restorer promise, against real servers."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from uuid import uuid4

import pytest
from msgspec.structs import replace

from cosmos_coherence import errors
from cosmos_coherence.model import Fingerprint
from cosmos_coherence.sources import redis as redis_source
from cosmos_coherence.sources import redis_restore
from cosmos_coherence.sources.redis import RedisSource, restore_settings
from cosmos_coherence.sources.redis_session import Session
from support.capturing import anchor
from support.local_servers import PASSWORD, REDIS, Redis, redis_server
from support.memory_parts import MemoryReader, MemorySink
from support.redis_cases import (
    DUMP,
    REF,
    SAVE,
    backup,
    contents,
    fill,
    keyspace,
    leftovers,
    names,
    quiet,
    restore,
    restorer,
    source,
)
from support.waiting import eventually

pytestmark = pytest.mark.redis


@pytest.fixture(params=REDIS)
def version(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=[True, False], ids=["aof", "rdb"])
def aof(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


@pytest.fixture
def server(version: str, aof: bool) -> Iterator[Redis]:
    with redis_server(version, aof=aof, config=["save 3600 1", "save 300 100"]) as started:
        yield started


@pytest.fixture
def any_server() -> Iterator[Redis]:
    """For what does not depend on version or persistence."""
    with redis_server("7.0", aof=True, config=["save 3600 1", "save 300 100"]) as started:
        yield started


# ------------------------------------------------------------------------------------------------------ round trip
def test_everything_comes_back(server: Redis) -> None:
    fill(server)
    before = contents(server)
    part, reader = backup(server)
    assert part.fingerprint == Fingerprint(keys={"0": 510, "3": 2, "15": 0}, expiring_keys={"0": 1, "3": 0, "15": 1})
    assert (part.details["appendonly"], part.details["dbfilename"]) == ("yes" if server.aof else "no", "dump.rdb")
    server.cli("FLUSHALL")
    server.cli("SET", "newer", "x")
    restore(part, reader, server)
    assert contents(server) == before
    server.cli("SET", "after", "the restore")
    server.restart()
    assert server.cli("GET", "after") == b"the restore" or not server.aof
    assert server.cli("GET", "text") == "value ü".encode()


def test_into_an_empty_folder_of_another_server(server: Redis, version: str, aof: bool) -> None:
    fill(server)
    part, reader = backup(server)
    with redis_server(version, aof=not aof) as other:
        restore(part, reader, other)
        assert contents(other) == contents(server)


def test_an_older_server_restores_into_a_newer_one_and_not_back(aof: bool) -> None:
    with redis_server("6.2", aof=aof) as old, redis_server("7.0", aof=aof) as new:
        fill(old)
        part, reader = backup(old)
        restore(part, reader, new)
        assert keyspace(new) == keyspace(old)
        part, reader = backup(new)
        before = names(old)
        back = restorer(part, old)
        with pytest.raises(errors.Unsupported, match=r"format 10, and redis 6\.2 reads 9"):
            back.stage(reader)
        back.undo()
        assert names(old) == before


def test_a_server_that_does_not_answer_any_more(server: Redis) -> None:
    fill(server)
    before = contents(server)
    part, reader = backup(server)
    server.kill()
    for path in sorted(server.data.rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()
    (server.data / "dump.rdb").write_bytes(b"garbage")
    back = restorer(part, server)
    back.stage(reader)
    back.swap()
    server.start()
    back.verify()
    back.finish()
    assert contents(server) == before


# ------------------------------------------------------------------------------------------------------ the instant
def test_what_comes_after_the_anchor_is_not_in_it(server: Redis) -> None:
    server.cli("SET", "before", "x")
    part, reader = backup(
        server,
        prepared=lambda: server.cli("SET", "prepared", "x"),
        anchored=lambda: server.cli("MSET", "before", "changed", "after", "x"),
    )
    assert part.fingerprint.keys == {"0": 2}
    restore(part, reader, server)
    assert sorted(server.cli("KEYS", "*").split()) == [b"before", b"prepared"]
    assert server.cli("GET", "before") == b"x"


def test_an_instant_at_the_very_beginning_of_a_second(any_server: Redis) -> None:
    """The dump is dated by a coarser clock, so by the second before."""

    def a_second_begins() -> None:
        second = int(time.time())
        while int(time.time()) == second:
            pass

    any_server.cli("SET", "a", "x")
    for _ in range(5):
        part, _ = backup(any_server, prepared=a_second_begins)
        assert part.fingerprint.keys == {"0": 1}


def test_a_later_save_that_replaces_the_dump_fails_the_capture(
    any_server: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = any_server
    server.cli("SET", "a", "x")
    server.environment["REDISCLI_AUTH"] = PASSWORD
    monkeypatch.setattr(redis_source, "_KEEP", redis_source._KEEP.replace("echo", "redis-cli SAVE >/dev/null; echo"))
    with pytest.raises(errors.CaptureFailed, match="another save replaced it"):
        backup(server)
    assert leftovers(server.data) == []


def test_a_save_that_runs_is_waited_out_before_and_asks_for_another_round_in_the_hold(any_server: Redis) -> None:
    server = any_server
    server.cli("SET", "a", "x")
    server.cli("CONFIG", "SET", "rdb-key-save-delay", "300000")
    server.cli("BGSAVE")
    sink = MemorySink()
    with source(server) as captured:
        captured.prepare(sink)
        assert b"rdb_bgsave_in_progress:0" in server.cli("INFO", "persistence")
        server.cli("BGSAVE")
        with pytest.raises(errors.CutFailed, match="in progress"):
            anchor(captured)
        captured.prepare(sink)
        anchor(captured)
        assert captured.capture(sink).fingerprint.keys == {"0": 1}


def saved_number(dump: bytes) -> int:
    """The integer under the key ``n`` of a dump."""
    at = dump.index(b"\0\1n") + 3
    return int.from_bytes(dump[at + 1 : at + 1 + {0xC0: 1, 0xC1: 2, 0xC2: 4}[dump[at]]], "little")


def test_what_is_written_once_it_is_anchored_waits_until_the_save_is_forked(any_server: Redis) -> None:
    acknowledged, enough = [0], threading.Event()

    def write() -> None:
        with any_server.run("redis", ["redis-cli"], stdin=True, environment={"REDISCLI_AUTH": PASSWORD}) as client:
            while not enough.is_set():
                client.stdin.write(b"INCR n\n")
                client.stdin.flush()
                acknowledged[0] = int(client.stdout.readline())

    any_server.cli("EVAL", "for i = 1, 200000 do redis.call('SET', 'key' .. i, 'value' .. i) end", "0")
    writer = threading.Thread(target=write)
    writer.start()
    try:
        for _ in range(3):
            sink = MemorySink()
            with source(any_server) as captured:
                captured.prepare(sink)
                before = acknowledged[0]
                rest = captured.anchor()
                last = acknowledged[0] + 1  # its answer may be on the way
                assert rest, "the fork was waited for"
                rest()
                assert eventually(lambda last=last: acknowledged[0] > last), "it does not take writes again"
                part = captured.capture(sink)
            (dump,) = sink.streams.values()
            assert part.fingerprint.keys == {"0": 200_001}
            assert before <= saved_number(dump) <= last
    finally:
        enough.set()
        writer.join()


def test_the_dump_that_is_kept_for_us_goes_when_we_die(any_server: Redis) -> None:
    any_server.cli("SAVE")
    kept = any_server.data / ".cosmos-run.rdb"
    told, tell = os.pipe()
    if (child := os.fork()) == 0:
        try:
            with RedisSource(REF, any_server, "run")._kept(str(any_server.data / "dump.rdb"), str(kept)):
                os.write(tell, b"kept")
                time.sleep(60)
        finally:
            os._exit(1)
    try:
        assert os.read(told, 4) == b"kept"
        assert kept.exists()
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(told)
        os.close(tell)
    assert eventually(lambda: not kept.exists())


def test_a_save_that_fails_is_no_success(server: Redis) -> None:
    server.cli("SET", "a", "x")
    server.cli("CONFIG", "SET", "rdb-key-save-delay", "300000")
    sink = MemorySink()
    with source(server) as captured:
        captured.prepare(sink)
        anchor(captured)
        child = next(int(p.name) for p in Path("/proc").glob("[0-9]*") if is_child(p, server))
        os.kill(child, 9)
        with pytest.raises(errors.CaptureFailed, match="the save failed"):
            captured.capture(sink)
    assert sink.streams == {}


def is_child(process: Path, server: Redis) -> bool:
    with suppress(FileNotFoundError, ProcessLookupError):
        fields = (process / "stat").read_text().rpartition(")")[2].split()
        return int(fields[1]) == server.pid
    return False


def test_a_server_killed_after_the_anchor_fails(any_server: Redis) -> None:
    with pytest.raises(errors.ServiceDown):
        backup(any_server, anchored=any_server.kill)


def test_keys_that_somebody_writes_meanwhile_are_a_bound() -> None:
    before, after = {"0": (5, 1), "1": (3, 2)}, {"0": (6, 1), "1": (3, 1)}
    assert redis_source._counts(before, after) == ({"1": 3}, {"0": 7, "1": 2})


# ------------------------------------------------------------------------------------------------------ settings
def test_settings_are_put_back_after_a_capture(server: Redis) -> None:
    before = quiet(server)
    sink = MemorySink()
    with source(server) as captured:
        assert captured.settings_to_restore() == {"save": SAVE, "auto-aof-rewrite-percentage": "100"}
        captured.prepare(sink)
        assert quiet(server) == (b"save\n", b"auto-aof-rewrite-percentage\n0")
        anchor(captured)
        captured.capture(sink)
    assert quiet(server) == before


def test_settings_are_put_back_when_the_program_died(any_server: Redis) -> None:
    before = quiet(any_server)
    dying = RedisSource(REF, any_server, "run")
    values = dying.settings_to_restore()
    dying.prepare(MemorySink())
    dying._session.close()  # type: ignore[union-attr]
    assert quiet(any_server) != before
    restore_settings(any_server, "redis", values)
    assert quiet(any_server) == before
    with pytest.raises(errors.ServiceDown):
        any_server.kill()
        restore_settings(any_server, "redis", values)


def test_a_leftover_of_a_run_that_died_is_removed(any_server: Redis) -> None:
    (any_server.data / ".cosmos-dead.rdb").write_bytes(b"x")
    backup(any_server)
    assert leftovers(any_server.data) == []


def test_a_user_without_config_captures_all_the_same(any_server: Redis) -> None:
    server = any_server
    fill(server)
    server.cli("ACL", "SETUSER", "default", "-config")
    server.work = server.data
    part, _ = backup(server)
    assert part.fingerprint.keys["0"] == 510
    assert "could start by themselves" in part.details["saves"]


# ------------------------------------------------------------------------------------------------------ the server
def test_a_wrong_password_and_a_dead_server(server: Redis) -> None:
    server.environment["REDIS_PASSWORD"] = "wrong"
    with source(server) as captured, pytest.raises(errors.AccessDenied) as denied:
        captured.prepare(MemorySink())
    assert "wrong" not in denied.value.message
    server.environment["REDIS_PASSWORD"] = ""
    with source(server) as captured, pytest.raises(errors.AccessDenied):
        captured.prepare(MemorySink())
    secret = server.folder / "redis-secret"
    secret.write_text(PASSWORD)
    server.environment["REDIS_PASSWORD_FILE"] = str(secret)
    server.cli("CONFIG", "SET", "requirepass", "")
    with Session(server, "redis", "x") as session:
        assert session.ask("PING") == ["PONG"]
    server.environment["REDIS_SOCKET"] = "/nowhere"
    with source(server) as captured, pytest.raises(errors.ServiceDown):
        captured.prepare(MemorySink())


def test_clients_are_all_others(any_server: Redis) -> None:
    other = any_server.run("redis", ["redis-cli"], stdin=True, environment={"REDISCLI_AUTH": PASSWORD})
    try:
        other.stdin.write(b"CLIENT SETNAME worker\n")
        other.stdin.flush()
        assert other.stdout.readline() == b"OK\n"
        with source(any_server) as captured:
            captured.prepare(MemorySink())
            assert captured.clients() == (("", "worker"),)
    finally:
        other.kill()


# ------------------------------------------------------------------------------------------------------ the way back
@pytest.mark.parametrize("broken", [b"", b"REDIS", b"no dump at all", "short", "flipped"])
def test_no_whole_dump_is_refused_and_nothing_live_changes(any_server: Redis, broken: bytes | str) -> None:
    fill(any_server)
    part, reader = backup(any_server)
    whole = reader.streams[DUMP]
    before = names(any_server)
    given = {"short": whole[:-1], "flipped": whole[:-9] + b"\x00" + whole[-8:]}.get(str(broken), broken)
    back = restorer(part, any_server)
    with pytest.raises(errors.Damaged):
        back.stage(MemoryReader({DUMP: given}))  # type: ignore[dict-item]
    back.undo()
    assert names(any_server) == before


def test_verify_counts_keys(server: Redis) -> None:
    fill(server)
    part, reader = backup(server)
    restore(part, reader, server)
    back = restorer(part, server)
    server.cli("-n", "3", "DEL", "a")
    with pytest.raises(errors.NotEqual, match=r"database 3 .* holds 1 keys and 0 that expire, instead of 2"):
        back.verify()
    server.cli("-n", "3", "SET", "a", "x")
    server.cli("DEL", "later")
    back.verify()
    server.cli("-n", "7", "SET", "a", "x")
    with pytest.raises(errors.NotEqual, match="database 7"):
        back.verify()


STEPS = ("nothing", "stage", "swap", "verify")


@pytest.mark.parametrize("last", STEPS)
def test_undo_after_each_step_gives_the_old_data_back(server: Redis, last: str) -> None:
    fill(server)
    part, reader = backup(server)
    server.cli("SET", "newer", "x")
    if not server.aof:
        server.cli("SAVE")
    before = contents(server)
    run = uuid4().hex[:12]
    for step in STEPS[1 : STEPS.index(last) + 1]:
        if step == "swap":
            server.stop()
        if step == "verify":
            server.start()
        back = restorer(part, server, run)
        back.stage(reader) if step == "stage" else getattr(back, step)()
    server.stop()
    for _ in range(2):
        restorer(part, server, run).undo()
        assert leftovers(server.data) == []
    server.start()
    assert contents(server) == before


class Died(Exception):
    pass


@pytest.mark.parametrize("undoing", [False, True])
def test_a_crash_after_any_rename_or_note_heals(
    any_server: Redis, monkeypatch: pytest.MonkeyPatch, undoing: bool
) -> None:
    server = any_server
    fill(server)
    part, reader = backup(server)
    server.cli("SET", "newer", "x")
    server.stop()
    before = {path.relative_to(server.data): path.read_bytes() for path in server.data.rglob("*") if path.is_file()}
    left = 0

    def counted(step: Callable[..., object]) -> Callable[..., object]:
        def dying(*given: object, **named: object) -> object:
            nonlocal left
            if left == 0:
                raise Died
            left -= 1
            return step(*given, **named)

        return dying

    for name in ("move", "remove_tree"):
        monkeypatch.setattr(redis_restore.staging, name, counted(getattr(redis_restore.staging, name)))
    monkeypatch.setattr(redis_restore.Staging, "save", counted(redis_restore.Staging.save))
    for steps in range(40):
        run = f"run{steps}"
        left = 1000
        restorer(part, server, run).stage(reader)
        left = 1000 if undoing else steps
        died = False
        try:
            restorer(part, server, run).swap()
            left = steps if undoing else 1000
            restorer(part, server, run).undo()
        except Died:
            died = True
        left = 1000
        restorer(part, server, run).undo()
        found = {path.relative_to(server.data): path.read_bytes() for path in server.data.rglob("*") if path.is_file()}
        assert found == before, f"after {steps} steps"
        assert leftovers(server.data) == []
        if not died:
            assert steps > 5
            return
    raise AssertionError("it never came to its end")


def test_odd_file_names_from_a_manifest_are_refused(any_server: Redis) -> None:
    part, reader = backup(any_server)
    any_server.kill()
    for name in ("../x", "/etc/passwd", "..", ""):
        lying = replace(part, details={**part.details, "dbfilename": name})
        with pytest.raises(errors.Unsupported, match="odd name"):
            restorer(lying, any_server).stage(reader)


def test_owner_and_mode_of_what_is_restored(any_server: Redis) -> None:
    fill(any_server)
    part, reader = backup(any_server)
    wanted = (any_server.data / "dump.rdb").stat()
    back = restorer(part, any_server)
    back.stage(reader)
    any_server.stop()
    back.swap()
    for path in [*any_server.data.glob("[ad]*"), *any_server.data.glob("[ad]*/*")]:
        assert (path.stat().st_uid, path.stat().st_gid) == (wanted.st_uid, wanted.st_gid)
        assert path.stat().st_mode & 0o077 == 0
    back.finish()
