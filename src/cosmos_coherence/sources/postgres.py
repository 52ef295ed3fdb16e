"""A PostgreSQL server as a source: every database from a snapshot exported at the instant, and the roles."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, BinaryIO, Final

import msgspec
from msgspec.structs import replace

from cosmos_coherence import errors
from cosmos_coherence.drivers.runtime import Runtime
from cosmos_coherence.model import DatabasePrint, Fingerprint, Gap, Part, PartFile, SourceRef
from cosmos_coherence.parts import Sink
from cosmos_coherence.sources import postgres_database, postgres_print
from cosmos_coherence.sources import postgres_session as sessions
from cosmos_coherence.sources.postgres_print import SequenceState
from cosmos_coherence.sources.postgres_session import Session, literal

_OLDEST: Final = 13
_CHUNK: Final = 1 << 20
_TAIL: Final = 1024
_LONGEST_GLOBALS: Final = 64 << 20
_LOCK_ROUNDS: Final = 3
_LOCK_TIMEOUT_MS: Final = 2_000
_DUMP_LOCK_TIMEOUT_MS: Final = 10_000
"""A statement of the application that waits behind our locks makes ``pg_dump`` wait behind itself: give up then."""
_CHANGED: Final = frozenset({"55P03", "42P01", "3F000", "40P01"})
"""A lock was not to be had in time, or something was dropped between reading the catalogue and locking it."""

_SERVER: Final = """
SELECT json_build_object(
    'number', current_setting('server_version_num')::int, 'user', current_user,
    'bootstrap', pg_get_userbyid(10),
    'passwords', has_table_privilege('pg_authid', 'SELECT'),
    'subscriptions', (SELECT coalesce(json_agg(subname ORDER BY subname), '[]') FROM pg_subscription
                      WHERE current_setting('is_superuser') <> 'on'),
    'open', (SELECT json_agg(datname ORDER BY datname) FROM pg_database WHERE datallowconn AND NOT datistemplate),
    'closed', (SELECT coalesce(json_agg(datname), '[]') FROM pg_database WHERE NOT datallowconn AND NOT datistemplate),
    'tablespaces', (SELECT coalesce(json_agg(spcname), '[]') FROM pg_tablespace
                    WHERE spcname NOT IN ('pg_default', 'pg_global')));
"""

_CLIENTS: Final = """
SELECT coalesce(json_agg(DISTINCT jsonb_build_array(coalesce(host(client_addr), ''), application_name)), '[]')
FROM pg_stat_activity WHERE backend_type = 'client backend' AND application_name <> {own};
"""

_LOCKED: Final = "FROM pg_class c WHERE c.relkind IN ('r', 'p') AND c.relpersistence <> 't' AND c.oid >= 16384"
_TABLES: Final = f"SELECT coalesce(json_agg(c.oid::regclass::text ORDER BY c.oid), '[]') {_LOCKED};"

_ANCHOR: Final = f"""
SELECT json_build_object(
    'snapshot', pg_export_snapshot(),
    'lsn', CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_lsn() END,
    'digest', (SELECT md5(string_agg(c.oid::text, ',' ORDER BY c.oid)) {_LOCKED}),
    'sequences', {postgres_print.SEQUENCES},
    'roles', (SELECT json_agg(rolname) FROM pg_roles WHERE rolname !~ '^pg_'));
"""


class _Held(msgspec.Struct, frozen=True):
    """A database whose tables are locked, and later its state at the instant."""

    session: Session
    digest: str | None
    """Of the tables that are locked."""
    uncalled: Mapping[str, SequenceState]
    """Sequences that had given out nothing yet, before the hold."""
    snapshot: str = ""
    sequences: Mapping[str, SequenceState] = msgspec.field(default_factory=dict)


class PostgresSource:
    """Captures every database of a server (13 or later), and its roles.

    The dumps are ``databases/<service>/<name>.sql`` and ``.../globals.sql``. ``primary``: those of the first server
    have plain names, ``globals.sql`` and, for the database that the service was made for, ``database.sql``.
    """

    def __init__(self, ref: SourceRef, runtime: Runtime, run: str, *, primary: bool = False) -> None:
        self._ref, self._runtime, self._run, self._primary = ref, runtime, run, primary
        self._main = ""
        self._server: dict[str, Any] = {}
        self._held: dict[str, _Held] = {}
        self._clients: tuple[tuple[str, str], ...] = ()
        self._roles: set[str] = set()
        self._anchored_at = self._lsn = ""

    @property
    def ref(self) -> SourceRef:
        """What it captures."""
        return self._ref

    @property
    def gaps(self) -> tuple[Gap, ...]:
        """Databases, subscriptions and passwords of roles that cannot be captured; known after ``prepare``."""
        service = self._ref.service
        found = [Gap(f"database {service}/{d}", "it accepts no connections") for d in self._server.get("closed", ())]
        hidden = self._server.get("subscriptions", ())
        found += [Gap(f"subscription {s} of {service}", "only a superuser may dump it") for s in hidden]
        if not self._server.get("passwords", True):
            found.append(Gap(f"passwords of the roles of {service}", "its user may not read them"))
        return tuple(found)

    def prepare(self, sink: Sink) -> None:
        """Open a session to every database and lock its tables against ``TRUNCATE`` and ``DROP``; no snapshot is taken.

        Raises ``Unsupported`` for a server too old or with tablespaces, ``CutFailed`` when the locks are not to be had
        within some seconds, and what a session raises.
        """
        self.close()
        if self._primary:
            self._main = sessions.default_database(self._runtime, self._ref.service)
        with self._session(sessions.CONTROL) as control:
            self._server = control.json(_SERVER)
            self._require_supported()
            self._lock(self._server["open"])
            found = control.json(_CLIENTS.format(own=literal(sessions.application(self._run))))
            self._clients = tuple((address, name) for address, name in found)

    def anchor(self) -> None:
        """Export a snapshot from every session, and read what obeys none: one round trip to all of them at once.

        Raises ``CutFailed`` when tables or sequences came or went since ``prepare``.
        """
        self._anchored_at = datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
        for held in self._held.values():
            held.session.send(_ANCHOR)
        for name, held in self._held.items():
            self._held[name] = self._anchored(name, held, held.session.received())

    def capture(self, sink: Sink) -> Part:
        """Dump the roles and every database as of the instant, and count what they hold.

        Raises ``CaptureFailed`` for a dump that did not end well and for roles that changed meanwhile; a database's
        locks are let go as soon as it is done.
        """
        details = self._details()
        prints: dict[str, DatabasePrint] = {}
        files = [self._dump_roles(sink, details["globals"])]
        for name, held in self._held.items():
            stream = self._stream(name)
            files.append(self._dump(sink, stream, name, held))
            record = postgres_database.describe(held.session)
            details[f"database:{name}"] = postgres_database.encode(replace(record, stream=stream))
            called = {name: state.value for name, state in sorted(held.sequences.items()) if state.called}
            prints[name] = DatabasePrint(postgres_print.rows(held.session), called)
            held.session.close()
        return Part(
            name=self._ref.part,
            kind="postgres",
            files=tuple(files),
            service=self._ref.service,
            volume=self._ref.volume,
            anchored_at=self._anchored_at,
            version="{}.{}".format(*divmod(self._server["number"], 10_000)),
            details=details,
            fingerprint=Fingerprint(databases=prints, roles=tuple(sorted(self._roles))),
        )

    def clients(self) -> tuple[tuple[str, str], ...]:
        """(address, application name) of every other client, as ``prepare`` found them; no address for a local one."""
        return self._clients

    def close(self) -> None:
        """End all sessions; their locks and snapshots go with them."""
        for held in self._held.values():
            held.session.close()
        self._held = {}

    # ------------------------------------------------------------------------------------------------ prepare
    def _session(self, database: str) -> Session:
        return Session(self._runtime, self._ref.service, database, self._run)

    def _require_supported(self) -> None:
        service = self._ref.service
        if self._server["number"] < _OLDEST * 10_000:
            raise errors.Unsupported(
                f"service {service} runs PostgreSQL {self._server['number'] // 10_000}, and {_OLDEST} is the oldest"
                " that can be captured"
            )
        if self._server["tablespaces"]:
            raise errors.Unsupported(
                f"the PostgreSQL server of {service} has tablespaces: {', '.join(self._server['tablespaces'])}",
                remedy="Move what they hold to pg_default and drop them; a backup cannot bring them back yet.",
            )
        if not self._primary and "globals" in self._server["open"]:
            raise errors.Unsupported(f"the database `globals` of {service} has the name that its roles are kept under")

    def _lock(self, databases: Iterable[str]) -> None:
        """The sessions start beside each other; one that could not lock everything is opened again."""
        waiting, reason = list(databases), ""
        for _ in range(_LOCK_ROUNDS):
            opened = {name: self._session(name) for name in waiting}
            waiting = []
            try:
                for name, session in opened.items():
                    try:
                        self._held[name] = _locked(session)
                    except errors.CommandFailed as error:
                        if sessions.sql_state(error.stderr) not in _CHANGED:
                            raise
                        waiting.append(name)
                        reason = error.message
            finally:
                for name, session in opened.items():
                    if name not in self._held:
                        session.close()
            if not waiting:
                return
        self.close()
        raise errors.CutFailed(f"the tables of database {waiting[0]} could not be locked: {reason}")

    # ------------------------------------------------------------------------------------------------- anchor
    def _anchored(self, name: str, held: _Held, found: Mapping[str, Any]) -> _Held:
        last: Mapping[str, int | None] = found["sequences"]
        fresh = {sequence for sequence, value in last.items() if value is None}
        if found["digest"] != held.digest or not fresh <= held.uncalled.keys():
            raise errors.CutFailed(f"tables or sequences of database {name} were made or dropped just now")
        self._roles, self._lsn = set(found["roles"]), found["lsn"]
        states = {s: held.uncalled[s] if value is None else SequenceState(value, True) for s, value in last.items()}
        return replace(held, snapshot=found["snapshot"], sequences=states)

    # ------------------------------------------------------------------------------------------------ capture
    def _stream(self, name: str) -> str:
        return "database.sql" if name == self._main else f"databases/{self._ref.service}/{name}.sql"

    def _details(self) -> dict[str, str]:
        details = {
            "user": self._server["user"],
            "bootstrap": self._server["bootstrap"],
            "lsn": self._lsn,
            "globals": "globals.sql" if self._primary else f"databases/{self._ref.service}/globals.sql",
        }
        if self._main in self._held:
            details["database"] = self._main
        return details

    def _dump_roles(self, sink: Sink, stream: str) -> PartFile:
        from cosmos_coherence.sources import postgres_roles  # its patterns take as long to load as all the rest

        argv = ["pg_dumpall", "-w", "--globals-only", "-l", sessions.CONTROL]
        if not self._server["passwords"]:
            argv.append("--no-role-passwords")
        for _ in range(2):
            with self._output("the roles", argv) as output:
                dump = output.read(_LONGEST_GLOBALS)
            if b"-- PostgreSQL database cluster dump complete" not in dump[-_TAIL:]:
                raise errors.CaptureFailed("the dump of the roles ends early")
            if postgres_roles.created(dump.decode("utf-8", "replace")) == self._roles:
                with sink.stream(stream) as out:
                    out.write(dump)
                return out.file()
        raise errors.CaptureFailed(
            f"roles of {self._ref.service} were made or dropped while it was captured",
            remedy="Run the backup again.",
        )

    def _dump(self, sink: Sink, stream: str, name: str, held: _Held) -> PartFile:
        argv = ["pg_dump", "-w", f"--snapshot={held.snapshot}", f"--lock-wait-timeout={_DUMP_LOCK_TIMEOUT_MS}"]
        tail = b""
        with sink.stream(stream) as out:
            with self._output(f"database {name}", [*argv, "-d", sessions.conninfo(name)]) as output:
                while piece := output.read(_CHUNK):
                    tail = (tail + piece)[-_TAIL:]
                    out.write(piece)
            if b"-- PostgreSQL database dump complete" not in tail:
                raise errors.CaptureFailed(f"the dump of database {name} ends early")
            out.write(_setting(held.sequences))
        return out.file()

    @contextmanager
    def _output(self, what: str, argv: Sequence[str]) -> Iterator[BinaryIO]:
        command = sessions.tool(*argv)
        child = self._runtime.run(self._ref.service, command, environment=sessions.labels(self._run))
        try:
            with child:
                yield child.stdout
        except errors.CommandFailed as error:
            reason = sessions.failure(self._ref.service, error, child.stderr_tail)
            if not isinstance(reason, errors.CommandFailed):
                raise reason from error
            raise errors.CaptureFailed(f"the dump of {what} did not end well: {reason.message}") from error


def _locked(session: Session) -> _Held:
    """Nothing here takes a snapshot that would last: the catalogue is read before the transaction begins, with the very
    statement of the anchor, which is fast then."""
    found = session.json(_ANCHOR)
    tables = ", ".join(session.json(_TABLES))
    states = postgres_print.states(session, [name for name, value in found["sequences"].items() if value is None])
    session.ask(
        "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY;\n"
        f"SET LOCAL lock_timeout = {_LOCK_TIMEOUT_MS};\n"
        + (f"LOCK TABLE {tables} IN ACCESS SHARE MODE;" if tables else "")
    )
    return _Held(session, found["digest"], {name: state for name, state in states.items() if not state.called})


def _setting(sequences: Mapping[str, SequenceState]) -> bytes:
    lines = [
        "",
        "-- Sequences obey no snapshot: what they were at the instant.",
        "SET client_encoding = 'UTF8';",
    ]
    lines += [
        f"SELECT pg_catalog.setval({literal(name)}, {state.value}, {'true' if state.called else 'false'});"
        for name, state in sorted(sequences.items())
    ]
    return "\n".join([*lines, ""]).encode()
