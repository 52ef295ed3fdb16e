"""The verb ``audit``: the rules and what breaks them, for people, for programs, and as SARIF for code review."""

from __future__ import annotations

import json
from pathlib import Path
from typing import get_args

import typer

from cosmos_coherence import errors
from cosmos_coherence.cli import beside, context, healing, render, sarif
from cosmos_coherence.flow.audit import Audit, audit_stack
from cosmos_coherence.volumes.audit import SEVERITIES, Judged, Severity, failed
from cosmos_coherence.volumes.audit_facts import Profile


def audit(*, profile: str, fail_on: str, sarif_file: Path | None, as_json: bool) -> int:
    """Judge the stack; 1 when a rule of the severity ``fail_on`` or above fails."""
    wanted, least = _profile(profile), _severity(fail_on)
    to_screen = sarif_file == Path("-")
    if to_screen and as_json:
        raise errors.UsageError("--json and --sarif - both want standard output", remedy="Name a file for --sarif.")
    settings = context.settings()
    runtime = context.runtime(settings)
    places = (sarif_file.absolute().parent,) if sarif_file and not to_screen else ()
    if (exit_status := beside.volumes(runtime, settings, paths=places)) is not None:
        return exit_status
    healing.first(settings, runtime)
    found = audit_stack(runtime, settings, backups=context.backups(settings), profile=wanted)
    broken = failed(found.rules, least)
    if sarif_file:
        text = json.dumps(sarif.log(found, settings.stack.directory), indent=2)
        if to_screen:
            typer.echo(text)
        else:
            sarif_file.write_text(f"{text}\n", "utf-8")
    if as_json:
        render.as_json({"status": "failed" if broken else "done", "fail_on": least, "audit": found})
    elif not to_screen:
        _show(found)
    return errors.CosmosError.exit_status if broken else 0


def _show(found: Audit) -> None:
    typer.echo(f"{found.project}, {found.profile} ({', '.join(found.config_files) or 'no Compose files'})\n")
    render.table(
        ("RULE", "RESULT", "SEVERITY", "WHAT IT ASKS FOR"),
        [(r.id, r.outcome, r.severity, r.title) for r in found.rules],
    )
    for rule in found.rules:
        if rule.findings:
            typer.echo("")
            _show_findings(rule)


def _show_findings(rule: Judged) -> None:
    typer.echo(f"{rule.id}: {rule.outcome}")
    for finding in rule.findings:
        note = f" (accepted: {finding.accepted})" if finding.accepted else ""
        typer.echo(f"  {finding.subject}: {finding.detail}{note}")
    if rule.outcome == "fail":
        typer.echo(f"  remedy: {rule.remedy}")


def _profile(text: str) -> Profile | None:
    if not text:
        return None
    for known in get_args(Profile):
        if text == known:
            return known  # type: ignore[no-any-return]
    raise errors.UsageError(f"{text!r} is no profile", remedy="Say --profile development or production.")


def _severity(text: str) -> Severity:
    for known in SEVERITIES[1:]:
        if text == known:
            return known
    raise errors.UsageError(f"{text!r} is no severity to fail on", remedy="Say --fail-on error or warning.")
