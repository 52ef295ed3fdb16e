"""A file tree as a ``.tar.gz`` that is filled while the tree still changes.

Content arrives in any order, is replaced and dropped, and is compressed once, when it arrives: into *segments* of a
spool file. A segment holds either one large file or a group of small ones with their headers, and is a run of whole
gzip members. So the final file is folders, the segments still wanted, and links, one after another as compressed
bytes: a list of pieces of the spool, copied only when the archive is written. Only a group that lost a file, or whose
headers changed, is compressed again.

A large or sparse file gets its header in ``finish``: its size is what was read, not what was announced.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Executor
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import BinaryIO, NamedTuple

from msgspec.structs import replace

from cosmos_coherence import content_digest, errors
from cosmos_coherence.archive import gzipped, names, tarformat
from cosmos_coherence.archive.gzipped import MEMBER
from cosmos_coherence.archive.stored import Stored
from cosmos_coherence.content_digest import ContentDigest
from cosmos_coherence.copied import Copied
from cosmos_coherence.model import Entry, PartFile
from cosmos_coherence.storage import local


class _Segment:
    """A run of gzip members in the spool."""

    __slots__ = ("files", "offset", "plain", "size")

    def __init__(self) -> None:
        self.offset = self.size = 0
        self.plain = 0
        self.files = 0
        """Files in a group; 0 for the content of one file, whose header is not in it."""


class _Copy(NamedTuple):
    """One file in a segment: where its header, its content and its padding begin and end in the plain bytes."""

    segment: _Segment
    size: int
    runs: tuple[tuple[int, int], ...] | None = None
    start: int = 0
    content: int = 0
    end: int = 0
    look: int = 0


class TarGzWriter:
    """A ``parts.TreeWriter`` into one file. Memory: a few members under way, and some 300 bytes for each file."""

    def __init__(self, spool: Path, name: str, pool: Executor, ahead: int, done: Callable[[Stored], None]) -> None:
        """Writes the new file ``spool``, which holds more than what is wanted in the end; ``done`` is told which pieces
        of it make the file that the archive calls ``name``."""
        self._name, self._done = name, done
        self._spool = _Spool(spool)
        self._gzip = gzipped.ParallelGzip(pool, ahead)
        self._copies: dict[bytes, _Copy] = {}
        """In the order of the spool: a file that comes again goes to the end."""
        self._segment = _Segment()
        self._buffer = bytearray()

    @property
    def at_once(self) -> int:
        """One file after the other."""
        return 1

    def known(self) -> Mapping[bytes, Copied]:
        """Nothing: an archive stands alone."""
        return {}

    def add_small(self, root: Path, paths: Iterable[bytes]) -> Iterator[Copied]:
        """None: a tree of this kind is filled file by file."""
        return iter(())

    def add(self, entry: Entry, content: BinaryIO) -> str:
        """As ``parts.TreeWriter`` says. ``CaptureFailed`` when the content cannot be read, ``NoRoom`` when full."""
        assert entry.kind == "file", f"{entry.path!r} is no file"
        self.drop(entry.path)
        try:
            if entry.data is not None and len(entry.data) <= tarformat.MOST_RUNS:
                return self._add_sparse(entry, entry.data, content)
            first = _read(content, MEMBER)
            if len(first) < MEMBER:
                return self._add_small(entry, first)
            return self._add_large(entry, first, content)
        except OSError as error:
            raise errors.CaptureFailed(f"{names.shown(entry.path)} cannot be read: {error.strerror}") from error

    def drop(self, path: bytes) -> None:
        """Forget a file that was added; one that was not is fine."""
        self._copies.pop(path, None)

    def same_print(self) -> None:
        """An archive stands alone."""

    def finish(self, copied: Iterable[Copied]) -> PartFile:
        """As ``parts.TreeWriter`` says; metadata are those given here, the content of a file is the one last added."""
        self._submit()
        self._gzip.flush()
        final = _Final(self._spool)
        new_headers, others = self._write_folders((each.entry() for each in copied), final)
        for segment, copies in groupby(self._copies.items(), key=lambda item: item[1].segment):
            self._write_segment(segment, dict(copies), new_headers, final)
        for entry in others:
            final.add(tarformat.header(entry))
        final.add(tarformat.END)
        stored = final.stored(self._name)
        self.close()
        self._done(stored)
        return stored.file

    def close(self) -> None:
        """Nothing can be added afterwards. May be called again."""
        self._spool.close()

    # ------------------------------------------------------------------------------------- content that arrives
    def _add_small(self, entry: Entry, content: bytes) -> str:
        entry = _sized(entry, len(content), None)
        head = tarformat.header(entry)
        block = head + content + tarformat.padding(len(content))
        if not self._segment.files or self._segment.plain + len(block) > MEMBER:
            self._begin()
        segment = self._segment
        start = segment.plain
        self._put(block)
        segment.files += 1
        self._copies[entry.path] = _Copy(
            segment, len(content), None, start, start + len(head), segment.plain, _look(entry)
        )
        return content_digest.of(content)

    def _add_large(self, entry: Entry, piece: bytes, content: BinaryIO) -> str:
        segment = self._begin()
        digest = ContentDigest()
        size = 0
        while piece:
            self._put(piece)
            digest.update(piece)
            size += len(piece)
            piece = content.read(MEMBER)
        self._put(tarformat.padding(size))
        self._copies[entry.path] = _Copy(segment, size)
        return digest.hexdigest()

    def _add_sparse(self, entry: Entry, runs: tuple[tuple[int, int], ...], content: BinaryIO) -> str:
        segment = self._begin()
        digest = ContentDigest()
        found: list[tuple[int, int]] = []
        size, at = entry.size, 0
        for offset, length in runs:
            digest.zeros(offset - at)
            content.seek(offset)
            at = offset
            while at < offset + length and (piece := content.read(min(offset + length - at, MEMBER))):
                self._put(piece)
                digest.update(piece)
                at += len(piece)
            if at > offset:
                found.append((offset, at - offset))
            if at < offset + length:  # the file was cut meanwhile; what was read is what it is
                size = at
                break
        digest.zeros(size - at)
        self._put(tarformat.padding(segment.plain))
        self._copies[entry.path] = _Copy(segment, size, tuple(found))
        return digest.hexdigest()

    def _begin(self) -> _Segment:
        self._submit()
        self._segment = _Segment()
        return self._segment

    def _put(self, data: bytes) -> None:
        self._segment.plain += len(data)
        if not self._buffer and len(data) >= MEMBER:
            self._gzip.put(data, partial(self._spool_member, self._segment))
            return
        self._buffer += data
        if len(self._buffer) >= MEMBER:
            self._submit()

    def _submit(self) -> None:
        if self._buffer:
            self._gzip.put(self._buffer, partial(self._spool_member, self._segment))
            self._buffer = bytearray()

    def _spool_member(self, segment: _Segment, member: bytes) -> None:
        if not segment.size:
            segment.offset = self._spool.size
        self._spool.append(member)
        segment.size += len(member)

    # ------------------------------------------------------------------------------------------- the final file
    def _write_folders(self, entries: Iterable[Entry], final: _Final) -> tuple[dict[bytes, bytes], list[Entry]]:
        """Write the folders; return the headers that are not in the segments, and all that is neither folder nor
        file."""
        new_headers: dict[bytes, bytes] = {}
        others: list[Entry] = []
        named = 0
        previous: bytes | None = None
        for entry in entries:
            assert (previous is None and not entry.path) or (previous is not None and entry.path > previous), (
                f"{entry.path!r} is out of order"
            )
            previous = entry.path
            if entry.kind == "dir":
                final.add(tarformat.header(entry))
            elif entry.kind == "file":
                assert entry.path in self._copies, f"{entry.path!r} was never added"
                named += 1
                copy = self._copies[entry.path]
                if not copy.segment.files or copy.look != _look(entry):
                    new_headers[entry.path] = tarformat.header(_sized(entry, copy.size, copy.runs))
            else:
                others.append(entry)
        assert previous is not None, "a tree has a root"
        assert named == len(self._copies), "a file was added that the tree does not name"
        for entry in others:
            assert entry.kind != "hardlink" or entry.target in self._copies, f"{entry.path!r} links to no file"
        return new_headers, others

    def _write_segment(
        self, segment: _Segment, copies: dict[bytes, _Copy], new_headers: dict[bytes, bytes], final: _Final
    ) -> None:
        if not segment.files:
            (path,) = copies
            final.add(new_headers[path])
            final.take(segment)
        elif len(copies) == segment.files and new_headers.keys().isdisjoint(copies):
            final.take(segment)
        else:
            plain = memoryview(gzipped.decompress(self._spool.read(segment.offset, segment.size)))
            for path, copy in copies.items():
                final.add(new_headers.get(path) or plain[copy.start : copy.content])
                final.add(plain[copy.content : copy.end])


class _Spool:
    """A file that grows at its end and is read anywhere."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor = local.create(path)
        self.size = 0

    def append(self, data: bytes) -> None:
        with local.translated(f"writing {self.path}"):
            local.write_all(self._descriptor, data)
        self.size += len(data)

    def read(self, offset: int, size: int) -> bytes:
        with local.translated(f"reading {self.path}"):
            data = os.pread(self._descriptor, size, offset)
        if len(data) != size:
            raise errors.CaptureFailed(f"{self.path} was cut short by somebody else")
        return data

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


class _Final:
    """The finished tree, as it is put together: what is new goes to the end of the spool, the rest is there."""

    def __init__(self, spool: _Spool) -> None:
        self._spool = spool
        self._digest = hashlib.sha256()
        self._pieces: list[tuple[int, int]] = []
        self._plain = 0
        self._buffer = bytearray()

    def add(self, plain: bytes | memoryview) -> None:
        """Append plain bytes."""
        self._buffer += plain
        self._plain += len(plain)
        if len(self._buffer) >= MEMBER:
            self._flush()

    def take(self, segment: _Segment) -> None:
        """Append a segment as it is."""
        self._flush()
        at, end = segment.offset, segment.offset + segment.size
        while at < end:
            data = self._spool.read(at, min(end - at, MEMBER))
            self._digest.update(data)
            at += len(data)
        self._plain += segment.plain
        self._piece(segment.offset, segment.size)

    def stored(self, name: str) -> Stored:
        """The whole."""
        self._flush()
        size = sum(size for _, size in self._pieces)
        file = PartFile(path=name, size=size, sha256=self._digest.hexdigest(), plain_size=self._plain)
        return Stored(file, self._spool.path, tuple(self._pieces))

    def _flush(self) -> None:
        if self._buffer:
            member = gzipped.compress(self._buffer)
            self._digest.update(member)
            self._piece(self._spool.size, len(member))
            self._spool.append(member)
            self._buffer = bytearray()

    def _piece(self, offset: int, size: int) -> None:
        if self._pieces and sum(self._pieces[-1]) == offset:
            offset, size = self._pieces[-1][0], self._pieces.pop()[1] + size
        self._pieces.append((offset, size))


def _read(content: BinaryIO, size: int) -> bytes:
    """Up to ``size`` bytes; fewer only at the end."""
    pieces: list[bytes] = []
    while size and (piece := content.read(size)):
        pieces.append(piece)
        size -= len(piece)
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def _look(entry: Entry) -> int:
    """Equal for two entries whose headers differ at most in their size."""
    return hash((entry.mode, entry.uid, entry.gid, entry.mtime_ns, entry.xattrs))


def _sized(entry: Entry, size: int, runs: tuple[tuple[int, int], ...] | None) -> Entry:
    return entry if entry.size == size and entry.data == runs else replace(entry, size=size, data=runs)
