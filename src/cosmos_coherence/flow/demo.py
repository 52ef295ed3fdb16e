"""The whole road in one minute: a stack that runs, a backup while it writes, disaster, restore, proof."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
from msgspec import structs

from cosmos_coherence import errors
from cosmos_coherence.archive.reader import ArchiveReader
from cosmos_coherence.drivers.embedded import lay_out_demo
from cosmos_coherence.drivers.local import LocalRuntime
from cosmos_coherence.flow import backup, demo_data, demo_proof, events, restore
from cosmos_coherence.flow.recover import RESTORE_SPOOL
from cosmos_coherence.settings import Settings, StackSettings
from cosmos_coherence.storage import local

WRITES_BEFORE_S, WRITES_AFTER_S = 2.0, 0.5


class DemoReport(msgspec.Struct, frozen=True):
    """What the demo showed."""

    status: str
    """``equal`` or ``different``."""
    exit_status: int
    rows: int
    keys: int
    files: int
    bytes: int
    pause_ms: float
    backup_seconds: float
    restore_seconds: float
    archive_bytes: int
    written_after: int
    """Writes between the backup and the disaster; none of them may be in what was restored."""
    faults: tuple[str, ...] = ()
    not_shown: tuple[str, ...] = ()
    kept: str = ""


def demo(
    *,
    keep: Path | None = None,
    emit: events.Emit = events.silent,
    meddle: Callable[[LocalRuntime], None] | None = None,
) -> DemoReport:
    """Run it all. ``keep`` leaves the stack, running, in that new folder. ``meddle`` is called with what was restored
    just before it is compared, so that a test can see the comparison fail.

    Raises what the parts raise; the stack is stopped and removed then too, unless it is to be kept.
    """
    folder = keep.resolve() if keep else Path(tempfile.mkdtemp(prefix="cosmos-demo-", dir=_roomy()))
    runtime: LocalRuntime | None = None
    try:
        runtime = lay_out_demo(folder)
        return _demo(runtime, folder, emit, meddle, kept=str(folder) if keep else "")
    finally:
        if not keep:
            if runtime is not None:
                runtime.destroy()
            shutil.rmtree(folder, ignore_errors=True)


def _demo(
    runtime: LocalRuntime,
    folder: Path,
    emit: events.Emit,
    meddle: Callable[[LocalRuntime], None] | None,
    *,
    kept: str,
) -> DemoReport:
    settings = Settings(stack=StackSettings(project="cosmos-demo", runtime="process", directory=folder))
    servers = [s.name for s in runtime.stack().services if s.name != "writer"]
    emit(events.StepBegan("demo", "start PostgreSQL" + (" and Redis" if "redis" in servers else "")))
    runtime.start(servers)
    runtime.wait_ready(servers)
    demo_data.seed(runtime)
    ballast = demo_proof.ballast(runtime)
    emit(events.StepBegan("demo", "start the writer"))
    runtime.start(["writer"])
    time.sleep(WRITES_BEFORE_S)

    emit(events.StepBegan("demo", "back up while it writes"))
    story = events.Story(verb="backup", run=backup.new_run(), project="cosmos-demo", emit=emit)
    saved = backup.backup(runtime, settings, backup.plan_backup(runtime, settings), story)
    _require(saved)
    time.sleep(WRITES_AFTER_S)
    runtime.stop(["writer"])
    reached = demo_proof.reached(runtime)

    emit(events.StepBegan("demo", "disaster: stop everything, delete every volume"))
    runtime.destroy()
    emit(events.StepBegan("demo", "restore"))
    restored = _restore(runtime, settings, Path(saved.path), folder, emit)
    if meddle:
        meddle(runtime)

    emit(events.StepBegan("demo", "compare row by row, key by key, byte by byte"))
    proof = demo_proof.compare(runtime, ballast, reached)
    if kept:
        runtime.start(["writer"])
    return DemoReport(
        status="different" if proof.faults else "equal",
        exit_status=1 if proof.faults else 0,
        rows=proof.rows,
        keys=proof.keys,
        files=proof.files,
        bytes=proof.bytes,
        pause_ms=saved.pause_ms or 0.0,
        backup_seconds=saved.seconds,
        restore_seconds=restored.seconds,
        archive_bytes=saved.size,
        written_after=proof.written_after,
        faults=proof.faults,
        not_shown=() if "redis" in servers else ("Redis: no server of it is installed and no wheel exists here",),
        kept=kept,
    )


def _restore(runtime: LocalRuntime, settings: Settings, file: Path, folder: Path, emit: events.Emit) -> events.Report:
    backups = folder / settings.backup.directory
    with (
        local.spool(backups, RESTORE_SPOOL) as spool,
        ArchiveReader.open_archive(file, spool) as reader,
    ):
        plan = restore.plan_restore(runtime, reader.manifest, backups=(backups,))
        # the writer stays down until what was restored has been compared
        plan = structs.replace(plan, start=tuple(name for name in plan.start if name != "writer"))
        story = events.Story(verb="restore", run=backup.new_run(), project="cosmos-demo", emit=emit)
        report = restore.restore(runtime, settings, plan, reader, story, backups=backups)
    _require(report)
    return report


def _require(report: events.Report) -> None:
    if report.failure:
        kind = next(kind for kind in errors.CATALOGUE if kind.code == report.failure.code)
        raise kind(f"{report.verb}: {report.failure.message}", remedy=report.failure.remedy)
    if report.status != "done":
        raise errors.CosmosError(f"{report.verb} was {report.status}: {[g.what for g in report.missing]}")


def _roomy() -> str | None:
    """Not a memory disk where there is another: the demo writes a few hundred megabytes."""
    return "/var/tmp" if Path("/var/tmp").is_dir() else None  # noqa: S108 - mkdtemp makes a private folder in it
