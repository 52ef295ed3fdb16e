"""Looking at volumes: how large they are, who uses them, how they grow, when their disk is full."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from cosmos_coherence import errors
from cosmos_coherence.model import Measurement, Stack, Volume
from cosmos_coherence.volumes.usage import Usage, measure_tree
from cosmos_coherence.volumes.walkers import count_tree

if TYPE_CHECKING:
    from cosmos_coherence.drivers.runtime import Runtime
    from cosmos_coherence.settings import ServeSettings, Settings
    from cosmos_coherence.volumes.forecast import Forecast
    from cosmos_coherence.volumes.tally import Tally
    from cosmos_coherence.volumes.watch import TreeWatch

NEVER = "never"
Series = tuple[tuple[float, float], ...]
"""Seconds since the epoch and values, oldest first."""
Past = Callable[[tuple[str, ...], str], Mapping[str, Series]]
"""What was measured before of these subjects under a name."""
_PAST_S = 90 * 86400.0
"""What is older tells little of the growth to come."""


class Seen(msgspec.Struct, frozen=True):
    """One volume, as far as it can be told from here."""

    volume: Volume
    used_by: tuple[str, ...]
    """Services, and containers outside of the stack; one that only reads bears ``(read-only)``."""
    usage: Usage | None = None
    """None when its files cannot be reached."""
    growth_per_day: float | None = None
    """Bytes; None when it is not known."""
    growth_unknown: str = ""
    """Why not."""
    last_backup: str = NEVER
    """The instant of the newest backup with its content, or why that cannot be told."""
    last_proof: str = NEVER


class Disk(msgspec.Struct, frozen=True):
    """What a folder's file system has room for, in bytes, as ``df`` says it."""

    path: str
    total: int
    free: int


class Outlook(msgspec.Struct, frozen=True):
    """What is to be expected of one volume, or of one disk."""

    subject: str
    """As measurements name it: ``volume:<full name>``, ``disk:<path>``."""
    bytes: int | None
    """What it takes now; of a disk, what is taken of it."""
    room: int | None
    """Bytes left on its disk."""
    forecast: Forecast


# ------------------------------------------------------------------------------------------------------ which volume
def find(runtime: Runtime, name: str) -> Volume:
    """The volume of that full or short name. ``NotFound`` names those that there are.

    Where the engine can be asked for it alone, nothing else of the stack is looked at.
    """
    if runtime.kind == "docker":
        from cosmos_coherence.drivers import named_volume
        from cosmos_coherence.drivers.docker import DockerRuntime

        assert isinstance(runtime, DockerRuntime)
        if (found := named_volume.find(runtime.engine, runtime.reach, runtime.project, name)) is not None:
            return found
    stack = runtime.stack()
    volume = stack.volume(name)
    if volume is None or not volume.exists:
        known = ", ".join(v.short for v in stack.volumes if v.exists) or "none"
        lost = "; its Compose files name it, and it is missing" if volume else ""
        raise errors.NotFound(f"stack {stack.project} has no volume {name}{lost}", remedy=f"Its volumes: {known}.")
    return volume


def files_of(volume: Volume) -> Path:
    """Where its files lie. ``Unsupported`` when they cannot be reached from here."""
    if volume.path is None:
        raise errors.Unsupported(
            f"the files of volume {volume.name} cannot be reached from here",
            remedy="Run on the host of the engine; a volume of another driver has to be in use.",
        )
    return volume.path


# --------------------------------------------------------------------------------------------------------- the looks
def look(
    stack: Stack, settings: Settings, *, backups: Path, past: Past, only: Volume | None = None
) -> tuple[Seen, ...]:
    """Every volume of the stack, or one, with its size measured now. What cannot be told is said, and is no error."""
    wanted = stack.volumes if only is None else (only,)
    saved = _last_backups(settings, backups, stack.project, {v.name for v in wanted})
    sizes = past(tuple(_subject(volume) for volume in wanted), "bytes")
    return tuple(_seen(stack, volume, saved, sizes.get(_subject(volume), ())) for volume in wanted)


def contents(volume: Volume) -> Tally:
    """All that can be said of what is in a volume, measured now. Raises as ``files_of``, and ``CaptureFailed``."""
    path = files_of(volume)
    try:
        return count_tree(path)
    except OSError as error:
        raise errors.CaptureFailed(
            f"volume {volume.name} cannot be measured: {error.strerror}", remedy="Run as a user who may read it."
        ) from error


def disk_of(path: Path) -> Disk | None:
    """The disk that the folder is on; None when it cannot be asked."""
    try:
        found = os.statvfs(path)
        return Disk(str(_mount_point(path)), found.f_blocks * found.f_frsize, found.f_bavail * found.f_frsize)
    except OSError:
        return None


def foresee(stack: Stack, *, past: Past, name: str = "") -> tuple[Outlook, ...]:
    """What is to be expected of every volume (or the one of that name) and of the disks that they lie on."""
    from cosmos_coherence.volumes import forecast

    volumes = [v for v in stack.volumes if v.exists and (not name or name in (v.name, v.short))]
    found: list[Outlook] = []
    disks: dict[str, tuple[Disk, str]] = {}
    subjects = tuple(_subject(volume) for volume in volumes)
    sizes, free_before = past(subjects, "bytes"), past(subjects, "free_bytes")
    for volume in volumes:
        subject = _subject(volume)
        disk = disk_of(volume.path) if volume.path else None
        usage = _usage(volume)
        series = sizes.get(subject, ())
        if usage is not None and series:
            series = (*series, (time.time(), float(usage.bytes)))
        found.append(
            Outlook(
                subject,
                usage.bytes if usage else None,
                disk.free if disk else None,
                forecast.foresee(series, disk.free if disk else None),
            )
        )
        if disk:
            disks.setdefault(disk.path, (disk, subject))
    for disk, on_it in disks.values():
        subject = f"disk:{disk.path}"
        free = free_before.get(on_it, ())  # the disk's own place is another one in the agent's container
        series = tuple((taken, disk.total - left) for taken, left in free)
        if series:
            series = (*series, (time.time(), float(disk.total - disk.free)))
        found.append(Outlook(subject, disk.total - disk.free, disk.free, forecast.foresee(series, disk.free)))
    return tuple(found)


def past(state: Path | None, serving: ServeSettings) -> Past:
    """What was measured in the last 90 days, as far as it is known from here."""

    def ask(subjects: tuple[str, ...], name: str) -> Mapping[str, Series]:
        if state is None or not subjects:
            return {}
        from cosmos_coherence.flow import history

        return history.series(state, serving, subjects, name, time.time() - _PAST_S)

    return ask


# ---------------------------------------------------------------------------------------------------- measurements
class Watches:
    """The watched volumes of an agent: made once, asked again and again. A context manager."""

    def __init__(self) -> None:
        self._watches: dict[Path, TreeWatch] = {}

    def __enter__(self) -> Watches:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def usage(self, path: Path) -> tuple[Usage, str]:
        """What lies below the folder now, and how that is known. ``OSError`` when it may not be read."""
        from cosmos_coherence.volumes.watch import TreeWatch

        watch = self._watches.setdefault(path, TreeWatch(path))
        try:
            found = watch.measure()
        except OSError:
            self._watches.pop(path).close()
            raise
        return found.usage, found.how

    def keep(self, paths: Iterable[Path]) -> None:
        """Forget every other folder."""
        for path in self._watches.keys() - set(paths):
            self._watches.pop(path).close()

    def close(self) -> None:
        """Notice nothing any more."""
        self.keep(())


class Measures(msgspec.Struct, frozen=True):
    """Measurements of one moment, and what is to be said of them."""

    measurements: tuple[Measurement, ...]
    how: Mapping[str, str]
    """By full name of the volume: ``by notification``, ``by walk (why)``, or why it could not be measured."""


def measure_volumes(stack: Stack, *, watches: Watches | None = None) -> Measures:
    """``bytes``, ``files`` and ``free_bytes`` (of its disk) of every volume that can be reached, and ``free_bytes`` and
    ``total_bytes`` of the disks, under the places where they are mounted here.

    With ``watches``, only what has changed is looked at. A volume that cannot be measured, or of which only a part can
    be seen, gives no measurement, and is named in ``how``.
    """
    found: list[Measurement] = []
    how: dict[str, str] = {}
    disks: dict[str, Disk] = {}
    for volume in stack.volumes:
        if not volume.exists or volume.path is None:
            how[volume.name] = "its files cannot be reached from here" if volume.exists else "it is missing"
            continue
        try:
            usage, how[volume.name] = watches.usage(volume.path) if watches else (measure_tree(volume.path), "by walk")
        except OSError as error:
            how[volume.name] = f"it cannot be measured: {error.strerror}"
            continue
        taken = time.time()
        if usage.unreadable:
            how[volume.name] = f"{usage.unreadable} names may not be looked at"
        else:
            found.append(Measurement(taken, f"volume:{volume.name}", "bytes", float(usage.bytes)))
            found.append(Measurement(taken, f"volume:{volume.name}", "files", float(usage.files)))
        if disk := disk_of(volume.path):
            disks[disk.path] = disk
            found.append(Measurement(taken, f"volume:{volume.name}", "free_bytes", float(disk.free)))
    for disk in disks.values():
        taken = time.time()
        found.append(Measurement(taken, f"disk:{disk.path}", "free_bytes", float(disk.free)))
        found.append(Measurement(taken, f"disk:{disk.path}", "total_bytes", float(disk.total)))
    if watches:
        watches.keep(v.path for v in stack.volumes if v.path is not None)
    return Measures(tuple(found), how)


# ------------------------------------------------------------------------------------------------------------------
def _subject(volume: Volume) -> str:
    return f"volume:{volume.name}"


def _seen(stack: Stack, volume: Volume, saved: Mapping[str, str], sizes: Series) -> Seen:
    from cosmos_coherence.volumes import forecast

    seen = forecast.foresee(sizes, None)
    return Seen(
        volume,
        _users(stack, volume),
        _usage(volume),
        seen.growth.value if seen.growth else None,
        seen.unknown,
        saved.get(volume.name, saved.get("", NEVER)),
    )


def _usage(volume: Volume) -> Usage | None:
    if volume.path is None:
        return None
    try:
        return measure_tree(volume.path)
    except OSError:
        return None


def _users(stack: Stack, volume: Volume) -> tuple[str, ...]:
    users: dict[str, bool] = {}
    for service in (*stack.services, *stack.neighbours):
        name = service.name if service in stack.services else service.container
        for mount in service.mounts:
            if mount.kind == "volume" and mount.source == volume.name:
                users[name] = users.get(name, False) or mount.writable
    return tuple(name if writable else f"{name} (read-only)" for name, writable in sorted(users.items()))


def _last_backups(settings: Settings, backups: Path, project: str, wanted: set[str]) -> Mapping[str, str]:
    """By full name of a volume, the instant of the newest backup that holds its content; under "" what to say of all
    others, when that cannot be told."""
    from cosmos_coherence.flow import inventory

    try:
        found, _ = inventory.backups(settings, backups, project=project)
    except errors.CosmosError as error:
        return {"": f"unknown: {error.message}"}
    held: dict[str, str] = {}
    for entry in found:
        if not entry.manifest.safety and entry.manifest.project == project:
            held |= {part.volume: entry.manifest.instant for part in entry.manifest.parts if part.volume in wanted}
    return held


def _mount_point(path: Path) -> Path:
    place = path.resolve()
    while not os.path.ismount(place):
        place = place.parent
    return place
