"""When a job is due. ``docs/schedule.md`` says the rules in words.

All arithmetic is in UTC; only the expression is read in its own zone.
"""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime, timedelta
from typing import Final, Literal
from zoneinfo import ZoneInfo

import msgspec
from cronsim import CronSim, CronSimError

from cosmos_coherence import errors
from cosmos_coherence.history.ledger import JobState
from cosmos_coherence.settings import ScheduleSettings

OFF: Final = "off"
STEP_BACK: Final = timedelta(hours=1)
"""A clock that is set back by no more than this repeats nothing; by more, it counts as wrong before."""
FIRST_RETRY: Final = timedelta(minutes=5)
TRIES: Final = 5
"""How often a run is tried in all before it is left to the next regular time."""
_SHIFT: Final = timedelta(hours=3)
"""No zone sets its clock back by more."""
Why = Literal["regular", "retry", "cut off"]


class Rhythm(msgspec.Struct, frozen=True):
    """When one job is due."""

    name: str
    expression: str
    zone: ZoneInfo
    jitter: timedelta = timedelta()
    """How much later than the expression says this host begins."""

    def after(self, moment: datetime) -> datetime:
        """The first regular time of which the expression's own time comes after ``moment``, in UTC."""
        return next_due(self.expression, self.zone, moment) + self.jitter

    def covered(self, now: datetime) -> datetime:
        """Up to where a run that begins now makes the expression's times good."""
        return now - self.jitter


class Due(msgspec.Struct, frozen=True):
    """When a job is next to run, which may be over, and why."""

    at: datetime
    why: Why
    attempt: int


def next_due(expression: str, zone: ZoneInfo, after: datetime) -> datetime:
    """The first time of a cron expression after ``after``, in UTC. ``ValueError`` when it is none, or never comes.

    An expression whose minute and hour both begin with a digit names times of day. One that the clocks skip comes when
    they have skipped it; one that comes twice in a day counts the first time. Any other is a rhythm and goes on as the
    clock on the wall shows it: an hour that is skipped has none of its times, one that comes twice has them twice.
    """
    try:
        if len(fields := expression.split()) != 5:
            raise ValueError("it needs five fields: minute, hour, day of the month, month, day of the week")
        if fields[0].startswith("*") or fields[1].startswith("*"):
            return _next_of_rhythm(expression, zone, after)
        times = CronSim(expression, after.astimezone(zone))
        # in the hour that comes twice an aware time compares without its fold: only UTC tells before from after
        return next(due for time in times if (due := time.astimezone(UTC)) > after)
    except (CronSimError, StopIteration) as error:
        raise ValueError(str(error) or "it never comes") from error


def _next_of_rhythm(expression: str, zone: ZoneInfo, after: datetime) -> datetime:
    """By hand, since cronsim loses half an hour where a zone shifts by that much (Lord Howe)."""
    now = after.astimezone(zone).replace(tzinfo=None)
    first = next(CronSim(expression, now)).replace(tzinfo=zone).astimezone(UTC)
    around = (after - _SHIFT, after, after + _SHIFT, first, first + _SHIFT)
    if len({time.astimezone(zone).utcoffset() for time in around}) == 1:
        return first
    best: datetime | None = None
    for wall in CronSim(expression, now - _SHIFT):
        if best and wall > best.astimezone(zone).replace(tzinfo=None) + _SHIFT:
            break
        for fold in (0, 1):
            time = wall.replace(tzinfo=zone, fold=fold).astimezone(UTC)
            real = time.astimezone(zone).replace(tzinfo=None) == wall
            if real and time > after and (best is None or time < best):
                best = time
    if best is None:
        raise StopIteration
    return best


def rhythms(schedule: ScheduleSettings, names: tuple[str, ...], *, host: str, project: str) -> tuple[Rhythm, ...]:
    """The jobs of these names that are not off. ``ConfigurationError`` names the setting that is wrong.

    The jitter of a job is the same on a host for ever, so that runs keep their distance, and another on each.
    """
    try:
        zone = ZoneInfo(schedule.timezone)
    except (KeyError, ValueError, OSError) as error:
        raise errors.ConfigurationError(f"schedule.timezone: there is no zone {schedule.timezone!r}") from error
    found = []
    for name in names:
        expression = str(getattr(schedule, name)).strip()
        if expression == OFF:
            continue
        rhythm = Rhythm(name, expression, zone, _jitter(schedule.jitter, f"{host}\0{project}\0{name}"))
        try:
            rhythm.after(datetime.now(UTC))
        except ValueError as error:
            raise errors.ConfigurationError(
                f"schedule.{name}: {expression!r} is no time in cron form: {error}",
                remedy='Write it like "0 2 * * *", or "off".',
            ) from error
        found.append(rhythm)
    return tuple(found)


def due(rhythm: Rhythm, state: JobState, now: datetime) -> Due:
    """When the job runs next, as things stand; at the latest at the first regular time that is ``STEP_BACK`` away."""
    regular = rhythm.after(_believed(state.since, now))
    if state.ended and state.attempt < TRIES:
        ended = _believed(state.ended, now)
        if state.outcome in ("interrupted", "cut off"):
            wait = FIRST_RETRY * 2 ** (state.attempt - 2) if state.attempt > 1 else timedelta()
            if ended + wait < regular:
                return Due(ended + wait, "cut off", state.attempt + 1)
        elif state.retryable:
            again = ended + FIRST_RETRY * 2 ** (state.attempt - 1)
            if again < regular:
                return Due(again, "retry", state.attempt + 1)
    return Due(regular, "regular", 1)


def upcoming(rhythm: Rhythm, state: JobState | None, now: datetime, count: int) -> tuple[Due, ...]:
    """The next ``count`` runs."""
    first = due(rhythm, state, now) if state else Due(rhythm.after(rhythm.covered(now)), "regular", 1)
    found = [first]
    while len(found) < count:
        found.append(Due(rhythm.after(rhythm.covered(max(found[-1].at, now))), "regular", 1))
    return tuple(found)


def _believed(moment: datetime, now: datetime) -> datetime:
    """A moment that lies in the future is believed as far as a small step of the clock explains it."""
    return moment if moment <= now + STEP_BACK else now


def _jitter(most_s: float, of: str) -> timedelta:
    part = int.from_bytes(hashlib.sha256(of.encode("utf-8", "surrogatepass")).digest()[:8], "big") / 2**64
    return timedelta(seconds=int(most_s * part))
