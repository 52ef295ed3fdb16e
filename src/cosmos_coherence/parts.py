"""How the parts of a backup pass between the sources and whatever stores them.

Sources and stores never see each other: a source writes to a ``Sink``, a restorer reads from a ``PartReader``, and
the flow joins them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from typing import BinaryIO, Protocol

from cosmos_coherence.model import Entry, PartFile


class TreeWriter(Protocol):
    """Takes a file tree in, file by file and in any order, possibly several times, until it is finished.

    Only the content of regular files is added; what the tree looks like at the instant is said once, by ``finish``.
    """

    def add(self, entry: Entry, content: BinaryIO) -> str:
        """Store a regular file and return the SHA-256 of its content (holes read as zeros), hex.

        ``content`` is read to its end from its present position; ``entry.size`` need not be right beforehand, the bytes
        read count. A second call for a path replaces the first. For a sparse entry (``entry.data`` given) ``content``
        is seekable and only the runs of data are read.
        """
        ...

    def drop(self, path: bytes) -> None:
        """Forget a file that was added; one that was not is fine."""
        ...

    def finish(self, entries: Iterable[Entry]) -> PartFile:
        """Write the final tree: every entry of it, in byte order of the paths, the root (``b""``) first.

        A ``file`` entry not added before, or added and not named, is a fault of the caller (``AssertionError``).
        Returns the file that holds the tree. Nothing may be added afterwards.
        """
        ...


class Stream(Protocol):
    """One stream of bytes into a sink."""

    def write(self, data: bytes | memoryview, /) -> int:
        """Take all of the bytes."""
        ...

    def file(self) -> PartFile:
        """What was stored; only after the block has been left."""
        ...


class Sink(Protocol):
    """Where the parts of one backup go: an archive that is being written, a repository snapshot later.

    Names are logical and without compression suffix: ``database.sql``, ``globals.sql``,
    ``databases/<service>/<name>.sql``, ``redis/dump.rdb``, ``volumes/<full volume name>``, ``configs``.
    Safe to use from several threads, one name each.
    """

    def stream(self, name: str) -> AbstractContextManager[Stream]:
        """A new stream of plain bytes. Leaving the block with an exception discards what was written."""
        ...

    def tree(self, name: str) -> TreeWriter:
        """A new file tree."""
        ...


class PartReader(Protocol):
    """The parts of one backup, already proven to be what their checksums say."""

    def open(self, name: str) -> AbstractContextManager[BinaryIO]:
        """The plain bytes of a stream. ``NotFound`` when the backup does not hold it."""
        ...

    def tree(self, name: str) -> Iterator[tuple[Entry, BinaryIO | None]]:
        """The entries of a tree in the order: folders, then files, then everything else, each with the content of a
        regular file (valid until the next step). Holes are not in the content when ``entry.data`` is given: the content
        is then the runs of data one after another. Every path and link has been checked to stay inside the tree."""
        ...

    def names(self) -> tuple[str, ...]:
        """All logical names, sorted."""
        ...
