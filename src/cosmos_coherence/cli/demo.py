"""``cosmos demo``."""

from __future__ import annotations

from pathlib import Path

import typer

from cosmos_coherence.cli import render
from cosmos_coherence.flow import demo as flow


def demo(*, keep: Path | None, as_json: bool) -> int:
    """Run the demo and print its table; 0 when everything is equal."""
    found = flow.demo(keep=keep, emit=render.progress(json_wanted=as_json))
    if as_json:
        render.as_json(found)
        return found.exit_status
    rows = [
        ("rows", f"{found.rows:,}"),
        ("keys", f"{found.keys:,}"),
        ("files", f"{found.files:,}"),
        ("bytes", render.size(found.bytes)),
        ("pause", f"{found.pause_ms:.1f} ms"),
        ("backup", f"{found.backup_seconds:.1f} s"),
        ("restore", f"{found.restore_seconds:.1f} s"),
        ("archive", render.size(found.archive_bytes)),
        ("writes lost with the disaster", f"{found.written_after:,} (made after the backup)"),
        ("verdict", found.status if not found.not_shown else f"{found.status}, without {'; '.join(found.not_shown)}"),
    ]
    typer.echo("")
    render.table(("WHAT", "FOUND"), rows)
    for fault in found.faults:
        typer.echo(f"  {fault}", err=True)
    if found.kept:
        typer.echo(f"the stack is left running: cosmos -C {found.kept} status")
    return found.exit_status
