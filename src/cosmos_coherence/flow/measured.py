"""What a round of measuring found, and where it waits for the history."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path

import msgspec

from cosmos_coherence import errors
from cosmos_coherence.flow.remember import MEASUREMENTS, SPOOL
from cosmos_coherence.history import segments
from cosmos_coherence.model import Measurement
from cosmos_coherence.settings import Settings


class Measured(msgspec.Struct, frozen=True):
    """One round of measuring."""

    measurements: tuple[Measurement, ...] = ()
    details: Mapping[str, str] = msgspec.field(default_factory=dict)
    """Words by subject, for an alarm."""
    notes: tuple[str, ...] = ()
    """What could not be measured or kept, in sentences."""


def keep(state: Path, settings: Settings, measurements: tuple[Measurement, ...]) -> tuple[str, ...]:
    """Put these into the spool; what there is to say of it, mostly nothing. That measurements were lost is one too."""
    folder = state / SPOOL / MEASUREMENTS
    try:
        if dropped := segments.append(folder, measurements, limit=settings.history.spool):
            segments.append(folder, [Measurement(time.time(), "spool", "dropped_segments", float(dropped))])
            return (f"the history has been away for too long: {dropped} of the oldest rounds of measuring went",)
    except errors.CosmosError as error:
        return (f"what was measured is not kept: {error.message}",)
    return ()
