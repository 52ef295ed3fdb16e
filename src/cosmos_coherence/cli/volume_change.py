"""The verbs of ``cosmos volume`` that change something: each has a plan, which is shown before it is carried out."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import msgspec
import typer

from cosmos_coherence import errors
from cosmos_coherence.cli import beside, context, healing, render
from cosmos_coherence.drivers.runtime import Runtime
from cosmos_coherence.flow import (
    backup,
    cache_cleaning,
    events,
    lost_volume,
    owner_fixing,
    volume_copy,
    volume_removal,
)
from cosmos_coherence.flow.owner_fixing import OwnerPlan
from cosmos_coherence.flow.volume_copy import CopyPlan
from cosmos_coherence.flow.volume_removal import RemovalPlan
from cosmos_coherence.settings import Settings
from cosmos_coherence.sources.tree_scan import show
from cosmos_coherence.volumes.ownership import Access, Change

_LISTED = 20
"""So many names of a plan are printed."""
_IN_JSON = 10_000


class _Call(msgspec.Struct, frozen=True):
    """What every one of these verbs needs."""

    settings: Settings
    runtime: Runtime
    backups: Path
    run: str
    dry_run: bool
    yes: bool
    as_json: bool

    def agreed(self, question: str, show_plan: Callable[[], None]) -> bool:
        """Whether the plan is to be carried out: not on a dry run. Otherwise ``Refused`` when nobody says yes."""
        if self.dry_run:
            if not self.as_json:
                show_plan()
            return False
        if self.yes:
            return True
        if self.as_json or not sys.stdin.isatty():
            raise errors.Refused("something would be changed and there is nobody to ask", remedy="Give --yes.")
        show_plan()
        if not typer.confirm(question, default=False):
            raise errors.Refused("nothing was changed", remedy="")
        return True


def _begin(*, dry_run: bool, yes: bool, as_json: bool) -> _Call | int:
    """The call, once leftovers of killed runs are healed; or the exit status, when it ran beside the volumes."""
    settings = context.settings()
    runtime = context.runtime(settings)
    backups = context.backups(settings)
    if (status := beside.volumes(runtime, settings, paths=(backups,))) is not None:
        return status
    healing.first(settings, runtime)
    return _Call(settings, runtime, backups, backup.new_run(), dry_run, yes, as_json)


def create(name: str, *, dry_run: bool, yes: bool, as_json: bool) -> int:
    """Create what is missing; the exit status. Nothing is asked: nothing can be lost by it."""
    call = _begin(dry_run=dry_run, yes=yes, as_json=as_json)
    if isinstance(call, int):
        return call
    plan = lost_volume.plan_create(call.runtime, call.settings, name, backups=call.backups)
    made = () if dry_run else lost_volume.create(call.runtime, plan, run=call.run)
    if as_json:
        render.as_json({"status": _status(call), "plan": plan, "created": made})
        return 0
    for there in plan.there:
        typer.echo(f"{there} is there already")
    for lost in plan.missing:
        options = f" {dict(lost.record.options)}" if lost.record.options else ""
        said = "the newest backup" if lost.said_by == "backup" else "the Compose files"
        done = "would create" if dry_run else "created"
        typer.echo(f"{done} {lost.record.name} ({lost.record.driver}{options}), as in {said}")
    if not plan.missing and not plan.there:
        typer.echo("no volume is missing")
    return 0


def clone(name: str, new: str, *, dry_run: bool, yes: bool, as_json: bool) -> int:
    """Copy into a new volume; the exit status. Nothing is asked: nothing can be lost by it."""
    call = _begin(dry_run=dry_run, yes=yes, as_json=as_json)
    if isinstance(call, int):
        return call
    plan = volume_copy.plan_clone(call.runtime, call.settings, name, new, backups=call.backups)
    return _copied(call, plan, "clone")


def copy(name: str, to: str, *, dry_run: bool, yes: bool, as_json: bool) -> int:
    """Copy into a volume that is there; the exit status."""
    call = _begin(dry_run=dry_run, yes=yes, as_json=as_json)
    if isinstance(call, int):
        return call
    plan = volume_copy.plan_copy(call.runtime, call.settings, name, to, backups=call.backups)
    return _copied(call, plan, "copy")


def _copied(call: _Call, plan: CopyPlan, what: str) -> int:
    shown = {
        "source": plan.source.name, "target": plan.target, "holds": plan.holds, "create": plan.create,
        "overwrites": plan.overwrites, "stop": plan.stop, "safety": plan.safety,
    }  # fmt: skip

    def show_plan() -> None:
        typer.echo(f"copy {plan.source.name}: {plan.holds.files} files, {render.size(plan.holds.bytes)}")
        if plan.create:
            typer.echo(f"  create    {plan.target} ({plan.create.driver})")
        if plan.overwrites:
            typer.echo(
                f"  overwrite {plan.target}: {plan.overwrites.files} files, {render.size(plan.overwrites.bytes)}"
            )
        for word, names in (("stop", plan.stop), ("save", plan.safety)):
            if names:
                typer.echo(f"  {word:9} {', '.join(names)}")

    asks = call.dry_run or plan.overwrites or plan.stop
    if asks and not call.agreed("Overwrite?", show_plan):
        if call.as_json:
            render.as_json({"status": "planned", "plan": shown})
        return 0
    emit = render.progress(json_wanted=call.as_json)
    story = events.Story(verb=f"volume-{what}", run=call.run, project=plan.stack.project, emit=emit)
    report = volume_copy.copy(call.runtime, call.settings, plan, story, backups=call.backups)
    status = render.report(report, json_wanted=call.as_json)
    if not call.as_json and report.failure is None:
        typer.echo(
            f"{plan.source.name} is copied to {plan.target}: {plan.holds.files} files, {render.size(report.size)}, "
            f"equal, pause {report.pause_ms:.1f} ms, {report.seconds:.1f} s"
        )
        if report.safety_backup:
            typer.echo(f"  what was there before: {report.safety_backup}")
    return status


def fix_owner(name: str, *, service: str, dry_run: bool, yes: bool, as_json: bool) -> int:
    """Set owners and modes right; the exit status."""
    call = _begin(dry_run=dry_run, yes=yes, as_json=as_json)
    if isinstance(call, int):
        return call
    plan = owner_fixing.plan_fix(call.runtime, call.settings, name, service=service, backups=call.backups)
    replaced: tuple[bytes, ...] = ()
    carried_out = bool(plan.changes) and call.agreed("Change them?", lambda: _show_owners(plan))
    if carried_out:
        replaced = owner_fixing.fix(call.runtime, plan, run=call.run)
    if as_json:
        user = None if plan.user is None else {"uid": plan.user[0], "gid": plan.user[1], "service": plan.service}
        render.as_json(
            {
                "status": _status(call), "volume": plan.volume.name, "names": plan.names, "backup": plan.backup,
                "user": user, "changed": len(plan.changes) - len(replaced) if carried_out else 0,
                "replaced_meanwhile": [show(path) for path in replaced],
                "changes": [_plain(change) for change in plan.changes[:_IN_JSON]],
                "more": max(0, len(plan.changes) - _IN_JSON),
            }
        )  # fmt: skip
        return 0
    if not plan.changes:
        typer.echo(f"{plan.volume.name}: all {plan.names} names are right")
    elif carried_out:
        typer.echo(f"{plan.volume.name}: {len(plan.changes) - len(replaced)} of {plan.names} names changed")
    for path in replaced:
        typer.echo(f"  {show(path)} was replaced meanwhile and stays as it is", err=True)
    return 0


def _show_owners(plan: OwnerPlan) -> None:
    typer.echo(f"{plan.volume.name}: {len(plan.changes)} of {plan.names} names change")
    typer.echo(f"  as backup {plan.backup} knows them" if plan.backup else "  no backup holds its files")
    if plan.user is not None:
        typer.echo(f"  what it does not know: {plan.user[0]}:{plan.user[1]}, the user of {plan.service}")
    for change in plan.changes[:_LISTED]:
        typer.echo(f"  {_access(change.before)} -> {_access(change.after)}  {show(change.path)}  ({change.why})")
    if len(plan.changes) > _LISTED:
        typer.echo(f"  and {len(plan.changes) - _LISTED} more")


def _access(access: Access) -> str:
    return f"{access.uid}:{access.gid} {access.mode:04o}"


def _plain(change: Change) -> dict[str, object]:
    return {"path": show(change.path), "before": change.before, "after": change.after, "why": change.why}


def remove(names: tuple[str, ...], *, without_backup: bool, dry_run: bool, yes: bool, as_json: bool) -> int:
    """Remove volumes; the exit status."""
    call = _begin(dry_run=dry_run, yes=yes, as_json=as_json)
    if isinstance(call, int):
        return call
    plan = volume_removal.plan_removal(
        call.runtime, call.settings, names, backups=call.backups, without_backup=without_backup
    )
    return _removed(call, plan, "volume-remove")


def prune(*, anonymous: bool, without_backup: bool, dry_run: bool, yes: bool, as_json: bool) -> int:
    """Remove what nobody uses; the exit status."""
    call = _begin(dry_run=dry_run, yes=yes, as_json=as_json)
    if isinstance(call, int):
        return call
    plan = volume_removal.plan_prune(
        call.runtime, call.settings, backups=call.backups, without_backup=without_backup, anonymous=anonymous
    )
    return _removed(call, plan, "volume-prune")


def _removed(call: _Call, plan: RemovalPlan, verb: str) -> int:
    def show_plan() -> None:
        for step in plan.steps:
            size = f", {render.size(step.size)}" if step.remove else ""
            typer.echo(f"{'remove' if step.remove else 'keep':6} {step.volume}: {step.reason}{size}")

    gone: tuple[str, ...] = ()
    if plan.removes and call.agreed("Remove?", show_plan):
        story = events.Story(verb=verb, run=call.run, project=plan.project)
        gone = volume_removal.remove(call.runtime, plan, story)
    if call.as_json:
        render.as_json({"status": _status(call), "steps": plan.steps, "removed": gone})
        return 0
    if not plan.removes:
        show_plan()
        typer.echo("nothing to remove")
    for name in gone:
        typer.echo(f"removed {name}")
    return 0


def clean(name: str, *, dry_run: bool, yes: bool, as_json: bool) -> int:
    """Empty a cache; the exit status."""
    call = _begin(dry_run=dry_run, yes=yes, as_json=as_json)
    if isinstance(call, int):
        return call
    plan = cache_cleaning.plan_clean(call.runtime, name)
    what = f"{plan.holds.files} files, {render.size(plan.holds.bytes)}"
    left = None
    if call.agreed("Clear it?", lambda: typer.echo(f"clear {plan.volume.name}: {what}")):
        left = cache_cleaning.clean(call.runtime, plan, run=call.run)
    if as_json:
        render.as_json({"status": _status(call), "volume": plan.volume.name, "held": plan.holds, "holds": left})
    elif left is not None:
        typer.echo(f"cleared {plan.volume.name}: {what}; {render.size(left.bytes)} are left")
    return 0


def _status(call: _Call) -> str:
    return "planned" if call.dry_run else "done"
