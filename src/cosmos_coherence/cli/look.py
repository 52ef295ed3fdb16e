"""The verbs that only look: ``status``, ``list``, ``show``, ``check``, ``doctor``."""

from __future__ import annotations

import typer

from cosmos_coherence import errors
from cosmos_coherence.archive import listing
from cosmos_coherence.archive.verify import verify_archive
from cosmos_coherence.cli import beside, context, healing, render
from cosmos_coherence.cut import lock
from cosmos_coherence.flow import alarm, events, inventory, upkeep
from cosmos_coherence.flow import doctor as examining
from cosmos_coherence.flow.survey import survey
from cosmos_coherence.history import ledger
from cosmos_coherence.settings import Settings, share


def status(*, as_json: bool) -> int:
    """The stack and its coverage."""
    settings = context.settings()
    runtime = context.runtime(settings)
    if (exit_status := beside.volumes(runtime, settings)) is not None:
        return exit_status
    healing.first(settings, runtime)
    stack = runtime.stack()
    backups = context.backups(settings)
    coverage = survey(stack, settings, backups=backups)
    try:
        last, unknown = inventory.newest(settings, backups, project=stack.project), ""
    except errors.CosmosError as error:  # what the stack is can be said all the same
        last, unknown = None, error.message
    state = runtime.found_state_directory()
    running, states = lock.holder(state) if state else None, ledger.look(state)
    if as_json:
        render.as_json(
            {"stack": stack, "coverage": coverage, "last_backup": last.manifest if last else None,
             "run": str(running) if running else None, "jobs": {name: each.facts for name, each in states.items()}}
        )  # fmt: skip
        return 0
    typer.echo(f"{stack.project} ({stack.runtime}) in {stack.directory}")
    render.table(
        ("SERVICE", "CONTAINER", "STATE", "HEALTH", "IMAGE"),
        [(s.name, s.container, s.state, s.health or "", s.image) for s in stack.services],
    )
    typer.echo("")
    by_volume = {s.volume: s.part for s in coverage.sources if s.volume}
    render.table(
        ("VOLUME", "DRIVER", "PART"),
        [(v.name, v.driver if v.exists else "missing", by_volume.get(v.name, "-")) for v in stack.volumes],
    )
    typer.echo("")
    typer.echo("captured: " + ", ".join(s.part for s in coverage.sources))
    for gap in coverage.gaps:
        extra = f", {render.size(gap.size)}" if gap.size is not None else ""
        typer.echo(f"{'left out' if gap.chosen else 'NOT covered'}: {gap.what}: {gap.why}{extra}")
    for container, paths in runtime.layer_changes().items():
        shown = ", ".join(paths[:3]) + (f" and {len(paths) - 3} more" if len(paths) > 3 else "")
        typer.echo(f"NOT covered: written outside of every mount in {container}: {shown}")
    for hint in coverage.hints:
        typer.echo(f"hint: {hint}")
    if running:
        typer.echo(f"under way: {running}")
    for name, each in states.items():
        typer.echo(f"schedule: {name} {each.summary}")
    known = f"{last.summary}, last proof: never" if last else "never"
    typer.echo(f"last backup: {f'unknown, {unknown}' if unknown else known}")
    record = alarm.known(runtime.found_state_directory())
    for sentence in alarm.sentences(record, settings):
        typer.echo(f"alarm: {sentence}")
    for check in alarm.check_notifiers(record):
        if check.outcome != "ok":
            typer.echo(f"{check.name} {check.detail}")
    return 0


def list_backups(*, as_json: bool) -> int:
    """The backups, oldest first: those in the repository and the archives."""
    settings = context.settings()
    found, damaged = inventory.backups(settings, context.backups(settings), project=context.project(settings))
    if as_json:
        render.as_json([each.manifest for each in found])
        return 0
    for sentence in damaged:
        typer.echo(sentence, err=True)
    for path in listing.unreadable(context.backups(settings)):
        typer.echo(f"{path.name}: damaged, its manifest cannot be read", err=True)
    if not found:
        typer.echo(f"no backups in {context.backups(settings)}; `cosmos backup` makes one")
        return 0
    rows = [
        (
            each.name,
            each.manifest.instant,
            each.manifest.project,
            render.size(each.size),
            f"{each.manifest.pause_ms:.1f} ms",
            "safety" if each.manifest.safety else "complete" if each.manifest.complete else "incomplete",
        )
        for each in found
    ]
    render.table(("NAME", "INSTANT", "PROJECT", "SIZE", "PAUSE", "STATE"), rows)
    return 0


def show(name: str, *, as_json: bool) -> int:
    """One backup's manifest."""
    settings = context.settings()
    manifest = context.manifest(name, settings)
    if as_json:
        render.as_json(manifest)
        return 0
    state = "complete" if manifest.complete else "incomplete"
    typer.echo(f"{manifest.id}  {manifest.project}  {manifest.instant}  pause {manifest.pause_ms:.1f} ms  {state}")
    for part in manifest.parts:
        prints = part.fingerprint
        facts = []
        if prints.databases:
            rows = sum(sum(d.tables.values()) for d in prints.databases.values())
            facts.append(f"{len(prints.databases)} databases, {rows} rows")
        if part.kind == "redis":
            facts.append(f"{sum(prints.keys.values()) + sum(prints.expiring_keys.values())} keys")
        if prints.tree:
            facts.append(f"{prints.tree.files} files, {render.size(prints.tree.size)}")
        typer.echo(f"  {part.name:28} {render.size(sum(f.size for f in part.files)):>10}  {', '.join(facts)}")
    for gap in manifest.missing:
        typer.echo(f"  {'left out' if gap.chosen else 'NOT covered'}: {gap.what}: {gap.why}")
    return 0


def check(name: str, *, read_data: str, as_json: bool) -> int:
    """Read one archive to its end, or look at the repository; raises ``Damaged`` when a byte is not what it was."""
    settings = context.settings()
    path = context.archive(name, settings)
    if path is None:
        return _check_repository(settings, _share(read_data), as_json=as_json)
    render.progress(json_wanted=as_json)(events.StepBegan("verify", f"{path}, {render.size(path.stat().st_size)}"))
    manifest = verify_archive(path)
    if as_json:
        render.as_json({"status": "done", "backup": manifest.id, "path": str(path), "checked": True})
    else:
        typer.echo(f"{path.name}: every byte is as it was written (checked; a drill would prove that it restores)")
    return 0


def _check_repository(settings: Settings, share: float, *, as_json: bool) -> int:
    healing.first(settings)
    checked = upkeep.check(settings, read_share=share, state=context.state(settings), project=context.project(settings))
    found, status = checked.report, "done" if checked.report.sound else "failed"
    if as_json:
        render.as_json({"status": status, "checked": found.sound, "report": found, "note": checked.note})
    else:
        if checked.note:
            typer.echo(checked.note, err=True)
        for fault in found.faults:
            typer.echo(f"{fault.kind} {fault.name[:8]}: {fault.what}", err=True)
        typer.echo(
            f"{found.snapshots} backups, {found.packs} packs, {found.blobs} blobs, {render.size(found.size)}; "
            f"{found.packs_read} packs read, {render.size(found.bytes_read)}: "
            + ("no faults (checked; a drill would prove that it restores)" if found.sound else "DAMAGED")
        )
    return 0 if found.sound else errors.Damaged.exit_status


def _share(text: str) -> float:
    """``1%`` or ``all`` as a share; nothing is none. ``UsageError`` for anything else."""
    try:
        return share(text) if text else 0.0
    except ValueError:
        raise errors.UsageError(f"{text} is no share", remedy="Write it like 1%, 0.05 or all.") from None


def doctor(*, as_json: bool) -> int:
    """Look at what a run needs, once leftovers are healed; 1 when something is missing."""
    settings = context.settings()
    healing.first(settings)
    found = examining.examine(lambda: context.runtime(settings), settings, backups=context.backups(settings))
    return render.checks(found, json_wanted=as_json)
