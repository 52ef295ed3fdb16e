"""What the agent does when a backup is due."""

from __future__ import annotations

from pathlib import Path

from cosmos_coherence import errors
from cosmos_coherence.drivers.runtime import Runtime
from cosmos_coherence.flow import alarm, backup, events, history
from cosmos_coherence.flow.events import Report
from cosmos_coherence.settings import ServeSettings, Settings


def backup_job(runtime: Runtime, settings: Settings, directory: Path) -> Report:
    """One backup, of which whoever is to be told is told; never raises for what the catalogue knows, so that the loop
    goes on."""
    run = backup.new_run()
    story = events.Story(verb="backup", run=run, project=settings.stack.project)
    try:
        plan = backup.plan_backup(runtime, settings, directory=directory)
    except errors.CosmosError as error:
        report = story.failed(error)
    else:
        report = backup.backup(runtime, settings, plan, story)
    alarm.watch(runtime, settings, report=report)
    return report


def drain_history(state: Path, serving: ServeSettings, settings: Settings) -> str:
    """Move what waits in the spool into the history; why not, when its database cannot be reached. Nothing is lost
    then."""
    return history.fill(state, serving, settings.history)
