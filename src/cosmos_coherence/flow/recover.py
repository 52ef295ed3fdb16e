"""After a crash: nothing stays held, half done or left behind."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from cosmos_coherence import errors
from cosmos_coherence.archive.writer import discard
from cosmos_coherence.cut.hold import release_leftovers
from cosmos_coherence.cut.journal import Journal, RestoreRecord, SettingsRecord, SpoolRecord
from cosmos_coherence.cut.lock import run_lock
from cosmos_coherence.cut.quiet import quiet_leftovers
from cosmos_coherence.drivers.runtime import Runtime
from cosmos_coherence.flow.events import Report, Story
from cosmos_coherence.flow.undo import Undo
from cosmos_coherence.sources import postgres_session, redis
from cosmos_coherence.storage import local

RESTORE_SPOOL = ".spool-restore-"
"""Where an archive lies unpacked while it is being restored."""


def recover(runtime: Runtime, story: Story, *, backups: Path) -> Report:
    """``cosmos recover``: heal, and say what was done. ``Locked`` while another run is under way."""
    try:
        state = runtime.state_directory()
        with run_lock(state, run=story.run, what="recover"):
            healed(runtime, state, story, backups=backups)
        return story.report("done")
    except errors.CosmosError as error:
        return story.failed(error)


def healed(runtime: Runtime, state: Path, story: Story, *, backups: Path) -> bool:
    """Finish or undo what other runs left in the journal, and tell the story what was done; whether there was anything.

    The caller holds the run lock. Containers first, since people wait for them; then settings and spools. Half restores
    come last, because one that can neither be finished nor undone yet raises: nothing may build on it.
    """
    story.begin("recover")
    journal = Journal(state)
    sentences = 0
    for sentence in _heal(runtime, journal, backups):
        story.note(sentence)
        sentences += 1
    return sentences > 0


def _heal(runtime: Runtime, journal: Journal, backups: Path) -> Iterator[str]:
    yield from release_leftovers(journal)
    yield from quiet_leftovers(runtime, journal)
    journal.discard_drafts()
    for settings in journal.pending(SettingsRecord):
        service = settings.record.service
        try:
            redis.restore_settings(runtime, service, settings.record.values)
        except errors.NotFound:
            yield f"{service} is gone, and with it the save settings that run {settings.record.run} changed"
        except errors.CosmosError as error:
            yield f"the save settings of {service} cannot be put back yet: {error.message}"
            continue
        else:
            yield f"put back the save settings of {service}"
        settings.close()
    for spool in journal.pending(SpoolRecord):
        _sweep(runtime, spool.record)
        folder = Path(spool.record.path)
        discard(folder)
        spool.close()
        yield f"removed what run {spool.record.run} left behind in {folder.parent}"
    for path in local.remove_abandoned(backups, RESTORE_SPOOL):
        yield f"removed {path}"
    for restore in journal.pending(RestoreRecord):
        undo = Undo(runtime, restore)
        if restore.record.phase == "proven":
            yield f"restore {restore.record.run} had been proven and is finished"
            yield from undo.finish()
        else:
            yield f"restore {restore.record.run} was taken back; {undo.run()}"


def _sweep(runtime: Runtime, record: SpoolRecord) -> None:
    """What a killed run began inside a service outlives it there. A service that is down has nothing of it."""
    for service in record.postgres:
        with contextlib.suppress(errors.CosmosError):
            postgres_session.end_leftovers(runtime, service, record.run)
    for service in record.redis:
        with contextlib.suppress(errors.CosmosError):
            redis.remove_leftovers(runtime, service)
