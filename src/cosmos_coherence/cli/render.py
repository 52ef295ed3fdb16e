"""Events and reports as text or JSON. It decides nothing: what is good or bad is in the report."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Sequence
from typing import Any

import msgspec
import typer

from cosmos_coherence.flow.events import Advanced, Emit, Event, Held, Noted, PartDone, Report, StepBegan, silent
from cosmos_coherence.health.checks import Health
from cosmos_coherence.model import Gap

_CLEAR = "\r\x1b[K"
_STEPS = {
    "recover": "look for leftovers of earlier runs",
    "plan": "plan",
    "prepare": "copy files while the stack runs",
    "hold": "hold the writers",
    "capture": "capture",
    "pack": "write what names it all",
    "verify": "look whether it is there and whole",
    "publish": "publish",
    "export": "make the archive",
    "retention": "remove what is too old",
    "open": "open the backup",
    "create": "create what is missing",
    "safety": "save what will be overwritten",
    "stage": "write the new state beside the old",
    "stop": "stop the writers",
    "swap": "swap",
    "compare": "compare with the fingerprint",
    "start": "start",
    "probe": "wait until everything answers",
    "finish": "remove the old state",
    "undo": "bring the old state back",
}


def as_json(value: Any) -> None:
    """One JSON document on standard output."""
    typer.echo(msgspec.json.format(msgspec.json.encode(value, enc_hook=str), indent=2).decode())


def size(number: int | float | None) -> str:
    """Bytes for people: ``1.2 MiB``."""
    if number is None:
        return "?"
    value = float(number)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"


class Progress:
    """An ``Emit`` that writes a line per event, with the seconds since the start, to standard error, so that standard
    output stays the result. It never raises: a terminal that went away ends no run."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._redraws = sys.stderr.isatty()
        self._drawn = False

    def __call__(self, event: Event) -> None:
        """Tell one event. How far things have come is drawn over and over where that can be done, else not at all: then
        there is a line for each part when it is done."""
        with contextlib.suppress(OSError, ValueError):
            if isinstance(event, Advanced):
                if self._redraws:
                    sys.stderr.write(f"{_CLEAR}{self._seconds()}  {advance(event)}")
                    sys.stderr.flush()
                    self._drawn = True
            elif line := _line(event):
                cleared = _CLEAR if self._drawn else ""
                self._drawn = False
                typer.echo(f"{cleared}{self._seconds()}  {line}", err=True)

    def _seconds(self) -> str:
        return f"{time.monotonic() - self._began:7.1f} s"


def advance(event: Advanced) -> str:
    """How far it is, for people: ``1.2 GiB of 3.4 GiB, 12,345 files, 210.0 MiB/s, 0:11 left  volumes/x``."""
    whole = "" if event.total_bytes is None else f" of {size(event.total_bytes)}"
    left = (
        ""
        if event.seconds_left is None
        else f", {int(event.seconds_left) // 60}:{int(event.seconds_left) % 60:02} left"
    )
    return f"{size(event.all_bytes)}{whole}, {event.all_files:,} files, {size(event.bytes_per_s)}/s{left}  {event.name}"


def _line(event: Event) -> str:
    match event:
        case StepBegan(step, detail) if step in _STEPS:
            return f"{_STEPS[step]}{f' ({detail})' if detail else ''}"
        case StepBegan(_, detail):
            return detail
        case PartDone(part, bytes_):
            return f"  {part}{f'  {size(bytes_)}' if bytes_ else ''}"
        case Held(pause_ms, containers):
            return f"  {containers} writers stood still for {pause_ms:.1f} ms"
        case Noted(text):
            return f"  note: {text}"
        case Advanced():
            return advance(event)


def progress(*, json_wanted: bool) -> Emit:
    """Who listens to a flow: standard error, or nobody where a program reads the outcome."""
    return silent if json_wanted else Progress()


def report(found: Report, *, json_wanted: bool) -> int:
    """Print the report; its exit status."""
    if json_wanted:
        as_json(found)
        return found.exit_status
    if found.failure:
        typer.echo(f"error: {found.failure.message}", err=True)
        typer.echo(f"  {found.failure.remedy}", err=True)
        return found.exit_status
    match found.verb:
        case "backup":
            typer.echo(
                f"backup {found.backup}: {len(found.parts)} parts, {size(found.size)}, pause {found.pause_ms:.1f} ms, "
                f"{found.seconds:.1f} s"
            )
            typer.echo(f"  {found.path}")
            for name in found.removed:
                typer.echo(f"  removed {name}, older than the settings keep")
        case "restore":
            typer.echo(f"restored {found.backup}: {len(found.parts)} parts, equal, {found.seconds:.1f} s")
            if found.safety_backup:
                typer.echo(f"  what was there before: {found.safety_backup}")
        case "recover":
            typer.echo("healed" if found.notes else "nothing to heal")
            for note in found.notes:
                typer.echo(f"  {note}")
    gaps([g for g in found.missing if not g.chosen])
    if found.status == "incomplete":
        typer.echo("the backup is marked incomplete", err=True)
    return found.exit_status


def checks(found: Health, *, json_wanted: bool) -> int:
    """Print the findings; 1 when one of them is a failure, else 0."""
    if json_wanted:
        as_json(found)
    else:
        table(("CHECK", "RESULT", "DETAIL"), [(r.name, r.outcome, r.detail) for r in found.checks])
    return int(found.outcome == "fail")


def gaps(missing: list[Gap]) -> None:
    """What is not covered, one line each."""
    for gap in missing:
        extra = f", {size(gap.size)}" if gap.size is not None else ""
        typer.echo(f"  not covered: {gap.what}: {gap.why}{extra}", err=True)


def table(headings: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> None:
    """Columns that line up; a real table on a terminal."""
    if sys.stdout.isatty():
        from rich.console import Console
        from rich.table import Table

        shown = Table(*headings, box=None, pad_edge=False)
        for row in rows:
            shown.add_row(*row)
        Console().print(shown)
        return
    widths = [max(len(r[i]) for r in (headings, *rows)) for i in range(len(headings))]
    for row in (headings, *rows):
        typer.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
