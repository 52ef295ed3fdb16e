"""``cosmos restore``."""

from __future__ import annotations

import sys

import typer

from cosmos_coherence import errors
from cosmos_coherence.cli import beside, context, look, render
from cosmos_coherence.flow import backup as backing
from cosmos_coherence.flow import events, rebuild, store
from cosmos_coherence.flow import restore as flow


def restore(name: str, *, only: tuple[str, ...], dry_run: bool, yes: bool, as_json: bool) -> int:
    """Restore a backup; without a name list them. The exit status."""
    if not name:
        return look.list_backups(as_json=as_json)
    settings = context.settings()
    file = context.archive(name, settings)
    directory, backups, run = settings.stack.directory, context.backups(settings), backing.new_run()
    project = rebuild.project_named(context.manifest(name, settings), directory)
    runtime = context.runtime(settings, project=project)
    paths = (backups,) if file is None else (file.parent, backups)
    if (status := beside.volumes(runtime, settings, paths=paths)) is not None:
        return status
    emit = render.progress(json_wanted=as_json)
    emit(events.StepBegan("open", str(file or name)))
    with context.opened(name, settings) as reader:
        rebuilt = rebuild.from_nothing(runtime, directory, reader, run=run, dry_run=dry_run)
        if rebuilt.compose_files:
            runtime = context.runtime(settings, files=rebuilt.compose_files, project=project)
        declared = [source.path.resolve() for source in settings.source if source.path]
        plan = flow.plan_restore(
            runtime, reader.manifest, only=only, backups=(backups, *store.local_folder(settings)),
            rebuilt=bool(rebuilt.compose_files), declared=declared,
        )  # fmt: skip
        if dry_run:
            _print_plan(plan, as_json=as_json)
            return 0
        if plan.overwrites and not yes:
            _ask(plan, as_json=as_json)
        story = events.Story(verb="restore", run=run, project=plan.stack.project, emit=emit)
        report = flow.restore(runtime, settings, plan, reader, story, backups=backups)
        return render.report(report, json_wanted=as_json)


def _print_plan(plan: flow.RestorePlan, *, as_json: bool) -> None:
    if as_json:
        render.as_json(plan)
        return
    typer.echo(f"backup {plan.manifest.id} of {plan.manifest.project}, instant {plan.manifest.instant}")
    for step in plan.steps:
        typer.echo(f"  {step.action:9} {step.part.name}{f'  ({step.detail})' if step.detail else ''}")
    if plan.stop:
        typer.echo(f"  stop      {', '.join(plan.stop)}")
    typer.echo(f"  start     {', '.join(plan.start)}")
    if plan.safety:
        typer.echo(f"  save      {', '.join(plan.safety)}")
    for warning in (*plan.left_out, *plan.warnings):
        typer.echo(f"  note      {warning}")


def _ask(plan: flow.RestorePlan, *, as_json: bool) -> None:
    if as_json or not sys.stdin.isatty():
        raise errors.Refused(
            "the restore would overwrite live data and there is nobody to ask", remedy="Give --yes to go on without."
        )
    _print_plan(plan, as_json=False)
    if not typer.confirm("Overwrite?", default=False):
        raise errors.Refused("nothing was changed", remedy="")
