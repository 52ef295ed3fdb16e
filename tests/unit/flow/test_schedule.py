"""When a cron expression is due, against croniter over ten years and against every minute around a change of clocks."""

from __future__ import annotations

import functools
import zoneinfo
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from croniter import croniter
from cronsim import CronSim
from hypothesis import example, given, settings
from hypothesis import strategies as st

from cosmos_coherence import errors
from cosmos_coherence.flow import schedule
from cosmos_coherence.flow.schedule import Rhythm, next_due
from cosmos_coherence.history.ledger import JobState
from cosmos_coherence.settings import ScheduleSettings

MINUTE, HOUR, DAY = timedelta(minutes=1), timedelta(hours=1), timedelta(days=1)
FROM, TO = datetime(2024, 1, 1, tzinfo=UTC), datetime(2034, 1, 1, tzinfo=UTC)
ZONES = sorted(zone for zone in zoneinfo.available_timezones() if "/" in zone and not zone.startswith("Etc/"))
ODD = ["Australia/Lord_Howe", "Antarctica/Troll", "Africa/Casablanca", "Africa/Cairo", "America/Havana",
       "Asia/Gaza", "Asia/Beirut", "America/Nuuk", "Atlantic/Azores",
       "America/Santiago", "Europe/Berlin", "Pacific/Apia"]  # fmt: skip


def numbers(low: int, high: int) -> st.SearchStrategy[str]:
    number = st.integers(low, high)
    pair = st.tuples(number, number).filter(lambda p: p[0] < p[1])
    return st.one_of(
        number.map(str), number.map(str), pair.map(lambda p: f"{p[0]},{p[1]}"), pair.map(lambda p: f"{p[0]}-{p[1]}")
    )


def field(low: int, high: int) -> st.SearchStrategy[str]:
    steps = st.integers(2, max(2, (high - low) // 2)).map(lambda n: f"*/{n}")
    return st.one_of(st.just("*"), numbers(low, high), steps)


DATES = st.tuples(st.one_of(st.just("*"), numbers(1, 28)), st.one_of(st.just("*"), numbers(1, 12)),
                  st.one_of(st.just("*"), numbers(0, 6)))  # fmt: skip
SPARSE = st.tuples(st.integers(0, 59).map(str), st.one_of(st.integers(0, 23).map(str), field(0, 23)), DATES)


def local(time: datetime, zone: ZoneInfo) -> datetime:
    return time.astimezone(zone).replace(tzinfo=None)


def dues(expression: str, zone: ZoneInfo, begin: datetime, end: datetime) -> list[datetime]:
    found = []
    while (begin := next_due(expression, zone, begin)) < end:
        found.append(begin)
    return found


def by_the_rule(walls: list[datetime], expression: str, zone: ZoneInfo) -> set[datetime]:
    """What times on the wall mean: croniter itself runs an hour that comes twice twice, so it is asked without zone."""
    minute, hour = expression.split()[:2]
    rhythm = minute.startswith("*") or hour.startswith("*")
    found = set()
    for wall in walls:
        both = [wall.replace(tzinfo=zone, fold=fold).astimezone(UTC) for fold in (0, 1)]
        real = [time for time in both if local(time, zone) == wall]
        if rhythm:
            found.update(real)
        elif real:
            found.add(min(real))
        else:  # skipped: the first minute behind the gap
            after = wall
            while local(after.replace(tzinfo=zone).astimezone(UTC), zone) != after:
                after += MINUTE
            found.add(after.replace(tzinfo=zone).astimezone(UTC))
    return found


@settings(max_examples=10, deadline=None)
@given(SPARSE, st.sampled_from(ZONES + ODD * 10))
@example(("30", "2", ("*", "*", "*")), "Europe/Berlin")
@example(("30", "*", ("*", "*", "*")), "Australia/Lord_Howe")
@example(("0", "0", ("13", "*", "5")), "Africa/Cairo")
def test_ten_years_as_the_reference_library_has_them(fields, name) -> None:
    expression, zone = " ".join((*fields[:2], *fields[2])), ZoneInfo(name)
    walls, last = [], local(TO, zone) + DAY
    reference = croniter(expression, local(FROM, zone) - DAY, implement_cron_bug=True, max_years_between_matches=60)
    while (wall := reference.get_next(datetime)) < last and len(walls) < 9000:
        walls.append(wall)
    end = TO if len(walls) < 9000 else walls[-1].replace(tzinfo=zone).astimezone(UTC) - DAY
    expected = sorted(time for time in by_the_rule(walls, expression, zone) if FROM < time < end)
    assert dues(expression, zone, FROM, end) == expected


@functools.cache
def changes(name: str) -> list[datetime]:
    """The minutes at which a zone changes its clocks within the ten years."""
    zone, found, time = ZoneInfo(name), [], FROM
    while time < TO:
        if time.astimezone(zone).utcoffset() != (time + DAY).astimezone(zone).utcoffset():
            low, high = time, time + DAY
            while high - low > MINUTE:
                middle = low + (high - low) // 2 // MINUTE * MINUTE
                same = middle.astimezone(zone).utcoffset() == low.astimezone(zone).utcoffset()
                low, high = (middle, high) if same else (low, middle)
            found.append(high)
        time += DAY
    return found


def minute_by_minute(expression: str, zone: ZoneInfo, begin: datetime, end: datetime) -> list[datetime]:
    """The second referee: look at the clock on the wall every minute."""
    cron, (minute, hour) = CronSim(expression, FROM), expression.split()[:2]
    rhythm = minute.startswith("*") or hour.startswith("*")

    def matches(wall: datetime) -> bool:
        day = wall.month in cron.months and cron.match_day(wall.date())
        return day and wall.minute in cron.minutes and wall.hour in cron.hours

    found, time, seen = [], begin - 5 * HOUR, local(begin - 5 * HOUR, zone)
    while time < end:
        wall = local(time, zone)
        passed = [wall] if rhythm else [seen + n * MINUTE for n in range((wall - seen) // MINUTE + 1)]
        hit = any(map(matches, passed))
        if hit and time > begin:
            found.append(time)
        seen, time = max(seen, wall + MINUTE), time + MINUTE
    return found


@settings(max_examples=60, deadline=None)
@given(st.data(), st.sampled_from(ODD * 3 + ZONES), field(0, 59), st.one_of(field(0, 23), numbers(0, 4)))
def test_every_minute_around_a_change_of_clocks(data, name, minute, hour) -> None:
    zone, found = ZoneInfo(name), changes(name)
    change = data.draw(st.sampled_from(found)) if found else FROM + 100 * DAY
    expression = f"{minute} {hour} * * *"
    begin, end = change - 6 * HOUR, change + 20 * HOUR
    assert dues(expression, zone, begin, end) == minute_by_minute(expression, zone, begin, end)


@pytest.mark.parametrize(
    ("expression", "name", "after", "expected"),
    [
        ("30 2 * * *", "Europe/Berlin", "2026-03-28T12:00", ["2026-03-29T01:00", "2026-03-30T00:30"]),  # 03:00, 02:30
        ("30 2 * * *", "Europe/Berlin", "2026-10-24T12:00", ["2026-10-25T00:30", "2026-10-26T01:30"]),  # once
        ("0 * * * *", "Europe/Berlin", "2026-10-24T23:30", ["2026-10-25T00:00", "2026-10-25T01:00"]),  # 02:00 twice
        ("*/15 2 * * *", "Europe/Berlin", "2026-03-28T12:00", ["2026-03-30T00:00", "2026-03-30T00:15"]),
        ("0 0 * * *", "Africa/Cairo", "2026-04-23T12:00", ["2026-04-23T22:00", "2026-04-24T21:00"]),  # 01:00, 00:00
        ("*/15 21 * * *", "Australia/Lord_Howe", "2025-04-06T00:00", ["2025-04-06T10:30", "2025-04-06T10:45"]),
        ("0 0 13 * 5", "UTC", "2026-02-01T00:00", ["2026-02-06T00:00", "2026-02-13T00:00"]),
        ("0 0 29 2 *", "UTC", "2026-01-01T00:00", ["2028-02-29T00:00", "2032-02-29T00:00"]),
    ],
)
def test_days_to_remember(expression, name, after, expected) -> None:
    times = [datetime.fromisoformat(after + "+00:00")]
    while len(times) <= len(expected):
        times.append(next_due(expression, ZoneInfo(name), times[-1]))
    assert times[1:] == [datetime.fromisoformat(text + "+00:00") for text in expected]


@pytest.mark.parametrize("wrong", ["", "61 * * * *", "* * * *", "0 0 2 * * *", "0 0 31 2 *", "never", "@daily"])
def test_a_wrong_expression_is_named_with_its_setting(wrong) -> None:
    for name in ("backup", "check", "measure"):
        with pytest.raises(errors.ConfigurationError, match=rf"schedule\.{name}: .* no time in cron form"):
            schedule.rhythms(ScheduleSettings(**{name: wrong}), (name,), host="h", project="p")


@pytest.mark.parametrize("wrong", ["Europe/Nowhere", "", "Europe", "/etc/localtime", "../UTC", "a\0b"])
def test_a_wrong_zone_is_named_with_its_setting(wrong) -> None:
    with pytest.raises(errors.ConfigurationError, match=r"schedule\.timezone"):
        schedule.rhythms(ScheduleSettings(timezone=wrong), ("backup",), host="h", project="p")


def test_off_is_never() -> None:
    off = ScheduleSettings(backup="off", forget="0 3 * * *")
    assert [r.name for r in schedule.rhythms(off, ("backup", "forget", "prune"), host="h", project="p")] == ["forget"]


def test_jitter_is_each_host_s_own_for_ever_and_within_what_was_said() -> None:
    def of(host: str, job: str = "backup") -> timedelta:
        (found,) = schedule.rhythms(ScheduleSettings(jitter=600), (job,), host=host, project="p")
        return found.jitter

    assert of("a") == of("a")
    spread = {of(f"host{n}") for n in range(50)}
    assert len(spread) > 30
    assert all(timedelta() <= jitter <= timedelta(seconds=600) for jitter in spread)
    assert of("a") != of("a", "check")


MOMENTS = st.datetimes(datetime(2020, 1, 1), datetime(2040, 1, 1), timezones=st.just(UTC))
EXPRESSIONS = ["0 2 * * *", "*/15 * * * *", "0 3 * * 0", "30 2 1 * *", "* * * * *"]


@given(st.sampled_from(EXPRESSIONS), MOMENTS, MOMENTS, st.integers(0, 7), st.booleans(),
       st.sampled_from(["done", "failed", "cut off", "interrupted", ""]), st.integers(0, 3600))  # fmt: skip
def test_whatever_the_clock_says_the_next_run_is_near(
    expression, now, since, attempt, retryable, outcome, jitter
) -> None:
    rhythm = Rhythm("backup", expression, ZoneInfo("Europe/Berlin"), timedelta(seconds=jitter))
    state = JobState("backup", since, since, since + MINUTE, outcome, "", retryable, attempt)
    due = schedule.due(rhythm, state, now)
    assert due.at <= next_due(expression, rhythm.zone, now + schedule.STEP_BACK) + rhythm.jitter
    assert due.attempt <= schedule.TRIES
