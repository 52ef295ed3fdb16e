"""From the spool into the history: reports of runs and measurements, and no more of them than the settings keep."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from cosmos_coherence import errors
from cosmos_coherence.cut import lock
from cosmos_coherence.flow.remember import MEASUREMENTS, SPOOL
from cosmos_coherence.history import segments
from cosmos_coherence.model import Measurement
from cosmos_coherence.settings import HistorySettings, ServeSettings
from cosmos_coherence.storage import local

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from cosmos_coherence.history.record import RunRecord
    from cosmos_coherence.history.runs import Count

_THIN_S = 3600.0
_SERVED = "history-served"


def fill(state: Path, serving: ServeSettings, kept: HistorySettings) -> str:
    """Move what waits in the spool into the history, and once an hour thin it; why that was not possible, else empty.

    Nothing is lost then: it waits.
    """
    try:
        with _engine(state, serving) as engine:
            from cosmos_coherence.history import measurements, spool

            spool.drain(state / SPOOL, engine)
            segments.drain(state / SPOOL / MEASUREMENTS, engine, limit=kept.spool)
            mark = state / "last-thinned"
            if not mark.exists() or time.time() - mark.stat().st_mtime >= _THIN_S:
                measurements.thin(engine, time.time(), kept)
                local.write_atomically(mark, b"")
    except errors.CosmosError as error:
        return error.message
    return ""


def series(
    state: Path, serving: ServeSettings, subjects: tuple[str, ...], name: str, since: float
) -> dict[str, tuple[tuple[float, float], ...]]:
    """What was measured of each of them, oldest first; from the spool alone while the history does not answer."""
    found: dict[str, dict[float, float]] = {subject: {} for subject in subjects}
    spool = state / SPOOL / MEASUREMENTS
    waiting = list(segments.read(spool, since, drained=False))  # first: what is drained meanwhile is in the history
    try:
        with _engine(state, serving) as engine:
            from cosmos_coherence.history import measurements

            for subject in subjects:
                found[subject] |= dict(measurements.series(engine, subject, name, since))
    except errors.CosmosError:
        waiting = list(segments.read(spool, since))
    for each in waiting:
        if each.name == name and each.subject in found:
            found[each.subject][each.taken] = each.value
    return {subject: tuple(sorted(points.items())) for subject, points in found.items()}


def latest(state: Path, serving: ServeSettings) -> tuple[Measurement, ...]:
    """The newest of each number, from the history and the spool; from the spool alone while it does not answer."""
    newest: dict[tuple[str, str], Measurement] = {}
    spool = state / SPOOL / MEASUREMENTS
    waiting = list(segments.read(spool, drained=False))
    try:
        with _engine(state, serving) as engine:
            from cosmos_coherence.history import measurements

            found = measurements.latest(engine)
    except errors.CosmosError:
        found, waiting = (), list(segments.read(spool))
    for each in (*found, *waiting):
        key = (each.subject, each.name)
        if key not in newest or newest[key].taken <= each.taken:
            newest[key] = each
    return tuple(newest[key] for key in sorted(newest))


def finished(state: Path, serving: ServeSettings) -> tuple[tuple[Count, ...], tuple[RunRecord, ...]]:
    """How many runs ended how, and the newest run of each project, verb and status.

    While the history does not answer nothing is counted, and the newest are those of the spool.
    """
    from cosmos_coherence.history import runs, spool

    reports = spool.read(state / SPOOL, drained=False)
    counts: tuple[Count, ...] = ()
    try:
        with _engine(state, serving) as engine:
            counts, reports = runs.counts(engine), (*runs.latest(engine), *reports)
    except errors.CosmosError:
        reports = spool.read(state / SPOOL)
    newest = {(run.project, run.verb, run.status): run for run in sorted(reports, key=lambda run: run.ended)}
    return counts, tuple(newest[key] for key in sorted(newest))


@contextmanager
def _engine(state: Path, serving: ServeSettings) -> Iterator[Engine]:
    """The history's database, brought to this version. Raises as ``database.connect`` and ``database.migrate``.

    ``Locked`` while a restore runs: the database may be among what it restores, and is compared with the backup then.

    Once a served history has answered (the agent knows its address), nobody else takes it for the one in the state
    directory: what a call on the host drained into that would be missing in the other. ``ConfigurationError`` then.
    """
    served = state / _SERVED
    if not serving.database_url and served.exists():
        raise errors.ConfigurationError("the history is in a database whose address only the agent knows")
    run = lock.holder(state)
    if serving.database_url and run is not None and run.what == "restore":
        raise errors.Locked(f"the history waits for the {run}")
    try:
        from cosmos_coherence.history import database
    except ModuleNotFoundError as error:
        raise errors.ConfigurationError(
            "the history's database needs the extra `serve`", remedy="pip install 'cosmos-coherence[serve]'"
        ) from error
    engine = database.connect(serving, state)
    try:
        database.migrate(engine)
        if serving.database_url and not served.exists():
            local.write_atomically(served, b"")
        yield engine
    finally:
        engine.dispose()
