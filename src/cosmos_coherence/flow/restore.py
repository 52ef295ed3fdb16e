"""A restore, told from beginning to end: the road of the backup walked backwards.

Prove the archive, plan, create what is lost, make a safety backup, write the new state beside the live one and compare
it, stop the writers, swap, compare again, start, probe; then the old state goes. When anything fails, the old state
comes back.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec

from cosmos_coherence import errors, sources
from cosmos_coherence.cut.journal import Journal, RestoreRecord
from cosmos_coherence.cut.lock import run_lock
from cosmos_coherence.discover.coverage import STATE_VOLUME, holds, lies_in
from cosmos_coherence.drivers.runtime import Runtime
from cosmos_coherence.flow import backup as backing
from cosmos_coherence.flow import recover, remember
from cosmos_coherence.flow.events import PartDone, Report, Story
from cosmos_coherence.flow.progress import Meter, MeteredReader, expected_of
from cosmos_coherence.flow.undo import Undo, finish, undone_on_failure
from cosmos_coherence.model import Manifest, Part, Stack, VolumeRecord
from cosmos_coherence.parts import BackupReader
from cosmos_coherence.settings import Settings
from cosmos_coherence.sources.base import Restorer
from cosmos_coherence.sources.volume import ConfigRestorer, TreeRestorer

_CRASHES = 3
"""A server that has ended so often within moments is not going to start."""


class Step(msgspec.Struct, frozen=True):
    """What happens to one part."""

    part: Part
    action: str
    """``overwrite``, ``create`` or ``keep``."""
    detail: str = ""


class RestorePlan(msgspec.Struct, frozen=True):
    """What a restore is going to do; printable, and the only thing that ``restore`` takes."""

    manifest: Manifest
    stack: Stack
    steps: tuple[Step, ...]
    create_volumes: tuple[VolumeRecord, ...] = ()
    stop: tuple[str, ...] = ()
    """Services that do not run while the new state is put in place."""
    start: tuple[str, ...] = ()
    """Services that run afterwards."""
    safety: tuple[str, ...] = ()
    """Parts of the live stack that are saved first."""
    warnings: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    """Parts that are not restored, each with the reason."""
    overwrite_config: bool = False
    """Configuration files that differ are replaced too, because they were asked for by name."""
    only: tuple[str, ...] = ()
    """The parts that were asked for; all when empty."""
    rebuilt: bool = False
    """The stack was just made from the backup's own files."""
    backups: tuple[Path, ...] = ()
    """Folders in which backups lie: nothing is written over them."""
    declared: tuple[Path, ...] = ()
    """Folders that the settings name as sources: files may go there though the stack does not mount them."""

    @property
    def overwrites(self) -> bool:
        """Whether anything that is there now is replaced."""
        return any(step.action == "overwrite" for step in self.steps)


def plan_restore(
    runtime: Runtime,
    manifest: Manifest,
    *,
    only: Sequence[str] = (),
    backups: Sequence[Path],
    rebuilt: bool = False,
    declared: Sequence[Path] = (),
) -> RestorePlan:
    """Compare the backup with the stack as it is. The other arguments are told by the plan.

    A part that would be written over ``backups`` is left out. Raises ``NotFound`` for a part that the backup does not
    hold, ``Refused`` when such a part was asked for, or a container outside the stack uses what would be replaced.
    """
    stack = runtime.stack()
    wanted = _chosen(manifest, only)
    over = _over_backups(wanted, stack, tuple(declared), tuple(backups))
    if only and over:
        raise errors.Refused(f"{'; '.join(over.values())}", remedy="Write it elsewhere with `cosmos restore --to DIR`.")
    parts = tuple(part for part in wanted if part.name not in over)
    known = {v.name: v for v in stack.volumes}
    lost = tuple(
        record
        for record in manifest.volumes
        if _wanted(record, parts) and not (record.name in known and known[record.name].exists)
    )
    lost_names = {v.name for v in lost}
    overwrite_config = "config" in only
    allowed = tuple(declared)
    steps = tuple(_step(part, stack, lost_names, allowed, overwrite_config=overwrite_config) for part in parts)
    touched = {p.volume for p in parts if p.volume}
    for neighbour in stack.neighbours:
        if neighbour.state == "running" and any(m.source in touched and m.writable for m in neighbour.mounts):
            raise errors.Refused(
                f"container {neighbour.container} of another project uses a volume that would be replaced",
                remedy=f"Stop it first: docker stop {neighbour.container}",
            )
    engines = {p.service for p in manifest.parts if p.service}
    running = {s.name for s in stack.services if s.state == "running"}
    data_parts = any(step.part.kind != "config" for step in steps)
    stop = tuple(
        sorted(
            {
                s.name
                for s in stack.services
                if data_parts and s.name not in engines and s.labels.get("cosmos.hold") != "never"
            }
        )
    )
    everything = {s.name for s in stack.services}
    start = everything if rebuilt or not running else running
    safety = tuple(s.part.name for s in steps if s.action == "overwrite" and s.part.kind != "config")
    return RestorePlan(
        manifest=manifest,
        stack=stack,
        steps=steps,
        create_volumes=lost,
        stop=stop,
        start=tuple(sorted(start)),
        safety=safety,
        warnings=_warnings(manifest, stack, parts),
        left_out=tuple(f"{why}; it is left out" for why in over.values()),
        overwrite_config=overwrite_config,
        only=tuple(only),
        rebuilt=rebuilt,
        backups=tuple(backups),
        declared=allowed,
    )


def _chosen(manifest: Manifest, only: Sequence[str]) -> tuple[Part, ...]:
    if not only:
        return manifest.parts
    chosen: list[Part] = []
    for wanted in only:
        found = [p for p in manifest.parts if wanted in (p.name, p.name.split("/", 1)[-1], p.name.split("/", 1)[0])]
        if not found:
            known = ", ".join(p.name for p in manifest.parts)
            raise errors.NotFound(f"backup {manifest.id} holds no part {wanted}", remedy=f"It holds: {known}.")
        chosen += [p for p in found if p not in chosen]
    return tuple(chosen)


def _wanted(record: VolumeRecord, parts: tuple[Part, ...]) -> bool:
    return record.short == STATE_VOLUME or any(p.volume == record.name for p in parts)


def _step(part: Part, stack: Stack, lost: set[str], declared: tuple[Path, ...], *, overwrite_config: bool) -> Step:
    if part.kind == "config":
        if overwrite_config:
            return Step(part, "overwrite", "configuration files that differ")
        return Step(part, "keep", "files that are missing are written, others stay as they are")
    if part.volume in lost:
        return Step(part, "create", f"volume {part.volume}")
    if part.kind in ("files", "sqlite") and not _files_root(part, stack, declared).exists():
        return Step(part, "create", str(_files_root(part, stack, declared)))
    service = stack.service(part.service) if part.service else None
    if part.service and service is None:
        raise errors.NotFound(
            f"the stack has no service {part.service} for part {part.name}",
            remedy="Restore with the backup's own Compose files in an empty folder, or choose parts with --only.",
        )
    return Step(part, "overwrite", part.volume or str(_files_root(part, stack, declared)))


def _files_root(part: Part, stack: Stack, declared: tuple[Path, ...]) -> Path:
    """Where a part of files or a database goes: below the project's folder, or to a path that the live stack mounts or
    the settings declare.

    The path comes from the archive, so nothing else is believed: ``Hostile`` for any other.
    """
    path = Path(part.details.get("path", ""))
    mounted = {m.source for s in stack.services for m in s.mounts if m.kind == "bind" and m.writable}
    if str(path) in mounted or path in declared:
        return path
    if path.is_absolute() or ".." in path.parts or not path.parts:
        raise errors.Hostile(
            f"part {part.name} wants to be written to {path}, which the stack does not mount and no setting names",
            remedy="Name it as a `[[source]]` in cosmos.toml, or write it elsewhere with `cosmos restore --to DIR`.",
        )
    return stack.directory / path


def _over_backups(
    parts: tuple[Part, ...], stack: Stack, declared: tuple[Path, ...], backups: tuple[Path, ...]
) -> dict[str, str]:
    """The parts that would be written over the folder of the backups, each with the sentence.

    No backup made now holds one; older ones do, made by an agent that saw its own folder under another path.
    """
    found = {}
    for part in parts:
        if part.kind == "config":
            continue
        for root in map(Path, _roots((part,), stack, declared).values()):
            if lies_in(root, backups) or holds(root, backups):
                found[part.name] = f"{part.name} would be written over {root}, where the backups themselves lie"
    return found


def _warnings(manifest: Manifest, stack: Stack, parts: tuple[Part, ...]) -> tuple[str, ...]:
    found = []
    if manifest.project != stack.project:
        found.append(f"the backup is of project {manifest.project}, the target is {stack.project}")
    if not manifest.complete:
        found.append("the backup is marked incomplete: " + "; ".join(g.what for g in manifest.missing if not g.chosen))
    names = {p.name for p in parts}
    found += [
        f"{gap.what}: what lies there now goes with the old state"
        for gap in manifest.missing
        if gap.chosen and gap.why == "left out by a pattern" and gap.what.rpartition(" of ")[2] in names
    ]
    if any(p.kind == "postgres" for p in parts):
        found.append("databases and roles of the server that the backup does not hold stay as they are")
    return tuple(found)


def restore(
    runtime: Runtime, settings: Settings, plan: RestorePlan, reader: BackupReader, story: Story, *, backups: Path
) -> Report:
    """Carry out the plan. Never raises for what the catalogue knows: the report says it, and how the stack is left."""
    try:
        state = runtime.state_directory()
        with run_lock(state, run=story.run, what="restore") as lease:
            lease.keep()
            if recover.healed(runtime, state, story, backups=backups):
                # what was planned was half restored or stood still
                plan = plan_restore(
                    runtime, plan.manifest, only=plan.only, backups=plan.backups, rebuilt=plan.rebuilt,
                    declared=plan.declared,
                )  # fmt: skip
            report = _restore(runtime, settings, plan, reader, story, Journal(state), backups=backups)
    except errors.CosmosError as error:
        report = story.failed(error, backup=plan.manifest.id)
    except KeyboardInterrupt:
        report = story.failed(errors.Interrupted("the restore was interrupted"), backup=plan.manifest.id)
    remember.remember(runtime, report)
    return report


def _restore(
    runtime: Runtime,
    settings: Settings,
    plan: RestorePlan,
    reader: BackupReader,
    story: Story,
    journal: Journal,
    *,
    backups: Path,
) -> Report:
    parts = tuple(step.part for step in plan.steps)
    engines = {part.service for part in parts if part.service}
    record = RestoreRecord(
        run=story.run,
        phase="creating",
        parts=sources.encode_parts(()),
        stop=plan.stop,
        start=tuple(sorted(engines.union(plan.start))),
        running=tuple(sorted({s.name for s in plan.stack.services if s.state == "running"})),
        created=tuple(volume.name for volume in plan.create_volumes),
        overwrite=plan.overwrite_config,
    )
    undo = Undo(runtime, journal.open(record))
    with undone_on_failure(undo, story):
        for sentence in plan.left_out:
            story.note(sentence)
        story.begin("create")
        kept = _create(runtime, plan, undo, story)
        live = tuple(step.part.name for step in plan.steps if step.part.service not in kept)
        first = tuple(name for name in plan.safety if name in live)
        safety = save_first(runtime, settings, first, story, journal, backups=backups)
        story.begin("stage")
        undo.staging(parts, _roots(parts, runtime.stack(), plan.declared))
        restorers = undo.restorers()
        metered = MeteredReader(reader, Meter(story.tell, expected_of(plan.manifest)))
        for restorer in restorers:
            restorer.stage(metered)
            story.tell(PartDone(restorer.part.name, sum(file.size for file in restorer.part.files)))
            if isinstance(restorer, TreeRestorer | ConfigRestorer) and restorer.unset:
                story.note(f"{restorer.part.name}: {restorer.unset} names keep another owner or lack attributes")
        _swap(runtime, plan, restorers, undo, story)
        undo.proven()
    finish(undo, story)
    for service, volume in kept.items():
        story.note(f"the files of {service} that did not start are kept in volume {volume}; remove it when they are of "
                   f"no use any more: cosmos volume remove {volume} --without-backup")  # fmt: skip
    before = safety or ", ".join(f"volume {name}" for name in kept.values())
    return story.report("done", backup=plan.manifest.id, parts=parts, safety_backup=before)


def _create(runtime: Runtime, plan: RestorePlan, undo: Undo, story: Story) -> dict[str, str]:
    """What is lost of the stack comes back, and its servers run. One that is stopped for its swap may be broken.

    Of a database server that ends as soon as it is started the files are moved aside, and a new one takes its place.
    Returns the volumes that hold such files, by service.
    """
    kept: dict[str, str] = {}
    for volume in plan.create_volumes:
        runtime.create_volume(volume)
    runtime.create()
    engines = sorted({(step.part.service, step.part.kind) for step in plan.steps if step.part.service})
    for service, kind in engines:
        try:
            runtime.start([service])
            runtime.wait_ready([service], crashes=_CRASHES)
        except errors.ServiceDown as error:
            if kind == "redis":
                story.note(f"{error.message}; its data are replaced all the same")
                continue
            if not error.ended:
                raise
            kept[service] = undo.move_aside(service)
            story.note(f"{error.message}: its files are moved to volume {kept[service]}, and a new server is started")
            runtime.start([service])
            runtime.wait_ready([service], crashes=_CRASHES)
    return kept


def _swap(runtime: Runtime, plan: RestorePlan, restorers: tuple[Restorer, ...], undo: Undo, story: Story) -> None:
    """Stop, swap, compare, start, probe. Whoever must be stopped for its own swap is down only for the renames."""
    halted = sorted({r.part.service for r in restorers if r.stops})
    story.begin("stop")
    undo.swapping()
    runtime.stop(plan.stop)
    runtime.stop(halted)
    story.begin("swap")
    for restorer in restorers:
        restorer.swap()
    story.begin("compare")
    for restorer in restorers:
        if not restorer.part.service:
            restorer.verify()
    runtime.start(halted)
    runtime.wait_ready(halted)
    for restorer in restorers:
        if restorer.part.service:
            restorer.verify()
    story.begin("start")
    runtime.start(plan.start)
    story.begin("probe")
    runtime.wait_ready(plan.start)


def save_first(
    runtime: Runtime, settings: Settings, parts: Sequence[str], story: Story, journal: Journal, *, backups: Path
) -> str:
    """Save these parts, which are going to be overwritten; where it is, or nothing when there was nothing to save.

    A store that cannot be backed up any more does not stop its own restore: its old state is kept aside until the new
    one has been proven, and the report says so.
    """
    if not parts:
        return ""
    story.begin("safety")
    inner = Story(verb="backup", run=story.run, project=story.project)
    try:
        safety_plan = backing.plan_backup(runtime, settings, only=parts, directory=backups, safety=True)
        report = backing.capture_backup(runtime, settings, safety_plan, inner, journal)
    except errors.Refused:
        raise
    except errors.CosmosError as error:
        story.note(f"no safety backup: {error.message}; the old state is kept aside until the new one is proven")
        return ""
    return report.path


def _roots(parts: tuple[Part, ...], stack: Stack, declared: tuple[Path, ...]) -> dict[str, str]:
    """The folder of each part that has one."""
    found: dict[str, Path | None] = {}
    for part in parts:
        if part.kind == "config":
            found[part.name] = stack.directory
        elif part.kind in ("files", "sqlite"):
            place = _files_root(part, stack, declared)
            found[part.name] = place.parent if part.kind == "sqlite" else place
        elif (volume := stack.volume(part.volume) if part.volume else None) is not None:
            found[part.name] = volume.path
    return {name: str(path) for name, path in found.items() if path is not None}
