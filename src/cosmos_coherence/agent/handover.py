"""The schedule written down for systemd or cron, on hosts where no agent is wanted. Only text is made here."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Final

from cronsim import CronSim

from cosmos_coherence import errors
from cosmos_coherence.flow.schedule import Rhythm

_DAYS: Final = ("Sun", "Mon", "Tue", "Wed", "Thu", "Fri", "Sat")


def units(rhythms: Sequence[Rhythm], *, project: str, command: Sequence[str], jitter_s: int) -> dict[str, str]:
    """Name -> text of a service and a timer for each job; ``command`` runs the job whose name is put behind it.

    systemd makes up for a missed run once, and its delay is the same every time. ``Unsupported`` for an expression that
    it cannot say.
    """
    found: dict[str, str] = {}
    for rhythm in rhythms:
        name = f"{prefix(project)}{rhythm.name}"
        times = "\n".join(f"OnCalendar={time} {rhythm.zone.key}" for time in calendar(rhythm))
        found[f"{name}.service"] = (
            f"[Unit]\nDescription=cosmos: {rhythm.name} of {_unit_text(project)}\n"
            "Wants=network-online.target\nAfter=network-online.target docker.service\n\n"
            f"[Service]\nType=oneshot\nExecStart={_exec([*command, rhythm.name])}\n"
            "TimeoutStopSec=120\n"
        )
        found[f"{name}.timer"] = (
            f"[Unit]\nDescription=cosmos: when {rhythm.name} of {_unit_text(project)} is due\n\n"
            f"[Timer]\n{times}\nPersistent=true\nAccuracySec=1s\nRandomizedDelaySec={jitter_s}\n"
            "FixedRandomDelay=true\n\n[Install]\nWantedBy=timers.target\n"
        )
    return found


def prefix(project: str) -> str:
    """How the names of a project's units begin."""
    return f"cosmos-{re.sub(r'[^A-Za-z0-9_.-]', '_', project)}-"


def calendar(rhythm: Rhythm) -> tuple[str, ...]:
    """The expression as systemd's calendar times without zone; two where either the day or the weekday may match."""
    fields = CronSim(rhythm.expression, datetime.now(UTC))
    days, weekdays = fields.days, fields.weekdays
    if any(day < 1 for day in days) or any(not isinstance(day, int) for day in weekdays):
        raise errors.Unsupported(
            f"schedule.{rhythm.name}: systemd has no word for L or # in {rhythm.expression!r}",
            remedy="Name the days, or let `cosmos serve agent` run it.",
        )
    week = {day % 7 for day in weekdays if isinstance(day, int)}
    every_day, every_weekday = len(days) == 31, len(week) == 7
    date = f"*-{_list(fields.months, 12)}-"
    time = f"{_list(fields.hours, 24)}:{_list(fields.minutes, 60)}:00"
    on = "" if every_weekday else f"{','.join(name for day, name in enumerate(_DAYS) if day in week)} "
    if fields.day_and or every_day or every_weekday:
        return (f"{on}{date}{_list(days, 31)} {time}",)
    return (f"{date}{_list(days, 31)} {time}", f"{on}{date}* {time}")


def lines(rhythms: Sequence[Rhythm], *, project: str, command: Sequence[str], now: datetime) -> str:
    """The lines of a crontab, between two that mark them as ours.

    Cron reads them in the zone of the machine: ``ConfigurationError`` where the schedule's is another.
    """
    for rhythm in rhythms:
        if any((day := now + timedelta(days=n)).astimezone().utcoffset() != day.astimezone(rhythm.zone).utcoffset()
               for n in range(0, 366, 5)):  # fmt: skip
            raise errors.ConfigurationError(
                f"cron goes by the zone of this machine, and schedule.timezone is {rhythm.zone.key}",
                remedy="Use --systemd, or set schedule.timezone to the machine's zone.",
            )
    called = [f"{r.expression} {shlex.join([*command, r.name])}" for r in rhythms]
    block = [_mark(project, "begin"), *(_plain(line).replace("%", "\\%") for line in called), _mark(project, "end")]
    return "\n".join([*block, ""])


def without(crontab: str, project: str) -> str:
    """The crontab without our lines."""
    begin, end = _mark(project, "begin"), _mark(project, "end")
    return re.sub(rf"(?ms)^{re.escape(begin)}$.*?^{re.escape(end)}$\n?", "", crontab)


def _mark(project: str, what: str) -> str:
    return f"# cosmos {_plain(project)}: {what}, written by `cosmos schedule install`"


def _list(chosen: object, of: int) -> str:
    numbers = sorted(set(map(int, chosen)))  # type: ignore[call-overload]
    return "*" if len(numbers) == of else ",".join(f"{number:02}" for number in numbers)


def _exec(words: Sequence[str]) -> str:
    return " ".join('"' + _unit_text(word).replace("\\", "\\\\").replace('"', '\\"').replace("$", "$$") + '"'
                    for word in words)  # fmt: skip


def _unit_text(text: str) -> str:
    return _plain(text).replace("%", "%%")


def _plain(text: str) -> str:
    """The text, which must not begin a line of its own."""
    if not text.isprintable():
        raise errors.Refused(f"{text!r} cannot stand in a unit or a crontab", remedy="Rename the folder or project.")
    return text
