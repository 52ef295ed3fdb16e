"""``cosmos backup``, ``forget`` and ``recover``."""

from __future__ import annotations

import time
from pathlib import Path

import typer

from cosmos_coherence import errors
from cosmos_coherence.cli import beside, context, healing, render
from cosmos_coherence.drivers.runtime import Runtime
from cosmos_coherence.flow import alarm, events, retention, upkeep
from cosmos_coherence.flow import backup as flow
from cosmos_coherence.flow import recover as recovering
from cosmos_coherence.settings import Settings


def backup(*, archive: Path | None, only: tuple[str, ...], tags: tuple[str, ...], as_json: bool) -> int:
    """Make a backup, and tell whoever is to be told how it ended; its exit status."""
    settings = context.settings()
    runtime = context.runtime(settings)
    directory = archive.resolve() if archive else context.backups(settings)
    emit = render.progress(json_wanted=as_json)
    story = events.Story(verb="backup", run=flow.new_run(), project=settings.stack.project, emit=emit)
    try:
        if (status := beside.volumes(runtime, settings, paths=(directory,))) is not None:
            return status
        wanted = True if archive else None
        plan = flow.plan_backup(runtime, settings, only=only, directory=directory, archive=wanted, tags=tags)
    except errors.CosmosError as error:
        if not only:
            _tell(runtime, settings, story.failed(error))
        raise
    story.project = plan.stack.project
    report = flow.backup(runtime, settings, plan, story)
    status = render.report(report, json_wanted=as_json)
    if not only:  # a part is no backup of the stack, be it good or bad
        _tell(runtime, settings, report)
    return status


def _tell(runtime: Runtime, settings: Settings, report: events.Report) -> None:
    """Of how the backup ended; that somebody could not be told changes nothing about it."""
    for note in alarm.watch(runtime, settings, report=report).notes:
        typer.echo(note, err=True)


def recover(*, as_json: bool) -> int:
    """Heal leftovers; the exit status."""
    settings = context.settings()
    runtime = context.runtime(settings)
    if (status := beside.volumes(runtime, settings)) is not None:
        return status
    emit = render.progress(json_wanted=as_json)
    story = events.Story(verb="recover", run=flow.new_run(), project=settings.stack.project, emit=emit)
    return render.report(recovering.recover(runtime, story, backups=context.backups(settings)), json_wanted=as_json)


def forget(*, dry_run: bool, prune: bool, keep_within: str | None, as_json: bool) -> int:
    """Retention by itself; the exit status."""
    settings = context.settings(keep_within=keep_within)
    directory, project = context.backups(settings), context.project(settings)
    plan = retention.plan(settings, directory, project=project, now_s=time.time())
    gone = plan.remove
    if not dry_run:
        state = None
        if plan.repository.remove:  # then the host's record of its backups has to be told
            runtime = context.runtime(settings)
            if (status := beside.volumes(runtime, settings)) is not None:
                return status
            healing.first(settings, runtime)
            state = runtime.state_directory()
        gone = retention.apply(settings, directory, project=project, now_s=time.time(), state=state)
    pruned = upkeep.prune(settings, dry_run=dry_run) if prune else None
    if as_json:
        render.as_json({"keep": plan.keep, "remove": gone, "dry_run": dry_run, "pruned": pruned})
        return 0
    for name in gone:
        typer.echo(f"{'would remove' if dry_run else 'removed'} {name}")
    typer.echo(f"{len(plan.keep)} kept")
    if pruned:
        typer.echo(
            f"{'would free' if dry_run else 'freed'} {render.size(pruned.freed)} "
            f"({pruned.removed_packs} packs removed, {pruned.repacked_packs} written anew); "
            f"{render.size(pruned.kept)} stay, of which {render.size(pruned.unused)} are not needed"
        )
    return 0
