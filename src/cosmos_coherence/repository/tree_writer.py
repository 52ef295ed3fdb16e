"""A file tree into a repository, filled while the tree still changes."""

from __future__ import annotations

import hashlib
import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import BinaryIO, Final, NamedTuple

from cosmos_coherence import errors
from cosmos_coherence.model import Entry, PartFile
from cosmos_coherence.parts import Known
from cosmos_coherence.repository import gotext, trees
from cosmos_coherence.repository.blob import Id
from cosmos_coherence.repository.chunker import MIN_SIZE, Chunk
from cosmos_coherence.repository.joined import joined
from cosmos_coherence.repository.saver import Saver
from cosmos_coherence.repository.trees import Node, NodeType

Cut = Callable[[BinaryIO], Iterator[Chunk]]

_BATCH: Final = 1 << 20
_BATCH_FILES: Final = 256
"""Bytes or files that are handed over in one go."""
EMPTY: Final = hashlib.sha256().hexdigest()

_TYPES: Final[Mapping[str, NodeType]] = {
    "dir": "dir", "file": "file", "hardlink": "file", "symlink": "symlink",
    "fifo": "fifo", "char": "chardev", "block": "dev",
}  # fmt: skip
_BITS: Final = {
    "dir": 0o040000, "file": 0o100000, "symlink": 0o120000, "fifo": 0o010000, "char": 0o020000, "block": 0o060000
}  # fmt: skip


class Content(NamedTuple):
    """What a repository holds of one file."""

    blobs: tuple[str, ...]
    """Ids in hex, as nodes name them."""
    size: int
    sha256: str


def save_content(saver: Saver, chunks: Iterable[Chunk]) -> Content:
    """Save a stream chunk by chunk; what it held when its blobs are on their way to a pack."""
    ids: list[str] = []
    size = 0
    whole = hashlib.sha256()
    for chunk in chunks:
        try:
            whole.update(chunk.data)
            # What the first chunk's hash is goes on to become the whole's.
            blob_id = hashlib.sha256(chunk.data).digest() if ids else whole.digest()
            size += len(chunk.data)
            ids.append(saver.save("data", chunk.data, blob_id).hex())
        finally:
            chunk.release()
    return Content(tuple(ids), size, whole.hexdigest())


class Before(NamedTuple):
    """A tree as the last backup of the stack has it."""

    names: Mapping[bytes, tuple[Known, Content | None]]
    """By path, with the content of a file; only what can be trusted to be as it was."""
    folders: Mapping[bytes, tuple[str, int]]
    """By path: the id of the folder's tree, and how many names are in it."""


NOTHING: Final = Before({}, {})


class RepositoryTree:
    """A ``parts.TreeWriter``. A folder in which nothing has changed since ``before`` keeps the tree that it has.

    ``done`` is told the finished tree's root node, named as the last step of ``path``, and the SHA-256 of every file
    that is more than one blob (the id of a file's only blob is its SHA-256). ``added`` collects the ids of the blobs.
    """

    def __init__(
        self,
        saver: Saver,
        cut: Cut,
        path: str,
        before: Before,
        added: set[str],
        done: Callable[[Node, Mapping[bytes, str]], None],
    ) -> None:
        self._saver, self._cut, self._path, self._done = saver, cut, path, done
        self._before, self._added = before, added
        self._batch: list[tuple[Id, bytes]] = []
        self._batched = 0
        self._content = {path: content for path, (_, content) in before.names.items() if content is not None}

    def known(self) -> Iterator[Known]:
        """As ``parts.TreeWriter`` says."""
        return (known for known, _ in self._before.names.values())

    def add(self, entry: Entry, content: BinaryIO) -> str:
        """As ``parts.TreeWriter`` says. ``CaptureFailed`` when the content cannot be read."""
        try:
            stored = self._save(entry, content)
        except OSError as error:
            name = ascii(entry.path.decode("utf-8", "surrogateescape"))[1:-1]
            raise errors.CaptureFailed(f"{name} cannot be read: {error.strerror}") from error
        self._content[entry.path] = stored
        self._added.update(stored.blobs)
        return stored.sha256

    def drop(self, path: bytes) -> None:
        """Forget a file that was added; one that was not is fine."""
        self._content.pop(path, None)

    def finish(self, entries: Iterable[Entry]) -> PartFile:
        """As ``parts.TreeWriter`` says. The part's checksum is the id of the tree."""
        self._save_batch()
        whole = {entry.path: entry for entry in entries}
        linked: dict[bytes, int] = {}
        below: dict[bytes, list[Entry]] = {}
        for path, entry in whole.items():
            if entry.kind == "hardlink":
                linked[entry.target] = linked.get(entry.target, 1) + 1
            if entry.kind == "dir":
                below.setdefault(path, [])
            if path:
                below.setdefault(path.rpartition(b"/")[0], []).append(entry)
        subtrees: dict[bytes, str] = {}
        same: set[bytes] = set()
        for path in sorted(below, reverse=True):  # a folder comes after those that lie in it
            if kept := self._kept(path, below[path], same):
                same.add(path)
                subtrees[path] = kept
            else:
                nodes = [self._node(entry, whole, linked, subtrees) for entry in below[path]]
                nodes.sort(key=lambda node: node.file_name)
                subtrees[path] = self._saver.save("tree", trees.encode(nodes)).hex()
        content = {path: self._stored(path) for path, entry in whole.items() if entry.kind == "file"}
        size = sum(stored.size for stored in content.values())
        sums = {path: stored.sha256 for path, stored in content.items() if len(stored.blobs) > 1}
        self._done(self._node(whole[b""], whole, linked, subtrees), sums)
        return PartFile(self._path, size, subtrees[b""], size)

    def _save(self, entry: Entry, content: BinaryIO) -> Content:
        if entry.size >= MIN_SIZE:
            return save_content(self._saver, self._cut(content))
        # A file that is one blob whatever is in it needs no cutting.
        plain = content.read(MIN_SIZE)
        if len(plain) == MIN_SIZE:  # it has grown
            pieces = itertools.chain([plain], iter(lambda: content.read(MIN_SIZE), b""))
            return save_content(self._saver, self._cut(joined(pieces)))
        if not plain:
            return Content((), 0, EMPTY)
        blob_id = hashlib.sha256(plain).digest()
        self._batch.append((blob_id, plain))
        self._batched += len(plain)
        if self._batched >= _BATCH or len(self._batch) >= _BATCH_FILES:
            self._save_batch()
        name = blob_id.hex()
        return Content((name,), len(plain), name)

    def _save_batch(self) -> None:
        batch, self._batch, self._batched = self._batch, [], 0
        self._saver.save_many("data", batch)

    def _kept(self, path: bytes, entries: list[Entry], same: set[bytes]) -> str:
        """The tree that the folder had, when it holds the very names that were known of it; else nothing."""
        subtree, count = self._before.folders.get(path, ("", 0))
        if not subtree or count != len(entries):
            return ""
        names = self._before.names
        for entry in entries:
            known = names.get(entry.path)
            if known is None or known[0].entry is not entry or (entry.kind == "dir" and entry.path not in same):
                return ""
            if known[1] is not None and self._content.get(entry.path) is not known[1]:
                return ""
        return subtree

    def _stored(self, path: bytes) -> Content:
        assert path in self._content, f"{path!r} was never added"
        return self._content[path]

    def _node(
        self, entry: Entry, whole: Mapping[bytes, Entry], linked: Mapping[bytes, int], subtrees: Mapping[bytes, str]
    ) -> Node:
        first = whole[entry.target] if entry.kind == "hardlink" else entry
        fields = _fields(first)
        if first.path in linked:
            seen = first.seen
            number = seen.ino if seen else int.from_bytes(hashlib.sha256(first.path).digest()[:6], "big")
            fields |= {"inode": number, "links": max(linked[first.path], seen.nlink if seen else 0)}
        if first.kind == "file":
            stored = self._stored(first.path)
            fields |= {"size": stored.size, "content": list(stored.blobs)}
        elif first.kind == "dir":
            fields["subtree"] = subtrees[first.path]
        return trees.node(
            (entry.path or self._path.encode()).rpartition(b"/")[2],
            _TYPES[entry.kind],
            target=first.target if first.kind == "symlink" else None,
            xattrs=dict(first.xattrs),
            **fields,
        )


def _fields(entry: Entry) -> dict[str, object]:
    seen = entry.seen
    fields: dict[str, object] = {
        "mode": gotext.go_mode(_BITS[entry.kind] | entry.mode),
        "uid": entry.uid,
        "gid": entry.gid,
        "mtime": entry.mtime_ns,
        "atime": entry.mtime_ns,
        "ctime": seen.ctime_ns if seen else entry.mtime_ns,
    }
    if seen:
        fields |= {"inode": seen.ino, "device_id": seen.dev, "links": seen.nlink}
    if entry.kind in ("char", "block"):
        fields["device"] = os.makedev(*entry.device)
    return fields
