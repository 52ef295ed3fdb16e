"""What the agent does when a backup is due."""

from __future__ import annotations

from pathlib import Path

from cosmos_coherence import errors
from cosmos_coherence.drivers.runtime import Runtime
from cosmos_coherence.flow import backup, events
from cosmos_coherence.flow.events import Report
from cosmos_coherence.flow.remember import SPOOL
from cosmos_coherence.settings import ServeSettings, Settings


def backup_job(runtime: Runtime, settings: Settings, directory: Path) -> Report:
    """One backup; never raises for what the catalogue knows, so that the loop goes on."""
    run = backup.new_run()
    story = events.Story(verb="backup", run=run, project=settings.stack.project)
    try:
        plan = backup.plan_backup(runtime, settings, directory=directory)
    except errors.CosmosError as error:
        return story.failed(error)
    return backup.backup(runtime, settings, plan, story)


def drain_history(state: Path, serving: ServeSettings) -> str:
    """Move the spooled reports into the history; why not, when its database cannot be reached. Nothing is lost then."""
    from cosmos_coherence.history import database, spool

    try:
        engine = database.connect(serving, state)
        try:
            spool.drain(state / SPOOL, engine)
        finally:
            engine.dispose()
    except errors.CosmosError as error:
        return error.message
    return ""
