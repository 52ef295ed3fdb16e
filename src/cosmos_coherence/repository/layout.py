"""How a backup lies in a snapshot: ``manifest.json``, the parts under their names, and the checksums of large files.

Whoever mounts or restores the snapshot with restic finds plain files: ``database.sql``, ``redis/dump.rdb``, a volume's
files with their owners and times below ``volumes/<full name>``. A large file (``content_digest``) has its BLAKE3 in
``b3sums/<tree>``, in the format of ``b3sum``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final

from cosmos_coherence import errors
from cosmos_coherence.repository import gotext, trees
from cosmos_coherence.repository.repository import Repository
from cosmos_coherence.repository.saver import Saver
from cosmos_coherence.repository.snapshots import Listed, Snapshot
from cosmos_coherence.repository.trees import Node

OURS: Final = "cosmos"
"""Tag of the snapshots that are backups of a stack."""
SAFETY: Final = "safety"
INCOMPLETE: Final = "incomplete"
SUMS: Final = "b3sums"
_ID: Final = "id="
_LINE: Final = re.compile(rb"(\\?)([0-9a-f]{64})  (.+)", re.DOTALL)
_ESCAPES: Final = {b"\\\\": b"\\", b"\\n": b"\n", b"\\r": b"\r"}


@dataclass(slots=True)
class Folder:
    """A folder of the snapshot while it is put together."""

    nodes: dict[str, Node] = field(default_factory=dict)
    folders: dict[str, Folder] = field(default_factory=dict)

    def put(self, steps: Sequence[str], node: Node) -> None:
        """Place a node under a path."""
        if len(steps) == 1:
            self.nodes[steps[0]] = node
        else:
            self.folders.setdefault(steps[0], Folder()).put(steps[1:], node)

    def save(self, saver: Saver, time_ns: int) -> str:
        """Save the trees of the folder, private and of that time; the id in hex."""
        whole = dict(self.nodes)
        for name, folder in self.folders.items():
            whole[name] = trees.node(
                name.encode(), "dir", mode=gotext.go_mode(0o040700), mtime=time_ns, atime=time_ns, ctime=time_ns,
                subtree=folder.save(saver, time_ns),
            )  # fmt: skip
        return saver.save("tree", trees.encode(sorted(whole.values(), key=lambda node: node.file_name))).hex()


def file_node(name: str, blobs: Iterable[str], size: int, time_ns: int) -> Node:
    """A private file of ours."""
    return trees.node(
        name.encode(), "file", mode=gotext.go_mode(0o100600), mtime=time_ns, atime=time_ns, ctime=time_ns,
        size=size, content=list(blobs),
    )  # fmt: skip


def find(repository: Repository, tree: str, steps: Sequence[str]) -> Node | None:
    """The node under a path below the tree of that id, or None. Raises as ``load_tree``."""
    node: Node | None = None
    for step in steps:
        node = next((n for n in repository.load_tree(bytes.fromhex(tree)) if n.file_name == step.encode()), None)
        if node is None:
            return None
        tree = node.subtree or ""
        if not tree:
            return node if step == steps[-1] else None
    return node


def encode_sums(sums: Mapping[bytes, str]) -> bytes:
    """Checksums by path, in the format of ``b3sum``."""
    lines = []
    for path, digest in sorted(sums.items()):
        shown = path.replace(b"\\", b"\\\\").replace(b"\n", b"\\n").replace(b"\r", b"\\r")
        lines.append((b"\\" if shown != path else b"") + digest.encode() + b"  " + shown + b"\n")
    return b"".join(lines)


def decode_sums(text: bytes) -> dict[bytes, str]:
    """Back again. Raises ``Damaged``."""
    found = {}
    for line in text.split(b"\n")[:-1]:
        match = _LINE.fullmatch(line)
        if match is None:
            raise errors.Damaged("the checksums of large files cannot be read")
        escaped, digest, path = match.groups()
        if escaped:
            path = re.sub(rb"\\[\\nr]", lambda m: _ESCAPES[m[0]], path)
        found[path] = digest.decode()
    return found


def backup_id(snapshot: Snapshot) -> str | None:
    """The id of the backup that a snapshot is, None for a snapshot of somebody else."""
    tags = snapshot.tags or ()
    return next((tag[len(_ID) :] for tag in tags if tag.startswith(_ID)), None) if OURS in tags else None


def time_ns(identity: str) -> int:
    """The second in which the backup of that id began."""
    made = datetime.strptime(identity[: len("YYYYMMDD_HHMMSS")], "%Y%m%d_%H%M%S").replace(tzinfo=UTC)
    return int(made.timestamp()) * 1_000_000_000


def tags_of(identity: str, *, safety: bool, complete: bool, tags: Iterable[str]) -> list[str]:
    """The tags of a backup's snapshot."""
    marks = [*([SAFETY] if safety else []), *([] if complete else [INCOMPLETE])]
    return [OURS, f"{_ID}{identity}", *marks, *tags]


def project_of(snapshot: Snapshot) -> str:
    """The Compose project that a backup is of."""
    return (snapshot.paths or [""])[0].strip("/")


def backups(listed: Iterable[Listed], project: str | None = None) -> list[Listed]:
    """The snapshots that are backups (of that project), oldest first."""
    return [
        each for each in listed if backup_id(each.snapshot) is not None and project in (None, project_of(each.snapshot))
    ]
