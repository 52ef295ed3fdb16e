"""Every run leaves its report in the spool, from which the history is filled when its database can be reached."""

from __future__ import annotations

import contextlib
from pathlib import Path

import msgspec

from cosmos_coherence import errors
from cosmos_coherence.drivers.runtime import Runtime
from cosmos_coherence.flow.events import Report
from cosmos_coherence.storage import local

SPOOL = "spool"


def encode(report: Report) -> bytes:
    """The report as JSON; the same bytes for ``--json``, the spool and the history."""
    return msgspec.json.encode(report)


def remember(runtime: Runtime, report: Report) -> None:
    """Put the report into the spool. A spool that cannot be written never changes the outcome of a run."""
    with contextlib.suppress(errors.CosmosError, OSError):
        folder: Path = runtime.state_directory() / SPOOL
        folder.mkdir(mode=0o700, exist_ok=True)
        local.write_atomically(folder / f"{report.run}-{report.verb}.json", encode(report))
