"""When there is an alarm, and when it is over: one state machine, pure.

``step`` takes the rules, what is known of earlier alarms, measurements and the time; it returns what is known now and
what is to be said. An alarm is one episode of one rule on one subject: told when it begins, told again while it lasts,
told when it is over. Between the value that raises it and the value that ends it nothing changes, so it does not flap.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Final, Literal

import msgspec
from msgspec.structs import replace

from cosmos_coherence.model import Measurement

GONE_S: Final = 7 * 86400.0
"""An alarm whose subject has not been measured for so long is over: the subject is gone."""
_LONGEST_DETAIL: Final = 600

Kind = Literal["raised", "still", "resolved"]


class Rule(msgspec.Struct, frozen=True):
    """What is an alarm. ``bad`` and ``good`` are sentences with ``{what}``, ``{percent}``, ``{number}``, ``{age}``."""

    name: str
    subjects: tuple[str, ...]
    """Beginnings of the subjects it is about."""
    measure: str
    """Which number of theirs."""
    raise_at: float
    clear_at: float
    bad: str
    remedy: str
    """What to do, with the command to type."""
    good: str
    below: bool = False
    """Bad is at ``raise_at`` or below, and well is above ``clear_at``; else at or above, and below."""
    raise_after: float = 0.0
    """Seconds it must have been bad."""
    clear_after: float = 0.0
    """Seconds it must have been well."""
    besides: tuple[str, ...] = ()
    """Beginnings of subjects that other rules look after."""

    def covers(self, measurement: Measurement) -> bool:
        """Whether it is about that measurement."""
        return (
            measurement.name == self.measure
            and measurement.subject.startswith(self.subjects)
            and not (self.besides and measurement.subject.startswith(self.besides))
            and math.isfinite(measurement.value)
        )

    def is_bad(self, value: float) -> bool:
        """Whether the value raises it."""
        return value <= self.raise_at if self.below else value >= self.raise_at

    def is_good(self, value: float) -> bool:
        """Whether the value ends it."""
        return not self.is_bad(value) and (value > self.clear_at if self.below else value < self.clear_at)


class Episode(msgspec.Struct, frozen=True):
    """One rule that one subject does not keep. Times are seconds since the epoch."""

    rule: str
    subject: str
    since: float
    """The first measurement that was bad."""
    seen: float
    """The newest measurement that was looked at."""
    value: float
    """What it said."""
    detail: str = ""
    raised: float | None = None
    """When it was told; None while it has not lasted for long enough."""
    told: float = 0.0
    """When it was last told."""
    good_since: float | None = None


class State(msgspec.Struct, frozen=True):
    """What is known of alarms between two steps."""

    episodes: tuple[Episode, ...] = ()

    @property
    def raised(self) -> tuple[Episode, ...]:
        """The alarms that have been told and are not over, oldest first."""
        return tuple(sorted((e for e in self.episodes if e.raised is not None), key=lambda e: (e.since, e.subject)))


class Message(msgspec.Struct, frozen=True):
    """What is to be said of one alarm."""

    kind: Kind
    rule: str
    subject: str
    title: str
    """One sentence."""
    body: str
    """Since when, why as far as known, and what to do."""


def step(
    rules: Iterable[Rule],
    state: State,
    measurements: Iterable[Measurement],
    now: float,
    *,
    repeat: float = 86400.0,
    details: Mapping[str, str] | None = None,
) -> tuple[State, tuple[Message, ...]]:
    """What is known afterwards, and what is to be said. An alarm that lasts is said again after ``repeat`` seconds.

    What was not measured changes nothing, unless for seven days; what was looked at before is passed over. An alarm is
    said again only while it was measured within ``repeat``. ``details``
    are words by subject that go with a message.
    """
    known = {(e.rule, e.subject): e for e in state.episodes}
    found = list(measurements)
    episodes: list[Episode] = []
    messages: list[Message] = []
    for rule in rules:
        newest: dict[str, Measurement] = {}
        for each in sorted(filter(rule.covers, found), key=lambda m: m.taken):
            newest[each.subject] = each
        subjects = {subject for name, subject in known if name == rule.name} | set(newest)
        for subject in sorted(subjects):
            before = known.get((rule.name, subject))
            detail = (details or {}).get(subject, "")[:_LONGEST_DETAIL]
            after, message = _judge(rule, before, newest.get(subject), now, repeat, detail)
            episodes += [after] if after else []
            messages += [message] if message else []
    return State(tuple(episodes)), tuple(messages)


def _judge(
    rule: Rule, before: Episode | None, measured: Measurement | None, now: float, repeat: float, detail: str
) -> tuple[Episode | None, Message | None]:
    if measured is None or (before and measured.taken <= before.seen <= now):
        if before and now - before.seen > GONE_S:
            return None, _gone(rule, before, now) if before.raised is not None else None
        if before and before.raised is not None and before.good_since is None and now - before.seen < repeat:
            return _again(rule, before, now, repeat)
        return before, None
    if before is None:
        if not rule.is_bad(measured.value):
            return None, None
        before = Episode(rule.name, measured.subject, measured.taken, measured.taken, measured.value)
    good = rule.is_good(measured.value)
    good_since = (before.good_since or measured.taken) if good else None
    # a clock that was set back must neither hide a measurement nor the time that has passed
    after = replace(
        before, seen=measured.taken, value=measured.value, detail=detail or ("" if good else before.detail),
        since=min(before.since, measured.taken), good_since=good_since and min(good_since, measured.taken),
    )  # fmt: skip
    if after.raised is None:
        return _before_it_is_told(rule, after, good=good, now=now)
    if after.good_since is not None:
        over = measured.taken - after.good_since >= rule.clear_after
        return (None, _message("resolved", rule, after, now)) if over else (after, None)
    return _again(rule, after, now, repeat)


def _again(rule: Rule, episode: Episode, now: float, repeat: float) -> tuple[Episode, Message | None]:
    if now - repeat < episode.told <= now + repeat:
        return episode, None
    episode = replace(episode, told=now)
    return episode, _message("still", rule, episode, now)


def _before_it_is_told(rule: Rule, after: Episode, *, good: bool, now: float) -> tuple[Episode | None, Message | None]:
    if good:
        return None, None
    if not rule.is_bad(after.value) or after.seen - after.since < rule.raise_after:
        return after, None
    after = replace(after, raised=now, told=now)
    return after, _message("raised", rule, after, now)


def sentence(rule: Rule, episode: Episode) -> str:
    """What is wrong, in words."""
    return _filled(rule.bad, episode)


def _message(kind: Kind, rule: Rule, episode: Episode, now: float) -> Message:
    lasted = f"It lasted {duration(now - episode.since)}, since {moment(episode.since)}."
    if kind == "resolved":
        title, lines = f"over: {_filled(rule.good, episode)}", [lasted]
    else:
        lines = [f"Since {moment(episode.since)}."]
        if episode.detail:
            lines.append(episode.detail)
        lines.append(f"What to do: {rule.remedy}")
        title = f"{'still ' if kind == 'still' else ''}alarm: {_filled(rule.bad, episode)}"
    return Message(kind, rule.name, episode.subject, title, "\n".join(lines))


def _gone(rule: Rule, episode: Episode, now: float) -> Message:
    what = _what(episode.subject)
    body = f"It began {moment(episode.since)}, and was last seen {duration(now - episode.seen)} ago."
    return Message("resolved", rule.name, episode.subject, f"over: {what} is not measured any more", body)


def _filled(sentence: str, episode: Episode) -> str:
    value = episode.value
    return sentence.format(
        what=_what(episode.subject), percent=f"{value:.0%}", number=f"{value:.3g}", age=duration(max(0.0, value))
    )


def _what(subject: str) -> str:
    return subject.partition(":")[2] or subject


def duration(seconds: float) -> str:
    """For people: ``5 min``, ``26 h``, ``9 days``."""
    if seconds < 2 * 3600:
        return f"{max(0, round(seconds / 60))} min"
    return f"{seconds / 3600:.0f} h" if seconds < 72 * 3600 else f"{seconds / 86400:.0f} days"


def moment(seconds: float) -> str:
    """For people: ``2026-01-31 03:12 UTC``."""
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M} UTC"
