"""Talking to a PostgreSQL server through its own ``psql``, over the standard input of a command in its service.

User and password come from the service's own environment; none is ever an argument.
"""

from __future__ import annotations

import contextlib
import json
import re
import secrets
from collections.abc import Sequence
from typing import Any, Final

from cosmos_coherence import errors
from cosmos_coherence.drivers.runtime import Child, Runtime

CONTROL: Final = "template1"
"""Always there, and never captured: where sessions go that concern the whole server."""

_SETTLE: Final = """\
given() {
    eval "value=\\${$1-} file=\\${$2_FILE-}"
    if [ -z "$value" ] && [ -r "$file" ]; then value=$(cat "$file"); fi
    if [ -z "$value" ]; then eval "value=\\${$2-}"; fi
    if [ -z "$value" ]; then value=$3; fi
    if [ -n "$value" ]; then export "$1=$value"; fi
}
given PGUSER POSTGRES_USER postgres
given PGPASSWORD POSTGRES_PASSWORD
given PGDATABASE POSTGRES_DB "$PGUSER"
export LC_ALL=C
exec "$@"
"""
"""The official image's variables become libpq's, which win where they are set (the ``process`` runtime)."""

_CALM: Final = """\
SELECT pg_catalog.set_config('search_path', '', false);
SELECT pg_catalog.set_config(name, '0', false) FROM pg_catalog.pg_settings WHERE name IN
    ('statement_timeout', 'lock_timeout', 'transaction_timeout', 'idle_session_timeout',
     'idle_in_transaction_session_timeout');
SET row_security = off;
SET datestyle = 'ISO';
"""
"""Nobody ends the session while it waits, nothing in the database shadows the catalogue, no row is left out unsaid."""

_REFUSED: Final = re.compile(
    r"authentication failed|no password supplied|pg_hba|role .* does not exist|not permitted to log in"
    r"|permission denied for database"
)
_NO_DATABASE: Final = re.compile(r"database .* does not exist")
_STATE: Final = re.compile(r"^(?:psql:.*?:\d+: )?(?:ERROR|FATAL|PANIC):\s+([0-9A-Z]{5}): ", re.MULTILINE)
_NO_ROOM: Final = "53100"


def tool(*argv: str) -> list[str]:
    """The call of one of the server's own programs inside its service."""
    return ["sh", "-c", _SETTLE, "sh", *argv]


def labels(run: str) -> dict[str, str]:
    """The environment by which everything that a run starts can be recognised in ``pg_stat_activity``."""
    return {"PGAPPNAME": application(run)}


def application(run: str) -> str:
    """The application name of a run."""
    return f"cosmos-{run}"[:63]


def conninfo(database: str) -> str:
    """How programs are told the database, whatever its name looks like."""
    return "dbname='" + database.replace("\\", "\\\\").replace("'", "\\'") + "'"


def identifier(name: str) -> str:
    """A name as SQL."""
    return '"' + name.replace('"', '""') + '"'


def literal(text: str) -> str:
    """A text as SQL, whatever ``standard_conforming_strings`` says."""
    doubled = text.replace("'", "''")
    return "E'" + doubled.replace("\\", "\\\\") + "'" if "\\" in text else f"'{doubled}'"


class Session:
    """One warm ``psql``. The first statement that fails ends it: the call in which that is seen raises.

    ``ServiceDown`` when there is no server to talk to, ``AccessDenied``, ``NoRoom``, else ``CommandFailed`` whose
    ``stderr`` holds what the server said; ``sql_state`` reads the code out of it.
    """

    def __init__(self, runtime: Runtime, service: str, database: str, run: str) -> None:
        """Starts it without waiting; its first answer is awaited by ``settle`` or with the first question."""
        self.database, self._service, self._asked = database, service, ""
        argv = ["psql", "-X", "-q", "-A", "-t", "-w", "-v", "ON_ERROR_STOP=1", "-v", "VERBOSITY=verbose"]
        self._child: Child = runtime.run(
            service,
            tool(*argv, "-d", conninfo(database)),
            stdin=True,
            environment={**labels(run), "PGCLIENTENCODING": "UTF8"},
        )
        self.send(_CALM)
        self._settled = False

    def send(self, sql: str) -> None:
        """Send statements, each with its semicolon, to be answered by one ``receive`` before anything else is sent."""
        self._asked = secrets.token_hex(12)
        try:
            self._child.stdin.write(f"{sql}\n\\echo {self._asked}\n".encode())
            self._child.stdin.flush()
        except (errors.CommandFailed, OSError) as error:
            raise self._failure(error) from error

    def receive(self) -> list[str]:
        """The lines that came for what was sent."""
        lines: list[str] = []
        for raw in iter(self._child.stdout.readline, b""):
            line = self._text(raw)
            if line == self._asked:
                return lines
            lines.append(line)
        raise self._failure(None)

    def received(self) -> Any:
        """The only value of the answer to what was sent, which is JSON."""
        return json.loads(_only(self.receive()))

    def settle(self) -> None:
        """Wait until it has started; needed before the first ``send``."""
        if not self._settled:
            self.receive()
            self._settled = True

    def ask(self, sql: str) -> list[str]:
        """Send and receive."""
        self.settle()
        self.send(sql)
        return self.receive()

    def value(self, sql: str) -> str:
        """The only line of the answer."""
        return _only(self.ask(sql))

    def json(self, sql: str) -> Any:
        """The only value of the answer, which is JSON."""
        return json.loads(self.value(sql))

    def close(self) -> None:
        """End it, whatever it does; its transaction is rolled back. Never raises."""
        with contextlib.suppress(errors.CosmosError, OSError):
            self._child.kill()

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _text(self, raw: bytes) -> str:
        try:
            return raw.removesuffix(b"\n").decode()
        except UnicodeDecodeError as error:
            raise errors.CommandFailed(f"a name in database {self.database} is not UTF-8: {raw[:80]!a}") from error

    def _failure(self, error: Exception | None) -> errors.CosmosError:
        try:
            if error is None:
                self._child.wait()
        except errors.CosmosError as ended:
            error = ended
        finally:
            self.close()
        return failure(self._service, error, self._child.stderr_tail)


def _only(lines: list[str]) -> str:
    if len(lines) != 1:
        raise errors.CommandFailed(f"the PostgreSQL server gave {len(lines)} lines where one was asked for")
    return lines[0]


def failure(service: str, error: Exception | None, stderr: str) -> errors.CosmosError:
    """The error of the catalogue for a client program that ended with ``error`` and said ``stderr``."""
    if isinstance(error, errors.CosmosError) and not isinstance(error, errors.CommandFailed):
        return error
    status = error.status if isinstance(error, errors.CommandFailed) else None
    said = next((line.strip() for line in stderr.splitlines() if re.search(r"\b(ERROR|FATAL|PANIC|error):", line)), "")
    if "connection to server" in stderr or "could not connect" in stderr:
        reason = (said or stderr.strip()).rpartition("failed: ")[2]
        if _NO_DATABASE.search(reason):
            return errors.NotFound(f"the PostgreSQL server of {service} says: {reason}")
        if _REFUSED.search(reason):
            return errors.AccessDenied(f"the PostgreSQL server of {service} refuses us: {reason}")
        return errors.ServiceDown(f"the PostgreSQL server of {service} does not answer: {reason}")
    if sql_state(stderr) == _NO_ROOM:
        return errors.NoRoom(f"the disk of the PostgreSQL server of {service} is full: {said}")
    if said:
        return errors.CommandFailed(f"the PostgreSQL server of {service} says: {said}", status=status, stderr=stderr)
    if isinstance(error, errors.CommandFailed):
        return error
    return errors.ServiceDown(f"the session to the PostgreSQL server of {service} broke off")


def sql_state(stderr: str) -> str:
    """The code of the error that a session ended with, as in the manual's appendix A; empty when there is none."""
    found = _STATE.findall(stderr)
    return found[-1] if found else ""


def text_array(values: Sequence[str]) -> str:
    """An SQL array of texts."""
    return "ARRAY[" + ", ".join(map(literal, values)) + "]::text[]"


def default_database(runtime: Runtime, service: str) -> str:
    """The database that the service was made for: ``POSTGRES_DB``, else the one named like its user."""
    with runtime.run(service, tool("sh", "-c", 'printf %s "$PGDATABASE"')) as child:
        return child.stdout.read().decode("utf-8", "replace")


def end_leftovers(runtime: Runtime, service: str, run_prefix: str) -> int:
    """End the sessions of runs whose name begins so, which outlive a killed client in a container; how many."""
    with Session(runtime, service, CONTROL, "recover") as session:
        return int(
            session.value(
                "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity"
                f" WHERE starts_with(application_name, {literal(application(run_prefix))})"
                " AND pid <> pg_backend_pid();"
            )
        )
