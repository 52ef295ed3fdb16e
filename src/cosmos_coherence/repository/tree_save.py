"""A folder of this machine into a repository: its folders read here or by processes beside us, and the trees from the
bottom up.

The walk follows no link and stays on the root's file system. What is as it was in the parent is not opened: size, inode
and both times tell.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from cosmos_coherence import errors
from cosmos_coherence.repository import chunker, collection, forked, nodes, tree_seen, trees
from cosmos_coherence.repository.blob import Id
from cosmos_coherence.repository.folder_read import Folder, FolderReader, Reading, joined, with_subtree
from cosmos_coherence.repository.forked import Team
from cosmos_coherence.repository.repository import Repository
from cosmos_coherence.repository.saver import Pending, Saver
from cosmos_coherence.repository.tree_seen import Seen
from cosmos_coherence.repository.trees import Node

_BUFFERS: Final = 4
_BATCH: Final = 16
"""Folders that go to a process at a time, at most."""
_BATCH_BYTES: Final = 16 << 10
_UNFINISHED: Final = 64
"""Folders that may wait for the blobs of large files."""


@dataclass(slots=True)
class Saved:
    """What became of a folder. Bytes are those of the files' contents."""

    tree: Id = b""
    files: int = 0
    unchanged: int = 0
    folders: int = 0
    others: int = 0
    size: int = 0


def save_folder(
    repository: Repository, saver: Saver, root: Path, *, parent: Id | None = None, team: Team | None = None
) -> Saved:
    """Save all that is below ``root``, which stays on its file system; ``parent`` is the tree of an earlier state.

    With a ``team``, which serves once, its processes read the folders and save the small files; large ones are cut
    here either way, and hashed and compressed by the saver's threads. The tree is the same.

    The tree is that of the content of ``root``; ``save_ancestors`` puts it into its place. It may be referred to after
    the saver's flush. Raises ``CaptureFailed`` naming what cannot be read, ``CosmosError`` when a process of the team
    has died, and as the saver.
    """
    with collection.paused(), FolderReader(repository, saver, root) as reader:
        return _Walk(repository, saver, reader, root, team).run(parent)


def save_ancestors(saver: Saver, root: Path, tree: Id) -> Id:
    """The tree of ``/`` that holds only ``root``, with ``tree`` in it: what restic makes of an absolute path.

    Raises ``CaptureFailed``.
    """
    place = os.fsencode(root.absolute())
    try:
        while place != b"/":
            place, _, name = place.rpartition(b"/")
            place = place or b"/"
            below = os.path.join(place, name)  # noqa: PTH118 - bytes
            node = nodes.from_stat(name, os.lstat(below), xattrs=nodes.xattrs(below))
            node.subtree = tree.hex()
            tree = saver.save("tree", trees.encode([node]))
    except OSError as error:
        raise errors.CaptureFailed(
            f"{os.fsdecode(place)} cannot be read: {error.strerror}", remedy="Run as a user who may read it."
        ) from error
    return tree


@dataclass(slots=True, eq=False)
class _Open:
    """A folder whose tree is not saved yet."""

    path: bytes
    above: _Open | None
    before: Seen | None
    reading: Reading | None = None
    waiting: int = 0
    """Folders in it and large files of it that are not done."""
    same: bool = False
    """Everything in it is as it was."""
    pieces: list[tuple[bytes, str]] = field(default_factory=list)
    folders: list[tuple[bytes, str]] = field(default_factory=list)
    large: list[tuple[Node, list[Pending]]] = field(default_factory=list)


class _Walk:
    def __init__(
        self, repository: Repository, saver: Saver, reader: FolderReader, root: Path, team: Team | None
    ) -> None:
        self._repository, self._saver, self._reader, self._root, self._team = repository, saver, reader, root, team
        self._pool = chunker.Pool(_BUFFERS)
        self._cut = chunker.cutter(chunker.seed_of(repository.key))
        self._saved = Saved()
        self._numbers = 0
        self._todo: list[Folder] = []
        """The last one is the next, so that few folders are open at a time."""
        self._open: dict[int, _Open] = {}
        self._large: deque[tuple[_Open, bytes]] = deque()
        self._ready: deque[_Open] = deque()

    def run(self, parent: Id | None) -> Saved:
        if self._team is not None:
            self._team.begin(self._root, self._reader.identity)
        before = None if parent is None else Seen("", "dir", subtree=parent.hex())
        self._ask(_Open(b"", None, before))
        while self._open or self._large or self._ready:
            self._step()
        if self._team is not None:
            self._take_the_rest(self._team)
        return self._saved

    def _step(self) -> None:
        """Do one thing; what the processes say comes first, then what keeps the threads busy."""
        self._answers(wait=False)
        if self._large and len(self._ready) < _UNFINISHED:
            self._save_large(*self._large.popleft())
        elif self._ready:
            self._finish(self._ready.popleft())
        elif self._team is None:
            self._take(self._reader.read(self._todo.pop()))
        elif self._open:
            self._answers(wait=True)

    def _ask(self, folder: _Open) -> None:
        self._numbers += 1
        self._open[self._numbers] = folder
        self._todo.append(Folder(self._numbers, folder.path, folder.before))

    def _answers(self, *, wait: bool) -> None:
        if self._team is None:
            return
        for number, answer in self._team.answers(wait=wait):
            if isinstance(answer, forked.Readings):
                for reading in answer.readings:
                    self._take(reading)
            elif isinstance(answer, forked.Stored):
                self._saver.take_pack(answer.pack, answer.blobs)
                self._team.tell(answer, number)
        for give in self._team.hungry():
            if self._todo:
                give(self._batch(len(self._team)))

    def _batch(self, processes: int) -> Sequence[Folder]:
        count = min(_BATCH, len(self._todo) // (2 * processes) + 1)
        batch = [self._todo.pop()]
        size = len(batch[0].path)
        while len(batch) < count and (size := size + len(self._todo[-1].path)) < _BATCH_BYTES:
            batch.append(self._todo.pop())
        return batch

    def _take_the_rest(self, team: Team) -> None:
        team.finish()
        left = len(team)
        while left:
            for _, answer in team.answers(wait=True):
                if isinstance(answer, forked.Stored):
                    self._saver.take_pack(answer.pack, answer.blobs)
                elif isinstance(answer, forked.Left):
                    for blob, sealed in answer.blobs:
                        self._saver.take_sealed(blob, sealed)
                elif isinstance(answer, forked.Finished):
                    left -= 1
                    self._saver.count(answer.data_blobs, answer.tree_blobs, answer.size, answer.packed)

    def _take(self, reading: Reading) -> None:
        folder = self._open.pop(reading.number)
        folder.reading = reading
        if not reading.node:
            self._done_below(folder, None)
            return
        saved = self._saved
        saved.files += reading.files
        saved.unchanged += reading.unchanged
        saved.others += reading.others
        saved.size += reading.size
        folder.same = reading.same
        if reading.tree is not None:
            self._leave(folder, reading.tree)
            return
        prefix = folder.path + b"/" if folder.path else b""
        folder.pieces, reading.pieces = reading.pieces, []
        folder.waiting = len(reading.folders) + len(reading.large)
        for name, before in reading.folders:
            self._ask(_Open(prefix + name, folder, before))
        self._large.extend((folder, name) for name in reading.large)

    def _save_large(self, folder: _Open, name: bytes) -> None:
        blobs: list[Pending] = []

        def content(node: Node, file: int) -> None:
            node.size = 0  # that of what is read, whatever ``stat`` said
            for chunk in chunker.chunks(chunker.descriptor_reader(file), self._pool, self._cut):
                node.size += len(chunk.data)
                blobs.append(self._saver.submit("data", chunk.data, chunk.release))
                self._answers(wait=False)

        node = self._reader.large(folder.path + b"/" + name if folder.path else name, content)
        if node is not None:
            folder.large.append((node, blobs))
            self._saved.files += 1
            self._saved.size += node.size
        self._one_less(folder)

    def _one_less(self, folder: _Open) -> None:
        folder.waiting -= 1
        if not folder.waiting:
            self._ready.append(folder)

    def _finish(self, folder: _Open) -> None:
        """Save the tree of a folder of which everything is there."""
        assert folder.reading is not None
        if folder.same and folder.before is not None and folder.before.subtree is not None:
            self._leave(folder, folder.before.subtree)
            return
        for node, blobs in folder.large:
            node.content = [blob.id().hex() for blob in blobs]
            folder.pieces.append((node.file_name, trees.encode_node(node)))
        if folder.reading.same and folder.before is not None and folder.before.subtree is not None:
            plain = self._repository.load_blob("tree", bytes.fromhex(folder.before.subtree))
            pairs = zip(tree_seen.decode(plain), tree_seen.decode_raw(plain), strict=True)
            folder.pieces += [(os.fsencode(each.name), raw.decode()) for each, raw in pairs if each.type != "dir"]
        folder.pieces += folder.folders
        self._leave(folder, self._saver.save("tree", joined(folder.pieces)).hex())

    def _leave(self, folder: _Open, tree: str) -> None:
        self._saved.folders += 1
        if folder.above is None:
            self._saved.tree = bytes.fromhex(tree)
        else:
            self._done_below(folder, tree)

    def _done_below(self, folder: _Open, tree: str | None) -> None:
        """Tell the folder above that one in it is done, or has gone."""
        assert folder.reading is not None
        above = folder.above
        if above is None:
            raise errors.CaptureFailed(f"{self._root} has gone while it was read")
        before = folder.before
        unchanged = folder.reading.kept and before is not None and before.subtree == tree
        above.same = above.same and unchanged and tree is not None
        if tree is not None:
            above.folders.append((folder.path.rpartition(b"/")[2], with_subtree(folder.reading.node, tree)))
        self._one_less(above)
