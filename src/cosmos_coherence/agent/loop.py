"""The agent: one small loop that runs the backup when it is due.

It needs no database. The time of the last run lies in the state folder, so that a missed run is caught up once after
a restart, and a run that is due twice runs once.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

from cronsim import CronSim, CronSimError

from cosmos_coherence import errors
from cosmos_coherence.settings import ScheduleSettings
from cosmos_coherence.storage import local

LONGEST_SLEEP_S = 30.0
"""A suspended machine or a moved clock is noticed within this time."""


def utc_now() -> datetime:
    """The present moment; all arithmetic is in UTC, only the expression is read in its own zone."""
    return datetime.now(UTC)


def next_due(schedule: ScheduleSettings, after: datetime) -> datetime:
    """The first time after ``after`` when a backup is due, in UTC. ``ConfigurationError`` for a wrong expression."""
    try:
        times = CronSim(schedule.backup, after.astimezone(ZoneInfo(schedule.timezone)))
        # in the hour that comes twice an aware time compares without its fold: only UTC tells before from after
        return next(due for time in times if (due := time.astimezone(UTC)) > after)
    except (CronSimError, StopIteration, KeyError, ValueError) as error:
        raise errors.ConfigurationError(
            f"schedule.backup {schedule.backup!r} in {schedule.timezone}: {error}"
        ) from error


def run(
    schedule: ScheduleSettings,
    state: Path,
    job: Callable[[], None],
    *,
    stop: threading.Event,
    now: Callable[[], datetime] = utc_now,
) -> None:
    """Call ``job`` whenever it is due, until ``stop`` is set. An error of the job is the job's to report."""
    mark = state / "last-backup"
    last = _read(mark) or now()
    due = next_due(schedule, last)
    while not stop.is_set():
        present = now()
        if present >= due:
            local.write_atomically(mark, present.isoformat().encode())
            job()
            due = next_due(schedule, now())
            continue
        # a clock set far back would otherwise wait for a time that lies ahead by all of the jump
        due = min(due, next_due(schedule, present))
        stop.wait(min(LONGEST_SLEEP_S, max(0.0, (due - present) / timedelta(seconds=1))))


def _read(mark: Path) -> datetime | None:
    try:
        return datetime.fromisoformat(mark.read_text("ascii").strip())
    except (OSError, ValueError):
        return None
