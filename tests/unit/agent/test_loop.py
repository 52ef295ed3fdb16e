import threading
from datetime import UTC, datetime, timedelta

import pytest

from cosmos_coherence import errors
from cosmos_coherence.agent import loop
from cosmos_coherence.settings import ScheduleSettings


class Clock:
    """Time that passes only when the loop waits, up to an end at which it is told to stop."""

    def __init__(self, start, end):
        self.now, self.end, self.stopped = start, end, False

    def is_set(self):
        return self.stopped

    def wait(self, seconds):
        self.now += timedelta(seconds=max(seconds, 1))
        self.stopped = self.now >= self.end


def runs_between(tmp_path, start, end, **schedule):
    clock, ran = Clock(start, end), []
    loop.run(ScheduleSettings(**schedule), tmp_path, lambda: ran.append(clock.now), stop=clock, now=lambda: clock.now)
    return ran


def test_runs_once_a_day(tmp_path):
    start = datetime(2026, 5, 1, 0, 0, tzinfo=UTC)
    ran = runs_between(tmp_path, start, start + timedelta(days=3), backup="0 2 * * *")
    assert [t.day for t in ran] == [1, 2, 3]


def test_once_on_the_day_that_has_the_hour_twice(tmp_path):
    start = datetime(2026, 10, 24, 12, 0, tzinfo=UTC)
    ran = runs_between(tmp_path, start, start + timedelta(days=1), backup="30 2 * * *", timezone="Europe/Berlin")
    assert len(ran) == 1


def test_a_missed_run_is_caught_up_once_after_a_restart(tmp_path):
    before = datetime(2026, 5, 1, 0, 0, tzinfo=UTC)
    assert len(runs_between(tmp_path, before, before + timedelta(hours=3))) == 1
    after = before + timedelta(days=4, hours=1)  # three runs were missed
    ran = runs_between(tmp_path, after, after + timedelta(minutes=30))
    assert ran == [after]


def test_a_clock_set_back_does_not_stop_the_schedule(tmp_path):
    clock = Clock(datetime(2026, 5, 10, 3, 0, tzinfo=UTC), datetime(2026, 5, 10, 3, 10, tzinfo=UTC))
    ran = []
    schedule = ScheduleSettings(backup="0 2 * * *")
    loop.run(schedule, tmp_path, lambda: ran.append(1), stop=clock, now=lambda: clock.now)
    back = datetime(2026, 5, 2, 0, 0, tzinfo=UTC)
    ran = runs_between(tmp_path, back, back + timedelta(days=1))
    assert len(ran) == 1


def test_a_wrong_expression_is_named():
    for expression, zone in (("61 * * * *", "UTC"), ("0 2 * * *", "Europe/Nowhere"), ("", "UTC")):
        with pytest.raises(errors.ConfigurationError, match=r"schedule\.backup"):
            loop.next_due(ScheduleSettings(backup=expression, timezone=zone), loop.utc_now())


def test_told_to_stop(tmp_path):
    stop = threading.Event()
    stop.set()
    loop.run(ScheduleSettings(), tmp_path, lambda: pytest.fail("it was told to stop"), stop=stop)
