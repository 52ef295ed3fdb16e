"""A folder into a repository, the way a backup takes it, and the snapshot that restic makes of a path."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cosmos_coherence.copied import Copied
from cosmos_coherence.drivers.folders import from_stat, xattrs
from cosmos_coherence.model import Part, SourceRef
from cosmos_coherence.repository import chunker, nodes, trees
from cosmos_coherence.repository.forked import Team
from cosmos_coherence.repository.repository import Repository
from cosmos_coherence.repository.saver import Saver
from cosmos_coherence.repository.tree_writer import NOTHING, Before, Finished, RepositoryTree
from cosmos_coherence.sources.volume import TreeSource


@dataclass(frozen=True)
class Saved:
    """What became of a folder."""

    tree: bytes
    part: Part
    state: Before

    @property
    def files(self) -> int:
        assert self.part.fingerprint.tree is not None
        return self.part.fingerprint.tree.files


class _Sink:
    def __init__(self, repository: Repository, saver: Saver, before: Before, team: Team | None) -> None:
        self._repository, self._saver, self._before, self._team = repository, saver, before, team
        self.finished: Finished | None = None

    def tree(self, name: str) -> RepositoryTree:
        pool, seed = chunker.Pool(12), chunker.seed_of(self._repository.key)

        def cut(content: Any) -> Iterator[chunker.Chunk]:
            return chunker.chunks(chunker.reader(content), pool, chunker.cutter(seed))

        return RepositoryTree(self._saver, cut, name, self._before, self._done, self._team)

    @contextmanager
    def stream(self, name: str) -> Iterator[Any]:
        raise AssertionError(name)
        yield

    def _done(self, finished: Finished) -> None:
        self.finished = finished


def save_folder(
    repository: Repository, saver: Saver, root: Path, *, before: Before = NOTHING, team: Team | None = None
) -> Saved:
    """Save what is below ``root``; ``before`` is the state of an earlier one."""
    sink = _Sink(repository, saver, before, team)
    source = TreeSource(SourceRef("files", "files/x", path=root), root, spool=root.parent)
    try:
        source.prepare(sink)
        source.anchor()
        part = source.capture(sink)
    finally:
        source.close()
    if team is not None:
        team.finish(saver)
    assert sink.finished is not None
    return Saved(bytes.fromhex(part.files[0].sha256), part, sink.finished.state)


def save_ancestors(saver: Saver, root: Path, tree: bytes) -> bytes:
    """The tree of ``/`` that holds only ``root``, with ``tree`` in it: what restic makes of an absolute path."""
    place = os.fsencode(root.absolute())
    while place != b"/":
        above, _, name = place.rpartition(b"/")
        status = os.lstat(place)
        found = from_stat(b"", status, status.st_dev)
        assert found is not None
        node = nodes.node(name, Copied(found, xattrs(place)), links=0, inode=found.ino, subtree=tree.hex())
        tree = saver.save("tree", trees.encode([node]))
        place = above or b"/"
    return tree
