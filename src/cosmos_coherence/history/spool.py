"""From the spool, where every run leaves its report, into the history.

The files stay in ``done/`` for a while: when the history's own database is restored it loses everything newer than the
backup, and finds it again there.
"""

from __future__ import annotations

import contextlib
import time
from pathlib import Path

import msgspec
from sqlalchemy import Engine

from cosmos_coherence import errors
from cosmos_coherence.history import database, record, runs
from cosmos_coherence.history.record import RunRecord

KEEP_S = 30 * 86400.0


class Drained(msgspec.Struct, frozen=True):
    """What one round did."""

    added: int = 0
    damaged: tuple[str, ...] = ()
    """Names of files that are no report; they are kept under the suffix ``.damaged``."""


def drain(spool: Path, engine: Engine, *, keep_s: float = KEEP_S) -> Drained:
    """Add every report of the spool that the history lacks, those read before included; repeating it changes nothing.

    Files older than ``keep_s`` seconds leave ``done/``. ``ServiceDown`` when the database does not answer: then every
    file stays where it is.
    """
    if not spool.is_dir():
        return Drained()
    database.migrate(engine)
    done = spool / "done"
    done.mkdir(mode=0o700, exist_ok=True)
    _expire(done, keep_s)
    waiting, damaged, reports = sorted(spool.glob("*.json")), [], []
    for path in [*waiting, *sorted(done.glob("*.json"))]:
        report = path.read_bytes()
        try:
            record.read(report)
        except errors.Damaged:
            path.rename(path.with_suffix(".damaged"))
            damaged.append(path.name)
        else:
            reports.append(report)
    added = runs.add(engine, reports)
    for path in waiting:
        if path.name not in damaged:
            path.rename(done / path.name)
    return Drained(added, tuple(damaged))


def read(spool: Path, *, drained: bool = True) -> tuple[RunRecord, ...]:
    """The runs whose reports lie here; those that the history has already are left out unless ``drained``."""
    found = []
    for path in [*spool.glob("*.json"), *((spool / "done").glob("*.json") if drained else ())]:
        with contextlib.suppress(errors.Damaged, OSError):
            found.append(record.read(path.read_bytes()))
    return tuple(found)


def _expire(done: Path, keep_s: float) -> None:
    for path in done.iterdir():
        if time.time() - path.stat().st_mtime > keep_s:
            path.unlink()
