"""What the schedule's jobs did last: one row for each, in SQLite beside the journal. It needs no server.

Every call opens the file, does its work in one transaction, and closes it. It survives a kill at any moment: a run that
was begun and has no end is one that goes on, or one that was cut off.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Literal

import msgspec

from cosmos_coherence import errors
from cosmos_coherence.drivers import owner as owners

Outcome = Literal["done", "incomplete", "failed", "interrupted", "cut off"]
FILE: Final = "schedule.sqlite"
_PATIENCE_S: Final = 10.0


class JobState(msgspec.Struct, frozen=True):
    """How it stands with one job. Times are UTC."""

    name: str
    since: datetime
    """The schedule's times up to here have been made good, or were passed over."""
    started: datetime | None = None
    """Its last run."""
    ended: datetime | None = None
    outcome: str = ""
    """An ``Outcome`` of the last run that ended."""
    said: str = ""
    """Why it was not done."""
    retryable: bool = False
    attempt: int = 0
    """Which try for the same time it was, from 1."""
    owner: owners.Owner | None = None

    @property
    def open(self) -> bool:
        """Begun, and no end was noted: it runs, or it was cut off."""
        return self.started is not None and self.ended is None

    @property
    def running(self) -> bool:
        """Whether its process is there. One that cannot be seen from here counts as gone."""
        return self.open and self.owner is not None and owners.lives(self.owner) is True

    @property
    def summary(self) -> str:
        """How it stands, for people."""
        if self.started is None:
            return "never"
        how = ("runs since" if self.running else "was cut off at") if self.open else self.outcome
        return f"{how} {self.started:%Y-%m-%d %H:%M} UTC{f': {self.said}' if self.said else ''}"

    @property
    def facts(self) -> dict[str, Any]:
        """How it stands, for JSON."""
        values = {name: getattr(self, name) for name in ("since", "started", "ended", "outcome", "said", "attempt")}
        plain = {k: v.isoformat() if isinstance(v, datetime) else v for k, v in values.items()}
        return {**plain, "running": self.running}


class Ledger:
    """The file in a state folder. Calls raise ``NoRoom`` when the disk is full, ``ConfigurationError`` when the file
    cannot be used. One that is damaged is set aside, and the schedule begins anew."""

    def __init__(self, state: Path) -> None:
        self._path = state / FILE

    def states(self) -> dict[str, JobState]:
        """Every job that was ever seen, by name."""
        with self._opened() as rows:
            return {row[0]: _state(row) for row in rows.execute("SELECT * FROM job ORDER BY name")}

    def seen(self, name: str, since: datetime) -> None:
        """The schedule counts from ``since`` on, unless the job is known already."""
        with self._opened() as rows:
            rows.execute("INSERT OR IGNORE INTO job (name, since) VALUES (?, ?)", (name, _text(since)))

    def begin(self, name: str, now: datetime, *, since: datetime, attempt: int = 1) -> None:
        """A run of this process begins. ``Locked`` while another process has one under way."""
        with self._opened() as rows:
            row = rows.execute("SELECT * FROM job WHERE name = ?", (name,)).fetchone()
            if row is not None and (there := _state(row)).running and there.owner and there.owner != _ourselves():
                raise errors.Locked(f"{name} is under way, pid {there.owner.pid} since {_text(there.started or now)}")
            rows.execute(
                "INSERT OR REPLACE INTO job (name, since, started, attempt, owner) VALUES (?, ?, ?, ?, ?)",
                (name, _text(since), _text(now), attempt, msgspec.json.encode(_ourselves()).decode()),
            )

    def end(self, name: str, now: datetime, outcome: Outcome, *, said: str = "", retryable: bool = False) -> None:
        """The run under way has ended."""
        with self._opened() as rows:
            rows.execute(
                "UPDATE job SET ended = ?, outcome = ?, said = ?, retryable = ? WHERE name = ? AND ended IS NULL",
                (_text(now), outcome, said, retryable, name),
            )

    def pass_over(self, name: str, since: datetime) -> None:
        """The times up to ``since`` are not made good."""
        with self._opened() as rows:
            rows.execute(
                "INSERT INTO job (name, since) VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET since = excluded.since",
                (name, _text(since)),
            )

    @contextmanager
    def _opened(self) -> Iterator[sqlite3.Connection]:
        try:
            connection = self._connect()
        except sqlite3.OperationalError as error:
            raise self._unusable(error) from error
        except sqlite3.DatabaseError:
            self._set_aside()
            connection = self._connect()
        try:
            with connection:
                yield connection
        except (sqlite3.Error, msgspec.MsgspecError, ValueError) as error:
            if not isinstance(error, sqlite3.OperationalError):
                self._set_aside()
            raise self._unusable(error) from error
        finally:
            connection.close()

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self._path, timeout=_PATIENCE_S, isolation_level=None)
        try:
            connection.execute("BEGIN IMMEDIATE")
            connection.execute(
                "CREATE TABLE IF NOT EXISTS job (name TEXT PRIMARY KEY, since TEXT NOT NULL, started TEXT, ended TEXT, "
                "outcome TEXT NOT NULL DEFAULT '', said TEXT NOT NULL DEFAULT '', "
                "retryable INTEGER NOT NULL DEFAULT 0, attempt INTEGER NOT NULL DEFAULT 0, owner TEXT)"
            )
        except BaseException:
            connection.close()
            raise
        return connection

    def _set_aside(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            self._path.rename(self._path.with_suffix(".damaged"))

    def _unusable(self, error: Exception) -> errors.CosmosError:
        if getattr(error, "sqlite_errorname", "").startswith("SQLITE_FULL"):
            return errors.NoRoom(f"there is no room to write {self._path}")
        return errors.ConfigurationError(
            f"{self._path} cannot be used: {error}",
            remedy="Run as the user who owns it, or set COSMOS_STATE_DIRECTORY to another folder.",
        )


def look(state: Path | None) -> dict[str, JobState]:
    """What the file in this folder says, for those who only look: nothing is made, and nothing is raised."""
    path = (state or Path()) / FILE
    if state is None or not path.is_file():
        return {}
    try:
        with contextlib.closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)) as rows:
            return {row[0]: _state(row) for row in rows.execute("SELECT * FROM job ORDER BY name")}
    except (sqlite3.Error, OSError, ValueError, msgspec.MsgspecError):
        return {}


def _state(row: tuple[str, ...]) -> JobState:
    name, since, started, ended, outcome, said, retryable, attempt, owner = row
    return JobState(
        name,
        _moment(since),
        started=_moment(started) if started else None,
        ended=_moment(ended) if ended else None,
        outcome=outcome,
        said=said,
        retryable=bool(retryable),
        attempt=int(attempt),
        owner=msgspec.json.decode(owner, type=owners.Owner) if owner else None,
    )


def _ourselves() -> owners.Owner:
    return owners.ourselves()


def _text(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat()


def _moment(text: str) -> datetime:
    return datetime.fromisoformat(text)
