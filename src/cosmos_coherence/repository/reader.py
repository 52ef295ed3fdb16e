"""A backup out of a repository, as the restore reads it: every blob's hash is checked before its bytes are used."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import BinaryIO, Final
from urllib.parse import unquote

from cosmos_coherence import errors, manifests
from cosmos_coherence.content_digest import EMPTY, SMALL
from cosmos_coherence.model import Entry, EntryKind, Manifest, PartFile
from cosmos_coherence.parts import Placed, stream_steps, tree_steps
from cosmos_coherence.repository import gotext, layout, tree_restore
from cosmos_coherence.repository.crypto import Buffer
from cosmos_coherence.repository.joined import joined
from cosmos_coherence.repository.repository import Repository
from cosmos_coherence.repository.snapshots import Listed
from cosmos_coherence.repository.trees import Node

_KINDS: Final[Mapping[str, EntryKind]] = {
    "file": "file", "dir": "dir", "symlink": "symlink", "fifo": "fifo", "chardev": "char", "dev": "block",
}  # fmt: skip


class RepositoryReader:
    """A ``parts.BackupReader`` of one snapshot."""

    def __init__(
        self,
        repository: Repository,
        listed: Listed,
        *,
        devices: bool = False,
        forking: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        """Device nodes in a tree are ``Hostile`` unless ``devices``. Within ``forking`` no thread runs of those whom
        the caller knows."""
        self._repository, self._listed, self._devices = repository, listed, devices
        self._forking = forking
        self._manifest: Manifest | None = None

    @property
    def manifest(self) -> Manifest:
        """The manifest. Raises ``Damaged``, ``Unsupported``."""
        if self._manifest is None:
            node = self._file((manifests.NAME,))
            if node.size > manifests.LARGEST:
                raise errors.Hostile(f"the manifest has {node.size} bytes, more than any real one")
            found = manifests.decode(b"".join(self._blobs(node)))
            if found.id != layout.backup_id(self._listed.snapshot):
                raise errors.Damaged(f"snapshot {self._listed.id[:8]} holds the manifest of another backup")
            self._manifest = found
        return self._manifest

    def names(self) -> tuple[str, ...]:
        """All logical names, sorted."""
        return tuple(sorted(self.logical(file) for part in self.manifest.parts for file in part.files))

    def logical(self, file: PartFile) -> str:
        """As ``parts.BackupReader`` says."""
        return unquote(file.path, errors="surrogateescape")

    @contextmanager
    def open(self, name: str) -> Iterator[BinaryIO]:
        """The bytes of a stream. ``NotFound`` when the backup does not hold it, ``Damaged`` while reading."""
        yield self._opened(self._file(stream_steps(name)))

    def tree(self, name: str) -> Iterator[tuple[Entry, BinaryIO | None]]:
        """As ``parts.PartReader`` says. ``NotFound``, and ``Damaged`` or ``Hostile`` at the entry that is."""
        found = [(entry, node) for entry, node, _ in self.nodes(name)]
        for stage in (("dir",), ("file",), ("hardlink", "symlink", "fifo", "char", "block")):
            for entry, node in found:
                if entry.kind not in stage:
                    continue
                if entry.kind in ("char", "block") and not self._devices:
                    shown = ascii(entry.path.decode("utf-8", "surrogateescape"))[1:-1]
                    raise errors.Hostile(f"{shown} in {name} is a device, which nobody asked for")
                yield entry, self._opened(node) if entry.kind == "file" else None

    def place(self, name: str, folder: Path) -> Placed:
        """As ``parts.PartReader`` says: pack by pack, each read once, by several processes or threads."""
        root = self.root_of(name)
        made = tree_restore.restore_tree(
            self._repository, bytes.fromhex(root.subtree or ""), folder, devices=self._devices, forking=self._forking
        )
        return Placed(_entry(b"", "dir", root, b""), made.unset)

    def tree_id(self, name: str) -> str:
        """The id of a tree. Raises as ``tree``."""
        return self.root_of(name).subtree or ""

    def hashed(self, name: str) -> Iterator[tuple[Entry, str]]:
        """As ``parts.BackupReader`` says; no content is read."""
        return ((entry, digest) for entry, _, digest in self.nodes(name))

    def nodes(self, name: str) -> Iterator[tuple[Entry, Node, str]]:
        """Every name of a tree, the root first and a folder before what it holds, with its node, and a file's digest.

        Of a hard-linked file the first name in byte order is a file, the others are links to it. Raises as ``tree``.
        """
        root = self.root_of(name)
        sums = self._sums(name)
        found = sorted(self._walk(b"", root))
        first: dict[tuple[int, int], bytes] = {}
        for path, node in found:
            kind = _KINDS.get(node.type)
            if kind is None:
                continue  # sockets and the like are made by whoever uses them
            target, digest = b"", ""
            if kind == "file":
                if node.links > 1 and node.inode:
                    earlier = first.setdefault((node.device_id, node.inode), path)
                    if earlier != path:
                        kind, target = "hardlink", earlier
                if kind == "file":
                    content = node.content or []
                    digest = sums.get(path, "") if node.size > SMALL else content[0] if content else EMPTY
            yield _entry(path, kind, node, target or (node.target if kind == "symlink" else b"")), node, digest

    def root_of(self, name: str) -> Node:
        """The root of a tree. Raises as ``tree``."""
        root = layout.find(self._repository, self._listed.snapshot.tree, tree_steps(name))
        if root is None or root.type != "dir" or root.subtree is None:
            raise errors.NotFound(f"backup {layout.backup_id(self._listed.snapshot)} holds no tree {name}")
        return root

    def _walk(self, path: bytes, node: Node) -> Iterator[tuple[bytes, Node]]:
        waiting = [(path, node)]
        while waiting:
            path, node = waiting.pop()
            yield path, node
            if node.type == "dir" and node.subtree:
                prefix = path + b"/" if path else b""
                for child in self._repository.load_tree(bytes.fromhex(node.subtree)):
                    waiting.append((prefix + child.file_name, child))

    def _sums(self, name: str) -> dict[bytes, str]:
        node = layout.find(self._repository, self._listed.snapshot.tree, (layout.SUMS, *tree_steps(name)))
        return {} if node is None else layout.decode_sums(b"".join(self._blobs(node)))

    def _file(self, steps: tuple[str, ...]) -> Node:
        node = layout.find(self._repository, self._listed.snapshot.tree, steps)
        if node is None or node.type != "file":
            raise errors.NotFound(f"backup {layout.backup_id(self._listed.snapshot)} holds no {'/'.join(steps)}")
        return node

    def _blobs(self, node: Node) -> Iterator[Buffer]:
        return (self._repository.load_blob("data", blob) for blob in node.blobs)

    def _opened(self, node: Node) -> BinaryIO:
        return joined(self._blobs(node))


def _entry(path: bytes, kind: EntryKind, node: Node, target: bytes) -> Entry:
    if kind == "hardlink":
        return Entry(path, kind, target=target)
    return Entry(
        path=path,
        kind=kind,
        mode=gotext.permissions(node.mode),
        uid=node.uid,
        gid=node.gid,
        mtime_ns=node.mtime_ns,
        size=node.size if kind == "file" else 0,
        target=target,
        xattrs=tuple((xattr.name, xattr.value or b"") for xattr in node.extended_attributes),
        device=(os.major(node.device), os.minor(node.device)) if kind in ("char", "block") else (0, 0),
    )
