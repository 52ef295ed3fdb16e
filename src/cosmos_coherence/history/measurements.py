"""Measurements in the history, at a resolution that falls with their age.

What is older keeps of each hour, later of each day, its last, its lowest and its highest measurement, as they were: so
whatever is drawn or foretold from them rests on numbers that were measured. Every call raises ``ServiceDown`` when the
database does not answer.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from sqlalchemy import BigInteger, ColumnElement, Connection, Engine, cast, delete, func, or_, select, tuple_
from sqlalchemy.dialects import postgresql, sqlite

from cosmos_coherence.history.database import opened
from cosmos_coherence.history.models import Measured
from cosmos_coherence.model import Measurement
from cosmos_coherence.settings import HistorySettings

KEPT = HistorySettings()
_HOUR_S, _DAY_S = 3600.0, 86400.0
_BATCH = 1000
_INSERT: dict[str, Any] = {"postgresql": postgresql.insert, "sqlite": sqlite.insert}


def add(engine: Engine, measurements: Iterable[Measurement]) -> int:
    """Keep these in one transaction; those that are there already are passed over. Returns how many were new."""
    rows = [
        {"subject": subject, "name": name, "taken": taken, "value": value}
        for (subject, name, taken), value in {(m.subject, m.name, m.taken): m.value for m in measurements}.items()
    ]
    if not rows:
        return 0
    added = 0
    insert = _INSERT[engine.dialect.name]
    with opened(engine) as connection:
        for start in range(0, len(rows), _BATCH):
            new = insert(Measured).values(rows[start : start + _BATCH]).on_conflict_do_nothing()
            added += connection.execute(new, execution_options={"preserve_rowcount": True}).rowcount
    return added


def holds(engine: Engine, measurement: Measurement) -> bool:
    """Whether this very measurement is there."""
    key = (measurement.subject, measurement.name, measurement.taken)
    query = select(Measured.value).where(tuple_(Measured.subject, Measured.name, Measured.taken) == key)
    with opened(engine) as connection:
        return connection.execute(query).first() is not None


def series(engine: Engine, subject: str, name: str, since: float) -> tuple[tuple[float, float], ...]:
    """When (seconds since the epoch) and what was measured of it from ``since`` on, oldest first."""
    query = (
        select(Measured.taken, Measured.value)
        .where(Measured.subject == subject, Measured.name == name, Measured.taken >= since)
        .order_by(Measured.taken)
    )
    with opened(engine) as connection:
        return tuple((taken, value) for taken, value in connection.execute(query))


def latest(engine: Engine) -> tuple[Measurement, ...]:
    """The newest measurement of each subject and name, however old it is."""
    newest = select(Measured.subject, Measured.name, func.max(Measured.taken)).group_by(Measured.subject, Measured.name)
    query = (
        select(Measured.taken, Measured.subject, Measured.name, Measured.value)
        .where(tuple_(Measured.subject, Measured.name, Measured.taken).in_(newest))
        .order_by(Measured.subject, Measured.name)
    )
    with opened(engine) as connection:
        return tuple(Measurement(*row) for row in connection.execute(query))


def thin(engine: Engine, now: float, kept: HistorySettings = KEPT) -> int:
    """Remove what ``kept`` does not keep at the moment ``now``; how many went. Repeating it changes nothing.

    Each subject is a transaction of its own, so that none is long.
    """
    with opened(engine) as connection:
        gone = connection.execute(delete(Measured).where(Measured.taken < now - kept.daily)).rowcount
        subjects = connection.execute(select(Measured.subject).distinct()).scalars().all()
    hours = (now - kept.every) // _HOUR_S * _HOUR_S  # whole hours and days only: a part of one would be thinned twice
    days = (now - kept.hourly) // _DAY_S * _DAY_S
    for subject in subjects:
        with opened(engine) as connection:
            gone += _thin(connection, subject, _HOUR_S, before=hours)
            gone += _thin(connection, subject, _DAY_S, before=days)
    return gone


def _thin(connection: Connection, subject: str, size_s: float, *, before: float) -> int:
    same = (Measured.name, _period(connection, size_s))
    latest = Measured.taken.desc()
    places = [
        func.row_number().over(partition_by=same, order_by=order)
        for order in ((latest,), (Measured.value, latest), (Measured.value.desc(), latest))
    ]
    ranked = (
        select(Measured.name, Measured.taken, *(place.label(f"place{n}") for n, place in enumerate(places)))
        .where(Measured.subject == subject, Measured.taken < before)
        .subquery()
    )
    keep = select(ranked.c.name, ranked.c.taken).where(or_(*(ranked.c[f"place{n}"] == 1 for n in range(len(places)))))
    return connection.execute(
        delete(Measured).where(
            Measured.subject == subject,
            Measured.taken < before,
            tuple_(Measured.name, Measured.taken).not_in(keep),
        )
    ).rowcount


def _period(connection: Connection, size_s: float) -> ColumnElement[Any]:
    """The number of the hour or day of a measurement. SQLite need not have ``floor``, PostgreSQL's cast rounds."""
    number = Measured.taken / size_s
    return func.floor(number) if connection.dialect.name == "postgresql" else cast(number, BigInteger)
