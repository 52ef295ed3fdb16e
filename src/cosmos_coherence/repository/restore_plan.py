"""What a restore is going to write: the trees read and judged before anything is made, and each pack's share of it."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from cosmos_coherence import errors
from cosmos_coherence.repository import gotext
from cosmos_coherence.repository.blob import Blob, Id
from cosmos_coherence.repository.repository import Repository
from cosmos_coherence.repository.trees import Node, NodeType, Xattr

_LARGEST_ID: Final = 2**32 - 2
"""The one above means "leave as it is" to the system."""
_LARGEST_SIZE: Final = (1 << 63) - 1
_DEEPEST: Final = 800
"""Folders in each other: each takes a descriptor while something is written in it."""
_SPECIAL: Final[frozenset[NodeType]] = frozenset({"symlink", "fifo", "dev", "chardev"})
_NO_XATTRS: Final[tuple[Xattr, ...]] = ()


class Look(NamedTuple):
    """What a name shall look like, apart from its content."""

    mode: int
    uid: int
    gid: int
    mtime_ns: int
    atime_ns: int
    xattrs: Sequence[Xattr]


class File(NamedTuple):
    """A file to write."""

    path: bytes
    look: Look
    size: int
    whole: bool
    """It is one blob: whoever has that makes the file. Else it is there before, and looks as it shall afterwards."""
    links: int


class Other(NamedTuple):
    """A link, pipe or device to make."""

    path: bytes
    look: Look
    kind: NodeType
    target: bytes
    device: int


Target = tuple[int, int]
"""Number of a file, and where in it."""


@dataclass(slots=True)
class Plan:
    """All of a restore. Paths are relative to the target, a folder comes before what is in it."""

    folders: list[tuple[bytes, Look]] = field(default_factory=list)
    files: list[File] = field(default_factory=list)
    others: list[Other] = field(default_factory=list)
    hard_links: list[tuple[bytes, bytes]] = field(default_factory=list)
    """Further names of files, with the first name."""
    packs: list[tuple[Id, list[tuple[Blob, list[Target]]]]] = field(default_factory=list)
    size: int = 0
    """Bytes of all files."""


def plan(repository: Repository, tree: Id, *, devices: bool) -> Plan:
    """Read a tree and all below it. Raises ``Hostile`` for what may not be written, ``Damaged`` for what contradicts
    itself or is in no index, and the backend's errors."""
    return _Planner(repository, devices).run(tree)


class _Planner:
    def __init__(self, repository: Repository, devices: bool) -> None:
        self._repository, self._devices = repository, devices
        self._plan = Plan()
        self._first: dict[tuple[int, int], tuple[bytes, list[str] | None]] = {}
        self._wanted: dict[str, tuple[Blob, list[Target]]] = {}
        self._packs: defaultdict[Id, list[tuple[Blob, list[Target]]]] = defaultdict(list)

    def run(self, tree: Id) -> Plan:
        waiting = [(b"", 0, tree)]
        while waiting:
            prefix, depth, tree = waiting.pop()
            if depth > _DEEPEST:
                raise errors.Hostile(f"the tree has folders more than {_DEEPEST} deep")
            below: list[tuple[bytes, int, Id]] = []
            nodes = self._repository.load_tree(tree)
            self._find({text for node in nodes if node.type == "file" for text in node.content or ()})
            for node in nodes:
                path = prefix + node.file_name
                if node.type == "file":
                    self._file(path, node)
                elif node.type == "dir":
                    if node.subtree is None:
                        raise errors.Damaged(f"{_show(path)} is a folder without a tree")
                    self._plan.folders.append((path, _look(path, node)))
                    below.append((path + b"/", depth + 1, bytes.fromhex(node.subtree)))
                elif node.type in _SPECIAL:
                    if node.type in ("dev", "chardev") and not self._devices:
                        raise errors.Hostile(f"{_show(path)} is a device, and nobody asked for devices")
                    self._plan.others.append(Other(path, _look(path, node), node.type, node.target, node.device))
            waiting += reversed(below)
        for blobs in self._packs.values():
            blobs.sort(key=lambda each: each[0].offset)
        self._plan.packs = list(self._packs.items())
        return self._plan

    def _file(self, path: bytes, node: Node) -> None:
        content = node.content or ()
        if node.links > 1 and node.inode:
            first, same = self._first.setdefault((node.device_id, node.inode), (path, node.content))
            if first != path and same == node.content:
                self._plan.hard_links.append((path, first))
                return
        number = len(self._plan.files)
        at = 0
        for text in content:
            blob, targets = self._wanted[text]
            targets.append((number, at))
            at += blob.size
        if at != node.size or at > _LARGEST_SIZE:
            raise errors.Damaged(f"{_show(path)} has {at} bytes in its blobs and says {node.size}")
        self._plan.files.append(File(path, _look(path, node), at, len(content) == 1, node.links))
        self._plan.size += at

    def _find(self, texts: set[str]) -> None:
        """Know where blobs lie."""
        new = [text for text in texts if text not in self._wanted]
        ids = [bytes.fromhex(text) for text in new]
        places = self._repository.index.find_all("data", ids)
        if None in places and self._repository.refresh_index():
            places = self._repository.index.find_all("data", ids)
        for text, place in zip(new, places, strict=True):
            if place is None:
                raise errors.Damaged(f"data blob {text[:8]} is in no index of {self._repository.location}")
            wanted: tuple[Blob, list[Target]] = (place.blob, [])
            self._wanted[text] = wanted
            self._packs[place.pack].append(wanted)


def _look(path: bytes, node: Node) -> Look:
    if node.uid > _LARGEST_ID or node.gid > _LARGEST_ID:
        raise errors.Damaged(f"{_show(path)} belongs to nobody who could be")
    mtime = node.mtime_ns
    return Look(
        gotext.permissions(node.mode),
        node.uid,
        node.gid,
        mtime,
        mtime if node.atime == node.mtime else gotext.parse_time(node.atime),
        node.extended_attributes or _NO_XATTRS,
    )


def _show(path: bytes) -> str:
    return ascii(os.fsdecode(path))[1:-1]
