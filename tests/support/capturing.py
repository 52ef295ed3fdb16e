"""A whole capture of a source into memory, with what a test wants to happen in between."""

from __future__ import annotations

from collections.abc import Callable

from cosmos_coherence.model import Part
from cosmos_coherence.sources.base import Source
from support.memory_parts import MemorySink

Step = Callable[[], object]


def nothing() -> None:
    pass


def anchor(source: Source) -> None:
    """The anchor, and what it leaves to be done."""
    if rest := source.anchor():
        rest()


def capture(source: Source, *, prepared: Step = nothing, anchored: Step = nothing) -> tuple[Part, MemorySink]:
    sink = MemorySink()
    source.prepare(sink)
    prepared()
    anchor(source)
    anchored()
    return source.capture(sink), sink
