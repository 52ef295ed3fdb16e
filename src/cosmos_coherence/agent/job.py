"""What the schedule can do: one table. To add a kind: a function, a row, and its expression in ``ScheduleSettings``.

A function may raise what the catalogue knows; ``carry_out`` makes a report of it, so that the loop goes on.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import msgspec

from cosmos_coherence import errors
from cosmos_coherence.drivers.runtime import Runtime
from cosmos_coherence.flow import alarm, backup, history, remember, retention, store, upkeep
from cosmos_coherence.flow import measure as measuring
from cosmos_coherence.flow.events import Report, Story
from cosmos_coherence.flow.volumes import Watches
from cosmos_coherence.history import record
from cosmos_coherence.history.ledger import Ledger, Outcome
from cosmos_coherence.settings import ServeSettings, Settings

_RETRYABLE = {kind.code for kind in errors.CATALOGUE if kind.retryable}


class Work(msgspec.Struct, frozen=True):
    """What a job works on."""

    runtime: Runtime
    settings: Settings
    project: str
    state: Path
    backups: Path
    """Folder of the archives."""
    serving: ServeSettings
    elsewhere: Callable[..., int | None] = lambda *_verb: None
    """Runs a verb in a container beside the volumes and returns its exit status; None where that is not needed."""
    watches: Watches | None = None
    """What is known of the volumes since the last measurement, where one process makes them all."""


class Kind(msgspec.Struct, frozen=True):
    """One thing that the schedule can do."""

    name: str
    """Of its expression in ``[schedule]``, too."""
    do: Callable[[Work, Story], Report]
    alone: bool = True
    """Whether it waits until no other such job runs."""
    within: bool = False
    """Whether the agent does it itself, since it knows from the last time what need not be looked at again."""


def carry_out(kind: Kind, work: Work, *, since: datetime, attempt: int, now: Callable[[], datetime]) -> Report:
    """One run of a job, noted in the ledger from its beginning to its end.

    Raises ``Locked`` when another process has this job under way, and the ledger's errors; what goes wrong in the job
    is in the report.
    """
    ledger = Ledger(work.state)
    ledger.begin(kind.name, now(), since=since, attempt=attempt)
    story = Story(verb=kind.name, run=backup.new_run(), project=work.project)
    try:
        report = kind.do(work, story)
    except errors.CosmosError as error:
        report = story.failed(error)
    except KeyboardInterrupt:
        report = story.failed(errors.Interrupted(f"the {kind.name} was interrupted"))
    except BaseException as error:
        ledger.end(kind.name, now(), "failed", said=f"a fault of the program: {type(error).__name__}")
        raise
    if kind.do is not back_up:  # a backup does it by itself
        if kind.do is not measure or report.exit_status:  # what it has measured is in the history
            remember.remember(work.runtime, report)
        alarm.watch(work.runtime, work.settings, report=report)
    failure = report.failure
    ledger.end(
        kind.name,
        now(),
        _outcome(report),
        said=failure.message if failure else "",
        retryable=bool(failure and failure.code in _RETRYABLE),
    )
    return report


def _outcome(report: Report) -> Outcome:
    if report.exit_status == errors.Interrupted.exit_status:
        return "interrupted"
    return report.status if report.status != "planned" else "done"


def back_up(work: Work, story: Story) -> Report:
    """One backup, beside the volumes where they cannot be reached from here."""
    if (status := work.elsewhere("backup", "--json")) is not None:
        return _reported(work, story, status)
    try:
        plan = backup.plan_backup(work.runtime, work.settings, directory=work.backups)
    except errors.CosmosError as error:
        report = story.failed(error)
    else:
        report = backup.backup(work.runtime, work.settings, plan, story)
    alarm.watch(work.runtime, work.settings, report=report)
    return report


def forget(work: Work, story: Story) -> Report:
    """Remove what is older than the settings keep."""
    gone = retention.apply(
        work.settings, work.backups, project=work.project, now_s=time.time(), state=work.state
    )  # fmt: skip
    return story.report("done", removed=gone)


def prune(work: Work, story: Story) -> Report:
    """Free what no backup in the repository needs. Without a repository there is nothing to free."""
    if store.configured(work.settings):
        pruned = upkeep.prune(work.settings, dry_run=False)
        story.note(f"freed {pruned.freed} bytes, {pruned.kept} stay")
    return story.report("done")


def check(work: Work, story: Story) -> Report:
    """Look at the whole repository and read a share of it; without one, read the newest archive to its end."""
    if store.configured(work.settings):
        share = work.settings.schedule.check_data
        checked = upkeep.check(work.settings, read_share=share, state=work.state, project=work.project)
        found = checked.report
        if checked.note:
            story.note(checked.note)
        if not found.sound:
            first = found.faults[0]
            raise errors.Damaged(f"{len(found.faults)} faults; {first.kind} {first.name[:8]}: {first.what}")
        story.note(f"{found.snapshots} backups, {found.packs_read} of {found.packs} packs read")
        return story.report("done")
    from cosmos_coherence.archive.listing import find_archive
    from cosmos_coherence.archive.verify import verify_archive

    try:
        newest = find_archive("latest", (work.backups,))
    except errors.NotFound:
        story.note("there is no backup yet")
        return story.report("done")
    manifest = verify_archive(newest)
    return story.report("done", backup=manifest.id, path=str(newest))


def measure(work: Work, story: Story) -> Report:
    """Measure volumes, disks, repository and health, and look whether there is an alarm in it; beside the volumes where
    they cannot be reached from here."""
    if (status := work.elsewhere("metrics", "--measure", "--quiet")) is not None:
        return story.report("done") if not status else story.failed(errors.CosmosError(f"ended with status {status}"))
    measured = measuring.measure(
        work.runtime, work.settings, work.serving, directory=work.backups, watches=work.watches
    )  # fmt: skip
    watched = alarm.watch(work.runtime, work.settings, measured=measured)
    for note in (*measured.notes, *watched.notes):
        story.note(note)
    return story.report("done")


KINDS: tuple[Kind, ...] = (
    Kind("backup", back_up),
    Kind("forget", forget),
    Kind("prune", prune),
    Kind("check", check),
    Kind("measure", measure, alone=False, within=True),
)
"""In the order in which they go when several are due at once."""


def find(name: str) -> Kind:
    """The kind of that name. ``UsageError`` for any other."""
    for kind in KINDS:
        if kind.name == name:
            return kind
    raise errors.UsageError(f"there is no job {name}", remedy=f"One of: {', '.join(k.name for k in KINDS)}.")


def afterwards(work: Work) -> str:
    """What follows every job: what waits in the spool goes into the history. Why not, in a sentence; nothing is lost
    then."""
    door = os.open(work.state / "drain.lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(door, fcntl.LOCK_EX)  # two jobs may end at the same time
        return history.fill(work.state, work.serving, work.settings.history)
    finally:
        os.close(door)


def _reported(work: Work, story: Story, status: int) -> Report:
    """The report that a backup in another container has left in the spool, or at least its exit status."""
    if status in (0, errors.INCOMPLETE_STATUS):
        return story.report("done" if status == 0 else "incomplete")
    if status == errors.Interrupted.exit_status:
        return story.failed(errors.Interrupted("the backup was interrupted"))
    spooled = sorted((work.state / remember.SPOOL).glob("*-backup.json"))
    if spooled and spooled[-1].name > story.run:
        try:
            failure = record.read(spooled[-1].read_bytes()).failure
        except errors.Damaged:
            failure = None
        if failure:
            kind = next((k for k in errors.CATALOGUE if k.code == failure.code), errors.CosmosError)
            return story.failed(kind(failure.message, remedy=failure.remedy))
    if status == errors.Locked.exit_status:
        return story.failed(errors.Locked("another run is under way"))
    return story.failed(errors.CosmosError(f"the backup ended with status {status}"))
