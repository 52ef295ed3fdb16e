"""How a restore is finished or taken back, by the run itself or by the next one after a crash."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from cosmos_coherence import errors, sources
from cosmos_coherence.cut.journal import Handle, RestoreRecord
from cosmos_coherence.drivers.runtime import Runtime
from cosmos_coherence.flow import aside
from cosmos_coherence.flow.events import Story
from cosmos_coherence.model import Part, Stack
from cosmos_coherence.sources.base import Restorer

CLONED = "cosmos.cloned"
"""Label of a volume that a clone has made: the run that made it."""


class Undo:
    """The journalled restore: it knows its phase, and the way back or forward from there.

    Phases: ``creating`` what was lost, ``staging`` beside the live state, ``swapping``, ``proven``.
    """

    def __init__(self, runtime: Runtime, note: Handle[RestoreRecord]) -> None:
        self._runtime, self._note = runtime, note

    @property
    def record(self) -> RestoreRecord:
        """What is on disk now."""
        return self._note.record

    def restorers(self) -> tuple[Restorer, ...]:
        """A restorer for each journalled part, in their order."""
        record = self.record
        return tuple(
            sources.open_restorer(
                part,
                Path(root) if (root := record.roots.get(part.name)) else None,
                self._runtime,
                record.run,
                overwrite=record.overwrite,
            )
            for part in sources.decode_parts(record.parts)
        )

    def staging(self, parts: tuple[Part, ...], roots: dict[str, str]) -> None:
        """Note on disk that these parts are going to be written beside the live ones, below these folders."""
        self._update(phase="staging", parts=sources.encode_parts(parts), roots=roots)

    def swapping(self) -> None:
        """Note on disk that services stop and that the live state is going to be touched."""
        self._update(phase="swapping")

    def proven(self) -> None:
        """Note on disk that the new state is good: from here on only forward."""
        self._update(phase="proven")

    def move_aside(self, service: str) -> str:
        """Stop a server that does not start, and move its files into a volume of their own, whose name is returned.

        Raises as ``aside.data_volume`` and ``aside.move_out``."""
        volume = aside.data_volume(self._runtime.stack(), service)
        name = f"{volume.name}-broken-{self.record.run}"
        self._runtime.stop([service])
        self._update(aside={**self.record.aside, service: name})
        aside.move_out(self._runtime, volume, name)
        self._update(emptied=(*self.record.emptied, service))
        return name

    def _update(self, **changes: object) -> None:
        self._note.update(msgspec.structs.replace(self.record, **changes))

    def run(self) -> str:
        """Back to the old state, from wherever the restore stopped; what came of it, in a clause.

        Raises ``RestoreFailed`` when something could not be taken back. The journal is kept then, so that the next run
        goes on from there, and after a swap the services stay down, so that none works on a mix of old and new.
        """
        record, stack = self.record, self._runtime.stack()
        restorers = [r for r in self.restorers() if _has_place(r.part, stack)]
        touched = record.phase == "swapping"
        if touched:
            self._runtime.stop(_there(stack, record.stop))
            self._runtime.stop(_there(stack, {r.part.service for r in restorers if r.stops}))
        faults: list[str] = []
        for service in record.aside:  # what was restored into the server that took its place goes with that
            faults += self._bring_back(service)
        for restorer in reversed([r for r in restorers if r.part.service not in record.aside]):
            try:
                self._take_back(restorer, stack)
            except errors.NotFound as error:
                if touched:
                    faults.append(f"{restorer.part.name}: {error.message}")
            except errors.CosmosError as error:
                faults.append(f"{restorer.part.name}: {error.message}")
        if faults:
            stopped = f"; until then these stay stopped: {', '.join(record.stop)}" if touched and record.stop else ""
            raise errors.RestoreFailed(
                f"the old state could not be brought back for {'; '.join(faults)}{stopped}",
                remedy="Mend what is named, then run `cosmos recover`; nothing of the old state was deleted.",
            )
        outcome = self._services_as_before()
        self._remove_made()
        self._note.close()
        return outcome

    def _take_back(self, restorer: Restorer, stack: Stack) -> None:
        serving = restorer.part.service
        if serving and not restorer.stops:
            found = stack.service(serving)
            if found is not None and found.state == "missing":
                self._runtime.create()
            self._runtime.start([serving])
            self._runtime.wait_ready([serving])
        restorer.undo()

    def _bring_back(self, service: str) -> list[str]:
        """The files of a server that does not start, where they were; what went wrong, in clauses."""
        try:
            self._runtime.stop([service])
            volume = aside.data_volume(self._runtime.stack(), service)
            if service in self.record.emptied:
                aside.clear(volume)
                self._update(emptied=tuple(name for name in self.record.emptied if name != service))
            aside.move_back(self._runtime, volume, self.record.aside[service])
        except errors.CosmosError as error:
            return [f"the files of {service}, which lie in volume {self.record.aside[service]}: {error.message}"]
        return []

    def _remove_made(self) -> None:
        """Volumes that came with the run go; one that somebody else has made meanwhile stays if anything is in it."""
        for name in self.record.made:
            volume = self._runtime.stack().volume(name)
            if volume is None or not volume.exists:
                continue
            empty = volume.path is not None and not any(volume.path.iterdir())
            if empty or volume.labels.get(CLONED) == self.record.run:
                self._runtime.remove_volume(volume.name)

    def _services_as_before(self) -> str:
        record, stack = self.record, self._runtime.stack()
        try:
            self._runtime.stop(_there(stack, {*record.start} - {*record.running}))
            self._runtime.start(_there(stack, record.running))
        except errors.CosmosError as error:
            return f"the data are as they were before, but not all services: {error.message}"
        if record.created:
            return (
                f"the stack is as it was before, but for lost volumes that are there again: {', '.join(record.created)}"
            )
        return "the stack is as it was before"

    def finish(self) -> list[str]:
        """Remove the old state. What cannot be removed is named, and stays in the journal for the next run to try
        again; it is no failure of the restore."""
        notes, again = [], False
        for restorer in self.restorers():
            try:
                restorer.finish()
            except errors.CosmosError as error:
                notes.append(f"something of the old state of {restorer.part.name} is left: {error.message}")
                again = again or not isinstance(error, errors.NotFound)
        if not again:
            self._note.close()
        return notes


@contextmanager
def undone_on_failure(undo: Undo, story: Story) -> Iterator[None]:
    """Whatever ends the block early, the old state comes back and the error says so.

    ``RestoreFailed`` names both faults when that fails, and ``Interrupted`` stands for Ctrl-C."""
    try:
        yield
    except BaseException as error:
        outcome = _taken_back(undo, story, error)
        if isinstance(error, KeyboardInterrupt):
            raise errors.Interrupted(f"the {story.verb} was interrupted; {outcome}") from error
        if isinstance(error, errors.CosmosError):
            error.add(outcome)
        raise


def finish(undo: Undo, story: Story) -> None:
    """Remove the old state. ``Interrupted`` when that was ended early: the new state is live then."""
    story.begin("finish")
    try:
        for sentence in undo.finish():
            story.note(sentence)
    except KeyboardInterrupt as error:
        raise errors.Interrupted(
            f"the {story.verb} was interrupted when it was done; the new state is live, the old one not yet removed",
            remedy="`cosmos recover` removes it.",
        ) from error


def _taken_back(undo: Undo, story: Story, error: BaseException) -> str:
    """Bring the old state back; what came of it, in a clause."""
    try:
        story.begin("undo")
        return undo.run()
    except errors.CosmosError as fault:
        reason = error.message if isinstance(error, errors.CosmosError) else f"it was ended by {type(error).__name__}"
        raise errors.RestoreFailed(f"{reason}; {fault.message}", remedy=fault.remedy) from error


def _there(stack: Stack, services: Iterable[str]) -> list[str]:
    """Those that still have a container or process to stop or start."""
    present = {s.name for s in stack.services if s.state != "missing"}
    return sorted(present & {*services})


def _has_place(part: Part, stack: Stack) -> bool:
    """Whether there is still a volume that can hold something of the part; one that is gone took all with it."""
    volume = stack.volume(part.volume) if part.volume else None
    return not part.volume or (volume is not None and volume.exists)
