"""What the PostgreSQL source and restorer promise, against real servers."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from uuid import uuid4

import pytest
from msgspec.structs import replace

from cosmos_coherence import errors
from cosmos_coherence.model import Part
from cosmos_coherence.sources import postgres, postgres_session
from cosmos_coherence.sources.postgres_restore import PostgresRestorer
from support.local_servers import ACCOUNT, PASSWORD, POSTGRES, USER, Postgres, postgres_server
from support.memory_parts import MemoryReader, MemorySink
from support.postgres_cases import (
    CONFIGURED,
    ODD,
    backup,
    contents,
    everything,
    fill,
    restore,
    restorer,
    rows,
    source,
)
from support.waiting import eventually

pytestmark = pytest.mark.postgres


@pytest.fixture(scope="module", params=POSTGRES)
def version(request: pytest.FixtureRequest) -> int:
    return int(request.param)


@pytest.fixture(scope="module")
def shared(version: int) -> Iterator[Postgres]:
    """One server for the tests that leave it as they found it."""
    with postgres_server(version) as server:
        fill(server)
        yield server


@pytest.fixture(scope="module")
def saved(shared: Postgres) -> tuple[Part, MemoryReader]:
    return backup(shared)


@pytest.fixture
def server(version: int) -> Iterator[Postgres]:
    with postgres_server(version) as started:
        yield started


# ------------------------------------------------------------------------------------------------------ round trip
def test_everything_comes_back_on_a_new_server(
    version: int, shared: Postgres, saved: tuple[Part, MemoryReader]
) -> None:
    part, reader = saved
    assert {"database.sql", "globals.sql", "databases/db/postgres.sql"} <= set(reader.names())
    assert part.fingerprint.databases["shop"].tables["shop.item"] == 1001
    assert part.fingerprint.databases["shop"].sequences["shop.called"] == 6
    assert "shop.never" not in part.fingerprint.databases["shop"].sequences
    with postgres_server(version) as other:
        back = restore(part, reader, other)
        assert everything(other) == everything(shared)
        assert back.notes == ()
        assert "cosmos_" not in other.sql("SELECT datname FROM pg_database")
        assert other.sql("SELECT count(*) FROM pg_db_role_setting WHERE setconfig::text ~ 'cosmos'") == "0\n"


def test_over_itself_while_clients_are_connected(server: Postgres) -> None:
    fill(server)
    before = everything(server)
    part, reader = backup(server)
    server.sql("DELETE FROM shop.item; DROP TABLE shop.secret; SELECT nextval('shop.called')", "shop")
    server.sql("DROP DATABASE empty")
    server.sql("CREATE DATABASE unknown_to_the_backup")
    with ExitStack() as clients:
        for database in ("shop", "postgres"):
            clients.callback(server.session(database).kill)
        restore(part, reader, server)
    after = everything(server)
    assert after.pop("unknown_to_the_backup")
    assert after == before


def test_an_older_server_restores_into_a_newer_one_and_not_back() -> None:
    with postgres_server(15) as old, postgres_server(18) as new:
        fill(old)
        part, reader = backup(old)
        restore(part, reader, new)
        for database in ("shop", ODD):
            assert rows(new, database) == rows(old, database)
        part, reader = backup(new)
        before = everything(old)
        with pytest.raises(errors.Unsupported, match="comes from PostgreSQL 18"):
            restorer(part, old).stage(reader)
        assert everything(old) == before


def test_another_server_keeps_its_dumps_under_its_own_name(shared: Postgres) -> None:
    sink = MemorySink()
    with source(shared, primary=False) as captured:
        captured.prepare(sink)
        captured.anchor()
        part = captured.capture(sink)
    names = {f"databases/db/{name}.sql" for name in ("globals", "shop", "postgres", "empty", ODD)}
    assert set(sink.streams) == names
    assert "database" not in part.details


def test_by_hand_with_psql(shared: Postgres, version: int, saved: tuple[Part, MemoryReader]) -> None:
    _, reader = saved
    with postgres_server(version) as other:
        other.sql(reader.streams["globals.sql"].decode(), "postgres", "-v", "ON_ERROR_STOP=0")
        other.sql("CREATE DATABASE shop OWNER app TEMPLATE template0; " + CONFIGURED)
        other.sql(reader.streams["database.sql"].decode(), "shop", "-1", "-f", "-")
        assert contents(other, "shop") == contents(shared, "shop")


# ------------------------------------------------------------------------------------------------------ the instant
def test_what_comes_after_the_anchor_is_not_in_it(server: Postgres) -> None:
    server.sql("CREATE TABLE t (n serial); CREATE SEQUENCE idle; CREATE SEQUENCE reset")
    server.sql("SELECT setval('reset', 9, false)")
    server.sql("INSERT INTO t DEFAULT VALUES")

    def later() -> None:
        server.sql("INSERT INTO t SELECT FROM generate_series(1, 100); SELECT nextval('idle'), nextval('reset')")

    part, reader = backup(server, prepared=lambda: server.sql("INSERT INTO t DEFAULT VALUES"), anchored=later)
    restore(part, reader, server)
    assert server.sql("SELECT n FROM t ORDER BY n") == "1\n2\n"
    assert server.sql("SELECT nextval('t_n_seq'), nextval('idle'), nextval('reset')") == "3|1|9\n"


@pytest.mark.parametrize("statement", ["TRUNCATE t", "DROP TABLE t", "ALTER TABLE t RENAME TO u"])
def test_nothing_empties_a_table_once_it_is_prepared(server: Postgres, statement: str) -> None:
    server.sql("CREATE TABLE t AS SELECT generate_series(1, 1000) AS n")
    sink = MemorySink()
    with source(server, main="postgres") as captured:
        captured.prepare(sink)
        captured.anchor()
        with pytest.raises(errors.CommandFailed, match="lock timeout"):
            server.sql(f"SET lock_timeout = '50ms'; {statement}")
        part = captured.capture(sink)
    assert part.fingerprint.databases["postgres"].tables == {"public.t": 1000}
    assert sink.streams["database.sql"].count(b"\n1000\n") == 1
    server.sql(statement)


def test_a_statement_that_waits_for_our_locks_ends_the_capture_and_not_the_application(
    server: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgres, "_DUMP_LOCK_TIMEOUT_MS", 200)
    server.sql("CREATE TABLE t AS SELECT 1 AS n")
    sink = MemorySink()
    with source(server, main="postgres") as captured:
        captured.prepare(sink)
        captured.anchor()
        application = threading.Thread(target=server.sql, args=("TRUNCATE t",))
        application.start()
        try:
            assert eventually(lambda: server.sql("SELECT count(*) FROM pg_locks WHERE NOT granted") == "1\n")
            with pytest.raises(errors.CaptureFailed, match="did not end well"):
                captured.capture(sink)
        finally:
            captured.close()
            application.join()
    assert "database.sql" not in sink.streams


def test_a_table_locked_by_somebody_gives_up_the_round(server: Postgres, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(postgres, "_LOCK_TIMEOUT_MS", 50)
    server.sql("CREATE TABLE t ()")
    client = server.session()
    try:
        client.stdin.write(b"BEGIN; LOCK TABLE t; SELECT 'locked';\n")
        client.stdin.flush()
        assert client.stdout.readline() == b"locked\n"
        with source(server) as captured, pytest.raises(errors.CutFailed, match="could not be locked"):
            captured.prepare(MemorySink())
    finally:
        client.kill()
    assert eventually(lambda: our_sessions(server) == 0)


def test_tables_made_between_prepare_and_anchor_ask_for_another_round(server: Postgres) -> None:
    with pytest.raises(errors.CutFailed, match="made or dropped"):
        backup(server, prepared=lambda: server.sql("CREATE TABLE t ()"))
    sink = MemorySink()
    with source(server) as captured:
        captured.prepare(sink)
        server.sql("CREATE SEQUENCE s")
        with pytest.raises(errors.CutFailed):
            captured.anchor()
        captured.prepare(sink)
        captured.anchor()
        captured.capture(sink)


def test_roles_that_change_while_they_are_dumped_fail(server: Postgres) -> None:
    with pytest.raises(errors.CaptureFailed, match="roles"):
        backup(server, anchored=lambda: server.sql("CREATE ROLE newcomer"))


def test_a_dump_that_is_ended_half_way_gives_nothing(server: Postgres) -> None:
    server.sql("CREATE TABLE t AS SELECT repeat('x', 1000) FROM generate_series(1, 60000)")
    sink = MemorySink()

    def end() -> None:
        seen = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query ~ '^COPY'"
        eventually(lambda: server.sql(seen))

    with source(server, main="postgres") as captured:
        captured.prepare(sink)
        captured.anchor()
        killer = threading.Thread(target=end)
        killer.start()
        with pytest.raises(errors.CaptureFailed, match="did not end well"):
            captured.capture(sink)
        killer.join()
    assert "database.sql" not in sink.streams


def test_a_session_that_was_ended_fails_the_capture(server: Postgres) -> None:
    with pytest.raises((errors.CaptureFailed, errors.CommandFailed, errors.ServiceDown)):
        backup(server, anchored=lambda: postgres_session.end_leftovers(server, "db", ""))


# ------------------------------------------------------------------------------------------------------ sessions
def our_sessions(server: Postgres) -> int:
    return int(server.sql("SELECT count(*) FROM pg_stat_activity WHERE application_name ~ '^cosmos-'"))


def test_sessions_end_with_the_source_and_leftovers_are_ended_by_name(server: Postgres) -> None:
    with source(server) as captured:
        captured.prepare(MemorySink())
        assert our_sessions(server) == 1
    assert eventually(lambda: our_sessions(server) == 0)
    leftover = postgres_session.Session(server, "db", "postgres", "run1")
    other = postgres_session.Session(server, "db", "postgres", "run2")
    with leftover, other:
        leftover.settle()
        other.settle()
        assert postgres_session.end_leftovers(server, "db", "run1") == 1
        with pytest.raises(errors.ServiceDown, match="terminating connection"):
            leftover.ask("SELECT 1;")
        assert other.ask("SELECT 1;") == ["1"]


def test_clients_are_all_others(shared: Postgres) -> None:
    client = shared.session("shop")
    try:
        with source(shared) as captured:
            captured.prepare(MemorySink())
            assert captured.clients() == (("", "test-client"),)
    finally:
        client.kill()


def test_a_wrong_password_and_a_dead_server(version: int) -> None:
    with postgres_server(version) as server:
        given = dict(server.environment)
        server.environment |= {"PGPASSWORD": "wrong"}
        with source(server) as captured, pytest.raises(errors.AccessDenied) as denied:
            captured.prepare(MemorySink())
        assert PASSWORD not in denied.value.message
        server.environment = given | {"PGHOST": "/nowhere"}
        with source(server) as captured, pytest.raises(errors.ServiceDown):
            captured.prepare(MemorySink())
        server.environment = given | {"POSTGRES_PASSWORD_FILE": "/nowhere", "PGPASSWORD": PASSWORD, "PGUSER": USER}
        with postgres_session.Session(server, "db", postgres_session.CONTROL, "look") as session:
            assert session.value("SELECT current_database();") == postgres_session.CONTROL


def test_what_is_not_supported_is_said_first(server: Postgres) -> None:
    folder = server.folder / "space"
    folder.mkdir()
    if ACCOUNT:
        shutil.chown(folder, ACCOUNT)
    server.sql(f"CREATE TABLESPACE space LOCATION '{folder}'")
    with source(server) as captured, pytest.raises(errors.Unsupported, match="tablespaces: space"):
        captured.prepare(MemorySink())


def test_passwords_that_may_not_be_read_are_named(server: Postgres) -> None:
    server.sql(f"CREATE ROLE low LOGIN PASSWORD {postgres_session.literal(PASSWORD)}; CREATE ROLE other PASSWORD 'x'")
    server.sql("CREATE TABLE t (a int); ALTER TABLE t OWNER TO low")
    server.environment["PGUSER"] = "low"
    with source(server) as captured:
        captured.prepare(sink := MemorySink())
        captured.anchor()
        captured.capture(sink)
        assert [gap.what for gap in captured.gaps] == ["passwords of the roles of db"]
    assert b"CREATE ROLE other" in sink.streams["globals.sql"]
    assert b"SCRAM" not in sink.streams["globals.sql"]


def test_a_database_that_takes_no_connections_is_named(server: Postgres) -> None:
    server.sql("CREATE DATABASE closed ALLOW_CONNECTIONS false")
    with source(server) as captured:
        captured.prepare(MemorySink())
        assert [gap.what for gap in captured.gaps] == ["database db/closed"]


# ------------------------------------------------------------------------------------------------------ the way back
STEPS = ("nothing", "stage", "swap", "verify")


@pytest.mark.parametrize("last", STEPS)
def test_undo_after_each_step_gives_the_old_databases_back(server: Postgres, last: str) -> None:
    fill(server)
    part, reader = backup(server)
    server.sql("DELETE FROM shop.item; CREATE TABLE shop.newer ()", "shop")
    server.sql("DROP DATABASE empty; CREATE DATABASE another")
    server.sql("DROP ROLE " + postgres_session.identifier('Odd; Role "ü"'))
    before = everything(server)
    oids = "SELECT oid, datname FROM pg_database ORDER BY 1"
    identities = server.sql(oids)
    run = uuid4().hex[:12]
    for step in STEPS[1 : STEPS.index(last) + 1]:
        back = PostgresRestorer(part, server, "db", run)
        back.stage(reader) if step == "stage" else getattr(back, step)()
        assert step == "stage" or everything(server) != before
    for _ in range(2):
        PostgresRestorer(part, server, "db", run).undo()
        assert everything(server) == before
        assert server.sql(oids) == identities
    restore(part, reader, server)


@pytest.mark.parametrize("statement", range(1, 4))
def test_undo_after_a_crash_within_the_swap(server: Postgres, statement: int) -> None:
    """The swap dies after closing the databases, after ending the sessions, after the renames were committed."""
    server.sql("CREATE TABLE t AS SELECT 1 AS n; CREATE DATABASE b")
    part, reader = backup(server)
    server.sql("UPDATE t SET n = 2")
    before = everything(server)
    run = uuid4().hex[:12]
    PostgresRestorer(part, server, "db", run).stage(reader)
    dying = PostgresRestorer(part, server, "db", run)
    calls = iter(range(1, 4))

    class Died(Exception):
        pass

    def dies(name: str) -> None:
        step = getattr(dying, name)

        def until(*given: object, **named: object) -> None:
            if next(calls) == statement and name == "_rename":
                raise Died
            step(*given, **named)
            if statement == 1 or name == "_rename":
                raise Died

        setattr(dying, name, until)

    dies("_empty")
    dies("_rename")
    with pytest.raises(Died):
        dying.swap()
    PostgresRestorer(part, server, "db", run).undo()
    assert everything(server) == before
    server.sql("SELECT 1", "b")


def test_what_is_not_equal_is_named_and_nothing_live_changes(server: Postgres) -> None:
    server.sql("CREATE TABLE t AS SELECT generate_series(1, 10) n; CREATE SEQUENCE s; SELECT nextval('s')")
    part, reader = backup(server)
    before = everything(server)
    dump = reader.streams["databases/db/postgres.sql"]
    for broken, message in (
        (dump.replace(b"\n7\n", b"\n", 1), "9 rows in public.t instead of 10"),
        (dump.replace(b"'public.s', 1, true", b"'public.s', 5, true"), "5 as the last value of public.s"),
    ):
        assert broken != dump
        back = restorer(part, server)
        with pytest.raises(errors.NotEqual, match=message):
            back.stage(MemoryReader({**reader.streams, "databases/db/postgres.sql": broken}))
        back.undo()
    back = restorer(part, server)
    with pytest.raises(errors.RestoreFailed, match=r"cannot be restored.*nonsense"):
        back.stage(MemoryReader({**reader.streams, "databases/db/postgres.sql": b"SELECT nonsense;" + dump}))
    back.undo()
    assert everything(server) == before


def test_verify_sees_a_row_that_was_tampered_with_away(server: Postgres) -> None:
    server.sql("CREATE TABLE t AS SELECT generate_series(1, 10) n")
    part, reader = backup(server)
    back = restorer(part, server)
    back.stage(reader)
    back.swap()
    server.sql("DELETE FROM t WHERE n = 3")
    with pytest.raises(errors.NotEqual, match=r"9 rows in public\.t instead of 10"):
        back.verify()
    back.undo()


def test_known_roles_stay_as_they_are(server: Postgres) -> None:
    server.sql("CREATE ROLE app PASSWORD 'old'; CREATE ROLE lost; GRANT app TO lost")
    part, reader = backup(server)
    server.sql("DROP ROLE lost; ALTER ROLE app PASSWORD 'new' CREATEDB")
    before = server.sql("SELECT rolpassword, rolcreatedb FROM pg_authid WHERE rolname = 'app'")
    restore(part, reader, server)
    assert server.sql("SELECT rolpassword, rolcreatedb FROM pg_authid WHERE rolname = 'app'") == before
    assert server.sql("SELECT pg_has_role('lost', 'app', 'member')") == "t\n"


def test_a_prepared_transaction_refuses_the_restore(server: Postgres) -> None:
    server.sql("CREATE TABLE t (a int)")
    part, reader = backup(server)
    server.sql("BEGIN; INSERT INTO t VALUES (1); PREPARE TRANSACTION 'x';")
    with pytest.raises(errors.Unsupported, match="prepared transaction x"):
        restorer(part, server).stage(reader)
    server.sql("ROLLBACK PREPARED 'x'")
    back = restorer(part, server)
    back.stage(reader)
    server.sql("BEGIN; INSERT INTO t VALUES (1); PREPARE TRANSACTION 'y';")
    with pytest.raises(errors.Unsupported, match="prepared transaction y"):
        back.swap()
    server.sql("ROLLBACK PREPARED 'y'")
    back.undo()


def test_a_locale_that_the_server_lacks_is_replaced_and_said(server: Postgres) -> None:
    part, reader = backup(server)
    text = part.details["database:postgres"].replace('"collate":"C"', '"collate":"xx_XX.utf8"')
    assert text != part.details["database:postgres"]
    back = restore(replace(part, details={**part.details, "database:postgres": text}), reader, server)
    assert "xx_XX.utf8" in back.notes[0]


@pytest.mark.parametrize("encoding", ["SQL_ASCII", "LATIN1"])
def test_other_encodings(server: Postgres, encoding: str) -> None:
    server.sql(f"CREATE DATABASE other ENCODING {encoding} TEMPLATE template0")
    server.sql("CREATE TABLE t AS SELECT chr(233) AS c; CREATE SEQUENCE s; SELECT nextval('s')", "other")
    before = contents(server, "other")
    part, reader = backup(server)
    server.sql("DROP DATABASE other")
    restore(part, reader, server)
    assert contents(server, "other") == before


def test_a_manifest_that_lies_is_refused_before_anything(server: Postgres) -> None:
    part, reader = backup(server)
    for details in ({}, {"database:postgres": "{}"}, {"database:postgres": "no"}):
        with pytest.raises(errors.Damaged):
            restorer(replace(part, details=details), server).stage(reader)
    with pytest.raises(errors.Damaged, match="foreign statement"):
        restorer(part, server).stage(MemoryReader({**reader.streams, "globals.sql": b"DROP DATABASE postgres;\n"}))
    with pytest.raises(errors.Damaged, match="cut short"):
        restorer(part, server).stage(MemoryReader({**reader.streams, "globals.sql": b"CREATE ROLE x;\nALTER"}))
    assert server.sql("SELECT count(*) FROM pg_database WHERE datname ~ '^cosmos_'") == "0\n"
