"""The verbs of ``cosmos volume`` that only look: ``list``, ``inspect``, ``usage``, ``forecast``."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from cosmos_coherence import errors
from cosmos_coherence.cli import context, render
from cosmos_coherence.drivers.folders import show
from cosmos_coherence.flow import volumes

if TYPE_CHECKING:
    from cosmos_coherence.drivers.runtime import Runtime
    from cosmos_coherence.flow.volumes import Outlook, Seen
    from cosmos_coherence.model import Volume
    from cosmos_coherence.settings import Settings
    from cosmos_coherence.volumes.forecast import Range
    from cosmos_coherence.volumes.picture import Area
    from cosmos_coherence.volumes.tally import Tally

_AGES = ("less than a day", "a day to a week", "a week to a month", "a month to a year", "more than a year")
_SHOWN = 15
_LARGEST = 10
_IN_JSON = 1000


def list_volumes(*, as_json: bool) -> int:
    """Every volume in a line."""
    settings = context.settings()
    runtime = context.runtime(settings)
    if (exit_status := _first(runtime, settings)) is not None:
        return exit_status
    found = volumes.look(runtime.stack(), settings, backups=context.backups(settings), past=_past(settings))
    if as_json:
        render.as_json(found)
        return _status(found)
    render.table(
        ("VOLUME", "SIZE", "FILES", "USED BY", "GROWTH PER DAY", "LAST BACKUP", "LAST PROOF"),
        [_row(seen) for seen in found],
    )
    return _status(found)


def inspect(name: str, *, as_json: bool) -> int:
    """One volume: what the engine says of it, and what is known of its content."""
    settings = context.settings()
    runtime = context.runtime(settings)
    if (exit_status := _first(runtime, settings)) is not None:
        return exit_status
    volume = volumes.find(runtime, name)
    (seen,) = volumes.look(
        runtime.stack(), settings, backups=context.backups(settings), past=_past(settings), only=volume
    )
    disk = volumes.disk_of(volume.path) if volume.path else None
    if as_json:
        render.as_json({"volume": seen, "disk": disk})
        return _status([seen])
    _, size, files, users, growth, backup, proof = _row(seen)
    facts = {
        "name": volume.name,
        "in the Compose file": volume.short,
        "driver": volume.driver,
        "options": _pairs(volume.options),
        "labels": _pairs(volume.labels),
        "path": str(volume.path or "cannot be reached from here"),
        "size": f"{size}{f', {seen.usage.bytes:,} bytes' if seen.usage else ''}",
        "files": files,
        "used by": users,
        "growth per day": seen.growth_unknown or growth,
        "disk": f"{render.size(disk.free)} of {render.size(disk.total)} free" if disk else "?",
        "last backup": backup,
        "last proof": proof,
    }
    for heading, fact in facts.items():
        typer.echo(f"{heading:20} {fact}")
    return _status([seen])


def usage(name: str, *, picture: Path | None, as_json: bool) -> int:
    """What takes the room in one volume: by folder, the largest files, by age."""
    settings = context.settings()
    runtime = context.runtime(settings)
    volume = _near(runtime, name)
    if volume is None:
        from cosmos_coherence.cli import beside

        places = (picture.absolute().parent,) if picture else ()
        if (exit_status := beside.volumes(runtime, settings, paths=places)) is not None:
            return exit_status
        volume = volumes.find(runtime, name)
    tally = volumes.contents(volume)
    disk = volumes.disk_of(volumes.files_of(volume))
    folders = _nested(tally)
    if picture is not None:
        _paint(picture, volume, folders)
    if as_json:
        render.as_json(
            {
                "volume": volume.name,
                "path": volume.path,
                "usage": tally.usage,
                "folders": [
                    {"path": show(path), "bytes": size, "files": files}
                    for path, (size, files) in sorted(folders.items(), key=lambda each: -each[1][0])[:_IN_JSON]
                ],
                "largest": [
                    {"path": show(f.path), "bytes": f.blocks * 512, "size": f.size, "modified_at": _time(f.mtime_s)}
                    for f in sorted(tally.largest, reverse=True)
                ],
                "ages": [
                    {"age": age, "bytes": blocks * 512, "files": files}
                    for age, (blocks, files) in zip(_AGES, reversed(tally.ages), strict=True)
                ],
                "disk": disk,
            }
        )
        return errors.INCOMPLETE_STATUS if tally.unreadable else 0
    _say(volume, tally, folders)
    if disk:
        typer.echo(f"\ndisk: {render.size(disk.free)} of {render.size(disk.total)} free")
    return _incomplete(tally.unreadable)


def forecast(name: str, *, as_json: bool) -> int:
    """How fast volumes grow, and when their disk is full."""
    settings = context.settings()
    runtime = context.runtime(settings)
    if (exit_status := _first(runtime, settings)) is not None:
        return exit_status
    if name:
        volumes.find(runtime, name)  # NotFound, with the names that there are
    found = volumes.foresee(runtime.stack(), past=_past(settings), name=name)
    if as_json:
        render.as_json(found)
        return 0
    render.table(("WHAT", "SIZE", "GROWTH PER DAY", "ROOM", "DAYS UNTIL FULL"), [_outlook(each) for each in found])
    for each in found:
        if each.forecast.unknown:
            typer.echo(f"{each.subject}: {each.forecast.unknown}", err=True)
    return 0


def _first(runtime: Runtime, settings: Settings) -> int | None:
    """Run beside the volumes where that is needed, and the exit status of that; else heal what a killed run left."""
    from cosmos_coherence.cli import beside, healing

    if (exit_status := beside.volumes(runtime, settings)) is not None:
        return exit_status
    healing.first(settings, runtime)
    return None


def _near(runtime: Runtime, name: str) -> Volume | None:
    """The volume, when its files can be read from here without further ado: a walk of a million files takes about as
    long as asking for the whole stack."""
    if runtime.kind != "process" and os.geteuid() != 0:
        return None
    volume = volumes.find(runtime, name)
    return volume if volume.path is not None else None


# --------------------------------------------------------------------------------------------------------- for people
def _row(seen: Seen) -> tuple[str, ...]:
    usage = seen.usage
    unsure = "at least " if usage and usage.unreadable else ""
    return (
        seen.volume.name if seen.volume.exists else f"{seen.volume.name} (missing)",
        f"{unsure}{render.size(usage.bytes)}" if usage else "?",
        f"{unsure}{usage.files:,}" if usage else "?",
        ", ".join(seen.used_by) or "-",
        "unknown" if seen.growth_per_day is None else _signed(seen.growth_per_day),
        seen.last_backup,
        seen.last_proof,
    )


def _say(volume: Volume, tally: Tally, folders: Mapping[bytes, tuple[int, int]]) -> None:
    usage = tally.usage
    unsure = "at least " if usage.unreadable else ""
    typer.echo(
        f"{volume.name}: {unsure}{render.size(usage.bytes)} ({usage.bytes:,} bytes), "
        f"{usage.files:,} files, {usage.folders:,} folders\n"
    )
    top = sorted(((p, f) for p, f in folders.items() if p and b"/" not in p), key=lambda each: -each[1][0])
    rows = [
        (show(path), render.size(size), _percent(size, usage.bytes), f"{count:,}")
        for path, (size, count) in top[:_SHOWN]
    ]
    if more := top[_SHOWN:]:
        size = sum(size for _, (size, _) in more)
        count = sum(n for _, (_, n) in more)
        rows.append((f"{len(more)} more folders", render.size(size), _percent(size, usage.bytes), f"{count:,}"))
    blocks, count = tally.shares.get(b"", (0, 0))
    rows.append(("files in no folder", render.size(blocks * 512), _percent(blocks * 512, usage.bytes), f"{count:,}"))
    render.table(("FOLDER", "SIZE", "SHARE", "FILES"), rows)
    typer.echo("")
    render.table(
        ("LARGEST FILE", "ON DISK", "SIZE", "MODIFIED"),
        [
            (show(f.path), render.size(f.blocks * 512), render.size(f.size), _time(f.mtime_s))
            for f in sorted(tally.largest, reverse=True)[:_LARGEST]
        ],
    )
    typer.echo("")
    render.table(
        ("LAST MODIFIED", "SIZE", "FILES"),
        [
            (age, render.size(blocks * 512), f"{count:,}")
            for age, (blocks, count) in zip(_AGES, reversed(tally.ages), strict=True)
        ],
    )


def _past(settings: Settings) -> volumes.Past:
    from cosmos_coherence.settings import load_serve

    return volumes.past(context.found_state(settings), load_serve())


def _outlook(found: Outlook) -> tuple[str, ...]:
    growth, full = found.forecast.growth, found.forecast.full
    return (
        found.subject,
        render.size(found.bytes),
        _between(growth, _signed) if growth else "unknown",
        render.size(found.room),
        _between(full, _days) if full else "unknown",
    )


def _between(found: Range, written: Callable[[float | None], str]) -> str:
    if found.value is None and found.low is None:
        return "not in sight"
    return f"{written(found.value)} ({written(found.low)} to {written(found.high)})"


def _days(days: float | None) -> str:
    return "never" if days is None else f"{days:.1f}" if days < 10 else f"{days:,.0f}"


def _signed(size: float | None) -> str:
    return "?" if size is None else f"{'-' if size < 0 else '+'}{render.size(abs(size))}"


def _percent(size: int, whole: int) -> str:
    return f"{size / whole:.1%}" if whole else "-"


def _pairs(values: Mapping[str, str]) -> str:
    return ", ".join(f"{name}={value}" for name, value in sorted(values.items())) or "-"


def _time(seconds: int) -> str:
    try:
        return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    except (OverflowError, ValueError, OSError):  # whoever may write there sets it as he likes
        return "?"


def _incomplete(unreadable: int) -> int:
    if unreadable:
        typer.echo(f"{unreadable:,} names may not be looked at: the figures are a lower bound", err=True)
        return errors.INCOMPLETE_STATUS
    return 0


def _status(found: tuple[Seen, ...] | list[Seen]) -> int:
    return _incomplete(sum(seen.usage.unreadable for seen in found if seen.usage))


# ------------------------------------------------------------------------------------------------------- by folder
def _nested(tally: Tally) -> dict[bytes, tuple[int, int]]:
    """Bytes and files by folder, each with all below it; the root is ``b""``."""
    found: dict[bytes, tuple[int, int]] = {}
    for path, (blocks, files) in tally.shares.items():
        steps = path.split(b"/") if path else []
        for depth in range(len(steps) + 1):
            above = b"/".join(steps[:depth])
            size, count = found.get(above, (0, 0))
            found[above] = size + blocks * 512, count + files
    return found


def _paint(file: Path, volume: Volume, folders: Mapping[bytes, tuple[int, int]]) -> None:
    from cosmos_coherence.storage import local
    from cosmos_coherence.volumes import picture

    text = picture.treemap(_area(volume.name, folders))
    local.write_atomically(file.absolute(), text.encode("utf-8", "replace"))


def _area(name: str, folders: Mapping[bytes, tuple[int, int]]) -> Area:
    from cosmos_coherence.volumes.picture import Area

    below: dict[bytes, list[bytes]] = {}
    for path in folders:
        if path:
            below.setdefault(path.rpartition(b"/")[0], []).append(path)

    def area(path: bytes, label: str) -> Area:
        size = folders[path][0]
        parts = sorted((area(each, show(each.rpartition(b"/")[2])) for each in below.get(path, ())), key=_size)[-200:]
        rest = size - sum(part.size for part in parts)
        if parts and rest > 0:
            parts.append(Area("everything else", rest, render.size(rest)))
        return Area(label, size, render.size(size), tuple(parts))

    whole = area(b"", name)
    return whole if whole.parts else Area(name, whole.size, whole.said, (Area("files", whole.size, whole.said),))


def _size(area: Area) -> int:
    return area.size
