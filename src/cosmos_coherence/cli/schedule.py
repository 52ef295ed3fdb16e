"""The parser of ``cosmos schedule``: what comes when, and who sees to it."""

from __future__ import annotations

from typing import Annotated

import typer

schedule = typer.Typer(help="Run the jobs of the schedule, show what comes when, or leave it to systemd or cron.",
                       rich_markup_mode=None)  # fmt: skip

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of text.")]


@schedule.command()
def run(
    job: Annotated[str, typer.Argument(metavar="[JOB]", help="backup, forget, prune, check or measure.")] = "",
    for_agent: Annotated[bool, typer.Option("--for-agent", hidden=True)] = False,
    as_json: Json = False,
) -> None:
    """Run one job now; without a name, run the schedule in the foreground as `cosmos serve agent` does."""
    from cosmos_coherence.cli import agent

    _finish(agent.run_job(job, for_agent=for_agent, as_json=as_json) if job else agent.serve())


@schedule.command("next")
def next_(
    count: Annotated[int, typer.Option("-n", "--count", min=1, max=1000, help="How many times of each job.")] = 1,
    as_json: Json = False,
) -> None:
    """Show what comes when, in the schedule's own zone and in UTC, and how it went last."""
    from cosmos_coherence.cli import agent

    _finish(agent.upcoming(count, as_json=as_json))


@schedule.command()
def install(
    systemd: Annotated[bool, typer.Option("--systemd", help="As timers of systemd.")] = False,
    cron: Annotated[bool, typer.Option("--cron", help="As lines of the crontab.")] = False,
    remove: Annotated[bool, typer.Option("--remove", help="Take away what was installed.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print it and change nothing.")] = False,
    as_json: Json = False,
) -> None:
    """Leave the schedule to systemd or cron, for hosts without an agent."""
    from cosmos_coherence.cli import install as verbs

    _finish(verbs.install(systemd=systemd, cron=cron, remove=remove, dry_run=dry_run, as_json=as_json))


def _finish(exit_status: int) -> None:
    if exit_status:
        raise typer.Exit(exit_status)
