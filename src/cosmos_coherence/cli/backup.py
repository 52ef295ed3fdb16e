"""``cosmos backup``, ``forget`` and ``recover``."""

from __future__ import annotations

import time
from pathlib import Path

import typer

from cosmos_coherence.cli import beside, context, render
from cosmos_coherence.flow import backup as flow
from cosmos_coherence.flow import events, retention
from cosmos_coherence.flow import recover as recovering


def backup(*, archive: Path | None, only: tuple[str, ...], tags: tuple[str, ...], as_json: bool) -> int:
    """Make a backup; its exit status."""
    settings = context.settings()
    runtime = context.runtime(settings)
    directory = archive.resolve() if archive else context.backups(settings)
    if (status := beside.volumes(runtime, settings, paths=(directory,))) is not None:
        return status
    plan = flow.plan_backup(runtime, settings, only=only, directory=directory, tags=tags)
    emit = render.progress(json_wanted=as_json)
    story = events.Story(verb="backup", run=flow.new_run(), project=plan.stack.project, emit=emit)
    return render.report(flow.backup(runtime, settings, plan, story), json_wanted=as_json)


def recover(*, as_json: bool) -> int:
    """Heal leftovers; the exit status."""
    settings = context.settings()
    runtime = context.runtime(settings)
    if (status := beside.volumes(runtime, settings)) is not None:
        return status
    emit = render.progress(json_wanted=as_json)
    story = events.Story(verb="recover", run=flow.new_run(), project=settings.stack.project, emit=emit)
    return render.report(recovering.recover(runtime, story, backups=context.backups(settings)), json_wanted=as_json)


def forget(*, dry_run: bool, as_json: bool) -> int:
    """Retention by itself; the exit status."""
    settings = context.settings()
    directory, keep = context.backups(settings), settings.retention.keep_within
    plan = retention.plan(directory, keep_within_s=keep, now_s=time.time())
    gone = tuple(a.id for a in plan.remove)
    if not dry_run:
        gone = retention.apply(directory, keep_within_s=keep, now_s=time.time())
    if as_json:
        render.as_json({"keep": [a.id for a in plan.keep], "remove": gone, "dry_run": dry_run})
        return 0
    for name in gone:
        typer.echo(f"{'would remove' if dry_run else 'removed'} {name}")
    typer.echo(f"{len(plan.keep)} kept")
    return 0
