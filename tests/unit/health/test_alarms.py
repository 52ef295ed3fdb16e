"""The state machine of alarms: every rule of it, and thirty days of growth with gaps, restarts and clock jumps."""

from __future__ import annotations

import random
import re

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cosmos_coherence.health.alarms import Rule, State, step
from cosmos_coherence.health.rules import rules
from cosmos_coherence.model import Measurement
from cosmos_coherence.settings import AlarmSettings

NOW = 1_800_000_000.0
HOUR, DAY = 3600.0, 86400.0
FULL = Rule("full", ("disk:",), "used_ratio", 0.80, 0.75, "{what} is {percent} full", "run `x`", "{what} has room")
FILLING = Rule("filling", ("disk:",), "days", 7, 14, "{what}: {number} days", "run `x`", "{what} is fine", below=True)
SERVICE = Rule(
    "service", ("check:service ",), "ok", 0.0, 0.4, "{what} is not well", "run `x`", "{what} is well", below=True,
    raise_after=120, clear_after=120,
)  # fmt: skip


def play(rule: Rule, values, *, every: float = HOUR, subject: str = "disk:/", repeat: float = DAY) -> list[str]:
    """What is said while these are measured one after the other; ``None`` is a round in which it was not."""
    state, said = State(), []
    for n, value in enumerate(values):
        now = NOW + n * every
        measured = [] if value is None else [Measurement(now, subject, rule.measure, value)]
        state, messages = step([rule], state, measured, now, repeat=repeat)
        said += [message.kind for message in messages]
    return said


def test_raised_once_repeated_daily_and_resolved():
    assert play(FULL, [0.5, 0.8] + [0.9] * 49 + [0.74, 0.5]) == ["raised", "still", "still", "resolved"]


def test_between_the_two_values_nothing_flaps():
    assert play(FULL, [0.79, 0.81, 0.79, 0.81, 0.76, 0.8, 0.751]) == ["raised"]
    assert play(FULL, [0.79, 0.76, 0.79]) == []
    assert play(FILLING, [20, 7, 8, 6.9, 13, 14, 14.1, 13, 7]) == ["raised", "resolved", "raised"]


def test_a_service_must_be_unwell_for_a_while_and_well_for_a_while():
    def service(*values):
        return play(SERVICE, values, every=60, subject="check:service db")

    assert service(0, 1, 0, 1, 0, 0, 1) == []
    assert service(0, 0, 0) == ["raised"]
    assert service(0, 0, 0, 1, 0, 1, 1, 0.5) == ["raised", "resolved"]
    assert service(0, 0.2, 0, 0.2, 0) == ["raised"], "one that starts again and again is not well"


def test_what_is_not_measured_changes_nothing_until_it_is_gone():
    gap = [None] * 100
    assert play(FULL, [0.9, *gap, 0.9, *gap, 0.5]) == ["raised", "still", "resolved"]
    assert play(FULL, [0.9, *[None] * (7 * 24), None, None]) == ["raised", "resolved"]


def test_a_run_that_failed_once_a_day_is_told_once_a_day_though_runs_are_not_on_the_second():
    state, said = State(), []
    for minute in range(0, 4 * 24 * 60, 15):
        now = NOW + 60 * minute
        measured = [Measurement(now, "run:backup", "exit_status", 1)] if minute % (24 * 60 - 15) == 0 else []
        state, messages = step(rules(AlarmSettings()), state, measured, now)
        said += [(message.kind, minute // 60) for message in messages]
    assert said == [("raised", 0), ("still", 24), ("still", 48), ("still", 72)]


def test_no_sooner_than_the_settings_say():
    assert play(FULL, [0.9] * 100, every=HOUR, repeat=12 * HOUR) == ["raised"] + ["still"] * 8


@pytest.mark.parametrize("jump", [-400 * DAY, -2 * HOUR, 3 * HOUR])
def test_a_clock_that_jumps_hides_nothing_and_tells_nothing_twice(jump):
    state, said, now = State(), [], NOW
    for n, value in enumerate([0.9, 0.9, 0.9, 0.9, 0.5, 0.9]):
        now = now + HOUR + (jump if n == 2 else 0)
        state, messages = step([FULL], state, [Measurement(now, "disk:/", "used_ratio", value)], now)
        said += [message.kind for message in messages if message.kind != "still"]
    assert said == ["raised", "resolved", "raised"]


def test_the_same_measurement_again_changes_nothing():
    measured = [Measurement(NOW, "disk:/", "used_ratio", 0.9)]
    state, messages = step([FULL], State(), measured, NOW)
    assert len(messages) == 1
    assert step([FULL], state, measured, NOW + 9) == (state, ())
    older = [Measurement(NOW - 9, "disk:/", "used_ratio", 0.1)]
    assert step([FULL], state, older, NOW + 9) == (state, ())


def test_subjects_and_rules_are_apart():
    both = [Measurement(NOW, f"disk:/{n}", "used_ratio", 0.9) for n in range(3)]
    state, messages = step([FULL, FILLING], State(), both, NOW)
    assert [m.subject for m in messages] == ["disk:/0", "disk:/1", "disk:/2"]
    assert step([FILLING], state, (), NOW)[0] == State(), "a rule that is turned off has no alarms"


def test_a_number_that_is_none_is_no_alarm():
    for value in (float("nan"), float("inf"), float("-inf")):
        assert step([FULL, FILLING], State(), [Measurement(NOW, "disk:/", FULL.measure, value)], NOW) == (State(), ())


HOSTILE = st.text(max_size=30) | st.sampled_from(["{what}", "{0}", "%s", "{value.__class__}", "}{"])


@given(st.lists(st.tuples(st.sampled_from(rules(AlarmSettings(proof_age=DAY))), HOSTILE, st.floats(), HOSTILE)))
def test_names_are_hostile_and_words_are_not_built_from_them(found):
    measured = [Measurement(NOW, rule.subjects[0] + name, rule.measure, value) for rule, name, value, _ in found]
    details = {m.subject: words for m, (_, _, _, words) in zip(measured, found, strict=True)}
    state, _ = step(rules(AlarmSettings()), State(), measured, NOW, details=details)
    step(
        rules(AlarmSettings()), state, [Measurement(NOW + DAY, m.subject, m.name, m.value) for m in measured], NOW + DAY
    )


def test_every_alarm_says_what_to_type():
    for rule in rules(AlarmSettings(proof_age=DAY)):
        assert re.search(r"`(cosmos|docker) [a-z]", rule.remedy), rule.name
        value = rule.raise_at
        measured = [
            Measurement(NOW + n * rule.raise_after, rule.subjects[0], rule.measure, value) for n in range(2)
        ]  # fmt: skip
        state, first = step([rule], State(), measured[:1], measured[0].taken)
        _, second = step([rule], state, measured[1:], measured[1].taken)
        (message,) = (*first, *second)
        assert "{" not in message.title + message.body
        assert message.title.startswith("alarm: ")
        assert "What to do:" in message.body


def test_the_proof_is_asked_for_only_when_wanted():
    assert "proof-overdue" not in [rule.name for rule in rules(AlarmSettings())]
    assert "proof-overdue" in [rule.name for rule in rules(AlarmSettings(proof_age=DAY))]


# --------------------------------------------------------------------------------------------- thirty days of growth
def foretold(series: list[tuple[float, float]], free: float) -> float:
    """Days until full by least squares over the last three days."""
    points = [(at, used) for at, used in series if at >= series[-1][0] - 3 * DAY]
    middle, mean = (sum(axis) / len(points) for axis in zip(*points, strict=True))
    spread = sum((at - middle) ** 2 for at, _ in points)
    slope = sum((at - middle) * (used - mean) for at, used in points) / spread if spread else 0.0
    return min(3650.0, free / slope / DAY) if slope > 0 else 3650.0


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.floats(0.035, 0.06), st.floats(0.0, 0.9), st.floats(0.0, 0.3))
def test_thirty_days_of_growth_have_one_alarm_for_each_episode_and_it_comes_before_the_disk_is_full(
    seed, growth, gaps, restarts
):
    """A disk grows, is cleaned at 95 %, and grows again until the month is over: each growth is one episode of each
    rule, whatever rounds of measuring are missed and however often the agent begins anew from what it kept."""
    chance = random.Random(seed)
    both = rules(AlarmSettings())
    size, used, state = 100e9, 30e9, State()
    series: list[tuple[float, float]] = []
    said: list[tuple[float, str, str]] = []
    crossed: list[tuple[float, float]] = []  # when it became 80 % full, when it was cleaned
    above: float | None = None
    for hour in range(30 * 24):
        now = NOW + hour * HOUR
        used += size * growth / 24 * chance.uniform(0.5, 1.5)
        if used >= 0.80 * size and above is None:
            above = now
        if used >= 0.95 * size:
            crossed.append((above or now, now))
            used, above, series = 30e9, None, []
        if chance.random() < gaps and hour % 12:
            continue  # not measured; twice a day it always is
        series.append((now, used))
        measured = [
            Measurement(now, "disk:/", "used_ratio", used / size),
            Measurement(now, "disk:/", "days_until_full", foretold(series, size - used)),
        ]
        if chance.random() < restarts:  # what a new agent finds is what the old one wrote
            state = msgspec.json.decode(msgspec.json.encode(state), type=State)
        state, messages = step(both, state, measured, now)
        said += [(now, m.rule, m.kind) for m in messages]
    for rule in ("disk-full", "disk-filling"):
        kinds = [kind for _, name, kind in said if name == rule and kind != "still"]
        assert kinds == (["raised", "resolved"] * len(kinds))[: len(kinds)]
    raised = [at for at, rule, kind in said if (rule, kind) == ("disk-full", "raised")]
    assert len(raised) == len(crossed) + (above is not None and any(at >= above for at in raised))
    warned = [at for at, rule, kind in said if (rule, kind) == ("disk-filling", "raised")]
    for number, (full, cleaned) in enumerate(crossed):
        assert full <= raised[number] <= full + 12 * HOUR, "told within the longest gap"
        assert warned[number] < cleaned
        assert warned[number] <= full, "told that it fills up before it was 80 % full"
    for rule in ("disk-full", "disk-filling"):
        told: float | None = None
        for at, name, kind in said:
            if name == rule:
                assert kind != "still" or (told is not None and at - told >= DAY)
                told = None if kind == "resolved" else at
