"""Every run leaves its report and its numbers in the spool, from which the history is filled when it can be reached."""

from __future__ import annotations

import contextlib
from datetime import datetime
from pathlib import Path

import msgspec

from cosmos_coherence import errors
from cosmos_coherence.drivers.runtime import Runtime
from cosmos_coherence.flow.events import Report
from cosmos_coherence.history import segments
from cosmos_coherence.model import Measurement
from cosmos_coherence.storage import local

SPOOL = "spool"
MEASUREMENTS = "measurements"
"""The folder of measurements in the spool."""


def encode(report: Report) -> bytes:
    """The report as JSON; the same bytes for ``--json``, the spool and the history."""
    return msgspec.json.encode(report)


def remember(runtime: Runtime, report: Report) -> None:
    """Put the report into the spool. A spool that cannot be written never changes the outcome of a run."""
    with contextlib.suppress(errors.CosmosError, OSError):
        folder: Path = runtime.state_directory() / SPOOL
        folder.mkdir(mode=0o700, exist_ok=True)
        local.write_atomically(folder / f"{report.run}-{report.verb}.json", encode(report))
        segments.append(folder / MEASUREMENTS, measurements_of(report))


def measurements_of(report: Report) -> tuple[Measurement, ...]:
    """The numbers of a run, taken at its end."""
    taken, subject = datetime.fromisoformat(report.ended_at).timestamp(), f"run:{report.verb}"
    found = {"exit_status": report.exit_status, "seconds": report.seconds, "bytes": report.size}
    if report.pause_ms is not None:
        found["pause_seconds"] = report.pause_ms / 1000
    return tuple(Measurement(taken, subject, name, float(value)) for name, value in found.items())
