"""``cosmos volume remove`` and ``prune``: what a backup holds may go, and nothing else unless it is asked for."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from cosmos_coherence import errors
from cosmos_coherence.copied import Found
from cosmos_coherence.cut.lock import run_lock
from cosmos_coherence.discover.coverage import STATE_VOLUME
from cosmos_coherence.drivers.docker_facts import PROJECT
from cosmos_coherence.drivers.runtime import Runtime
from cosmos_coherence.flow import held_content, named_volume, remember
from cosmos_coherence.flow.events import Story
from cosmos_coherence.model import Stack, Volume
from cosmos_coherence.settings import Settings
from cosmos_coherence.sources import tree_scan
from cosmos_coherence.volumes.usage import folder_size

_REMEDY = (
    "Stop and remove what uses it; make a complete backup with the volume as it is then, or give --without-backup."
)


class Step(msgspec.Struct, frozen=True):
    """What happens to one volume, and why."""

    volume: str
    remove: bool
    reason: str
    size: int = 0
    """Bytes that go with it."""
    backup: str = ""
    """The backup that holds it."""


class RemovalPlan(msgspec.Struct, frozen=True):
    """Which volumes go and which stay."""

    project: str
    steps: tuple[Step, ...]
    seen: Mapping[str, Mapping[bytes, Found]] = msgspec.field(default_factory=dict)
    """Each volume as it was when a backup was found to hold it."""

    @property
    def removes(self) -> tuple[str, ...]:
        """The full names of the volumes that go."""
        return tuple(step.volume for step in self.steps if step.remove)


def plan_removal(
    runtime: Runtime, settings: Settings, names: Sequence[str], *, backups: Path, without_backup: bool
) -> RemovalPlan:
    """These volumes, all or none: ``Refused`` names each one that may not go, and what keeps it.

    Raises ``NotFound`` for a volume that the stack does not have.
    """
    stack, users = runtime.stack(), runtime.volume_users()
    wanted = {volume.name: volume for name in names if (volume := named_volume.find(stack, name))}
    judge = _Judge(settings, backups, stack, without_backup)
    steps = tuple(_kept(volume, stack, users) or judge.step(volume) for volume in wanted.values())
    if kept := [f"{step.volume}: {step.reason}" for step in steps if not step.remove]:
        raise errors.Refused("not removed: " + "; ".join(kept), remedy=_REMEDY)
    return RemovalPlan(stack.project, steps, judge.seen)


def plan_prune(
    runtime: Runtime, settings: Settings, *, backups: Path, without_backup: bool, anonymous: bool
) -> RemovalPlan:
    """The volumes of the stack that no container uses. What its files would use again stays, as does whatever no backup
    holds. ``anonymous``: volumes without a name, which nobody claims, too."""
    stack, users = runtime.stack(), runtime.volume_users()
    judge = _Judge(settings, backups, stack, without_backup)
    steps = []
    for volume in stack.volumes:
        nameless = re.fullmatch(r"[0-9a-f]{64}", volume.name)
        if not volume.exists or volume.name in users or volume.short == STATE_VOLUME or nameless:
            continue
        awaited = [s.name for s in stack.services if any(m.source == volume.name for m in s.mounts)]
        reason = f"{awaited[0]} uses it when it is started" if awaited else ""
        kept = Step(volume.name, False, reason) if reason else _kept(volume, stack, users)
        steps.append(kept or judge.step(volume))
    if anonymous:
        steps += [judge.step(volume) for volume in runtime.anonymous_volumes()]
    return RemovalPlan(stack.project, tuple(steps), judge.seen)


def remove(runtime: Runtime, plan: RemovalPlan, story: Story) -> tuple[str, ...]:
    """Remove what the plan says; the names. ``Refused`` at the first that is in use by now, or not as it was when the
    backup was found to hold it: those before it are gone then, and the sentence names them."""
    gone: list[str] = []
    with run_lock(runtime.state_directory(), run=story.run, what=story.verb):
        for name in plan.removes:
            try:
                _require_unchanged(runtime, name, plan.seen.get(name))
                runtime.remove_volume(name)
            except errors.CosmosError as error:
                if gone:
                    error.add(f"removed before: {', '.join(gone)}")
                raise
            gone.append(name)
    remember.remember(runtime, story.report("done", removed=tuple(gone)))
    return tuple(gone)


class _Judge:
    """Says of each volume whether a backup holds it, and keeps how the volume looked."""

    def __init__(self, settings: Settings, backups: Path, stack: Stack, without_backup: bool) -> None:
        self._settings, self._backups, self._stack = settings, backups, stack
        self._without_backup = without_backup
        self.seen: dict[str, Mapping[bytes, Found]] = {}

    def step(self, volume: Volume) -> Step:
        size = folder_size(volume.path) if volume.path is not None else 0
        if self._without_backup:
            return Step(volume.name, True, "without a backup, as it was asked for", size)
        if volume.path is None:
            return Step(volume.name, False, "its files cannot be reached from here, so nothing tells what it holds")
        scan = tree_scan.walk(volume.path)
        if scan.mounts:
            return Step(volume.name, False, f"{tree_scan.show(min(scan.mounts))} in it lies on another file system")
        held = held_content.search(self._settings, self._backups, self._stack.project, volume, scan.names)
        self.seen[volume.name] = scan.names
        return Step(volume.name, bool(held.backup), held.why, size, held.backup)


def _kept(volume: Volume, stack: Stack, users: Mapping[str, tuple[str, ...]]) -> Step | None:
    """Why a volume stays whatever backups there are; None when nothing says so."""
    reason = ""
    if used := users.get(volume.name):
        reason = f"in use by {', '.join(used)}"
    elif (owner := volume.labels.get(PROJECT, stack.project)) != stack.project:
        reason = f"it belongs to project {owner}"
    return Step(volume.name, False, reason) if reason else None


def _require_unchanged(runtime: Runtime, name: str, seen: Mapping[bytes, Found] | None) -> None:
    if seen is None:
        return
    volume = runtime.stack().volume(name)
    if volume is None or volume.path is None or tree_scan.walk(volume.path).names != seen:
        raise errors.Refused(
            f"volume {name} has changed since it was compared with the backup", remedy="Run the same command again."
        )
