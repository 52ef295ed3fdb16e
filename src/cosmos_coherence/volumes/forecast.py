"""When a disk will be full, with a range that holds.

Growth is the Theil-Sen slope: the median of the slopes between all pairs of measurements, which a few odd ones (a
clean-up, a large upload) do not bend (P. K. Sen, "Estimates of the regression coefficient based on Kendall's tau",
J. Am. Stat. Assoc. 63, 1968). Its range is Sen's: the slopes at the ranks that Kendall's variance gives. That variance
holds for errors that do not depend on each other; a disk's do (what was written yesterday is still there today), so it
is widened by the correlation that the residuals show (as in K. H. Hamed and A. R. Rao, "A modified Mann-Kendall trend
test for autocorrelated data", J. Hydrology 204, 1998). What the residuals drift apart as time goes on, as a random walk
does, is taken from their differences at growing distances; it widens both the slope's range, by 6/5 of its variance by
the time measured (the variance of a line through a random walk), and the level's, by its variance in the time ahead.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from statistics import median
from typing import Final

import msgspec

DAY_S: Final = 86400.0
CONFIDENCE: Final = 0.9
FEWEST: Final = 8
SHORTEST_DAYS: Final = 2.0
"""Less than that many measurements, or days, tell nothing."""

_Z: Final = 1.645  # of a normal distribution, 5 % lie above it
_TAKEN_OUT: Final = 1.5
"""The line itself follows what drifts: of a random walk about a third is not in the residuals any more."""
_POINTS: Final = 64
_FAR_DAYS: Final = 36500.0


class Range(msgspec.Struct, frozen=True):
    """A value, and between what it lies in nine of ten cases. None: not within a hundred years."""

    value: float | None
    low: float | None
    high: float | None


class Forecast(msgspec.Struct, frozen=True):
    """What a series tells of the time to come."""

    measurements: int
    days: float
    """From the first measurement to the last."""
    growth: Range | None = None
    """Bytes per day; None when the series tells too little."""
    full: Range | None = None
    """Days until full, from the last measurement on; None when that is not known either."""
    unknown: str = ""
    """Why there is no forecast, for people."""


def foresee(series: Sequence[tuple[float, float]], room: float | None) -> Forecast:
    """The forecast for measurements (seconds, bytes), oldest first, of something that has ``room`` bytes left at the
    last of them; without ``room``, growth only."""
    if not series:
        return Forecast(0, 0.0, unknown="it was never measured before")
    days = (series[-1][0] - series[0][0]) / DAY_S
    if len(series) < FEWEST or days < SHORTEST_DAYS:
        short = f"{len(series)} measurements in {days:.1f} days are too few: {FEWEST} in {SHORTEST_DAYS:g} days tell"
        return Forecast(len(series), days, unknown=f"{short} something")
    line = _fit(_thinned(series))
    growth = Range(line.slope, line.low, line.high)
    if room is None:
        return Forecast(len(series), days, growth)
    if room <= 0:
        return Forecast(len(series), days, growth, Range(0.0, 0.0, 0.0))
    residuals = sorted(bytes_ - line.at((taken - series[-1][0]) / DAY_S) for taken, bytes_ in series)
    upper, lower = residuals[int(0.99 * (len(residuals) - 1))], residuals[int(0.05 * (len(residuals) - 1))]
    last = series[-1][1]
    level = line.at(0.0)

    def spread(ahead: float, slope: float, noise: float) -> float:
        return math.sqrt((ahead * (slope - line.slope)) ** 2 + noise**2 + _Z**2 * line.drift * ahead)

    full = last + room
    value = _crossing(lambda ahead: level + line.slope * ahead, full)
    low = _crossing(lambda ahead: level + line.slope * ahead + spread(ahead, line.high, max(upper, 0.0)), full)
    high = _crossing(lambda ahead: level + line.slope * ahead - spread(ahead, line.low, min(lower, 0.0)), full)
    return Forecast(len(series), days, growth, Range(value, low, high))


class _Line(msgspec.Struct, frozen=True):
    level: float
    """At the last measurement."""
    slope: float
    """Bytes per day."""
    low: float
    high: float
    drift: float
    """What the residuals' variance grows by in a day."""

    def at(self, day: float) -> float:
        return self.level + self.slope * day


def _fit(points: Sequence[tuple[float, float]]) -> _Line:
    """The line through points (days before the last measurement, bytes)."""
    count = len(points)
    slopes = sorted(
        (later[1] - earlier[1]) / (later[0] - earlier[0])
        for number, earlier in enumerate(points)
        for later in points[number + 1 :]
    )
    slope = median(slopes)
    level = median(bytes_ - slope * day for day, bytes_ in points)
    rest = [bytes_ - level - slope * day for day, bytes_ in points]
    power = sum(each * each for each in rest)
    together = sum(a * b for a, b in pairwise(rest)) / power if power else 0.0
    together = min(max(together, 0.0), 1 - 2 / count)
    wider = (1 + together) / (1 - together)
    half = _Z * math.sqrt(count * (count - 1) * (2 * count + 5) / 18 * wider) / 2
    middle = len(slopes) / 2
    low = slopes[max(0, int(middle - half))]
    high = slopes[min(len(slopes) - 1, math.ceil(middle + half))]
    days = points[-1][0] - points[0][0]
    lags = {max(2, count // part) for part in (12, 8, 6, 4, 3)}
    apart = _apart(rest, 1)
    found = median((_apart(rest, lag) - apart) / ((lag - 1) * days / (count - 1)) for lag in lags)
    drift = max(0.0, found) * _TAKEN_OUT
    unsure = _Z * math.sqrt(1.2 * drift / days)
    return _Line(level + together * rest[-1], slope, min(low, slope - unsure), max(high, slope + unsure), drift)


def _apart(rest: Sequence[float], lag: int) -> float:
    """The mean square of what residuals that lie ``lag`` apart differ by."""
    found = [(b - a) ** 2 for a, b in zip(rest, rest[lag:], strict=False)]
    return sum(found) / len(found)


def _thinned(series: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """At most ``_POINTS`` points, each the median of its stretch of time: (days before the last measurement, bytes)."""
    first, last = series[0][0], series[-1][0]
    stretches: dict[int, list[tuple[float, float]]] = {}
    for taken, bytes_ in series:
        number = min(_POINTS - 1, int((taken - first) / (last - first) * _POINTS))
        stretches.setdefault(number, []).append(((taken - last) / DAY_S, bytes_))
    return [
        (sum(day for day, _ in each) / len(each), median(bytes_ for _, bytes_ in each))
        for _, each in sorted(stretches.items())
    ]


def _crossing(level: Callable[[float], float], full: float) -> float | None:
    """The first day on which it is full; None when that is not within a hundred years."""
    if level(0.0) >= full:
        return 0.0
    ahead = 1 / 24
    while level(ahead) < full:
        ahead *= 1.25
        if ahead > _FAR_DAYS:
            return None
    below, above = ahead / 1.25, ahead
    for _ in range(30):
        middle = (below + above) / 2
        below, above = (below, middle) if level(middle) >= full else (middle, above)
    return above
