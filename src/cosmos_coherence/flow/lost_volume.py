"""``cosmos volume create``: volumes that are missing come back as they were, empty."""

from __future__ import annotations

from pathlib import Path

import msgspec

from cosmos_coherence import errors
from cosmos_coherence.cut.lock import run_lock
from cosmos_coherence.drivers.runtime import Runtime
from cosmos_coherence.flow import inventory
from cosmos_coherence.model import Volume
from cosmos_coherence.settings import Settings
from cosmos_coherence.volumes.lost import Lost, lost_volumes


class CreatePlan(msgspec.Struct, frozen=True):
    """Which volumes are going to be made."""

    project: str
    missing: tuple[Lost, ...]
    there: tuple[str, ...] = ()
    """Volumes that were asked for by name and exist: they stay as they are."""


def plan_create(runtime: Runtime, settings: Settings, name: str, *, backups: Path) -> CreatePlan:
    """The volume of this full or short name; without one, all that the stack's own files name and that are missing, or,
    where these files are gone too, all that the newest backup names.

    Raises ``NotFound`` for a name that neither knows.
    """
    stack = runtime.stack()
    if name and (found := stack.volume(name)) is not None and found.exists:
        return CreatePlan(stack.project, (), (found.name,))
    last = inventory.newest(settings, backups, project=stack.project)
    missing = lost_volumes(stack, last.manifest if last is not None else None)
    if name:
        missing = tuple(lost for lost in missing if name in (lost.record.name, lost.record.short))
        if not missing:
            raise errors.NotFound(
                f"neither the Compose files of {stack.project} nor its newest backup know a volume {name}",
                remedy="Add it to the Compose file, then run it again.",
            )
    elif stack.config_files and all(file.is_file() for file in stack.config_files):
        # What these files do not name any more has been taken out on purpose.
        missing = tuple(lost for lost in missing if lost.said_by == "compose")
    return CreatePlan(stack.project, missing)


def create(runtime: Runtime, plan: CreatePlan, *, run: str) -> tuple[Volume, ...]:
    """Make them. One that has come up meanwhile stays as it is. Raises as ``Runtime.create_volume``."""
    with run_lock(runtime.state_directory(), run=run, what="volume create"):
        return tuple(runtime.create_volume(lost.record) for lost in plan.missing)
