"""PostgreSQL servers filled, backed up, restored and compared, for the tests of their source."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from uuid import uuid4

from cosmos_coherence.model import Part, SourceRef
from cosmos_coherence.sources import postgres_session
from cosmos_coherence.sources.postgres import PostgresSource
from cosmos_coherence.sources.postgres_restore import PostgresRestorer
from support.capturing import Step, capture, nothing
from support.local_servers import Postgres
from support.memory_parts import MemoryReader

REF = SourceRef("postgres", "postgres/db", service="db", volume="x_pg")
ODD = "odd 'name' \\ \"ü\" = 1"

GLOBALS = '''
CREATE ROLE app LOGIN PASSWORD 'app''s \\ secret' CONNECTION LIMIT 7;
CREATE ROLE "Odd; Role ""ü""" NOLOGIN CREATEDB;
CREATE ROLE reader;
GRANT reader TO app WITH ADMIN OPTION;
GRANT "Odd; Role ""ü""" TO cosmos;
ALTER ROLE app SET work_mem = '5MB';
ALTER ROLE app SET search_path = 'shop', 'a "b", c';
COMMENT ON ROLE app IS 'it''s; -- not a comment';
'''

SHOP = """
CREATE SCHEMA shop;
CREATE SCHEMA "Odd. schema 'ü'";
CREATE TYPE shop.mood AS ENUM ('sad', 'ok');
CREATE TABLE shop.item (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, name text NOT NULL, price numeric(10, 2), mood shop.mood,
    total numeric GENERATED ALWAYS AS (price * 2) STORED, raw bytea, tags text[], data jsonb);
INSERT INTO shop.item (name, price, mood, raw, tags, data)
    SELECT 'item ' || n || E' \\\\ \\t \\n ü', n * 1.25, 'ok', decode(lpad(to_hex(n), 8, '0'), 'hex'), ARRAY['a', NULL],
    jsonb_build_object('n', n) FROM generate_series(1, 1001) n;
CREATE TABLE "Odd. schema 'ü'"."Ta ""b""\nle" (a serial, "select" text);
INSERT INTO "Odd. schema 'ü'"."Ta ""b""\nle" ("select") VALUES ('\\.'), (NULL), ('');
CREATE TABLE shop.empty (id serial);
CREATE TABLE shop.parent (a int); CREATE TABLE shop.child () INHERITS (shop.parent);
INSERT INTO shop.parent VALUES (1); INSERT INTO shop.child VALUES (2), (3);
CREATE TABLE shop.part (day date, n int) PARTITION BY RANGE (day);
CREATE TABLE shop.part_1 PARTITION OF shop.part FOR VALUES FROM ('2020-01-01') TO ('2021-01-01');
CREATE TABLE shop.part_2 PARTITION OF shop.part DEFAULT;
INSERT INTO shop.part SELECT date '2020-06-01' + 10 * n, n FROM generate_series(1, 50) n;
CREATE SEQUENCE shop.never START 77;
CREATE SEQUENCE shop.again; SELECT setval('shop.again', 41, false);
CREATE SEQUENCE shop.called INCREMENT 5; SELECT nextval('shop.called'), nextval('shop.called');
CREATE SEQUENCE shop."s'e\\q";  SELECT nextval('shop."s''e\\q"');
CREATE MATERIALIZED VIEW shop.summary AS SELECT mood, count(*) FROM shop.item GROUP BY mood;
CREATE VIEW shop.cheap AS SELECT * FROM shop.item WHERE price < 10;
CREATE FUNCTION shop.twice(n int) RETURNS int LANGUAGE plpgsql AS $$ BEGIN RETURN n * 2; END $$;
CREATE TABLE shop.secret (owner text); INSERT INTO shop.secret VALUES ('app'), ('cosmos');
ALTER TABLE shop.secret ENABLE ROW LEVEL SECURITY; ALTER TABLE shop.secret FORCE ROW LEVEL SECURITY;
CREATE POLICY own ON shop.secret USING (owner = current_user);
CREATE UNLOGGED TABLE shop.unlogged (a int); INSERT INTO shop.unlogged VALUES (1);
GRANT USAGE ON SCHEMA shop TO reader; GRANT SELECT ON ALL TABLES IN SCHEMA shop TO reader;
SELECT lo_from_bytea((4000000000 + n)::oid, 'large object ' || n::text::bytea) FROM generate_series(1, 3) n;
SELECT lo_from_bytea(4000000004, decode(string_agg(lpad(to_hex(n), 8, '0'), ''), 'hex'))
    FROM generate_series(1, 5000) n;
SELECT lo_put(lo_create(4000000005), 1000000, 'after a hole');
ALTER LARGE OBJECT 4000000004 OWNER TO app; GRANT SELECT ON LARGE OBJECT 4000000004 TO reader;
COMMENT ON LARGE OBJECT 4000000004 IS 'of several pages';
ALTER DEFAULT PRIVILEGES FOR ROLE app IN SCHEMA shop GRANT SELECT ON TABLES TO reader;
ALTER DEFAULT PRIVILEGES REVOKE EXECUTE ON FUNCTIONS FROM PUBLIC;
ALTER TABLE shop.item OWNER TO app;
"""

CONFIGURED = """
ALTER DATABASE shop SET work_mem = '6MB';
ALTER DATABASE shop SET search_path = "$user", shop, 'a, b';
ALTER ROLE app IN DATABASE shop SET statement_timeout = '12s';
ALTER DATABASE shop CONNECTION LIMIT 33;
REVOKE CONNECT ON DATABASE shop FROM PUBLIC;
GRANT CONNECT ON DATABASE shop TO app WITH GRANT OPTION;
COMMENT ON DATABASE shop IS 'it''s the shop';
"""


def fill(server: Postgres) -> None:
    """Three databases beside ``postgres``, one of them with an odd name, one empty."""
    server.sql(GLOBALS)
    for create in ("shop OWNER app", postgres_session.identifier(ODD), "empty"):
        server.sql(f"CREATE DATABASE {create};")
    server.sql(SHOP, "shop")
    server.sql(CONFIGURED)
    server.sql("CREATE TABLE t (a int); INSERT INTO t SELECT generate_series(1, 10);", ODD)


def rows(server: Postgres, database: str) -> str:
    """Every row of every table, view and large object of a database as text, and the state of its sequences."""
    return server.sql(
        """
        SET row_security = off;
        SELECT 'SELECT ' || quote_literal(c.oid::regclass::text) || ', t.* FROM ' || c.oid::regclass || ' t ORDER BY t;'
        FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace
        WHERE relkind IN ('r', 'p', 'm', 'v') AND nspname !~ '^(pg_|information_schema)' ORDER BY c.oid::regclass::text
        \\gexec
        SELECT 'SELECT ' || quote_literal(c.oid::regclass::text) || ', last_value, is_called FROM ' || c.oid::regclass
        FROM pg_class c WHERE relkind = 'S' ORDER BY c.oid::regclass::text
        \\gexec
        SELECT oid, lo_get(oid) FROM pg_largeobject_metadata ORDER BY oid;
        """,
        database,
    )


def contents(server: Postgres, database: str) -> str:
    """The rows of a database, and its definitions, owners, rights and settings."""
    return rows(server, database) + server.sql(
        """
        SELECT c.oid::regclass, relkind, relpersistence, relrowsecurity, relforcerowsecurity, pg_get_userbyid(relowner),
            relacl FROM pg_class c WHERE c.oid >= 16384 AND relkind NOT IN ('t', 'i') ORDER BY c.oid::regclass::text;
        SELECT polname, pg_get_expr(polqual, polrelid) FROM pg_policy;
        SELECT oid, pg_get_userbyid(lomowner), lomacl, obj_description(oid, 'pg_largeobject')
            FROM pg_largeobject_metadata ORDER BY oid;
        SELECT pg_get_userbyid(defaclrole), coalesce(nspname, ''), defaclobjtype, defaclacl
            FROM pg_default_acl LEFT JOIN pg_namespace n ON n.oid = defaclnamespace ORDER BY 1, 2, 3;
        SELECT pg_get_constraintdef(oid) FROM pg_constraint WHERE oid >= 16384 ORDER BY 1;
        SELECT pg_get_functiondef(oid) FROM pg_proc WHERE oid >= 16384 ORDER BY 1;
        SELECT datname, pg_get_userbyid(datdba), datacl, datconnlimit, pg_encoding_to_char(encoding), datcollate,
            datallowconn, shobj_description(oid, 'pg_database') FROM pg_database WHERE datname = current_database();
        SELECT coalesce(pg_get_userbyid(nullif(setrole, 0)), ''), setconfig FROM pg_db_role_setting s
            JOIN pg_database d ON d.oid = setdatabase WHERE datname = current_database() ORDER BY 1;
        """,
        database,
    )


def roles(server: Postgres) -> str:
    return server.sql(
        """
        SELECT rolname, rolsuper, rolcanlogin, rolcreatedb, CASE WHEN a.oid <> 10 THEN rolpassword END, rolconnlimit,
            setconfig, shobj_description(a.oid, 'pg_authid')
        FROM pg_authid a LEFT JOIN pg_db_role_setting s ON setrole = a.oid AND setdatabase = 0
        WHERE rolname !~ '^pg_' ORDER BY 1;
        SELECT roleid::regrole, member::regrole, admin_option, to_jsonb(m) -> 'inherit_option',
            to_jsonb(m) -> 'set_option' FROM pg_auth_members m
        WHERE member::regrole::text !~ '^pg_' ORDER BY roleid::regrole::text, member::regrole::text;
        """
    )


def everything(server: Postgres) -> dict[str, str]:
    names = server.sql(
        "SELECT datname FROM pg_database WHERE datallowconn AND datname !~ '^template' ORDER BY 1"
    ).splitlines()
    return {"roles": roles(server), **{name: contents(server, name) for name in names}}


@contextmanager
def source(server: Postgres, *, main: str = "shop", primary: bool = True) -> Iterator[PostgresSource]:
    server.environment["POSTGRES_DB"] = main
    opened = PostgresSource(REF, server, uuid4().hex[:12], primary=primary)
    try:
        yield opened
    finally:
        opened.close()


def backup(server: Postgres, *, prepared: Step = nothing, anchored: Step = nothing) -> tuple[Part, MemoryReader]:
    """A whole capture, with what happens in between."""
    with source(server) as captured:
        part, sink = capture(captured, prepared=prepared, anchored=anchored)
    assert sorted(file.path for file in part.files) == sorted(sink.streams)
    return part, sink.reader()


def restorer(part: Part, server: Postgres) -> PostgresRestorer:
    return PostgresRestorer(part, server, "db", uuid4().hex[:12])


def restore(part: Part, reader: MemoryReader, server: Postgres) -> PostgresRestorer:
    back = restorer(part, server)
    back.stage(reader)
    back.swap()
    back.verify()
    back.finish()
    return back
