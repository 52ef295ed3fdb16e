"""``cosmos volume fix-owner``: owner and mode of every name as the last backup and the image have them."""

from __future__ import annotations

from pathlib import Path

import msgspec

from cosmos_coherence import errors
from cosmos_coherence.cut.lock import run_lock
from cosmos_coherence.drivers.folders import Folders
from cosmos_coherence.drivers.runtime import Runtime
from cosmos_coherence.flow import held_content, named_volume, volumes
from cosmos_coherence.model import Mount, Stack, Volume
from cosmos_coherence.settings import Settings
from cosmos_coherence.sources import tree_scan
from cosmos_coherence.volumes import ownership
from cosmos_coherence.volumes.ownership import Change


class OwnerPlan(msgspec.Struct, frozen=True):
    """Which names are going to get another owner or mode."""

    volume: Volume
    changes: tuple[Change, ...]
    names: int
    """How many names it holds."""
    backup: str = ""
    """The backup that knows them; empty when none does."""
    user: tuple[int, int] | None = None
    """Owner and group of what the backup does not know; None when it knows all, or nobody uses the volume."""
    service: str = ""
    """The service whose image says so."""


def plan_fix(runtime: Runtime, settings: Settings, name: str, *, service: str = "", backups: Path) -> OwnerPlan:
    """Compare the volume with the newest backup that holds its files, and the rest with the user of its ``service``.

    Raises ``NotFound`` for an unknown volume or service, ``Refused`` when several services use it as different users
    and none is named, and what ``Runtime.user_of`` raises.
    """
    stack = runtime.stack()
    volume = named_volume.find(stack, name)
    names = tree_scan.walk(volumes.files_of(volume)).names
    backup, known = held_content.entries_of(settings, backups, stack.project, volume)
    user, by = None, ""
    if ownership.unknown_names(names, known):
        user, by = _user(runtime, stack, volume, service)
    return OwnerPlan(volume, ownership.plan_owners(names, known, user), len(names), backup, user, by)


def fix(runtime: Runtime, plan: OwnerPlan, *, run: str) -> tuple[bytes, ...]:
    """Carry the plan out; the names that were replaced meanwhile and stay as they are. Raises ``Refused``."""
    root = volumes.files_of(plan.volume)
    with run_lock(runtime.state_directory(), run=run, what="volume fix-owner"), Folders(root) as folders:
        return tuple(ownership.apply_owners(folders, plan.changes))


def _user(runtime: Runtime, stack: Stack, volume: Volume, wanted: str) -> tuple[tuple[int, int] | None, str]:
    mounts = {s.name: mount for s in stack.services if (mount := _mount(s.mounts, volume)) is not None}
    if wanted and wanted not in mounts:
        raise errors.NotFound(
            f"no service {wanted} writes to volume {volume.name}",
            remedy=f"These do: {', '.join(sorted(mounts)) or 'none'}.",
        )
    users = {name: runtime.user_of(name, mounts[name].target) for name in sorted(mounts) if wanted in ("", name)}
    if len(set(users.values())) > 1:
        each = ", ".join(f"{name} as {uid}:{gid}" for name, (uid, gid) in users.items())
        raise errors.Refused(
            f"several services write to volume {volume.name}: {each}",
            remedy="Say with --service whose the names are that the backup does not know.",
        )
    return next(((user, name) for name, user in users.items()), (None, ""))


def _mount(mounts: tuple[Mount, ...], volume: Volume) -> Mount | None:
    return next((m for m in mounts if m.kind == "volume" and m.source == volume.name and m.writable), None)
