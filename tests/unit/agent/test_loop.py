"""The loop against a clock that goes when the loop waits: what runs when, whatever becomes of clock, jobs and agent."""

import itertools
import threading
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import msgspec
import pytest

from cosmos_coherence import errors
from cosmos_coherence.agent import loop
from cosmos_coherence.drivers import owner as owners
from cosmos_coherence.flow import schedule
from cosmos_coherence.flow.schedule import Rhythm
from cosmos_coherence.history import ledger as ledgers
from cosmos_coherence.history.ledger import Ledger

MINUTE, HOUR, DAY = timedelta(minutes=1), timedelta(hours=1), timedelta(days=1)
START = datetime(2026, 5, 1, tzinfo=UTC)
OURS = owners.ourselves()


class Clock:
    """Time that passes only when the loop waits, up to an end at which it is told to stop; it may jump on the way."""

    def __init__(self, start, end, jumps=()):
        self.now, self.end, self.stopped, self.jumps = start, end, False, list(jumps)

    def is_set(self):
        return self.stopped

    def wait(self, seconds):
        self.now += timedelta(seconds=max(seconds, 1))
        if self.jumps and self.now >= self.jumps[0][0]:
            _, by, self.end = self.jumps.pop(0)
            self.now += by
        self.stopped = self.now >= self.end


class World:
    """Jobs that take their time and end as they are told."""

    def __init__(self, state, monkeypatch):
        self.state, self.began, self.said, self.clock = state, [], [], None
        self.takes, self.ends, self._pids = {}, {}, itertools.count(4_000_000)
        self._monkeypatch = monkeypatch
        self.alive = set()
        monkeypatch.setattr(loop, "LONGEST_SLEEP_S", 600.0)
        monkeypatch.setattr(loop, "POLL_S", 5.0)
        monkeypatch.setattr(owners, "lives", lambda owner: owner.pid in self.alive)

    def run(self, start, end, jumps=(), together=(), **rhythms):
        self.clock, begun = Clock(start, end, jumps), len(self.began)
        rhythms = [r if isinstance(r, Rhythm) else Rhythm(n, r, ZoneInfo("UTC")) for n, r in rhythms.items()]
        self._rhythms = {r.name: r for r in rhythms}
        self.ledger = Ledger(self.state)
        agent = loop.Agent(
            rhythms, self.ledger, self.start, together=frozenset(together), tell=self.said.append,
            now=lambda: self.clock.now,
        )  # fmt: skip
        agent.run(self.clock)
        return self.began[begun:]

    def start(self, name):
        self.began.append((name, self.clock.now))
        return Job(self, name, next(self._pids))


class Job:
    """What carries a job out, in the tests' time."""

    def __init__(self, world, name, pid):
        self.world, self.name, self.pid, self.over = world, name, pid, None
        now, rhythm = world.clock.now, world._rhythms[name]
        self.until = now + world.takes.get(name, timedelta())
        known = world.ledger.states()[name]
        attempt = schedule.due(rhythm, known, now).attempt
        world.alive.add(pid)
        with world._monkeypatch.context() as patched:
            patched.setattr(ledgers, "_ourselves", lambda: msgspec.structs.replace(OURS, pid=pid))
            world.ledger.begin(name, now, since=rhythm.covered(now), attempt=attempt)

    def status(self):
        if self.over is None and self.world.clock.now >= self.until:
            self.end(*self.world.ends.get(self.name, [("done", False)])[:1][0])
        return self.over

    def end(self, outcome, retryable):
        if ends := self.world.ends.get(self.name):
            ends.pop(0) if len(ends) > 1 else None
        self.world.alive.discard(self.pid)
        self.over = 137 if outcome == "killed" else 0
        if outcome != "killed":
            self.world.ledger.end(self.name, self.world.clock.now, outcome, retryable=retryable)

    def send(self, _number):
        if self.over is None:
            self.end("interrupted", False)


@pytest.fixture
def world(tmp_path, monkeypatch):
    return World(tmp_path, monkeypatch)


def times(ran, name="backup"):
    return [f"{when:%d %H:%M}" for job, when in ran if job == name]


def test_runs_once_a_day(world):
    assert times(world.run(START, START + 3 * DAY, backup="0 2 * * *")) == ["01 02:00", "02 02:00", "03 02:00"]


@pytest.mark.parametrize(("day", "runs"), [(datetime(2026, 3, 28, 12, tzinfo=UTC), "29 01:00"),
                                           (datetime(2026, 10, 24, 12, tzinfo=UTC), "25 00:30")])  # fmt: skip
def test_once_on_the_days_that_lack_the_hour_or_have_it_twice(world, day, runs):
    rhythm = Rhythm("backup", "30 2 * * *", ZoneInfo("Europe/Berlin"))
    assert times(world.run(day, day + DAY, backup=rhythm)) == [runs]


def test_missed_runs_are_made_up_for_once_after_a_restart(world):
    assert len(world.run(START, START + 3 * HOUR, backup="0 2 * * *")) == 1
    later = START + 4 * DAY + HOUR  # three were missed
    assert times(world.run(later, later + 2 * HOUR, backup="0 2 * * *")) == ["05 01:00", "05 02:00"]


def test_downtime_before_the_first_run_counts_too(world):
    assert world.run(START, START + HOUR, backup="0 2 * * *") == []
    later = START + 3 * HOUR
    assert times(world.run(later, later + HOUR, backup="0 2 * * *")) == ["01 03:00"]


def test_a_clock_that_jumps_forwards_is_like_downtime(world):
    jump = (START + HOUR, 50 * HOUR, START + 53 * HOUR)
    assert times(world.run(START, START + DAY, [jump], backup="0 2 * * *")) == ["03 03:00"]
    assert times(world.run(world.clock.now, START + 75 * HOUR, backup="0 2 * * *")) == ["04 02:00"]


def test_a_clock_set_back_a_little_repeats_nothing(world):
    jump = (START + 2 * HOUR + 10 * MINUTE, -50 * MINUTE, START + DAY)
    ran = world.run(START, START + DAY, [jump], backup="0 2 * * *", measure="*/15 * * * *")
    assert times(ran) == ["01 02:00"]
    measured = [t for t in times(ran, "measure") if t <= "01 04:00"]
    assert measured == sorted(set(measured)), "nothing in the hour that came twice is done twice"


@pytest.mark.parametrize("back", [5 * HOUR, 30 * DAY, 3000 * DAY])
def test_a_clock_set_back_far_stops_nothing(world, back):
    end = START + 3 * HOUR - back + DAY
    ran = world.run(START, START + DAY, [(START + 3 * HOUR, -back, end)], backup="0 2 * * *", measure="*/15 * * * *")
    assert len(times(ran)) == 2, "once before and once in the day that followed"
    assert len(times(ran, "measure")) >= 4 * 3 + 4 * 24 - 2


def test_an_agent_that_begins_with_a_ledger_of_the_future(world):
    world.run(START + 4000 * DAY, START + 4001 * DAY, backup="0 2 * * *")
    assert times(world.run(START, START + DAY, backup="0 2 * * *")) == ["01 02:00"]


def test_what_still_runs_is_passed_over_and_said(world):
    world.takes["backup"] = 150 * MINUTE
    ran = world.run(START, START + 6 * HOUR, backup="0 * * * *")
    assert times(ran) == ["01 01:00", "01 04:00"]
    assert [s for s in world.said if "passed over" in s] == [
        f"backup was due at 2026-05-01 0{hour}:00:00 UTC while it still runs: passed over" for hour in (2, 3, 5)
    ]


def test_others_wait_the_backup_goes_first_and_measurements_go_on(world):
    world.takes.update(backup=40 * MINUTE, check=10 * MINUTE)
    ran = world.run(START, START + 3 * HOUR, together=["measure"], backup="0 1 * * *", check="0 1 * * *",
                    measure="*/15 * * * *")  # fmt: skip
    assert times(ran) == ["01 01:00"]
    assert times(ran, "check") == ["01 01:40"]
    assert len(times(ran, "measure")) == 11


def test_what_may_help_to_try_again_is_tried_less_and_less_often(world):
    world.ends["backup"] = [("failed", True)]
    ran = times(world.run(START, START + 27 * HOUR, backup="0 2 * * *"))
    assert ran == ["01 02:00", "01 02:05", "01 02:15", "01 02:35", "01 03:15", "02 02:00", "02 02:05", "02 02:15",
                   "02 02:35"]  # fmt: skip


def test_a_try_ends_when_it_is_done_and_never_outlasts_the_period(world):
    world.ends["backup"] = [("failed", True), ("done", False)]
    assert times(world.run(START, START + DAY, backup="0 2 * * *")) == ["01 02:00", "01 02:05"]
    world.ends["measure"] = [("failed", True)]
    assert len(times(world.run(START, START + HOUR, measure="*/4 * * * *"), "measure")) == 14


def test_what_cannot_be_helped_is_not_tried_again(world):
    world.ends["backup"] = [("failed", False)]
    assert times(world.run(START, START + DAY, backup="0 2 * * *")) == ["01 02:00"]


def test_a_run_that_the_agent_had_to_interrupt_is_made_up_for_once(world):
    world.takes["backup"] = 2 * HOUR
    assert times(world.run(START, START + 3 * HOUR, backup="0 2 * * *")) == ["01 02:00"]
    assert world.ledger.states()["backup"].outcome == "interrupted"
    world.takes["backup"] = MINUTE
    later = START + 4 * HOUR
    assert times(world.run(later, later + 20 * HOUR, backup="0 2 * * *")) == ["01 04:00"]


def test_a_run_that_was_killed_with_the_agent_is_said_and_made_up_for_once(world, monkeypatch):
    world.takes["backup"] = 2 * HOUR
    monkeypatch.setattr(Job, "send", lambda _self, _number: None)
    monkeypatch.setattr(loop, "GRACE_S", 0.0)
    world.run(START, START + 3 * HOUR, backup="0 2 * * *")
    world.alive.clear()
    world.takes["backup"] = MINUTE
    later = START + 4 * HOUR
    assert times(world.run(later, later + 20 * HOUR, backup="0 2 * * *")) == ["01 04:00"]
    assert any("backup of 2026-05-01 02:00:00+00:00 was cut off" in said for said in world.said)


def test_a_job_that_kills_its_process_each_time_does_not_run_all_day(world):
    world.ends["backup"] = [("killed", False)]
    ran = times(world.run(START, START + DAY, backup="0 2 * * *"))
    assert ran == ["01 02:00", "01 02:00", "01 02:05", "01 02:15", "01 02:35"]


def test_a_run_of_somebody_else_counts(world):
    world.run(START, START + HOUR, backup="0 2 * * *")
    world.alive.add(OURS.pid)
    world.ledger.begin("backup", START + 110 * MINUTE, since=START + 110 * MINUTE)
    assert times(world.run(START + 2 * HOUR, START + 5 * HOUR, backup="0 2 * * *", check="0 3 * * *")) == []
    world.ledger.end("backup", START + 5 * HOUR, "done")
    ran = world.run(START + 5 * HOUR, START + 6 * HOUR, backup="0 2 * * *", check="0 3 * * *")
    assert times(ran, "check") == ["01 05:00"], "it waited"
    assert times(ran) == []


def test_jitter_shifts_every_run_by_the_same_and_a_changed_one_doubles_none(world):
    late = Rhythm("backup", "0 2 * * *", ZoneInfo("UTC"), 5 * MINUTE)
    assert times(world.run(START, START + 2 * DAY, backup=late)) == ["01 02:05", "02 02:05"]
    later = Rhythm("backup", "0 2 * * *", ZoneInfo("UTC"), 40 * MINUTE)
    begin = START + DAY + 125 * MINUTE
    assert times(world.run(begin, START + 3 * DAY, backup=later)) == ["03 02:40"]


def test_a_ledger_that_cannot_be_written_is_said_once_and_nothing_runs_over_and_over(world, monkeypatch):
    def full(*_arguments, **_named):
        raise errors.NoRoom("there is no room")

    for call in ("seen", "states", "begin", "end", "pass_over"):
        monkeypatch.setattr(Ledger, call, full)
    monkeypatch.setattr(World, "start", lambda self, name: self.began.append((name, self.clock.now)) or Ended())
    assert times(world.run(START, START + 2 * DAY, backup="0 2 * * *")) == ["01 02:00", "02 02:00"]
    assert world.said.count("error: there is no room") == 1


class Ended:
    pid = 1

    def status(self):
        return 1

    def send(self, number):
        pass


def test_a_job_that_cannot_begin_is_noted_and_not_started_over_and_over(world, monkeypatch):
    monkeypatch.setattr(World, "start", lambda self, name: self.began.append((name, self.clock.now)) or Ended())
    assert times(world.run(START, START + DAY, backup="0 2 * * *")) == ["01 02:00"]
    state = world.ledger.states()["backup"]
    assert (state.outcome, state.said) == ("failed", "ended with status 1 before it began")


def test_told_to_stop(tmp_path):
    stop = threading.Event()
    stop.set()
    loop.Agent([Rhythm("backup", "* * * * *", ZoneInfo("UTC"))], Ledger(tmp_path), pytest.fail).run(stop)
