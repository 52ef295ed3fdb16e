"""What is to be measured now: volumes, disks, the repository, backups and checks. It goes into the spool.

Whatever cannot be measured is a note and keeps nothing else from being measured.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from pathlib import Path

from cosmos_coherence import errors
from cosmos_coherence.archive import listing
from cosmos_coherence.drivers.runtime import Runtime
from cosmos_coherence.flow import health, history, store
from cosmos_coherence.flow.measured import Measured, keep
from cosmos_coherence.flow.volumes import Watches, measure_volumes
from cosmos_coherence.health import disk
from cosmos_coherence.health.checks import Health
from cosmos_coherence.model import Measurement, Stack
from cosmos_coherence.settings import ServeSettings, Settings
from cosmos_coherence.volumes import forecast

_DAY_S = 86400.0
_FORECAST_S = 30 * _DAY_S
"""How far back a forecast looks."""
FOREVER_DAYS = 3650.0
"""A disk that is not full within ten years counts as one that never is."""
_ONLY_WHEN_AMISS = ("engine", "repository")
"""Checks that say nothing while all is well."""
_OF_CHECKS = ("check:", "certificate:", "endpoint:", "backup")
"""What checks have measured and nobody else has."""


def measure(
    runtime: Runtime,
    settings: Settings,
    serving: ServeSettings,
    *,
    directory: Path,
    watches: Watches | None = None,
    now: Callable[[], float] = time.time,
) -> Measured:
    """Measure the stack, its backups (archives are in ``directory``) and what they lie on, and put it into the spool.

    With ``watches`` of an earlier round, only what has changed in the volumes is looked at. Never raises for what the
    catalogue knows; the notes say what could not be measured.
    """
    taken, notes = now(), list[str]()
    found: list[tuple[str, str, float]] = []
    stack: Stack | None = None
    state: Path | None = None
    try:
        stack = runtime.stack()
        state = runtime.state_directory()
        found += _of_volumes(stack, watches, notes)
    except errors.CosmosError as error:
        notes.append(error.message)
    disks = dict(_of_disks(_folders(stack, settings, directory, state)))
    for name, numbers in disks.items():
        found += [(f"disk:{name}", number, value) for number, value in numbers.items()]
    if state:
        found += _of_growth(state, serving, disks, taken)
    found += _of_backups(settings, directory, stack, taken, notes)
    checked = health.check_stack(lambda: runtime, settings, backups=directory)
    found += [(f"check:{name}", "ok", 1.0) for name in _ONLY_WHEN_AMISS if name not in {c.name for c in checked.checks}]
    there = {(subject, name) for subject, name, _ in found}
    found += [
        (each.subject, each.name, each.value)
        for each in health.measurements(checked)
        if each.subject.startswith(_OF_CHECKS) and (each.subject, each.name) not in there
    ]
    measurements = tuple(Measurement(taken, *each) for each in found)
    if state:
        notes += keep(state, settings, measurements)
    return Measured(measurements, _details(checked), tuple(notes))


def _of_volumes(stack: Stack, watches: Watches | None, notes: list[str]) -> Iterator[tuple[str, str, float]]:
    """What lies in each; of the disks below, ``_of_disks`` knows more."""
    measured = measure_volumes(stack, watches=watches)
    sizes: dict[str, float] = {}
    for each in measured.measurements:
        if each.subject.startswith("volume:"):
            yield each.subject, each.name, each.value
            if each.name == "bytes":
                sizes[each.subject] = each.value
    for volume in stack.volumes:
        subject = f"volume:{volume.name}"
        yield subject, "exists", float(volume.exists)
        try:
            allowed = disk.limit_of(volume)
        except errors.ConfigurationError as error:
            notes.append(error.message)
            continue
        if allowed and subject in sizes:
            yield subject, "used_limit_ratio", sizes[subject] / allowed
    notes += [f"volume {name}: {how}" for name, how in measured.how.items() if not how.startswith("by ")]


def _folders(stack: Stack | None, settings: Settings, directory: Path, state: Path | None) -> list[Path]:
    volumes = [volume.path for volume in stack.volumes if volume.path is not None and volume.exists] if stack else []
    return [directory, *store.local_folder(settings), *([state] if state else []), *sorted(volumes)]


def _of_disks(folders: list[Path]) -> Iterator[tuple[str, dict[str, float]]]:
    """Each disk once, called by where it is mounted."""
    seen: set[int] = set()
    for folder in folders:
        try:
            place = disk.existing(folder)
            device, found = place.stat().st_dev, disk.fullness(place)
        except OSError:
            continue  # one that cannot be looked at is a failed check of its own
        if device in seen:
            continue
        seen.add(device)
        while not place.is_mount():
            place = place.parent
        numbers = {"size_bytes": found.size_bytes, "free_bytes": found.free_bytes, "used_bytes": found.used_bytes}
        shares = {"used_ratio": found.used} if found.size_bytes else {}
        if found.inodes:
            shares["used_inodes_ratio"] = found.inodes
        yield str(place), {**{name: float(value) for name, value in numbers.items()}, **shares}


def _of_growth(
    state: Path, serving: ServeSettings, disks: Mapping[str, Mapping[str, float]], taken: float
) -> Iterator[tuple[str, str, float]]:
    subjects = tuple(f"disk:{name}" for name in disks)
    used = history.series(state, serving, subjects, "used_bytes", taken - _FORECAST_S)
    for name, numbers in disks.items():
        series = (*used[f"disk:{name}"], (taken, numbers["used_bytes"]))
        if full := forecast.foresee(series, numbers["free_bytes"]).full:
            for number, days in (("", full.value), ("_low", full.low), ("_high", full.high)):
                left = FOREVER_DAYS if days is None else max(0.0, min(days, FOREVER_DAYS))
                yield f"disk:{name}", f"days_until_full{number}", left


def _of_backups(
    settings: Settings, directory: Path, stack: Stack | None, taken: float, notes: list[str]
) -> Iterator[tuple[str, str, float]]:
    project = settings.stack.project or (stack.project if stack else None)
    complete = [
        datetime.fromisoformat(archive.manifest.instant).timestamp()
        for archive in listing.list_archives(directory)
        if archive.complete and not archive.safety
    ]
    if store.configured(settings):
        try:
            repository = store.open_repository(settings)
            kept = store.kept(repository, project)
            complete += [each.made_s for each in kept if each.complete and not each.safety]
            yield "repository", "bytes", float(sum(each.size for each in repository.backend.list("data")))
            yield "repository", "snapshots_count", float(len(kept))
        except errors.CosmosError as error:
            notes.append(f"the repository cannot be measured: {error.message}")
            return  # whether there is a backup is unknown then
    yield "backup", "complete_count", float(len(complete))
    if complete:
        yield "backup", "age_seconds", max(0.0, taken - max(complete))


def _details(checked: Health) -> dict[str, str]:
    return {f"check:{check.name}": check.detail for check in checked.checks if check.outcome != "ok"}
