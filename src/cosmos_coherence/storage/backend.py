"""Where a repository lies: a flat store of small and middle-sized files, never changed once they are there.

Every file is named by the SHA-256 of its content in hex (``config`` alone has no name), is written once, read as a
whole or in part, listed, and removed. That is all a repository asks of a place, so any object store can be one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal, Protocol

import msgspec

Kind = Literal["config", "keys", "locks", "snapshots", "index", "data"]
"""The folders of the layout; ``config`` is a single file, whose name is ``""``."""

KINDS: tuple[Kind, ...] = ("config", "keys", "locks", "snapshots", "index", "data")


class Stored(msgspec.Struct, frozen=True):
    """One file of a listing."""

    name: str
    size: int


class Properties(msgspec.Struct, frozen=True):
    """What a backend is good for; data, not another protocol."""

    connections: int
    """How many requests at a time are useful."""
    local: bool = False
    """Reading costs no round trip."""


class Backend(Protocol):
    """One store. Safe to use from several threads at a time.

    Failures are the catalogue's: ``NotFound``, ``NoRoom``, ``Refused`` (not allowed), ``AccessDenied`` (the store does
    not know us), ``Damaged`` (a short or impossible answer, or a name that no repository gives), ``BackendUnavailable``
    (nobody answers, the connection broke, the server is overloaded; the only one that is worth another try). No error
    text, and not ``location``, holds a secret. What is not local holds connections and threads: none of it survives a
    ``fork``.
    """

    @property
    def location(self) -> str:
        """Where it is, for people: a path or a URL without user's secrets."""
        ...

    @property
    def properties(self) -> Properties:
        """What it is good for."""
        ...

    def create(self) -> None:
        """Make whatever must be there before the first ``save``: folders, a bucket's prefix. Once more is harmless."""
        ...

    def save(self, kind: Kind, name: str, content: Sequence[bytes | bytearray | memoryview]) -> None:
        """Store the concatenated buffers under that name: whole and durable when the call returns, or not there at all.

        Whoever lists or loads meanwhile never sees a part of it. A name that is there with as many bytes is left alone
        (names are checksums, so it is the same file, from an earlier try); with another size it is ``Refused``, or
        ``BackendUnavailable`` where fewer bytes may mean that a server has not got all of them yet.
        The buffers are not kept afterwards.
        """
        ...

    def load(self, kind: Kind, name: str, offset: int = 0, length: int | None = None) -> bytes:
        """Exactly ``length`` bytes from ``offset``; up to the end without a length. Fewer are ``Damaged``.

        So is an offset above zero that is not before the end. A ``length`` is at least 1. ``NotFound`` as in ``size``.
        """
        ...

    def size(self, kind: Kind, name: str) -> int:
        """Its size in bytes. ``NotFound`` when it is not there."""
        ...

    def list(self, kind: Kind) -> Iterator[Stored]:
        """Every file of that kind, in any order, each once; what a ``save`` before the call has stored is among them.

        Foreign files and unfinished ones are passed over. A folder that is missing counts as empty.
        """
        ...

    def remove(self, kind: Kind, name: str) -> None:
        """Remove it; one that is not there is fine. ``Refused`` where the store is append-only."""
        ...

    def close(self) -> None:
        """Give connections back. May be called again."""
        ...
