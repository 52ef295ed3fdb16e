"""What a source and a restorer promise. A source gives bytes, a restorer takes them back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from cosmos_coherence.model import Gap, Part, SourceRef
from cosmos_coherence.parts import PartReader, Sink


class Source(Protocol):
    """One thing to capture. Called in this order, each once: prepare, anchor, capture, close (always)."""

    @property
    def ref(self) -> SourceRef:
        """What it captures."""
        ...

    def prepare(self, sink: Sink) -> None:
        """Everything that may take long, while the stack runs: sessions opened and warmed, tables locked, files copied
        beforehand. May be called again after a blown budget."""
        ...

    def anchor(self) -> Callable[[], None] | None:
        """Fix the state of this moment. The writers are held: a few milliseconds, no logging, no new session.

        Returns what is left to be done when they were released, or after half a second; nothing else is called
        meanwhile."""
        ...

    def capture(self, sink: Sink) -> Part:
        """Write the anchored state to the sink and return the part with its fingerprint. The stack runs again.

        Raises ``CaptureFailed``, ``ServiceDown`` or ``CommandFailed``; a part that ends early is never returned."""
        ...

    @property
    def gaps(self) -> tuple[Gap, ...]:
        """What of its source the part does not hold; known after ``anchor``."""
        ...

    def clients(self) -> tuple[tuple[str, str], ...]:
        """(address, name) of everyone else who is connected to the server, after ``prepare``; empty for files."""
        ...

    def close(self) -> None:
        """Give everything back: sessions, locks, settings switched off for the cut. Never raises."""
        ...


class Restorer(Protocol):
    """The way back of one part. Called in this order: stage, swap, verify, then finish or undo.

    A restorer keeps no state of its own beyond its arguments: everything it leaves on disk or in a server carries the
    run's id in its name, so that after a crash a new restorer made with the same arguments can ``undo`` or ``finish``.
    """

    @property
    def part(self) -> Part:
        """What it brings back."""
        ...

    @property
    def stops(self) -> bool:
        """Whether the serving container itself must be stopped for ``swap`` (redis), not only its clients."""
        ...

    def stage(self, reader: PartReader) -> None:
        """Write the new state beside the live one and compare it with the fingerprint. Nothing live changes."""
        ...

    def swap(self) -> None:
        """Put the new state in the place of the old one, which is kept. Clients are stopped."""
        ...

    def verify(self) -> None:
        """Compare the live state with the fingerprint once the service runs again. ``NotEqual`` says what differs."""
        ...

    def undo(self) -> None:
        """Back to the old state, from wherever it stopped, also when nothing had begun. May be repeated."""
        ...

    def finish(self) -> None:
        """Remove the old state and everything staged. May be repeated."""
        ...
