"""A file tree into a repository, filled while the tree still changes."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import BinaryIO, Final, NamedTuple

from cosmos_coherence import errors
from cosmos_coherence.model import Entry, PartFile
from cosmos_coherence.parts import Known
from cosmos_coherence.repository import gotext, trees
from cosmos_coherence.repository.chunker import Chunk
from cosmos_coherence.repository.saver import Saver
from cosmos_coherence.repository.trees import Node, NodeType

Cut = Callable[[BinaryIO], Iterator[Chunk]]

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
            size += len(chunk.data)
            ids.append(saver.save("data", chunk.data).hex())
        finally:
            chunk.release()
    return Content(tuple(ids), size, whole.hexdigest())


class RepositoryTree:
    """A ``parts.TreeWriter``. ``done`` is told the finished tree's root node, named ``name``, and the SHA-256 of every
    file that is more than one blob (the id of a file's only blob is its SHA-256)."""

    def __init__(
        self,
        saver: Saver,
        cut: Cut,
        path: str,
        known: Mapping[bytes, tuple[Known, Content]],
        done: Callable[[Node, Mapping[bytes, str]], None],
    ) -> None:
        self._saver, self._cut, self._path, self._done = saver, cut, path, done
        self._known = known
        self._content = {path: content for path, (_, content) in known.items() if content.sha256}

    def known(self) -> Iterator[Known]:
        """As ``parts.TreeWriter`` says."""
        return (known for known, _ in self._known.values())

    def add(self, entry: Entry, content: BinaryIO) -> str:
        """As ``parts.TreeWriter`` says. ``CaptureFailed`` when the content cannot be read."""
        try:
            stored = save_content(self._saver, self._cut(content))
        except OSError as error:
            name = ascii(entry.path.decode("utf-8", "surrogateescape"))[1:-1]
            raise errors.CaptureFailed(f"{name} cannot be read: {error.strerror}") from error
        self._content[entry.path] = stored
        return stored.sha256

    def drop(self, path: bytes) -> None:
        """Forget a file that was added; one that was not is fine."""
        self._content.pop(path, None)

    def finish(self, entries: Iterable[Entry]) -> PartFile:
        """As ``parts.TreeWriter`` says. The part's checksum is the id of the tree."""
        whole = {entry.path: entry for entry in entries}
        links = [entry.target for entry in whole.values() if entry.kind == "hardlink"]
        numbers = {path: number for number, path in enumerate(dict.fromkeys(links), 1)}
        names: dict[bytes, int] = {}
        for target in links:
            names[target] = names.get(target, 1) + 1
        children: dict[bytes, list[Node]] = {path: [] for path, entry in whole.items() if entry.kind == "dir"}
        sums: dict[bytes, str] = {}
        size = 0
        root: Node | None = None
        for path in sorted(whole, reverse=True):  # whatever lies in a folder comes before the folder
            entry = whole[path]
            first = whole[entry.target] if entry.kind == "hardlink" else entry
            above, _, name = path.rpartition(b"/")
            fields = _fields(first)
            if first.path in numbers:
                seen = first.seen
                fields |= {"inode": seen.ino, "device_id": seen.dev} if seen else {"inode": numbers[first.path]}
                fields["links"] = max(names[first.path], seen.nlink if seen else 0)
            if first.kind == "file":
                assert first.path in self._content, f"{first.path!r} was never added"
                stored = self._content[first.path]
                fields |= {"size": stored.size, "content": list(stored.blobs)}
                if entry.kind == "file":
                    size += stored.size
                    if len(stored.blobs) > 1:
                        sums[path] = stored.sha256
            elif first.kind == "dir":
                nodes = sorted(children.pop(path), key=lambda node: node.file_name)
                fields["subtree"] = self._saver.save("tree", trees.encode(nodes)).hex()
            node = trees.node(
                name if path else self._path.rpartition("/")[2].encode(),
                _TYPES[entry.kind],
                target=first.target if first.kind == "symlink" else None,
                xattrs=dict(first.xattrs),
                **fields,
            )
            if path:
                children[above].append(node)
            else:
                root = node
        assert root is not None and root.subtree is not None, "the tree has no root"
        self._done(root, sums)
        return PartFile(self._path, size, root.subtree, size)


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
