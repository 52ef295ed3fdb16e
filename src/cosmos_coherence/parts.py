"""How the parts of a backup pass between the sources and whatever stores them.

Sources and stores never see each other: a source writes to a ``Sink``, a restorer reads from a ``PartReader``, and
the flow joins them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import BinaryIO, NamedTuple, Protocol
from urllib.parse import quote

from cosmos_coherence import errors
from cosmos_coherence.copied import Copied
from cosmos_coherence.model import Entry, Manifest, PartFile, TreePrint

CONFIGS = "configs"
"""The tree of the configuration files."""
TREES = ("volumes", "files", "sqlite")
"""Where every other tree has its name."""


def stream_steps(name: str) -> tuple[str, ...]:
    """The path under which a backup keeps the stream ``name``, step by step. ``Refused`` for one that no source gives.

    Databases may have any name: odd characters are percent-encoded, a slash in the last step included.
    """
    steps = name.split("/", 2) if name.startswith("databases/") else name.split("/")
    if steps[0] in (*TREES, CONFIGS) or any(step in ("", ".", "..") for step in steps):
        raise errors.Refused(f"a backup cannot hold a stream named {name!r}")
    return tuple(quote(step, safe="", errors="surrogateescape") for step in steps)


def tree_steps(name: str) -> tuple[str, ...]:
    """The path under which a backup keeps the tree ``name``, step by step. ``Refused`` for one that no source gives."""
    if name == CONFIGS:
        return (CONFIGS,)
    kind, _, rest = name.partition("/")
    if kind not in TREES or rest in ("", ".", ".."):
        raise errors.Refused(f"a backup cannot hold a tree named {name!r}")
    return kind, quote(rest, safe="", errors="surrogateescape")


class TreeWriter(Protocol):
    """Takes a file tree in, file by file and in any order, possibly several times, until it is finished.

    Only the content of regular files is added; what the tree looks like at the instant is said once, by ``finish``.
    """

    @property
    def at_once(self) -> int:
        """How many threads may call ``add`` at the same time, each for another path."""
        ...

    def known(self) -> Mapping[bytes, Copied]:
        """What the store holds from the last backup of this tree, by path, as far as what was seen then proves that
        nothing was written since. Those files count as added. No further name of a hard-linked file is among it."""
        ...

    def add_small(self, root: Path, paths: Iterable[bytes]) -> Iterator[Copied]:
        """Have the store itself read and store many small files below ``root``, where that is faster than ``add``.

        The next path is asked for when one more can be read; who reads none asks for none. Gives those that it took, as
        it read them, in any order: what is missing was not for it, or is not there (any more). Raises ``CaptureFailed``
        for one that cannot be read.
        """
        ...

    def add(self, entry: Entry, content: BinaryIO) -> str:
        """Store a regular file and return its digest (``content_digest``), holes read as zeros.

        ``content`` is read to its end from its present position; ``entry.size`` need not be right beforehand, the bytes
        read count. A second call for a path replaces the first. For a sparse entry (``entry.data`` given) ``content``
        is seekable and only the runs of data are read.
        """
        ...

    def drop(self, path: bytes) -> None:
        """Forget a file that was added; one that was not is fine."""
        ...

    def finish(self, names: Iterable[Copied]) -> PartFile:
        """Write the final tree: every name of it, in byte order of the paths, the root (``b""``) first.

        A ``file`` neither added nor known, or added and not named, is a fault of the caller (``AssertionError``).
        Returns the file that holds the tree. Nothing may be added afterwards.
        """
        ...

    def same_print(self) -> TreePrint | None:
        """The fingerprint of the tree in the last backup when the one that was finished is that very tree, to the last
        byte and bit of metadata; else, or where nobody can tell, None."""
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


class BackupWriter(Sink, Protocol):
    """One backup while it is made: filled, packed, verified, then published. ``abort`` may come at any time."""

    @property
    def id(self) -> str:
        """The backup's id, ``YYYYMMDD_HHMMSS``."""
        ...

    @property
    def spool(self) -> Path:
        """A private folder for what has to wait on disk; it goes with the writer."""
        ...

    @property
    def stored(self) -> int:
        """Bytes that this backup added to where backups lie; right after ``pack``."""
        ...

    def last(self) -> Manifest | None:
        """What the backup before said of itself, to guess how much will come; None where that is not known."""
        ...

    def pack(self, manifest: Manifest) -> object:
        """Store all that the manifest names, durably, where nobody sees it yet."""
        ...

    def verify(self) -> None:
        """Look whether what was packed is there and whole. Raises ``Damaged``."""
        ...

    def publish(self) -> Path | str:
        """Make the backup visible in one step, the last write, and say where it is."""
        ...

    def abort(self) -> None:
        """Remove all that was not published, as far as nobody else may use it. May be called again, and after
        ``publish``. Never raises."""
        ...


class Placed(NamedTuple):
    """A tree that a reader has written itself."""

    root: Entry
    """What the root shall look like."""
    unset: int
    """Names whose owner or attributes this user or file system could not set."""


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

    def hashed(self, name: str) -> Iterator[tuple[Entry, str]]:
        """The entries of a tree, each with the SHA-256 of a regular file's content. Errors as ``tree``."""
        ...

    def place(self, name: str, folder: Path) -> Placed | None:
        """Write a whole tree into an empty folder, whose own metadata stay, where that is faster than entry by entry.

        None when it has to be done entry by entry. The rules are those of writing what nobody has to trust, and all is
        on the disk. Errors as ``tree``, ``NoRoom``, and ``RestoreFailed``.
        """
        ...


class BackupReader(PartReader, Protocol):
    """One backup, opened for restoring."""

    @property
    def manifest(self) -> Manifest:
        """Its manifest, verified."""
        ...

    def logical(self, file: PartFile) -> str:
        """The logical name of a file that the manifest names."""
        ...
