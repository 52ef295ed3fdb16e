"""A file tree into a repository, filled while the tree still changes."""

from __future__ import annotations

import hashlib
import itertools
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import BinaryIO, Final, NamedTuple, Protocol

from cosmos_coherence import errors
from cosmos_coherence.content_digest import EMPTY, SMALL, ContentDigest
from cosmos_coherence.copied import Copied
from cosmos_coherence.model import Entry, PartFile, TreePrint
from cosmos_coherence.repository import nodes, small_files, trees
from cosmos_coherence.repository.blob import Id
from cosmos_coherence.repository.chunker import MIN_SIZE, Chunk
from cosmos_coherence.repository.crypto import Buffer
from cosmos_coherence.repository.forked import Team
from cosmos_coherence.repository.joined import joined
from cosmos_coherence.repository.saver import Pending, Saver
from cosmos_coherence.repository.trees import Node

Cut = Callable[[BinaryIO], Iterator[Chunk]]

_BATCH: Final = 1 << 20
_BATCH_FILES: Final = 256
"""Bytes or files that are handed over in one go."""
_AT_ONCE: Final = 2
"""Large files that are read at the same time."""
_FEW: Final = 64
"""So few files are read here, sooner than asking somebody else."""


class Whole(Protocol):
    """A digest that takes content piece by piece."""

    def update(self, data: memoryview, /) -> object:
        """What comes next."""
        ...

    def hexdigest(self) -> str:
        """Of all that has come."""
        ...


class Content(NamedTuple):
    """What a repository holds of one file."""

    blobs: tuple[str, ...]
    """Ids in hex, as nodes name them."""
    size: int
    digest: str


def save_content(saver: Saver, chunks: Iterable[Chunk], whole: Whole) -> Content:
    """Save a stream chunk by chunk, hashed and compressed by the saver's threads; what it held when they are done.

    ``whole`` takes all of it and gives the digest.
    """
    waiting: list[Pending] = []
    size = 0
    for chunk in chunks:
        size += len(chunk.data)
        whole.update(chunk.data)
        waiting.append(saver.submit("data", chunk.data, chunk.release))
    return Content(tuple(each.id().hex() for each in waiting), size, whole.hexdigest())


class Before(NamedTuple):
    """A tree as the last backup of the stack has it."""

    names: dict[bytes, Copied]
    """By path: only what can be trusted to be as it was."""
    large: Mapping[bytes, tuple[str, ...]]
    """The blobs of the large files among them."""
    folders: Mapping[bytes, tuple[str, int]]
    """By path: the id of the folder's tree, and how many names are in it."""
    index_files: frozenset[str] = frozenset()
    """As long as these are there, all of its content is stored; none where nobody knows."""
    root: Node | None = None
    fingerprint: TreePrint | None = None
    """What the last manifest says of the tree, which has that root."""


NOTHING: Final = Before({}, {}, {})


class Finished(NamedTuple):
    """A tree that is in the repository."""

    root: Node
    """Named as the last step of the tree's path."""
    sums: Mapping[bytes, str]
    """The digest of every large file (that of a small one is the id of its only blob)."""
    state: Before
    """All of it, for the next backup."""
    before: Before
    """As the last one had it."""

    def added(self) -> Iterator[str]:
        """The blobs of every file that was not known before."""
        if self.state.folders is self.before.folders:
            return
        for path, each in self.state.names.items():
            if each.digest and self.before.names.get(path) is not each and each.found.size:
                yield from self.state.large.get(path) or (each.digest,)


class RepositoryTree:
    """A ``parts.TreeWriter``. A folder in which nothing has changed since ``before`` keeps the tree that it has.

    ``done`` is told the finished tree. With a ``team``, its processes read the small files.
    """

    def __init__(
        self,
        saver: Saver,
        cut: Cut,
        path: str,
        before: Before,
        done: Callable[[Finished], None],
        team: Team | None = None,
    ) -> None:
        self._saver, self._cut, self._path, self._done = saver, cut, path, done
        self._before, self._team = before, team
        self._batching = threading.Lock()
        self._batch: list[tuple[Id, bytes]] = []
        self._batched = 0
        self._large = dict(before.large)
        self._root: Node | None = None

    @property
    def at_once(self) -> int:
        """As ``parts.TreeWriter`` says: hashing and cutting let other threads run."""
        return _AT_ONCE

    def known(self) -> Mapping[bytes, Copied]:
        """As ``parts.TreeWriter`` says."""
        return self._before.names

    def add(self, entry: Entry, content: BinaryIO) -> str:
        """As ``parts.TreeWriter`` says. ``CaptureFailed`` when the content cannot be read."""
        try:
            stored = self._save(entry, content)
        except OSError as error:
            name = ascii(entry.path.decode("utf-8", "surrogateescape"))[1:-1]
            raise errors.CaptureFailed(f"{name} cannot be read: {error.strerror}") from error
        self._large.pop(entry.path, None)
        if stored.size > SMALL:
            self._large[entry.path] = stored.blobs
        return stored.digest

    def add_small(self, root: Path, paths: Iterable[bytes]) -> Iterator[Copied]:
        """As ``parts.TreeWriter`` says."""
        paths = iter(paths)
        some = list(itertools.islice(paths, _FEW + 1)) if self._team is not None else []
        paths = itertools.chain(some, paths)
        if self._team is not None and len(some) > _FEW:
            found = self._team.copied(root, paths, self._saver)
        else:
            found = small_files.copied(root, paths, self._keep)
        for copied in found:
            self._large.pop(copied.found.path, None)
            yield copied

    def drop(self, path: bytes) -> None:
        """Forget a file that was added; one that was not is fine."""
        self._large.pop(path, None)

    def finish(self, names: Iterable[Copied]) -> PartFile:
        """As ``parts.TreeWriter`` says. The part's checksum is the id of the tree."""
        self._save_batch()
        whole = {copied.found.path: copied for copied in names}
        folders = self._before.folders if self._is_as_before(whole) else self._saved(whole)
        files = [copied for copied in whole.values() if copied.found.kind == "file"]
        assert all(copied.digest for copied in files), "a file was never added"
        size = sum(copied.found.size for copied in files)
        large = {p: blobs for p, blobs in self._large.items() if p in whole and whole[p].found.kind == "file"}
        self._root = root = nodes.node(
            self._path.encode().rpartition(b"/")[2], whole[b""], links=0, inode=whole[b""].found.ino,
            subtree=folders[b""][0],
        )  # fmt: skip
        self._done(
            Finished(root, {path: whole[path].digest for path in large}, Before(whole, large, folders), self._before)
        )
        return PartFile(self._path, size, folders[b""][0], size)

    def _is_as_before(self, whole: Mapping[bytes, Copied]) -> bool:
        """Whether these are the very names that were known, all that there were, with the content that they had."""
        known, large, folders = self._before.names, self._before.large, self._before.folders
        return (
            len(whole) == 1 + sum(count for _, count in folders.values())
            and all(known.get(path) is copied for path, copied in whole.items())
            and all(path in folders for path, copied in whole.items() if copied.found.kind == "dir")
            and all(self._large.get(path) is blobs for path, blobs in large.items())
        )

    def _saved(self, whole: Mapping[bytes, Copied]) -> dict[bytes, tuple[str, int]]:
        """The folders, each with its tree, which is saved now unless it is as it was, and how many names are in it."""
        links: dict[bytes, int] = {}
        below: dict[bytes, list[Copied]] = {}
        for path, copied in whole.items():
            kind = copied.found.kind
            if kind == "dir":
                below.setdefault(path, [])
            elif kind == "hardlink":
                links[copied.found.target] = links.get(copied.found.target, 1) + 1
            if path:
                below[path.rpartition(b"/")[0]].append(copied)
        node = partial(_node, whole, links, self._large)
        folders: dict[bytes, tuple[str, int]] = {}
        same: set[bytes] = set()
        joined = self._joined_beside(below, links)
        for path in sorted(below, reverse=True):  # a folder comes after those that lie in it
            entries = below[path]
            tree = self._kept(path, entries, same)
            if tree:
                same.add(path)
            elif not (tree := joined.get(path, "")):
                pieces = [node(each, folders) for each in entries]  # in the order of their names already
                tree = self._saver.save("tree", trees.joined(pieces)).hex()
            folders[path] = tree, len(entries)
        return folders

    def same_print(self) -> TreePrint | None:
        """As ``parts.TreeWriter`` says: a tree is named by the hash of all that is below it."""
        return self._before.fingerprint if self._root and _are_same(self._root, self._before.root) else None

    def _save(self, entry: Entry, content: BinaryIO) -> Content:
        if entry.size > SMALL:
            return save_content(self._saver, self._cut(content), ContentDigest())
        # A file that is one blob whatever is in it needs no cutting.
        plain = content.read(MIN_SIZE)
        if len(plain) == MIN_SIZE:  # it has grown
            pieces = itertools.chain([plain], iter(lambda: content.read(MIN_SIZE), b""))
            return save_content(self._saver, self._cut(joined(pieces)), ContentDigest())
        if not plain:
            return Content((), 0, EMPTY)
        name = self._keep(plain)
        return Content((name,), len(plain), name)

    def _keep(self, plain: Buffer) -> str:
        """Have a blob saved together with others; its id."""
        if not plain:
            return EMPTY
        blob_id = hashlib.sha256(plain).digest()
        with self._batching:
            self._batch.append((blob_id, bytes(plain)))
            self._batched += len(plain)
            if self._batched >= _BATCH or len(self._batch) >= _BATCH_FILES:
                self._save_batch()
        return blob_id.hex()

    def _save_batch(self) -> None:
        batch, self._batch, self._batched = self._batch, [], 0
        self._saver.save_many("data", batch)

    def _joined_beside(self, below: Mapping[bytes, list[Copied]], links: Mapping[bytes, int]) -> dict[bytes, str]:
        """With a team there is nothing before: the trees of folders of nothing but plain files are saved by it."""
        if self._team is None:
            return {}
        large = self._large

        def is_plain(each: Copied) -> bool:
            return nodes.is_plain(each) and each.found.path not in links and each.found.path not in large

        plain = [path for path, entries in below.items() if entries and all(map(is_plain, entries))]
        saved = self._team.trees(((number, below[path]) for number, path in enumerate(plain)), self._saver)
        found = {plain[number]: tree for number, tree in saved}
        self._team.settle()
        return found

    def _kept(self, path: bytes, entries: list[Copied], same: set[bytes]) -> str:
        """The tree that the folder had, when it holds the very names that were known of it; else nothing."""
        tree, count = self._before.folders.get(path, ("", 0))
        if not tree or count != len(entries):
            return ""
        names, large = self._before.names, self._before.large
        for each in entries:
            name = each.found.path
            if names.get(name) is not each or (each.found.kind == "dir" and name not in same):
                return ""
            if name in large and self._large.get(name) is not large[name]:
                return ""
        return tree


def _are_same(root: Node, before: Node | None) -> bool:
    """Whether two roots have the same tree and look alike; their times tell nothing of what is restored."""
    return before is not None and (
        (root.subtree, root.mode, root.uid, root.gid, root.extended_attributes)
        == (before.subtree, before.mode, before.uid, before.gid, before.extended_attributes)
    )


def _node(
    whole: Mapping[bytes, Copied],
    links: Mapping[bytes, int],
    large: Mapping[bytes, tuple[str, ...]],
    copied: Copied,
    folders: Mapping[bytes, tuple[str, int]],
) -> str:
    name = copied.found.path.rpartition(b"/")[2]
    first = whole[copied.found.target] if copied.found.kind == "hardlink" else copied
    found = first.found
    if found.kind == "file":
        content = large.get(found.path) or ((first.digest,) if found.size else ())
        if nodes.is_plain(first) and found.path not in links:
            return nodes.file_json(first, content)
        # Names that are one file need a number in common, also where nobody has seen one on a disk.
        inode = found.ino or int.from_bytes(hashlib.sha256(found.path).digest()[:6], "big")
        count = max(links.get(found.path, 1), found.nlink)
        return trees.encode_node(nodes.node(name, first, links=count, inode=inode, content=content))
    subtree = folders[found.path][0] if found.kind == "dir" else None
    return trees.encode_node(nodes.node(name, first, links=found.nlink, inode=found.ino, subtree=subtree))
