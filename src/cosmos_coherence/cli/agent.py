"""``cosmos serve agent`` and ``cosmos schedule run`` and ``next``."""

from __future__ import annotations

import signal
import socket
import sys
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import typer

from cosmos_coherence import errors
from cosmos_coherence.agent import job, loop
from cosmos_coherence.cli import beside, context, healing, render
from cosmos_coherence.cut.journal import anything_pending
from cosmos_coherence.cut.lock import lease
from cosmos_coherence.drivers import process
from cosmos_coherence.drivers.runtime import Runtime
from cosmos_coherence.flow import backup, schedule
from cosmos_coherence.flow.events import Report
from cosmos_coherence.flow.schedule import Rhythm
from cosmos_coherence.flow.volumes import Watches
from cosmos_coherence.history.ledger import Ledger, look
from cosmos_coherence.settings import Settings, load_serve

NAMES = tuple(kind.name for kind in job.KINDS)


def rhythms(settings: Settings) -> tuple[Rhythm, ...]:
    """The jobs that are not off. ``ConfigurationError`` names the setting that is wrong."""
    return schedule.rhythms(
        settings.schedule, NAMES, host=socket.gethostname(), project=context.project(settings) or ""
    )  # fmt: skip


def serve() -> int:
    """The agent, until it is told to stop. ``Locked`` when this stack has one."""
    settings = context.settings()
    timetable = rhythms(settings)
    load_serve()
    runtime = context.runtime(settings)
    state = runtime.state_directory()
    with lease(state, "agent", run=backup.new_run(), what="agent") as held:
        held.keep()
        stop = threading.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: stop.set())
        _say(f"agent of {context.project(settings) or runtime.stack().project}: {', '.join(map(_first, timetable))}")
        _heal(settings, runtime, state)
        together = frozenset(kind.name for kind in job.KINDS if not kind.alone)
        with Watches() as watches:

            def start(name: str) -> loop.Running:
                kind = job.find(name)
                if not kind.within or beside.needed(context.runtime(settings), settings):
                    return _start(name)
                return loop.Within(lambda: _carry_out(kind, settings, for_agent=True, watches=watches))

            loop.Agent(timetable, Ledger(state), start, together=together, tell=_say).run(stop)
    return 0


def run_job(name: str, *, for_agent: bool, as_json: bool) -> int:
    """One job, now, and what follows it; the exit status of its report."""
    kind = job.find(name)
    if for_agent:
        process.end_with_parent()
    settings = context.settings()
    rhythms(settings)
    runtime = context.runtime(settings)
    try:
        runtime.state_directory()
    except errors.Refused:
        if (status := beside.volumes(runtime, settings)) is None:
            raise
        return status
    return _carry_out(kind, settings, for_agent=for_agent, tell=lambda report: _told(report, as_json=as_json))


def _told(report: Report, *, as_json: bool) -> int:
    status = render.report(report, json_wanted=as_json)
    if not as_json and report.verb != "backup" and report.failure is None:
        for note in report.notes:
            typer.echo(note)
        typer.echo(f"{report.verb}: done, {report.seconds:.1f} s")
    sys.stdout.flush()
    return status


def _carry_out(
    kind: job.Kind,
    settings: Settings,
    *,
    for_agent: bool,
    tell: Callable[[Report], int] = lambda report: report.exit_status,
    watches: Watches | None = None,
) -> int:
    """One job, and what follows it. It is told how it ended before that, which may be interrupted."""
    runtime = context.runtime(settings)
    state = runtime.state_directory()
    work = job.Work(
        runtime,
        settings,
        context.project(settings) or runtime.stack().project,
        state,
        context.backups(settings),
        load_serve(),
        _elsewhere(settings, runtime),
        watches,
    )
    now = loop.utc_now()
    rhythm = next((rhythm for rhythm in rhythms(settings) if rhythm.name == kind.name), None)
    known = look(state).get(kind.name)
    attempt = schedule.due(rhythm, known, now).attempt if for_agent and rhythm and known else 1
    since = rhythm.covered(now) if rhythm else now
    try:
        return tell(job.carry_out(kind, work, since=since, attempt=attempt, now=loop.utc_now))
    finally:
        _follow(work)


def _follow(work: job.Work) -> None:
    """What follows a job changes nothing about how it ended, not even when it is interrupted."""
    try:
        why = job.afterwards(work)
    except KeyboardInterrupt:
        why = "interrupted"
    if why:
        _say(f"history waits in the spool: {why}")


def upcoming(count: int, *, as_json: bool) -> int:
    """Print what comes when; the exit status."""
    settings = context.settings()
    timetable = rhythms(settings)
    runtime = context.runtime(settings)
    if (state := context.state(settings)) is None and (status := beside.volumes(runtime, settings)) is not None:
        return status
    states, now = look(state), datetime.now(UTC)
    found = [(r, states.get(r.name), schedule.upcoming(r, states.get(r.name), now, count)) for r in timetable]
    if as_json:
        render.as_json([
            {
                "job": r.name, "expression": r.expression, "timezone": r.zone.key, "jitter_s": r.jitter.total_seconds(),
                "last": known.facts if known else None,
                "next": [{"local": due.at.astimezone(r.zone).isoformat(), "utc": due.at.isoformat(), "why": due.why}
                         for due in dues],
            }
            for r, known, dues in found
        ])  # fmt: skip
        return 0
    rows = [
        (
            r.name if first else "",
            f"{due.at.astimezone(r.zone):%a %Y-%m-%d %H:%M:%S %Z}",
            f"{due.at:%Y-%m-%d %H:%M:%S}",
            " ".join(filter(None, ("overdue" if due.at < now else "", "" if due.why == "regular" else due.why))),
            (known.summary if known else "never") if first else "",
        )
        for r, known, dues in found
        for first, due in zip((True, *[False] * count), dues, strict=False)
    ]
    render.table(("JOB", settings.schedule.timezone, "UTC", "", "LAST"), rows)
    for name in NAMES:
        if name not in {r.name for r in timetable}:
            typer.echo(f"{name} is off")
    return 0


def _start(name: str) -> process.Companion:
    return process.Companion(
        [sys.executable, "-m", "cosmos_coherence.cli.main", *context.options(), "schedule", "run", name, "--for-agent",
         "--json"]
    )  # fmt: skip


def _elsewhere(settings: Settings, runtime: Runtime) -> Any:
    def elsewhere(*verb: str) -> int | None:
        stack = runtime.stack()
        call = ("--directory", str(stack.directory), "--project", stack.project, *verb)
        return beside.volumes(runtime, settings, arguments=call)

    return elsewhere


def _heal(settings: Settings, runtime: Runtime, state: Path) -> None:
    try:
        if anything_pending(state) and _elsewhere(settings, runtime)("recover") is None:
            healing.first(settings, runtime)
    except errors.CosmosError as error:
        _say(f"leftovers wait for the next backup: {error.message}")


def _first(rhythm: Rhythm) -> str:
    return f"{rhythm.name} {rhythm.expression}"


def _say(sentence: str) -> None:
    typer.echo(sentence, err=True)
