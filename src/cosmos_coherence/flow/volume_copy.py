"""A volume copied into another one, new or there already: a restore whose backup is the live volume at one instant."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec
from msgspec.structs import replace

from cosmos_coherence import errors, sources
from cosmos_coherence.cut.journal import Journal, RestoreRecord, SpoolRecord
from cosmos_coherence.cut.lock import run_lock
from cosmos_coherence.discover.coverage import Coverage
from cosmos_coherence.drivers.runtime import Runtime
from cosmos_coherence.flow import named_volume, recover, remember, volumes
from cosmos_coherence.flow.events import Report, Story
from cosmos_coherence.flow.instant import one_instant
from cosmos_coherence.flow.restore import save_first
from cosmos_coherence.flow.survey import survey
from cosmos_coherence.flow.undo import CLONED, Undo, finish, undone_on_failure
from cosmos_coherence.model import Part, Service, SourceRef, Stack, Volume, VolumeRecord
from cosmos_coherence.settings import Settings
from cosmos_coherence.sources import tree_copy
from cosmos_coherence.sources.tree_scan import WORK_PREFIX, looks_like_database
from cosmos_coherence.sources.volume import TreeSource
from cosmos_coherence.storage import local
from cosmos_coherence.volumes.usage import Usage, measure_tree


class CopyPlan(msgspec.Struct, frozen=True):
    """What a copy is going to do."""

    stack: Stack
    source: Volume
    target: str
    """Full name."""
    holds: Usage
    """What is copied."""
    create: VolumeRecord | None = None
    """The volume to be made for it; None for one that is there."""
    overwrites: Usage | None = None
    """What is in the target now and goes; None when it is empty."""
    stop: tuple[str, ...] = ()
    """Services that use the target: they do not run while it is exchanged."""
    safety: tuple[str, ...] = ()
    """Parts of the live stack that are saved first."""
    engines: frozenset[str] = frozenset()


def plan_clone(runtime: Runtime, settings: Settings, name: str, new: str, *, backups: Path) -> CopyPlan:
    """Into a new volume of the stack, with the driver and options of the one it is copied from.

    Raises ``NotFound`` for an unknown volume, ``UsageError`` for a name that no volume can have, and ``Refused`` when
    the new one is there, when the old one belongs to a running database server, or lies in a place of its own.
    """
    stack = runtime.stack()
    coverage = survey(stack, settings, backups=backups)
    source = _source(stack, coverage, name)
    target = new if new.startswith(f"{stack.project}_") else f"{stack.project}_{new}"
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{1,200}", target):
        raise errors.UsageError(f"{new!r} cannot be the name of a volume", remedy="Letters, digits, and any of _.-")
    if (there := stack.volume(target)) is not None and there.exists:
        raise errors.Refused(
            f"volume {target} is there already", remedy=f"`cosmos volume copy {name} {new}` replaces what it holds."
        )
    if "device" in source.options:
        raise errors.Refused(
            f"volume {source.name} lies at {source.options['device']}; one with the same options would be the same",
            remedy="Create a volume elsewhere, then use `cosmos volume copy`.",
        )
    labels = {key: value for key, value in source.labels.items() if not key.startswith("com.docker.")}
    record = VolumeRecord(target, target.removeprefix(f"{stack.project}_"), source.driver, source.options, labels)
    return CopyPlan(
        stack, source, target, measure_tree(volumes.files_of(source)), create=record, engines=coverage.engines
    )


def plan_copy(runtime: Runtime, settings: Settings, name: str, to: str, *, backups: Path) -> CopyPlan:
    """Into a volume that is there. Raises as ``plan_clone``, and ``Refused`` when a container outside the stack uses
    the target, or when the two are one place."""
    stack = runtime.stack()
    coverage = survey(stack, settings, backups=backups)
    source, target = _source(stack, coverage, name), named_volume.find(stack, to)
    _refuse_running_server(stack, coverage, target)
    here, there = volumes.files_of(source).resolve(), volumes.files_of(target).resolve()
    if here.is_relative_to(there) or there.is_relative_to(here) or here.samefile(there):
        raise errors.Refused(f"volumes {source.name} and {target.name} are the same place", remedy="Name another one.")
    users = [s for s in stack.services if s.state not in ("exited", "created", "missing") and _mounts(s, target.name)]
    guests = [s.container for s in stack.neighbours if s.state == "running" and _mounts(s, target.name)]
    if guests:
        raise errors.Refused(
            f"container {guests[0]} of another project uses volume {target.name}",
            remedy=f"Stop it first: docker stop {guests[0]}",
        )
    now = measure_tree(there) if _holds_something(there) else None
    safety = tuple(s.part for s in coverage.sources if now and s.kind == "volume" and s.volume == target.name)
    return CopyPlan(
        stack, source, target.name, measure_tree(here), overwrites=now, safety=safety, engines=coverage.engines,
        stop=tuple(sorted({s.name for s in users})),
    )  # fmt: skip


def copy(runtime: Runtime, settings: Settings, plan: CopyPlan, story: Story, *, backups: Path) -> Report:
    """Carry the plan out. Never raises for what the catalogue knows: the report says it, and how things are left."""
    name = plan.source.name
    try:
        state = runtime.state_directory()
        with run_lock(state, run=story.run, what=story.verb):
            recover.healed(runtime, state, story, backups=backups)
            again = plan_clone if plan.create else plan_copy
            now = again(runtime, settings, name, plan.target, backups=backups)
            if now.overwrites and not plan.overwrites:
                raise errors.Refused(f"volume {plan.target} is not empty any more")
            report = _copy(runtime, settings, now, story, Journal(state), backups=backups)
    except errors.CosmosError as error:
        report = story.failed(error)
    except KeyboardInterrupt:
        report = story.failed(errors.Interrupted(f"the {story.verb} was interrupted"))
    remember.remember(runtime, report)
    return report


def _copy(
    runtime: Runtime, settings: Settings, plan: CopyPlan, story: Story, journal: Journal, *, backups: Path
) -> Report:
    record = RestoreRecord(
        run=story.run, phase="creating", parts=sources.encode_parts(()), stop=plan.stop, running=plan.stop,
        made=(plan.target,) if plan.create else (),
    )  # fmt: skip
    undo = Undo(runtime, journal.open(record))
    with undone_on_failure(undo, story):
        story.begin("create")
        target = _created(runtime, plan, story.run)
        root = volumes.files_of(target)
        local.require_room(root, plan.holds.bytes + settings.backup.min_free)
        safety = save_first(runtime, settings, plan.safety, story, journal, backups=backups)
        spool = tree_copy.spool_in(root, story.run)
        note = journal.open(SpoolRecord(story.run, str(spool)))
        try:
            with tree_copy.TreeCopy(spool) as copied:
                part, pause_ms = _captured(runtime, settings, plan, story, journal, copied)
                story.begin("stage")
                part = replace(part, name=f"volumes/{target.short}", volume=target.name)
                undo.staging((part,), {part.name: str(root)})
                (restorer,) = undo.restorers()
                restorer.stage(copied.reader())
        finally:
            if not spool.exists():  # else the next run removes it
                note.close()
        story.begin("stop")
        undo.swapping()
        runtime.stop(plan.stop)
        story.begin("swap")
        restorer.swap()
        story.begin("compare")
        restorer.verify()
        story.begin("start")
        runtime.start(plan.stop)
        story.begin("probe")
        runtime.wait_ready(plan.stop)
        undo.proven()
    finish(undo, story)
    size = part.fingerprint.tree.size if part.fingerprint.tree else 0
    return story.report("done", parts=(part,), path=target.name, size=size, pause_ms=pause_ms, safety_backup=safety)


def _created(runtime: Runtime, plan: CopyPlan, run: str) -> Volume:
    if plan.create is None:
        return named_volume.find(runtime.stack(), plan.target)
    made = runtime.create_volume(replace(plan.create, labels={**plan.create.labels, CLONED: run}))
    ours = made.labels.get(CLONED) == run or plan.stack.runtime == "process"
    if not ours or _holds_something(volumes.files_of(made)):
        raise errors.Refused(
            f"volume {made.name} is there already, and is not of this stack", remedy="Name another one."
        )
    return made


def _captured(
    runtime: Runtime, settings: Settings, plan: CopyPlan, story: Story, journal: Journal, copied: tree_copy.TreeCopy
) -> tuple[Part, float]:
    """The source at one instant, in the copy's spool, and for how long its writers stood still. ``CaptureFailed`` when
    something of it is not there, or not of the instant."""
    ref = SourceRef("volume", f"volumes/{plan.source.short}", volume=plan.source.name, path=plan.source.path)
    source = TreeSource(ref, volumes.files_of(plan.source), spool=runtime.state_directory(), idle=True)
    try:
        instant = one_instant(
            runtime, settings, story, journal, [source], copied, engines=plan.engines, volume=plan.source.name
        )
        if gaps := (*instant.outside, *source.gaps):
            raise errors.CaptureFailed(
                f"the copy would not be whole: {'; '.join(f'{gap.what}: {gap.why}' for gap in gaps)}",
                remedy="Stop what uses the volume, then run it again.",
            )
        story.begin("capture")
        return source.capture(copied), instant.cut.pause_ms
    finally:
        source.close()


def _source(stack: Stack, coverage: Coverage, name: str) -> Volume:
    source = named_volume.find(stack, name)
    volumes.files_of(source)
    _refuse_running_server(stack, coverage, source)
    return source


def _refuse_running_server(stack: Stack, coverage: Coverage, volume: Volume) -> None:
    serving = {s.service: s.kind for s in coverage.sources if s.service and s.volume == volume.name}
    looks = looks_like_database(volume.path) if volume.path else ""
    for service in (*stack.services, *stack.neighbours):
        if service.state in ("exited", "created", "missing") or not _mounts(service, volume.name):
            continue
        if kind := serving.get(service.name, looks):
            raise errors.Refused(
                f"volume {volume.name} holds the data of a running {kind} server ({service.name}): a copy of its files "
                "would be worthless",
                remedy=f"Stop it first (`docker compose stop {service.name}`), or use `cosmos backup`, which asks it.",
            )


def _mounts(service: Service, volume: str) -> bool:
    return any(m.kind == "volume" and m.source == volume for m in service.mounts)


def _holds_something(root: Path) -> bool:
    return any(not path.name.startswith(WORK_PREFIX.decode()) for path in root.iterdir())
