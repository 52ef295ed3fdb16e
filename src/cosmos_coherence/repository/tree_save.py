"""A folder of this machine into a repository: walk, cut, save, and the trees from the bottom up.

The walk goes by folder descriptors and follows no link, so whatever is swapped in while it runs, it stays inside. A
file that is as it was in the parent (size, inode, both times) is not opened.
"""

from __future__ import annotations

import errno
import os
import stat
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from cosmos_coherence import errors
from cosmos_coherence.repository import chunker, nodes, trees
from cosmos_coherence.repository.blob import Id
from cosmos_coherence.repository.repository import Repository
from cosmos_coherence.repository.saver import Pending, Saver
from cosmos_coherence.repository.trees import Node

_FOLDER: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_GONE: Final = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP})
_BUFFERS: Final = 4


@dataclass(slots=True)
class Saved:
    """What became of a folder. Bytes are those of the files' contents."""

    tree: Id = b""
    files: int = 0
    unchanged: int = 0
    folders: int = 0
    others: int = 0
    size: int = 0


def save_folder(repository: Repository, saver: Saver, root: Path, *, parent: Id | None = None) -> Saved:
    """Save all that is below ``root``, which stays on its file system; ``parent`` is the tree of an earlier state.

    The tree is that of the content of ``root``; ``save_ancestors`` puts it into its place. It may be referred to after
    the saver's flush. Raises ``CaptureFailed`` naming what cannot be read, and as the saver.
    """
    return _Walk(repository, saver, root).run(parent)


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
        raise _unreadable(os.fsdecode(place), error) from error
    return tree


@dataclass(slots=True)
class _Level:
    """A folder that is being walked."""

    folder: int
    node: Node
    prefix: bytes
    before: dict[bytes, Node]
    names: list[tuple[bytes, os.stat_result]]
    """Still to do, the last name first."""
    done: list[Node] = field(default_factory=list)
    later: list[tuple[Node, list[Pending]]] = field(default_factory=list)
    """Files whose blobs are on their way."""


class _Walk:
    def __init__(self, repository: Repository, saver: Saver, root: Path) -> None:
        self._repository, self._saver, self._root = repository, saver, root
        self._index = repository.index
        self._pool = chunker.Pool(_BUFFERS)
        self._cut = chunker.cutter(chunker.seed_of(repository.key))
        self._buffer = memoryview(bytearray(chunker.MIN_SIZE + 1))
        self._levels: list[_Level] = []
        self._saved = Saved()
        self._device = 0

    def run(self, parent: Id | None) -> Saved:
        try:
            root = os.open(self._root, _FOLDER & ~os.O_NOFOLLOW)
        except OSError as error:
            raise _unreadable(str(self._root), error) from error
        found = os.fstat(root)
        self._device = found.st_dev
        try:
            self._enter(root, nodes.from_stat(b"root", found), b"", None if parent is None else parent.hex())
            while True:
                level = self._levels[-1]
                if level.names:
                    self._step(level, *level.names.pop())
                    continue
                tree = self._leave(level)
                if not self._levels:
                    self._saved.tree = tree
                    return self._saved
                level.node.subtree = tree.hex()
                self._levels[-1].done.append(level.node)
        finally:
            for level in self._levels:
                os.close(level.folder)

    def _step(self, level: _Level, name: bytes, found: os.stat_result) -> None:
        path = level.prefix + name
        try:
            if stat.S_ISREG(found.st_mode):
                self._file(level, name, found)
            elif stat.S_ISDIR(found.st_mode):
                folder = os.open(name, _FOLDER, dir_fd=level.folder)
                now = os.fstat(folder)
                if now.st_dev != self._device:
                    os.close(folder)  # a mount: somebody else's
                    return
                before = level.before.get(name)
                node = nodes.from_stat(name, now, xattrs=nodes.xattrs(folder))
                self._enter(folder, node, path + b"/", before.subtree if before else None)
            else:
                place = b"/proc/self/fd/%d/%s" % (level.folder, name)
                target = os.readlink(place) if stat.S_ISLNK(found.st_mode) else None  # noqa: PTH115 - bytes
                level.done.append(nodes.from_stat(name, found, target=target, xattrs=nodes.xattrs(place)))
                self._saved.others += 1
        except OSError as error:
            if error.errno not in _GONE:
                raise _unreadable(f"{os.fsdecode(path)} in {self._root}", error) from error

    def _enter(self, folder: int, node: Node, prefix: bytes, before: str | None) -> None:
        names: list[tuple[bytes, os.stat_result]] = []
        known: dict[bytes, Node] = {}
        self._levels.append(_Level(folder, node, prefix, known, names))
        if before is not None:
            known.update((each.file_name, each) for each in self._repository.load_tree(bytes.fromhex(before)))
        with os.scandir(folder) as listing:
            for item in listing:
                try:
                    found = item.stat(follow_symlinks=False)
                except FileNotFoundError:
                    continue
                if stat.S_IFMT(found.st_mode) in nodes.KINDS:
                    names.append((os.fsencode(item.name), found))
        names.sort(key=lambda each: each[0], reverse=True)

    def _leave(self, level: _Level) -> Id:
        for node, blobs in level.later:
            node.content = [blob.id().hex() for blob in blobs]
        tree = self._saver.save("tree", trees.encode(level.done))
        os.close(level.folder)
        self._levels.pop()
        self._saved.folders += 1
        return tree

    def _file(self, level: _Level, name: bytes, found: os.stat_result) -> None:
        before = level.before.get(name)
        if before is not None and nodes.is_unchanged(before, found) and self._has_all(before):
            level.done.append(before)
            self._saved.unchanged += 1
        else:
            file = _open(name, level.folder)
            try:
                now = os.fstat(file)  # the one that is read, whatever was listed
                if not stat.S_ISREG(now.st_mode):
                    return
                node = nodes.from_stat(name, now, xattrs=nodes.xattrs(file))
                self._content(level, node, file)
                level.done.append(node)
            finally:
                os.close(file)
        self._saved.files += 1
        self._saved.size += level.done[-1].size

    def _content(self, level: _Level, node: Node, file: int) -> None:
        """Save the bytes of an open file; its size is that of what was read, whatever ``stat`` said."""
        count = 0
        while count <= chunker.MIN_SIZE and (more := os.readv(file, [self._buffer[count:]])):
            count += more
        if count <= chunker.MIN_SIZE:
            node.size = count
            node.content = [self._saver.save("data", self._buffer[:count]).hex()] if count else []
            return
        os.lseek(file, 0, os.SEEK_SET)
        blobs: list[Pending] = []
        for chunk in chunker.chunks(chunker.descriptor_reader(file), self._pool, self._cut):
            node.size += len(chunk.data)
            blobs.append(self._saver.submit("data", chunk.data, chunk.release))
        level.later.append((node, blobs))

    def _has_all(self, before: Node) -> bool:
        return all(self._index.has("data", blob) for blob in before.blobs)


def _open(name: bytes, folder: int) -> int:
    try:
        return os.open(name, _FILE | os.O_NOATIME, dir_fd=folder)
    except PermissionError:  # only the owner may leave the access time alone
        return os.open(name, _FILE, dir_fd=folder)


def _unreadable(what: str, error: OSError) -> errors.CaptureFailed:
    return errors.CaptureFailed(f"{what} cannot be read: {error.strerror}", remedy="Run as a user who may read it.")
