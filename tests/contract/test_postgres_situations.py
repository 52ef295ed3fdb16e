"""PostgreSQL servers with what not every one has: extensions, locales, memberships, large objects, lesser users."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from cosmos_coherence import errors
from cosmos_coherence.sources.postgres_session import literal
from support.local_servers import PASSWORD, POSTGRES, USER, Postgres, postgres_server
from support.memory_parts import MemoryReader, MemorySink
from support.postgres_cases import backup, everything, fill, restore, restorer, roles, source

pytestmark = pytest.mark.postgres

EXTENSIONS = {
    "hstore": "CREATE TABLE h AS SELECT n, hstore('k', n::text) AS pairs FROM generate_series(1, 9) n;"
    " CREATE INDEX ON h USING gin (pairs)",
    "pg_trgm": "CREATE TABLE g AS SELECT 'word ' || n AS word FROM generate_series(1, 9) n;"
    " CREATE INDEX ON g USING gin (word gin_trgm_ops)",
    "pgcrypto": "CREATE TABLE c AS SELECT crypt('x', gen_salt('bf', 4)) AS hash, digest('x', 'sha256') AS sum;"
    " ALTER TABLE c ADD CHECK (sum = digest('x', 'sha256'))",
    "citext": "CREATE TABLE i (name citext UNIQUE); INSERT INTO i VALUES ('Ü'), ('a')",
    "vector": "CREATE TABLE v AS SELECT n, ('[' || n || ',1]')::vector(2) AS place FROM generate_series(1, 9) n;"
    " CREATE INDEX ON v USING hnsw (place vector_l2_ops)",
}
"""Data that use an extension: its types, operators and functions. Debian's servers have the first four, the wheel's 18
the last."""

RIGHTS = """
CREATE ROLE backup LOGIN PASSWORD {password} BYPASSRLS;
GRANT pg_read_all_data, pg_read_all_stats TO backup;
ALTER ROLE backup SET lo_compat_privileges = on;
"""
"""As docs/protect-your-stack.md lists them, for version 14 and later."""


@pytest.fixture(params=POSTGRES)
def version(request: pytest.FixtureRequest) -> int:
    return int(request.param)


@pytest.fixture
def server(version: int) -> Iterator[Postgres]:
    with postgres_server(version) as started:
        yield started


def extended(server: Postgres) -> str:
    """Extensions with their versions and schemas, indexes, constraints, and all rows."""
    tables = server.sql("SELECT tablename FROM pg_tables WHERE schemaname = 'public' ORDER BY 1", "shop").split()
    return server.sql(
        "SET search_path = public, added; SELECT extname, extversion, extnamespace::regnamespace FROM pg_extension"
        " ORDER BY 1; SELECT indexdef FROM pg_indexes WHERE schemaname = 'public' ORDER BY 1;"
        " SELECT conname, pg_get_constraintdef(oid) FROM pg_constraint WHERE conrelid > 0 ORDER BY 1;"
        + "".join(f"SELECT '{table}', t.*::text FROM {table} t ORDER BY t::text;" for table in tables),
        "shop",
    )


# ------------------------------------------------------------------------------------------------------ extensions
def test_extensions_come_back_with_their_data(server: Postgres) -> None:
    found = server.sql("SELECT name FROM pg_available_extensions").split()
    names = [name for name in EXTENSIONS if name in found]
    if not names:
        pytest.skip("a server without extensions")  # one named by hand
    server.sql("CREATE DATABASE shop")
    server.sql("CREATE SCHEMA added", "shop")
    for name in names:
        server.sql(f"CREATE EXTENSION {name} SCHEMA added; SET search_path = public, added; {EXTENSIONS[name]}", "shop")
    before = extended(server)
    part, reader = backup(server)
    server.sql("DROP DATABASE shop")
    restore(part, reader, server)
    assert extended(server) == before
    assert all(f"{name}|" in before for name in names)

    gone = reader.streams["database.sql"].replace(f"EXISTS {names[0]} ".encode(), b"EXISTS unheard_of ")
    back = restorer(part, server)
    with pytest.raises(errors.RestoreFailed, match=r"database shop cannot be restored.*unheard_of"):
        back.stage(MemoryReader({**reader.streams, "database.sql": gone}))
    back.undo()
    assert extended(server) == before


# ------------------------------------------------------------------------------------------------------ large objects
def test_a_lost_large_object_is_seen(server: Postgres) -> None:
    server.sql("SELECT lo_from_bytea(4000000001, 'one'), lo_from_bytea(4000000002, 'two')")
    part, reader = backup(server)
    restore(part, reader, server)
    assert server.sql("SELECT lo_get(4000000001), lo_get(4000000002)") == "\\x6f6e65|\\x74776f\n"
    back = restorer(part, server)
    back.stage(reader)
    back.swap()
    server.sql("SELECT lo_unlink(4000000002)")
    with pytest.raises(errors.NotEqual, match=r"1 rows in pg_catalog\.pg_largeobject_metadata instead of 2"):
        back.verify()
    back.undo()
    assert server.sql("SELECT lo_get(4000000002)") == "\\x74776f\n"


# ------------------------------------------------------------------------------------------------------ locales
def test_locales_of_other_providers(version: int, server: Postgres) -> None:
    icu = server.sql("SELECT count(*) > 100 FROM pg_collation WHERE collprovider = 'i'") == "t\n"
    words = "CREATE TABLE w AS SELECT unnest(ARRAY['z', 'ä', 'Ä', 'a', 'B']) AS word"
    providers = {}
    if icu and version >= 15:
        providers["icu"] = "LOCALE_PROVIDER icu ICU_LOCALE 'de'"
    if icu and version >= 16:
        providers["rules"] = "LOCALE_PROVIDER icu ICU_LOCALE 'de' ICU_RULES '&a < z'"
    if version >= 17:
        providers["builtin"] = "LOCALE_PROVIDER builtin BUILTIN_LOCALE 'C.UTF-8'"
    for name, provider in providers.items():
        server.sql(f"CREATE DATABASE {name} TEMPLATE template0 {provider}")
        server.sql(words, name)
    server.sql(f"CREATE DATABASE shop; {words}")
    server.sql(words, "shop")
    if icu:
        server.sql(
            "CREATE COLLATION german (provider = icu, locale = 'de'); CREATE TABLE c (t text COLLATE german)", "shop"
        )

    def state() -> list[str]:
        described = "SELECT datname, encoding, datcollate, datctype, to_jsonb(d) ->> 'datlocprovider', coalesce("
        described += "to_jsonb(d) ->> 'datlocale', to_jsonb(d) ->> 'daticulocale'), to_jsonb(d) ->> 'daticurules'"
        found = [server.sql(f"{described} FROM pg_database d WHERE datname !~ '^template' ORDER BY 1")]
        found += [server.sql("SELECT collname, collprovider FROM pg_collation WHERE oid >= 16384", "shop")]
        return found + [server.sql("SELECT word FROM w ORDER BY word", name) for name in (*providers, "shop")]

    before = state()
    part, reader = backup(server)
    for name in (*providers, "shop"):
        server.sql(f"DROP DATABASE {name}")
    assert restore(part, reader, server).notes == ()
    assert state() == before
    if version >= 15:
        assert len(set(before[2:])) > 1 or not icu, "nothing depended on the locale"


# ------------------------------------------------------------------------------------------------------ roles
def test_memberships_keep_their_options(version: int) -> None:
    with postgres_server(version) as server, postgres_server(version) as other:
        server.sql("CREATE ROLE head; CREATE ROLE hand NOINHERIT; CREATE ROLE finger LOGIN VALID UNTIL '2999-01-01'")
        server.sql("GRANT head TO hand WITH ADMIN OPTION; GRANT hand TO finger; GRANT pg_monitor TO finger")
        if version >= 16:
            server.sql("GRANT head TO finger WITH INHERIT FALSE, SET FALSE")
        part, reader = backup(server)
        restore(part, reader, other)
        assert roles(other) == roles(server)
        monitor = "SELECT pg_has_role('finger', 'pg_monitor', 'member')"
        assert (server.sql(monitor), other.sql(monitor)) == ("t\n", "t\n")


# ------------------------------------------------------------------------------------------------------ rights
def test_a_user_with_the_rights_that_are_documented(version: int, server: Postgres) -> None:
    if version < 14:
        return  # has no role that may read everything
    fill(server)
    server.sql(RIGHTS.format(password=literal(PASSWORD)))
    server.sql("GRANT CONNECT ON DATABASE shop TO backup")
    client = server.session("shop")
    superuser = dict(server.environment)
    server.environment["PGUSER"] = "backup"
    try:
        with source(server) as captured:
            captured.prepare(sink := MemorySink())
            assert captured.clients() == (("", "test-client"),)
            captured.anchor()
            part = captured.capture(sink)
            assert captured.gaps == ()
    finally:
        client.kill()
    with postgres_server(version) as other:
        restore(part, sink.reader(), other)
        assert everything(other) == everything(server)
    lacking = {
        "REVOKE CONNECT ON DATABASE shop FROM backup": "permission denied for database",
        "ALTER ROLE backup NOBYPASSRLS": "row-level security",
        "ALTER ROLE backup RESET lo_compat_privileges": "permission denied for large object",
        "REVOKE pg_read_all_data FROM backup": "permission denied",
    }
    for statement, message in lacking.items():
        server.environment = superuser
        server.sql(RIGHTS.partition(";")[2] + "ALTER ROLE backup BYPASSRLS; GRANT CONNECT ON DATABASE shop TO backup;")
        server.sql(statement)
        server.environment = superuser | {"PGUSER": "backup"}
        with pytest.raises(errors.CosmosError, match=message) as refused:
            backup(server)
        expected = errors.AccessDenied if "CONNECT" in statement else (errors.CaptureFailed, errors.CommandFailed)
        assert isinstance(refused.value, expected)


def test_a_subscription_that_only_a_superuser_may_dump_is_named(version: int) -> None:
    with postgres_server(version, wal_level="logical") as server:
        server.sql(f"CREATE ROLE low LOGIN PASSWORD {literal(PASSWORD)}")
        server.sql("CREATE SUBSCRIPTION s CONNECTION 'dbname=x' PUBLICATION p WITH (connect = false)")
        for user, gaps in ((USER, []), ("low", ["subscription s of db", "passwords of the roles of db"])):
            server.environment["PGUSER"] = user
            with source(server) as captured:
                captured.prepare(MemorySink())
                assert [gap.what for gap in captured.gaps] == gaps
