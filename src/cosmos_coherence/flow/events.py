"""What a flow says while it works, and the one report that everything else is made from.

Exit status, JSON, history and metrics all come from the ``Report``; a front never decides by itself whether a run was
good.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Literal

import msgspec

from cosmos_coherence import errors
from cosmos_coherence.flow.steps import BackupStep, RestoreStep
from cosmos_coherence.model import Gap, Part


class StepBegan(msgspec.Struct, frozen=True):
    """A named step of the story begins."""

    step: str
    detail: str = ""


class PartDone(msgspec.Struct, frozen=True):
    """One part has been captured or brought back."""

    part: str
    size: int = 0


class Held(msgspec.Struct, frozen=True):
    """The writers stood still for this long."""

    pause_ms: float
    containers: int


class Noted(msgspec.Struct, frozen=True):
    """Something worth a line, which changes nothing about the outcome."""

    text: str


class Advanced(msgspec.Struct, frozen=True):
    """So far have things come; told a few times a second, and never when it would be the only news."""

    name: str
    """What has just passed, as ``cosmos files`` names it."""
    bytes_done: int
    files_done: int
    all_bytes: int
    all_files: int
    total_bytes: int | None
    """Of everything; from the last backup, None where nobody knows."""
    bytes_per_s: float
    seconds_left: float | None


Event = StepBegan | PartDone | Held | Noted | Advanced
Emit = Callable[[Event], None]
Step = Callable[[str], None]
"""Called with the name of each step just before it is taken; tests break a run there."""

Status = Literal["done", "incomplete", "failed", "planned"]


def silent(_event: Event) -> None:
    """An ``Emit`` for callers that do not listen."""


def no_step(_name: str) -> None:
    """A ``Step`` that lets the run go on."""


class Failure(msgspec.Struct, frozen=True):
    """Why a run failed, from the catalogue."""

    code: str
    message: str
    remedy: str


class Report(msgspec.Struct, frozen=True):
    """What came of one run."""

    verb: str
    run: str
    project: str
    status: Status
    exit_status: int
    started_at: str
    ended_at: str
    seconds: float
    backup: str = ""
    path: str = ""
    archive: str = ""
    """The archive that was made beside a backup in the repository."""
    size: int = 0
    pause_ms: float | None = None
    parts: tuple[Part, ...] = ()
    missing: tuple[Gap, ...] = ()
    notes: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    safety_backup: str = ""
    phases: Mapping[str, float] = msgspec.field(default_factory=dict)
    """Seconds by step."""
    failure: Failure | None = None


class Story:
    """Collects what a run tells on its way and turns it into the report at the end."""

    def __init__(self, *, verb: str, run: str, project: str, emit: Emit = silent, step: Step = no_step) -> None:
        self.verb, self.run, self.project = verb, run, project
        self._emit, self._step = emit, step
        self._wall, self._clock = datetime.now(UTC), time.monotonic()
        self._phase, self._phase_began = "", self._clock
        self.phases: dict[str, float] = {}
        self.notes: list[str] = []

    def begin(self, step: BackupStep | RestoreStep, detail: str = "") -> None:
        """The next step begins; the last one ends."""
        self._close_phase()
        self._phase = step
        self._emit(StepBegan(step, detail))
        self._step(step)

    def cut(self, name: str) -> None:
        """A step of the cut inside ``hold`` was taken. Nobody is told but tests: the writers stand still."""
        self._step(f"hold: {name}")

    def tell(self, event: Event) -> None:
        """Pass an event on; a note is kept for the report too."""
        if isinstance(event, Noted):
            self.notes.append(event.text)
        self._emit(event)

    def note(self, text: str) -> None:
        """Tell a ``Noted``."""
        self.tell(Noted(text))

    def report(self, status: Status, **fields: object) -> Report:
        """The report of a run that ended as it should."""
        exit_status = errors.INCOMPLETE_STATUS if status == "incomplete" else 0
        return self._make(status, exit_status, **fields)

    def failed(self, error: errors.CosmosError, **fields: object) -> Report:
        """The report of a run that this error ended."""
        failure = Failure(error.code, error.message, error.remedy)
        return self._make("failed", error.exit_status, failure=failure, **fields)

    def _make(self, status: Status, exit_status: int, **fields: object) -> Report:
        self._close_phase()
        return Report(
            verb=self.verb,
            run=self.run,
            project=self.project,
            status=status,
            exit_status=exit_status,
            started_at=self._wall.isoformat(timespec="milliseconds"),
            ended_at=datetime.now(UTC).isoformat(timespec="milliseconds"),
            seconds=round(time.monotonic() - self._clock, 3),
            notes=tuple(self.notes),
            phases=dict(self.phases),
            **fields,  # type: ignore[arg-type]
        )

    def _close_phase(self) -> None:
        now = time.monotonic()
        if self._phase:
            self.phases[self._phase] = round(self.phases.get(self._phase, 0.0) + now - self._phase_began, 3)
        self._phase, self._phase_began = "", now
