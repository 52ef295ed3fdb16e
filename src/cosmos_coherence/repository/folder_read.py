"""One folder on its way into a repository: what is in it, its small files saved, what is left for others to do.

It goes by folder descriptors and follows no link, so whatever is swapped in meanwhile, it stays inside the root. What
is as it was in an earlier tree is not opened, and a folder in which everything is keeps its tree.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec

from cosmos_coherence import errors
from cosmos_coherence.repository import chunker, nodes, tree_seen, trees
from cosmos_coherence.repository.repository import Repository
from cosmos_coherence.repository.saver import Saver
from cosmos_coherence.repository.tree_seen import Seen
from cosmos_coherence.repository.trees import Node

_FOLDER: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_GONE: Final = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP})


class Folder(msgspec.Struct, array_like=True, gc=False):
    """A folder to read."""

    number: int
    """Whoever asks knows it by this."""
    path: bytes
    """Below the root; empty for the root."""
    before: Seen | None = None
    """What it was, with the tree that it had."""


class Reading(msgspec.Struct, array_like=True):
    """What became of a folder."""

    number: int
    node: str = ""
    """The JSON of its own node, without a subtree; empty when it has gone, or is on another file system."""
    kept: bool = False
    """Its own metadata are as they were."""
    tree: str | None = None
    """Id of its tree, where nothing is left to do."""
    same: bool = False
    """All but the folders in it is as it was, and the folders have the same names."""
    pieces: list[tuple[bytes, str]] = []
    """Names and JSON of what is done, where neither holds."""
    folders: list[tuple[bytes, Seen | None]] = []
    """Still to be read."""
    large: list[bytes] = []
    """Files that are more than one blob: still to be saved."""
    files: int = 0
    unchanged: int = 0
    others: int = 0
    size: int = 0


class FolderReader:
    """Reads folders below a root, for one thread. A context manager.

    Raises ``CaptureFailed`` naming what cannot be read, ``Damaged`` for an earlier tree that is, and as the saver.
    """

    def __init__(self, repository: Repository, saver: Saver, root: Path) -> None:
        self._repository, self._saver, self._place = repository, saver, root
        self._buffer = memoryview(bytearray(chunker.MIN_SIZE + 1))
        self._steps: list[bytes] = []
        try:
            self._chain = [os.open(root, _FOLDER & ~os.O_NOFOLLOW)]
        except OSError as error:
            raise self._unreadable(b"", error) from error
        self._root = os.fstat(self._chain[0])

    def __enter__(self) -> FolderReader:
        return self

    def __exit__(self, *_: object) -> None:
        for folder in self._chain:
            os.close(folder)

    @property
    def identity(self) -> tuple[int, int]:
        """Device and inode of the root."""
        return self._root.st_dev, self._root.st_ino

    def read(self, folder: Folder) -> Reading:
        """Read a folder and save the small files in it."""
        reading = Reading(folder.number)
        try:
            opened = self._open(folder.path)
            found = os.fstat(opened)
            if found.st_dev != self._root.st_dev:  # a mount: somebody else's
                return reading
            name = folder.path.rpartition(b"/")[2] or b"root"
            reading.node = trees.encode_node(nodes.from_stat(name, found, xattrs=nodes.xattrs(opened)))
            reading.kept = folder.before is not None and folder.before.is_same(found)
            self._names(folder, opened, reading)
        except OSError as error:
            if error.errno in _GONE and folder.path:
                return Reading(folder.number)
            raise self._unreadable(folder.path, error) from error
        return reading

    def large(self, path: bytes, content: Callable[[Node, int], None]) -> Node | None:
        """Have ``content`` save a large file, given its node and descriptor; None when it has gone."""
        above, _, name = path.rpartition(b"/")
        try:
            file = _open(self._open(above), name)
            try:
                now = os.fstat(file)
                if not stat.S_ISREG(now.st_mode):
                    return None
                node = nodes.from_stat(name, now, xattrs=nodes.xattrs(file))
                content(node, file)
                return node
            finally:
                os.close(file)
        except OSError as error:
            if error.errno in _GONE:
                return None
            raise self._unreadable(path, error) from error

    def _open(self, path: bytes) -> int:
        steps = path.split(b"/") if path else []
        same = 0
        while same < min(len(steps), len(self._steps)) and steps[same] == self._steps[same]:
            same += 1
        while len(self._steps) > same:
            os.close(self._chain.pop())
            self._steps.pop()
        for step in steps[same:]:
            self._chain.append(os.open(step, _FOLDER, dir_fd=self._chain[-1]))
            self._steps.append(step)
        return self._chain[-1]

    def _names(self, folder: Folder, opened: int, reading: Reading) -> None:
        plain = None
        seen: list[Seen] = []
        if folder.before is not None and folder.before.subtree is not None:
            plain = self._repository.load_blob("tree", bytes.fromhex(folder.before.subtree))
            seen = tree_seen.decode(plain)
        known = {each.name: each for each in seen}
        kept: set[str] = set()
        blobs: list[str] = []
        changed: list[tuple[str, os.stat_result]] = []
        same = plain is not None
        with os.scandir(opened) as listing:
            for item in listing:
                try:
                    found = item.stat(follow_symlinks=False)
                except FileNotFoundError:
                    continue
                name = item.name
                before = known.get(name)
                kind = stat.S_IFMT(found.st_mode)
                if kind == stat.S_IFDIR:
                    was = before if before is not None and before.type == "dir" else None
                    same = same and was is not None
                    reading.folders.append((os.fsencode(name), was))
                elif before is not None and before.is_same(found):
                    kept.add(name)
                    if before.content:
                        blobs += before.content
                    if kind == stat.S_IFREG:
                        reading.unchanged += 1
                        reading.size += before.size
                elif kind in nodes.KINDS:
                    changed.append((name, found))
        if missing := self._repository.index.missing("data", blobs):  # read again whatever has got lost
            for each in seen:
                if each.name in kept and not missing.isdisjoint(each.content or ()):
                    kept.discard(each.name)
                    reading.unchanged -= 1
                    reading.size -= each.size
                    changed.append((each.name, os.stat(each.name, dir_fd=opened, follow_symlinks=False)))
        reading.files = reading.unchanged
        reading.others = len(kept) - reading.unchanged
        reading.same = same and not changed and len(kept) + len(reading.folders) == len(seen)
        if reading.same:
            if not reading.folders:
                assert folder.before is not None
                reading.tree = folder.before.subtree
            return
        if kept and plain is not None:
            raw = tree_seen.decode_raw(plain)
            reading.pieces = [
                (os.fsencode(each.name), text.decode())
                for each, text in zip(seen, raw, strict=True)
                if each.name in kept
            ]
        for name, found in sorted(changed):
            self._changed(opened, folder.path, os.fsencode(name), found, reading)
        if not reading.folders and not reading.large:
            reading.tree = self._saver.save("tree", joined(reading.pieces)).hex()
            reading.pieces = []

    def _changed(self, opened: int, above: bytes, name: bytes, found: os.stat_result, reading: Reading) -> None:
        try:
            if stat.S_ISREG(found.st_mode):
                if found.st_size > chunker.MIN_SIZE:
                    reading.large.append(name)
                    return
                small = self._small(opened, name, reading)
                if small:
                    reading.pieces.append((name, small))
            else:
                place = b"/proc/self/fd/%d/%s" % (opened, name)
                target = os.readlink(place) if stat.S_ISLNK(found.st_mode) else None  # noqa: PTH115 - bytes
                node = nodes.from_stat(name, found, target=target, xattrs=nodes.xattrs(place))
                reading.others += 1
                reading.pieces.append((name, trees.encode_node(node)))
        except _Large:
            reading.large.append(name)
        except OSError as error:
            if error.errno not in _GONE:
                raise self._unreadable(above + b"/" + name if above else name, error) from error

    def _small(self, opened: int, name: bytes, reading: Reading) -> str:
        """Save a file of one blob; the JSON of its node, empty when it is no file any more."""
        file = _open(opened, name)
        try:
            now = os.fstat(file)  # the one that is read, whatever was listed
            if not stat.S_ISREG(now.st_mode):
                return ""
            count = os.readv(file, [self._buffer])
            if count != now.st_size:  # else it is all: there was room for more
                while count <= chunker.MIN_SIZE and (more := os.readv(file, [self._buffer[count:]])):
                    count += more
            if count > chunker.MIN_SIZE:
                raise _Large
            attributes = nodes.xattrs(file)
            content = [self._saver.save("data", self._buffer[:count]).hex()] if count else []
        finally:
            os.close(file)
        reading.files += 1
        reading.size += count  # what was read, whatever ``stat`` said
        if not attributes:
            return nodes.file_json(name, now, count, content)
        node = nodes.from_stat(name, now, xattrs=attributes)
        node.size, node.content = count, content
        return trees.encode_node(node)

    def _unreadable(self, path: bytes, error: OSError) -> errors.CaptureFailed:
        what = f"{ascii(os.fsdecode(path))[1:-1]} in {self._place}" if path else str(self._place)
        return errors.CaptureFailed(f"{what} cannot be read: {error.strerror}", remedy="Run as a user who may read it.")


def _open(folder: int, name: bytes) -> int:
    try:
        return os.open(name, _FILE | os.O_NOATIME, dir_fd=folder)
    except PermissionError:  # only the owner may leave the access time alone
        return os.open(name, _FILE, dir_fd=folder)


class _Large(Exception):
    """A file is larger than it was a moment ago."""


def joined(pieces: list[tuple[bytes, str]]) -> bytes:
    """The tree of the names and their JSON, in any order. No name may come twice: ``AssertionError``."""
    pieces.sort()
    names = {name for name, _ in pieces}
    assert len(names) == len(pieces), "a name comes twice"
    return ('{"nodes":[' + ",".join([text for _, text in pieces]) + "]}\n").encode("utf-8")


def with_subtree(node: str, tree: str) -> str:
    """The JSON of a folder's node when its tree is known; it is the last of a node's fields."""
    return f'{node[:-1]},"subtree":"{tree}"}}'
