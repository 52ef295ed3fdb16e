"""After a crash: nothing stays held, half done or left behind."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

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

Reachable = Literal["volumes", "writers", "nothing"]
"""What can be healed from here. In a container that does not see the host's control groups it is ``nothing``: there a
frozen writer looks like one that has ended, and its record would be closed."""


def recover(runtime: Runtime, story: Story, *, backups: Path) -> Report:
    """``cosmos recover``: heal, and say what was done. ``Locked`` while another run is under way."""
    try:
        state = runtime.state_directory()
        with run_lock(state, run=story.run, what="recover") as lease:
            lease.keep()
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


def heal_first(
    runtime: Runtime, state: Path, *, run: str, backups: Path, reach: Reachable, tell: Callable[[str], None]
) -> None:
    """What a verb that only looks heals before it does, in sentences; for a journal that is not empty.

    Nothing is raised for what the catalogue knows: the verb goes on. When another run is under way the journal is its
    own, and is not touched. What is out of ``reach`` is left to a ``recover`` beside the volumes, and named.
    """
    try:
        with run_lock(state, run=run, what="recover") as lease:
            lease.keep()
            journal = Journal(state)
            if reach != "nothing":
                for sentence in _let_go(runtime, journal):
                    tell(sentence)
            if reach == "volumes":
                for sentence in _clear(runtime, journal, backups):
                    tell(sentence)
            elif left := journal.pending():
                runs = ", ".join(sorted({note.record.run for note in left}))
                tell(f"not all that run {runs} left behind can be healed from here: run `cosmos recover`")
    except errors.Locked:
        return
    except errors.CosmosError as error:
        tell(f"not everything that a run left behind could be healed: {error.message}. {error.remedy}")


def _heal(runtime: Runtime, journal: Journal, backups: Path) -> Iterator[str]:
    yield from _let_go(runtime, journal)
    yield from _clear(runtime, journal, backups)


def _let_go(runtime: Runtime, journal: Journal) -> Iterator[str]:
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


def _clear(runtime: Runtime, journal: Journal, backups: Path) -> Iterator[str]:
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
