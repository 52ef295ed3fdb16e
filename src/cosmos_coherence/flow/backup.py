"""A backup, told from beginning to end.

Discover the stack, plan, copy the files beforehand, hold the writers, anchor every source, release, capture, pack,
verify what was packed, publish it as the last write, report. It goes to the repository when one is configured, and to
an archive when that is wanted or there is no repository.
"""

from __future__ import annotations

import contextlib
import secrets
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
from msgspec.structs import replace

import cosmos_coherence
from cosmos_coherence import errors, sources
from cosmos_coherence.archive.writer import ArchiveWriter, spool_of
from cosmos_coherence.cut.journal import Handle, Journal, SettingsRecord, SpoolRecord
from cosmos_coherence.cut.lock import Lease, run_lock
from cosmos_coherence.discover import configuration
from cosmos_coherence.discover.coverage import Coverage
from cosmos_coherence.discover.holding import Holding, holding
from cosmos_coherence.drivers import priority
from cosmos_coherence.drivers.runtime import Runtime
from cosmos_coherence.flow import known, recover, remember, retention, store, transfer
from cosmos_coherence.flow.events import PartDone, Report, Story
from cosmos_coherence.flow.instant import Instant, one_instant
from cosmos_coherence.flow.progress import Meter, MeteredWriter, expected_of
from cosmos_coherence.flow.survey import survey
from cosmos_coherence.flow.workers import gently
from cosmos_coherence.interruption import uninterrupted
from cosmos_coherence.model import Gap, Manifest, Part, ServiceRecord, SourceRef, Stack, VolumeRecord
from cosmos_coherence.parts import BackupWriter
from cosmos_coherence.settings import Settings
from cosmos_coherence.sources.base import Source
from cosmos_coherence.sources.redis import RedisSource, restore_settings
from cosmos_coherence.sources.scout import scout
from cosmos_coherence.storage import local

if TYPE_CHECKING:
    from cosmos_coherence.repository.repository import Repository


class BackupPlan(msgspec.Struct, frozen=True):
    """What a backup is going to do."""

    stack: Stack
    coverage: Coverage
    parts: tuple[SourceRef, ...]
    holding: Holding
    """Who will stand still for the instant, by freeze, by stop or by own hook."""
    directory: Path
    """Folder of the archives."""
    repository: bool = False
    """Whether it goes to the configured repository."""
    archive: bool = True
    """Whether an archive is wanted; of the same instant when it also goes to the repository."""
    safety: bool = False
    tags: tuple[str, ...] = ()
    only: tuple[str, ...] = ()
    """The parts that were asked for; all when empty."""


def new_run() -> str:
    """A name for one run: sortable, unique, lower-case letters and digits only."""
    return f"{datetime.now(UTC):%Y%m%d%H%M%S}{secrets.token_hex(3)}"


def plan_backup(
    runtime: Runtime,
    settings: Settings,
    *,
    only: Sequence[str] = (),
    directory: Path | None = None,
    archive: bool | None = None,
    safety: bool = False,
    tags: tuple[str, ...] = (),
) -> BackupPlan:
    """Look at the stack and say what will be captured and held. ``NotFound`` for an unknown stack or part.

    ``archive``: whether one is wanted; None means as the settings say. Without a repository there always is one.
    """
    stack = runtime.stack()
    target = directory or settings.stack.directory / settings.backup.directory
    coverage = survey(stack, settings, backups=target)
    parts = coverage.only(only) if only else coverage.sources
    repository = store.configured(settings)
    wanted = settings.backup.archive if archive is None else archive
    return BackupPlan(
        stack, coverage, parts, holding(stack, coverage.engines), target, repository=repository,
        archive=wanted or not repository, safety=safety, tags=tags, only=tuple(only),
    )  # fmt: skip


def backup(runtime: Runtime, settings: Settings, plan: BackupPlan, story: Story) -> Report:
    """Make the backup of this plan and publish it.

    Never raises for what the catalogue knows: the report says it. A part that fails publishes nothing; something that
    is not covered publishes, marked incomplete.
    """
    try:
        state = runtime.state_directory()
        with run_lock(state, run=story.run, what="backup") as lease:
            if recover.healed(runtime, state, story, backups=plan.directory):
                # what was planned was half restored or stood still
                plan = plan_backup(
                    runtime, settings, only=plan.only, directory=plan.directory, archive=plan.archive,
                    safety=plan.safety, tags=plan.tags,
                )  # fmt: skip
            report = capture_backup(runtime, settings, plan, story, Journal(state), lease=lease)
    except errors.CosmosError as error:
        report = story.failed(error, missing=plan.coverage.gaps)
    except KeyboardInterrupt:
        report = story.failed(errors.Interrupted("the backup was interrupted"))
    remember.remember(runtime, report)
    return report


def capture_backup(
    runtime: Runtime,
    settings: Settings,
    plan: BackupPlan,
    story: Story,
    journal: Journal,
    *,
    lease: Lease | None = None,
) -> Report:
    """The story itself, for a caller that holds the run lock and has healed leftovers.

    ``lease`` is that lock, where the caller does not keep it by itself.
    """
    story.begin("plan")
    if plan.archive:
        _require_room(plan.directory, settings.backup.min_free)
    state = runtime.state_directory()
    identity = store.new_identity(plan.directory, state)
    spool = spool_of(state if plan.repository else plan.directory, identity)
    with (
        scout(partial(priority.step_back, settings.backup.nice, settings.backup.idle_io)) as beside,
        _opened(plan, replace(_setting(runtime, plan, settings, story.run, spool), scout=beside)) as opened,
        _writer(runtime, plan, settings, journal, story, identity, spool) as plain,
    ):
        if lease:
            lease.keep()  # not earlier: the scout and the writer fork
        writer = MeteredWriter(plain, Meter(story.tell, expected_of(plain.last())))
        try:
            with _settings_journalled(runtime, opened, journal, story.run):
                instant = one_instant(runtime, settings, story, journal, opened, writer, engines=plan.coverage.engines)
                story.begin("capture")
                parts = tuple(_placed(part, plan) for part in _capture(opened, writer, settings, story))
                inside = tuple(gap for source in opened for gap in source.gaps)
        finally:
            for source in opened:
                source.close()
        story.begin("pack")
        manifest = _manifest(plan, writer.id, instant, parts, (*instant.outside, *inside))
        writer.pack(manifest)
        story.begin("verify")
        writer.verify()
        story.begin("publish")
        path = writer.publish()
    exported = _exported(settings, plan, manifest, story, journal)
    removed = _retire(runtime, settings, plan, story) if manifest.complete and not plan.safety else ()
    return story.report(
        "done" if manifest.complete else "incomplete",
        backup=manifest.id,
        path=str(path),
        archive=str(exported or ""),
        size=writer.stored,
        pause_ms=instant.cut.pause_ms,
        parts=manifest.parts,
        missing=manifest.missing,
        removed=removed,
    )


@contextmanager
def _opened(plan: BackupPlan, setting: sources.Setting) -> Iterator[list[Source]]:
    """The sources of the plan. Trees are walked from now on, while the repository is opened."""
    opened: list[Source] = []
    try:
        for ref in plan.parts:
            opened.append(sources.open_source(ref, setting))
        yield opened
    finally:
        for source in opened:
            source.close()


@contextmanager
def _writer(
    runtime: Runtime, plan: BackupPlan, settings: Settings, journal: Journal, story: Story, identity: str, spool: Path
) -> Iterator[BackupWriter]:
    """The backup to be, journalled before it begins; what was not published of it goes at the end."""
    project, state = plan.stack.project, runtime.state_directory()
    note = journal.open(SpoolRecord(story.run, str(spool), **_servers(plan)))

    def published(repository: Repository, snapshot: str) -> None:
        if said := known.add(state, repository, project, known.Backup(identity, snapshot)):
            story.note(said)

    writer: BackupWriter | None = None
    try:
        if plan.repository:
            writer = store.repository_writer(
                settings, identity, project, spool, published=published, cache=state / "cache"
            )
        else:
            with uninterrupted():
                writer = ArchiveWriter(plan.directory, identity, workers=settings.backup.workers)
        yield writer
    finally:
        if writer:
            writer.abort()
        if not spool.exists():  # else the next run removes it
            note.close()


def _exported(settings: Settings, plan: BackupPlan, manifest: Manifest, story: Story, journal: Journal) -> Path | None:
    """The archive of a backup that went to the repository, where one is wanted too: made from there."""
    if not (plan.repository and plan.archive) or plan.safety:
        return None
    story.begin("export")
    spool = spool_of(plan.directory, manifest.id)
    note = journal.open(SpoolRecord(story.run, str(spool)))
    try:
        with store.open_backup(settings, manifest.id, project=plan.stack.project) as reader:
            return transfer.export(reader, plan.directory, workers=settings.backup.workers)
    finally:
        if not spool.exists():  # else the next run removes it
            note.close()


def _retire(runtime: Runtime, settings: Settings, plan: BackupPlan, story: Story) -> tuple[str, ...]:
    """Archives that are too old go; whatever keeps them here takes nothing from the one that was just made."""
    try:
        story.begin("retention")
        state = runtime.state_directory()
        return retention.apply(settings, plan.directory, project=plan.stack.project, now_s=time.time(), state=state)
    except errors.CosmosError as error:
        story.note(f"the backup is made, but older ones could not be removed: {error.message}")
    except KeyboardInterrupt:
        story.note("the backup was made when the interruption came; older ones were not all removed")
    return ()


def _capture(opened: list[Source], writer: BackupWriter, settings: Settings, story: Story) -> tuple[Part, ...]:
    def one(source: Source) -> Part:
        part = source.capture(writer)
        story.tell(PartDone(part.name, sum(f.size for f in part.files)))
        return part

    return tuple(gently(settings, one, opened))


def _placed(part: Part, plan: BackupPlan) -> Part:
    """A part of files or of a database says where they lie: below the project's folder, or at an absolute path."""
    ref = next(ref for ref in plan.parts if ref.part == part.name)
    if ref.kind not in ("files", "sqlite") or ref.path is None:
        return part
    root = plan.stack.directory.resolve()
    path = ref.path.resolve()
    place = path.relative_to(root) if path.is_relative_to(root) else path
    return replace(part, details={**part.details, "path": str(place)})


@contextmanager
def _settings_journalled(runtime: Runtime, opened: list[Source], journal: Journal, run: str) -> Iterator[None]:
    """What a source switches off in its server for the cut is noted on disk first."""
    notes: list[Handle[SettingsRecord]] = []
    for source in opened:
        if isinstance(source, RedisSource) and (values := source.settings_to_restore()):
            notes.append(journal.open(SettingsRecord(run=run, service=source.ref.service, values=dict(values))))
    try:
        yield
    finally:
        for source in opened:
            source.close()
        for note in notes:
            with contextlib.suppress(errors.CosmosError):  # a server that is down gets them from the next run
                restore_settings(runtime, note.record.service, note.record.values)
                note.close()


def _require_room(directory: Path, min_free: int) -> None:
    """The folder of the archives is there and private, and leaves ``min_free`` bytes."""
    local.make_private(directory)
    local.require_room(directory, min_free)


def _servers(plan: BackupPlan) -> dict[str, tuple[str, ...]]:
    """The services of each kind of server."""
    return {kind: tuple(s.service for s in plan.coverage.sources if s.kind == kind) for kind in ("postgres", "redis")}


def _setting(runtime: Runtime, plan: BackupPlan, settings: Settings, run: str, spool: Path) -> sources.Setting:
    primary = tuple(services[0] for services in _servers(plan).values() if services)
    return sources.Setting(
        runtime=runtime,
        run=run,
        spool=spool,
        primary=primary,
        still=bool(plan.holding.freeze or plan.holding.quiet),
        configuration=configuration.configuration_names(
            plan.stack, referenced=runtime.referenced_files(), never=store.private_files(settings)
        ),
    )


def _manifest(
    plan: BackupPlan, identity: str, instant: Instant, parts: tuple[Part, ...], found: tuple[Gap, ...]
) -> Manifest:
    stack, cut = plan.stack, instant.cut
    captured = {p.name for p in parts}
    left = tuple(
        Gap(s.part, "left out by --only", chosen=True) for s in plan.coverage.sources if s.part not in captured
    )
    gaps = (*plan.coverage.gaps, *found, *left)
    return Manifest(
        id=identity,
        project=stack.project,
        runtime=stack.runtime,
        instant=cut.instant,
        pause_ms=round(cut.pause_ms, 3),
        created_by=f"cosmos-coherence {cosmos_coherence.__version__}",
        complete=all(g.chosen for g in gaps) and not left,
        missing=gaps,
        parts=tuple(sorted(parts, key=lambda p: p.name)),
        volumes=tuple(VolumeRecord(v.name, v.short, v.driver, v.options, v.labels) for v in stack.volumes if v.exists),
        services=tuple(ServiceRecord(s.name, s.image, s.digest) for s in stack.services),
        config_files=configuration.compose_names(stack),
        held=cut.held,
        quiet_ms=instant.quiet_ms,
        safety=plan.safety,
        tags=plan.tags,
    )
