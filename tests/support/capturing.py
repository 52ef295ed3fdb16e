"""A whole capture of a source into memory, with what a test wants to happen in between."""

from __future__ import annotations

from collections.abc import Callable

from cosmos_coherence.model import Part
from cosmos_coherence.sources.base import Source
from support.memory_parts import MemorySink

Step = Callable[[], object]


def nothing() -> None:
    pass


def capture(source: Source, *, prepared: Step = nothing, anchored: Step = nothing) -> tuple[Part, MemorySink]:
    sink = MemorySink()
    source.prepare(sink)
    prepared()
    source.anchor()
    anchored()
    return source.capture(sink), sink
