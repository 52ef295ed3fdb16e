"""``cosmos schedule install``."""

from __future__ import annotations

import os
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path

import typer

from cosmos_coherence import errors
from cosmos_coherence.agent import handover
from cosmos_coherence.cli import agent, context, render
from cosmos_coherence.drivers import process
from cosmos_coherence.storage import local

_SYSTEM = Path("/etc/systemd/system")
_USERS = Path(".config/systemd/user")
_RUNS = Path("/run/systemd/system")
_LIMIT_S = 60.0


def install(*, systemd: bool, cron: bool, remove: bool, dry_run: bool, as_json: bool) -> int:
    """Write timers or crontab lines, or take them away; the exit status. Saying it again changes nothing."""
    if systemd == cron:
        raise errors.UsageError("it goes to systemd or to cron", remedy="Say --systemd or --cron.")
    settings = context.settings()
    project = context.project(settings)
    if project is None:
        raise errors.NotFound("nothing here says which project this is", remedy="Name it with --project.")
    timetable = () if remove else agent.rhythms(settings)
    command = (sys.executable, "-m", "cosmos_coherence.cli.main", *context.options(), "schedule", "run")
    if systemd:
        jitter = int(settings.schedule.jitter)
        wanted = handover.units(timetable, project=project, command=command, jitter_s=jitter)
        folder = _SYSTEM if os.geteuid() == 0 else Path.home() / _USERS
        changed = _units(wanted, folder, project, dry_run=dry_run, as_json=as_json)
    else:
        block = handover.lines(timetable, project=project, command=command, now=datetime.now(UTC)) if timetable else ""
        wanted, changed = {"crontab": block}, _crontab(block, project, dry_run=dry_run, as_json=as_json)
    if as_json:
        render.as_json({"status": "planned" if dry_run else "done", "changed": changed, "wanted": wanted})
    elif not changed:
        typer.echo("nothing to change")
    return 0


def _units(wanted: dict[str, str], folder: Path, project: str, *, dry_run: bool, as_json: bool) -> list[str]:
    there = {
        path.name: path.read_text("utf-8") for path in folder.glob(f"{handover.prefix(project)}*") if path.is_file()
    }
    known = {f"{handover.prefix(project)}{name}.{kind}" for name in agent.NAMES for kind in ("service", "timer")}
    gone = sorted(known & set(there) - set(wanted))
    new = sorted(name for name, text in wanted.items() if there.get(name) != text)
    if dry_run:
        _shown({str(folder / name): wanted[name] for name in new}, [str(folder / name) for name in gone], as_json)
        return [*new, *gone]
    _verify(wanted)
    timers = [name for name in gone if name.endswith(".timer")]
    if timers and _RUNS.is_dir():
        _systemctl("disable", "--now", *timers)
    local.make_private(folder)
    for name in gone:
        (folder / name).unlink(missing_ok=True)
    for name in new:
        local.write_atomically(folder / name, wanted[name].encode(), 0o644)
    if (new or gone) and _RUNS.is_dir():
        _systemctl("daemon-reload")
        if timers := [name for name in wanted if name.endswith(".timer")]:
            _systemctl("enable", "--now", *timers)
            _systemctl("restart", *timers)
    elif new:
        typer.echo("systemd does not run here: enable the timers where it does", err=True)
    return _told(new, gone, folder, as_json=as_json)


def _told(new: list[str], gone: list[str], folder: Path, *, as_json: bool) -> list[str]:
    if not as_json:
        for name in new:
            typer.echo(f"wrote {folder / name}")
        for name in gone:
            typer.echo(f"removed {folder / name}")
    return [*new, *gone]


def _verify(wanted: dict[str, str]) -> None:
    """Have systemd read the units first, where it is to be had. ``CommandFailed`` with what it says."""
    with tempfile.TemporaryDirectory(prefix="cosmos-units-") as folder:
        for name, text in wanted.items():
            Path(folder, name).write_text(text, "utf-8")
        try:
            if wanted:
                process.run(
                    ["systemd-analyze", "verify", *(str(Path(folder, name)) for name in wanted)], timeout_s=_LIMIT_S
                )
        except errors.CommandFailed as error:
            if error.status != process.NOT_FOUND:
                raise


def _systemctl(*words: str) -> None:
    scope = () if os.geteuid() == 0 else ("--user",)
    process.run(["systemctl", *scope, *words], timeout_s=_LIMIT_S)


def _crontab(block: str, project: str, *, dry_run: bool, as_json: bool) -> list[str]:
    before = _present()
    rest = handover.without(before, project)
    after = rest + ("" if not rest or rest.endswith("\n") else "\n") + block
    if after == before:
        return []
    if dry_run:
        _shown({"crontab": block} if block else {}, [] if block else ["the lines in the crontab"], as_json)
        return ["crontab"]
    with process.start(["crontab", "-"], stdin=True) as child:
        child.stdin.write(after.encode("utf-8", "surrogateescape"))
    if not as_json:
        typer.echo("wrote the crontab" if block else "removed the lines from the crontab")
    return ["crontab"]


def _present() -> str:
    """This user's crontab; empty when there is none."""
    try:
        return process.run(["crontab", "-l"], timeout_s=_LIMIT_S).decode("utf-8", "surrogateescape")
    except errors.CommandFailed as error:
        if error.status == 1 and "no crontab" in error.stderr:
            return ""
        raise


def _shown(new: dict[str, str], gone: list[str], as_json: bool) -> None:
    if as_json:
        return
    for name, text in new.items():
        typer.echo(f"# {name}\n{text}")
    for name in gone:
        typer.echo(f"would remove {name}")
