"""The way back of a PostgreSQL server: new databases beside the live ones, then both are renamed in one transaction."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from typing import Final

import msgspec

from cosmos_coherence import errors
from cosmos_coherence.drivers.runtime import Runtime
from cosmos_coherence.model import Part
from cosmos_coherence.parts import PartReader
from cosmos_coherence.sources import postgres_database, postgres_print
from cosmos_coherence.sources import postgres_session as sessions
from cosmos_coherence.sources.postgres_database import MARK, DatabaseRecord
from cosmos_coherence.sources.postgres_session import Session, identifier, literal, text_array

_CHUNK: Final = 1 << 20
_LONGEST_GLOBALS: Final = 64 << 20
_LEAVE_S: Final = 30.0
"""How long the clients that are told to leave a database may take."""
_NO_SUCH_LOCALE: Final = frozenset({"22023", "42809", "0A000"})

_OBSTACLES: Final = """
SELECT coalesce(json_agg(what), '[]') FROM (
    SELECT format('database %s has the prepared transaction %s', database, gid) FROM pg_prepared_xacts
    WHERE database = ANY ({names})
    UNION ALL SELECT format('database %s has the replication slot %s', database, slot_name) FROM pg_replication_slots
    WHERE database = ANY ({names})
    UNION ALL SELECT format('database %s has the subscription %s', d.datname, s.subname)
    FROM pg_subscription s JOIN pg_database d ON d.oid = s.subdbid WHERE d.datname = ANY ({names})) found(what);
"""


class _Name(msgspec.Struct, frozen=True):
    """A database under the three names that it may have meanwhile."""

    live: str
    new: str
    old: str


class PostgresRestorer:
    """Brings the databases of a part back into the server of a service; others that it has stay as they are.

    Missing roles are made, known ones are left alone. What a run stages is marked with a setting that follows it
    through the renames, so that names and marks tell a later restorer of the same run what to do.
    """

    stops = False

    def __init__(self, part: Part, runtime: Runtime, service: str, run: str) -> None:
        self._part, self._runtime, self._service, self._run = part, runtime, service, run
        databases = sorted(part.fingerprint.databases)
        self._names = [
            _Name(live, f"cosmos_new_{run}_{number}", f"cosmos_old_{run}_{number}")
            for number, live in enumerate(databases)
        ]
        self._notes: list[str] = []

    @property
    def part(self) -> Part:
        """What it brings back."""
        return self._part

    @property
    def notes(self) -> tuple[str, ...]:
        """What did not come back exactly as it was, in sentences."""
        return tuple(self._notes)

    def stage(self, reader: PartReader) -> None:
        """Make the missing roles and, beside the live ones, new databases that are equal to the fingerprint.

        Raises ``Unsupported`` when the server is older than the dump or something holds on to a live database,
        ``RestoreFailed`` when the server refuses the dump, ``NotEqual``, and what a session raises. May be repeated.
        """
        records = {name.live: self._record(name.live) for name in self._names}
        server = self._require_supported()
        self._drop(name.new for name in self._names)
        self._make_roles(reader)
        for name in self._names:
            record = records[name.live]
            self._make(name, record, server)
            self._fill(name, record, reader)
            self._compare(name.live, name.new)
            with self._control() as control:
                control.ask("\n".join(postgres_database.dressings(name.new, record)))

    def swap(self) -> None:
        """End every session to the live databases, then give them and the staged ones their names. May be repeated."""
        self._require_free()
        marks = self._databases()
        waiting = [name for name in self._names if name.new in marks]
        if any(name.new not in marks and not marks.get(name.live) for name in self._names):
            raise errors.RestoreFailed(f"not every database of {self._part.name} is staged")
        renames = {name.new: name.live for name in waiting}
        moved = {name.live: name.old for name in waiting if name.live in marks}
        self._empty([*moved, *renames])
        self._rename({**moved, **renames})

    def verify(self) -> None:
        """Compare the live databases with the fingerprint. ``NotEqual`` says what differs."""
        for name in self._names:
            self._compare(name.live, name.live)
        with self._control() as control:
            missing = set(self._part.fingerprint.roles) - set(control.json("SELECT json_agg(rolname) FROM pg_roles;"))
        if missing:
            raise errors.NotEqual(f"{self._part.name} lacks the roles {', '.join(sorted(missing))}")

    def undo(self) -> None:
        """Give the old databases their names back, and remove what was staged."""
        marks = self._databases()
        away = {name.live: name.new for name in self._names if marks.get(name.live)}
        back = {name.old: name.live for name in self._names if name.old in marks}
        if away or back:
            self._empty([*away, *back])
        closed = [n.live for n in self._names if n.old in marks or (n.new in marks and n.live in marks)]
        if closed or away:
            self._rename({**away, **back}, open_again=closed)
        self._drop(name.new for name in self._names)
        self._drop_roles()

    def finish(self) -> None:
        """Remove the old databases, leftovers of the staging and all marks."""
        marks = self._databases()
        if any(name.live not in marks for name in self._names):
            raise errors.RestoreFailed(
                f"the restore of {self._part.name} stopped half way", remedy="Run `cosmos recover`."
            )
        self._drop(each for name in self._names for each in (name.old, name.new))
        roles = self._marked_roles()
        with self._control() as control:
            resets = [f"DATABASE {identifier(name.live)}" for name in self._names if marks[name.live]]
            resets += [f"ROLE {identifier(role)}" for role in roles]
            control.ask("\n".join(f"ALTER {what} RESET {MARK};" for what in resets))

    # --------------------------------------------------------------------------------------------------- look
    def _control(self) -> Session:
        return Session(self._runtime, self._service, sessions.CONTROL, self._run)

    def _record(self, database: str) -> DatabaseRecord:
        text = self._part.details.get(f"database:{database}")
        if text is None:
            raise errors.Damaged(f"the manifest does not describe database {database} of {self._part.name}")
        return postgres_database.decode(text)

    def _databases(self) -> Mapping[str, bool]:
        """Every database by name, and whether this run staged it."""
        with self._control() as control:
            found: Mapping[str, bool] = control.json(
                "SELECT json_object_agg(d.datname, EXISTS (SELECT FROM pg_db_role_setting s WHERE s.setrole = 0"
                f" AND s.setdatabase = d.oid AND {self._mark()} = ANY (s.setconfig))) FROM pg_database d;"
            )
        return found

    def _marked_roles(self) -> list[str]:
        with self._control() as control:
            found: list[str] = control.json(
                "SELECT coalesce(json_agg(r.rolname), '[]') FROM pg_roles r JOIN pg_db_role_setting s"
                f" ON s.setrole = r.oid AND s.setdatabase = 0 WHERE {self._mark()} = ANY (s.setconfig);"
            )
        return found

    def _mark(self) -> str:
        return literal(f"{MARK}={self._run}")

    def _require_supported(self) -> int:
        """The server's major version."""
        self._require_free()
        with self._control() as control:
            server = int(control.value("SHOW server_version_num;")) // 10_000
        if _major(self._part) > server:
            raise errors.Unsupported(
                f"{self._part.name} comes from PostgreSQL {self._part.version}, and {self._service} runs {server}",
                remedy=f"Run PostgreSQL {_major(self._part)} or later in {self._service}.",
            )
        return server

    def _require_free(self) -> None:
        names = text_array([name.live for name in self._names])
        with self._control() as control:
            obstacles: list[str] = control.json(_OBSTACLES.format(names=names))
        if obstacles:
            raise errors.Unsupported(
                f"{obstacles[0]}: it cannot be renamed", remedy="End and drop it, then run the restore again."
            )

    def _compare(self, database: str, name: str) -> None:
        with Session(self._runtime, self._service, name, self._run) as session:
            found = postgres_print.take(session)
        if different := postgres_print.differences(self._part.fingerprint.databases[database], found):
            raise errors.NotEqual(f"database {database} is not what its fingerprint says: {different}")

    # -------------------------------------------------------------------------------------------------- stage
    def _make_roles(self, reader: PartReader) -> None:
        from cosmos_coherence.sources import postgres_roles  # its patterns take as long to load as all the rest

        with reader.open(self._part.details.get("globals", "globals.sql")) as stream:
            dump = stream.read(_LONGEST_GLOBALS).decode("utf-8", "replace")
        with self._control() as control:
            known = set(control.json("SELECT json_agg(rolname) FROM pg_roles;"))
            origin = postgres_roles.Origin(_major(self._part), self._part.details.get("bootstrap", ""))
            statements = list(postgres_roles.missing(dump, known, origin))
            statements += [
                f"ALTER ROLE {identifier(role)} SET {MARK} TO {literal(self._run)};"
                for role in sorted(postgres_roles.created(dump) - known)
            ]
            # the statements hold password hashes, which neither our messages nor the server's log shall repeat
            control.ask(
                "\\set VERBOSITY terse\nSET log_statement = 'none';\nSET log_min_error_statement = 'panic';\n"
                "SET log_min_duration_statement = -1;"
            )
            control.ask("\n".join(["BEGIN;", *statements, "COMMIT;"]))

    def _make(self, name: _Name, record: DatabaseRecord, server: int) -> None:
        first, *others = postgres_database.creations(name.new, record, server=server)
        for create in (first, *others):
            try:
                with self._control() as control:
                    control.ask(create)
                    control.ask(f"ALTER DATABASE {identifier(name.new)} SET {MARK} TO {literal(self._run)};")
            except errors.CommandFailed as error:
                if create == others[-1] or sessions.sql_state(error.stderr) not in _NO_SUCH_LOCALE:
                    raise
                continue
            if create != first:
                locale = record.locale or record.collate
                self._notes.append(f"the server has no locale {locale}: database {name.live} sorts by the server's own")
            return

    def _fill(self, name: _Name, record: DatabaseRecord, reader: PartReader) -> None:
        """Not in one transaction: every object would need a lock in it, and a new database can be dropped whole."""
        argv = ["psql", "-X", "-q", "-w", "-v", "ON_ERROR_STOP=1", "-o", "/dev/null", "-d", sessions.conninfo(name.new)]
        child = self._runtime.run(
            self._service,
            sessions.tool(*argv),
            stdin=True,
            environment={**sessions.labels(self._run), "PGOPTIONS": "-c synchronous_commit=off"},
        )
        try:
            with child, reader.open(record.stream) as stream:
                while piece := stream.read(_CHUNK):
                    child.stdin.write(piece)
        except (errors.CommandFailed, OSError) as error:
            reason = sessions.failure(self._service, error, child.stderr_tail)
            if not isinstance(reason, errors.CommandFailed):
                raise reason from error
            raise errors.RestoreFailed(f"the dump of database {name.live} cannot be restored: {reason}") from error

    # --------------------------------------------------------------------------------------------------- swap
    def _empty(self, databases: list[str]) -> None:
        """Let nobody in, and have everybody leave."""
        with self._control() as control:
            control.ask("\n".join(f"ALTER DATABASE {identifier(d)} ALLOW_CONNECTIONS false;" for d in databases))
            names = text_array(databases)
            others = f"FROM pg_stat_activity WHERE datname = ANY ({names}) AND backend_type <> 'autovacuum worker'"
            give_up = time.monotonic() + _LEAVE_S
            while int(control.value(f"SELECT count(pg_terminate_backend(pid)) {others};")):
                if time.monotonic() > give_up:
                    raise errors.RestoreFailed(
                        f"clients do not leave the databases of {self._service}", remedy="Stop them, then run it again."
                    )
                time.sleep(0.02)

    def _rename(self, renames: Mapping[str, str], *, open_again: Iterable[str] = ()) -> None:
        """In the given order and in one transaction; what gets a live name takes connections again."""
        live = {name.live for name in self._names}
        opened = {*open_again, *(live & set(renames.values()))}
        with self._control() as control:
            control.ask(
                "\n".join(
                    [
                        "BEGIN;",
                        *(f"ALTER DATABASE {identifier(a)} RENAME TO {identifier(b)};" for a, b in renames.items()),
                        *(f"ALTER DATABASE {identifier(d)} ALLOW_CONNECTIONS true;" for d in sorted(opened)),
                        "COMMIT;",
                    ]
                )
            )

    def _drop(self, databases: Iterable[str]) -> None:
        with self._control() as control:
            control.ask("\n".join(f"DROP DATABASE IF EXISTS {identifier(d)} WITH (FORCE);" for d in databases))

    def _drop_roles(self) -> None:
        """Those that this run made; the ones that somebody has begun to use stay."""
        if roles := self._marked_roles():
            try:
                with self._control() as control:
                    control.ask(f"DROP ROLE {', '.join(map(identifier, roles))};")
            except errors.CommandFailed as error:
                self._notes.append(f"new roles are in use and stay: {error.message}")


def _major(part: Part) -> int:
    text = part.version.partition(".")[0]
    if not text.isascii() or not text.isdigit():
        raise errors.Damaged(f"the manifest names no version of the server of {part.name}: {part.version!r}")
    return int(text)
