"""What of a tree can be trusted to be as the last backup has it, unless it looks different now."""

from __future__ import annotations

from typing import Final

from cosmos_coherence import errors
from cosmos_coherence.content_digest import EMPTY, SMALL
from cosmos_coherence.copied import Copied, Found
from cosmos_coherence.drivers import folders as disk
from cosmos_coherence.model import TreePrint
from cosmos_coherence.repository import collection, layout
from cosmos_coherence.repository.reader import RepositoryReader
from cosmos_coherence.repository.repository import Repository
from cosmos_coherence.repository.snapshots import Listed
from cosmos_coherence.repository.tree_cache import TreeCache
from cosmos_coherence.repository.tree_writer import NOTHING, Before

_TICK_NS: Final = 20_000_000
"""The clock of file times may lag this far behind the clock of programs."""


def before_of(repository: Repository, parent: Listed, name: str, cache: TreeCache | None) -> Before:
    """The names of the tree in the last backup that can be trusted.

    A change time that is not older than the beginning of that backup proves nothing. What was written within the same
    tick of the clock looks the same, and so does what is written through a mapped page that is dirty already; after the
    sync that every backup begins with, none is. Nor does a name whose content the repository has lost. A parent that
    cannot be read any more, or is of another version of this program, is no parent.
    """
    with collection.paused():
        try:
            reader = RepositoryReader(repository, parent)
            fingerprint = _fingerprint(reader, name)
            known = cache.load(name, reader.tree_id(name)) if cache is not None else None
            if known is None:
                known = _read(reader, name)
        except (errors.Damaged, errors.NotFound, errors.Unsupported):
            return NOTHING
        trusted = _trusted(repository, known, _began_ns(parent) - _TICK_NS)
        return trusted._replace(root=reader.root_of(name), fingerprint=fingerprint)


def _fingerprint(reader: RepositoryReader, name: str) -> TreePrint | None:
    for part in reader.manifest.parts:
        if any(reader.logical(file) == name for file in part.files):
            return part.fingerprint.tree
    return None


def _began_ns(parent: Listed) -> int:
    identity = layout.backup_id(parent.snapshot)
    return min(parent.snapshot.time_ns, layout.time_ns(identity)) if identity else 0


def _trusted(repository: Repository, known: Before, before_ns: int) -> Before:
    """What of it can be trusted; the others are taken out of it."""
    names, large = known.names, known.large
    if known.index_files and repository.has_all_of(known.index_files):
        for path in [p for p, each in names.items() if not _is_proof(each, before_ns)]:
            del names[path]
        return known
    wanted = (c.digest for path, c in names.items() if c.digest and c.digest != EMPTY and path not in large)
    lost = repository.index.missing("data", wanted)
    lost |= {names[p].digest for p, blobs in large.items() if p in names and repository.index.missing("data", blobs)}
    for path in [p for p, each in names.items() if not _is_proof(each, before_ns) or each.digest in lost]:
        del names[path]
    gone = repository.index.missing("tree", {tree for tree, _ in known.folders.values()})
    folders = {path: kept for path, kept in known.folders.items() if kept[0] not in gone} if gone else known.folders
    return Before(names, {path: blobs for path, blobs in large.items() if path in names}, folders)


def _is_proof(copied: Copied, before_ns: int) -> bool:
    found = copied.found
    return found.ctime_ns < before_ns and found.ino != 0 and found.kind != "hardlink"


def _read(reader: RepositoryReader, name: str) -> Before:
    names: dict[bytes, Copied] = {}
    large: dict[bytes, tuple[str, ...]] = {}
    folders: dict[bytes, str] = {}
    counts: dict[bytes, int] = {}
    for entry, node, digest in reader.nodes(name):
        path = entry.path
        if path:
            above = path.rpartition(b"/")[0]
            counts[above] = counts.get(above, 0) + 1
        if entry.kind == "dir":
            folders[path] = node.subtree or ""
        elif entry.kind == "file":
            if not digest:  # nobody has noted what its parts add up to
                continue
            if node.size > SMALL:
                large[path] = tuple(node.content or ())
        found = Found(
            path, entry.kind, entry.mode, entry.uid, entry.gid, entry.size, entry.mtime_ns, node.ctime_ns, 0,
            node.inode, node.links if entry.kind not in ("dir", "fifo") else 0, node.device, entry.target,
        )  # fmt: skip
        kept = tuple(pair for pair in entry.xattrs if pair[0] not in disk.SYSTEM_XATTRS)
        names[path] = Copied(found, kept, None, digest)
    return Before(names, large, {path: (tree, counts.get(path, 0)) for path, tree in folders.items()})
