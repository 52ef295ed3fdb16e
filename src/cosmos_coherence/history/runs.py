"""What is written to the history and asked of it. Every call raises ``ServiceDown`` when it does not answer."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec
from sqlalchemy import Engine, func, insert, select

from cosmos_coherence.history import record
from cosmos_coherence.history.database import opened
from cosmos_coherence.history.models import Run
from cosmos_coherence.history.record import RunRecord


class RunList(msgspec.Struct, frozen=True):
    """Runs, newest first, and when they were read."""

    read_at: str
    runs: tuple[RunRecord, ...] = ()


class Count(msgspec.Struct, frozen=True):
    """How many runs of a project ended that way."""

    project: str
    verb: str
    status: str
    runs: int


def add(engine: Engine, reports: Iterable[bytes]) -> int:
    """Keep these reports (JSON) in one transaction; those that are there already are passed over. Returns how many
    were new. ``Damaged`` for bytes that are no report, and then none is kept.
    """
    rows = {(r["project"], r["run"], r["verb"]): r for r in map(_row, reports)}
    if not rows:
        return 0
    oldest = min(row["ended_at"] for row in rows.values())
    with opened(engine) as connection:
        there = connection.execute(select(Run.project, Run.run, Run.verb).where(Run.ended_at >= oldest))
        for project, run, verb in there:
            rows.pop((project, run, verb), None)
        if rows:
            connection.execute(insert(Run), list(rows.values()))
    return len(rows)


def recent(engine: Engine, *, limit: int = 20) -> tuple[RunRecord, ...]:
    """The newest runs, newest first."""
    query = select(Run.report).order_by(Run.ended_at.desc(), Run.run.desc()).limit(limit)
    with opened(engine) as connection:
        return tuple(record.read(msgspec.json.encode(report)) for (report,) in connection.execute(query))


def latest(engine: Engine) -> tuple[RunRecord, ...]:
    """The newest run of each project, verb and status."""
    newest = func.row_number().over(partition_by=(Run.project, Run.verb, Run.status), order_by=Run.ended_at.desc())
    ranked = select(Run.report, newest.label("place")).subquery()
    query = select(ranked.c.report).where(ranked.c.place == 1)
    with opened(engine) as connection:
        return tuple(record.read(msgspec.json.encode(report)) for (report,) in connection.execute(query))


def counts(engine: Engine) -> tuple[Count, ...]:
    """How often each project, verb and status is there."""
    query = select(Run.project, Run.verb, Run.status, func.count()).group_by(Run.project, Run.verb, Run.status)
    with opened(engine) as connection:
        return tuple(Count(*row) for row in connection.execute(query))


def _row(report: bytes) -> dict[str, Any]:
    run = record.read(report)
    return {
        "project": run.project,
        "run": run.run,
        "verb": run.verb,
        "status": run.status,
        "started_at": record.moment(run.started_at),
        "ended_at": run.ended,
        "pause_ms": run.pause_ms,
        "size": run.size,
        "report": msgspec.json.decode(report),
    }
