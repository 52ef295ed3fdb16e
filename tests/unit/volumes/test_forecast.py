"""The range of a forecast holds about as often as it says, whatever the growth looks like."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cosmos_coherence.volumes.forecast import CONFIDENCE, DAY_S, Range, foresee

G = 1e9
DAYS = 30
RUNS = 60


def growth(kind: str, chance: random.Random) -> Iterator[float]:
    """What a volume holds, hour by hour, without end."""
    a_day, noise = chance.uniform(0.5, 3) * G, chance.uniform(0.2, 2) * G
    swing, phase = chance.uniform(1, 5) * G, chance.uniform(0, 7)
    step_day, step = chance.uniform(3, DAYS - 3), chance.uniform(2, 10) * G
    drifted, hour = 0.0, 0
    while True:
        day = hour / 24
        match kind:
            case "linear":
                yield 50 * G + a_day * day
            case "noise":
                yield 50 * G + a_day * day + chance.gauss(0, noise)
            case "weekly saw-tooth":
                yield 50 * G + a_day * day + swing * ((day + phase) % 7) / 7
            case "random walk":
                drifted += chance.gauss(0, noise / math.sqrt(24))
                yield 50 * G + a_day * day + drifted
            case "a batch a day":
                drifted += max(0.0, chance.gauss(a_day, a_day)) if hour % 24 == 0 else 0.0
                yield 50 * G + drifted
            case "step":
                yield 50 * G + a_day * day + step * (day > step_day) + chance.gauss(0, noise / 4)
            case "shrinking":
                yield 90 * G - a_day / 3 * day + chance.gauss(0, noise / 4)
            case "constant":
                yield 50 * G + chance.gauss(0, noise / 4)
        hour += 1


def one(kind: str, chance: random.Random) -> tuple[Range, float | None]:
    """The forecast after thirty days, and the day on which it really is full, None for not within a year."""
    hours = growth(kind, chance)
    series = [(hour * 3600.0, next(hours)) for hour in range(DAYS * 24)]
    room = chance.uniform(3, 40) * G
    found = foresee(series, room)
    assert found.full is not None
    really = next((hour / 24 for hour in range(1, 24 * 365) if next(hours) >= series[-1][1] + room), None)
    return found.full, really


def holds(full: Range, really: float | None) -> bool:
    if really is None:
        return full.high is None
    tick = 1 / 24
    return full.low is not None and full.low - tick <= really and (full.high is None or really <= full.high + tick)


@pytest.mark.parametrize(
    "kind", ["linear", "noise", "weekly saw-tooth", "random walk", "a batch a day", "step", "shrinking", "constant"]
)
def test_the_range_holds_as_often_as_it_says(kind: str) -> None:
    chance = random.Random(kind)
    results = [one(kind, chance) for _ in range(RUNS)]
    hits = sum(holds(full, really) for full, really in results) / RUNS
    slack = 2 * math.sqrt(CONFIDENCE * (1 - CONFIDENCE) / RUNS)  # what chance does to so few runs
    assert hits >= CONFIDENCE - slack
    widths = [(f.high - f.low) / r for f, r in results if r and f.high is not None and f.low is not None]
    if widths:
        assert sorted(widths)[len(widths) // 2] < 1.8, "a range that says nothing always holds"


def test_the_range_is_narrow_where_the_past_is_plain() -> None:
    series = [(day * DAY_S, 10 * G + day * G) for day in range(30)]
    found = foresee(series, 20 * G)
    assert found.growth is not None
    assert found.full is not None
    assert found.growth.value == pytest.approx(G)
    for each in (found.full.value, found.full.low, found.full.high):
        assert each == pytest.approx(20, abs=0.1)


def test_odd_measurements_do_not_bend_the_line() -> None:
    series = [(day * DAY_S, 10 * G + day * G + (80 * G if day in (7, 19) else 0)) for day in range(30)]
    found = foresee(series, 20 * G)
    assert found.growth is not None
    assert found.growth.value == pytest.approx(G, rel=0.05)


def test_what_does_not_grow_is_not_full_in_sight() -> None:
    still = foresee([(day * DAY_S, 10 * G) for day in range(30)], 5 * G)
    assert still.growth == Range(0.0, 0.0, 0.0)
    assert still.full == Range(None, None, None)


def test_what_is_full_is_full() -> None:
    full = foresee([(day * DAY_S, day * G) for day in range(30)], 0)
    assert full.full == Range(0.0, 0.0, 0.0)


@pytest.mark.parametrize(
    ("series", "said"),
    [
        ([], "never measured"),
        ([(0.0, 1.0)], "1 measurements"),
        ([(hour * 3600.0, 1.0 * hour) for hour in range(12)], "0.5 days"),
        ([(day * DAY_S, 1.0 * day) for day in range(5)], "5 measurements"),
    ],
)
def test_too_little_is_said(series: list[tuple[float, float]], said: str) -> None:
    found = foresee(series, G)
    assert said in found.unknown
    assert (found.growth, found.full) == (None, None)


@given(
    st.lists(st.tuples(st.floats(0, 1e4), st.floats(0, 1e15)), max_size=60),
    st.one_of(st.none(), st.floats(-1e12, 1e15)),
)
@settings(max_examples=150, deadline=None)
def test_whatever_was_measured_a_range_is_in_order(found: list[tuple[float, float]], room: float | None) -> None:
    series = sorted({round(day, 3) * DAY_S: bytes_ for day, bytes_ in found}.items())
    told = foresee(series, room)
    if told.growth is not None:
        assert told.growth.low is not None
        assert told.growth.value is not None
        assert told.growth.high is not None
        assert told.growth.low <= told.growth.value <= told.growth.high
    if told.full is not None:
        low, value, high = (
            math.inf if each is None else each for each in (told.full.low, told.full.value, told.full.high)
        )
        assert low <= value <= high
    assert bool(told.unknown) == (told.growth is None)
