"""Is everything there that the backups need, and is it what it was? Finds every fault it can, and changes nothing."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, field
from typing import Final, Literal

import msgspec

from cosmos_coherence import errors
from cosmos_coherence.repository import index as indexes
from cosmos_coherence.repository import packs, reach, trees
from cosmos_coherence.repository.blob import Blob, Id
from cosmos_coherence.repository.index import Index
from cosmos_coherence.repository.repository import Repository

FaultKind = Literal["key", "snapshot", "index", "pack", "tree"]

BUCKETS: Final = 100
"""Days after which a rotating share of a hundredth has read everything."""


class Fault(msgspec.Struct, frozen=True):
    """One thing that is wrong."""

    kind: FaultKind
    name: str
    """The id of the file, or of the tree."""
    what: str


class Report(msgspec.Struct, frozen=True):
    """What was looked at and what is wrong. Sizes are bytes."""

    faults: tuple[Fault, ...]
    snapshots: int
    packs: int
    blobs: int
    size: int
    unused_packs: int
    """Packs in no index: an interrupted run's, harmless."""
    packs_read: int
    bytes_read: int

    @property
    def sound(self) -> bool:
        """Nothing is wrong."""
        return not self.faults


def check(repository: Repository, *, read_share: float = 0.0, day: int = 0, headers: bool | None = None) -> Report:
    """Look at the keys, snapshots, indexes, packs and trees.

    ``read_share`` (0 to 1) of the packs are read and every hash in them checked: which ones, ``day`` chooses, so that a
    share of 0.01 has read all in 100 days in a row. The headers of the other packs are compared with the index where
    reading them is cheap, or as ``headers`` says. A snapshot that was removed cannot be missed here: whoever knows the
    history compares. Raises the backend's errors other than ``Damaged`` and ``NotFound``.
    """
    return _Check(repository, headers).run(_chosen(read_share, day))


def bucket(pack: Id) -> int:
    """On which day of 100 a rotating share of a hundredth reads this pack."""
    return int.from_bytes(pack[:4], "big") * BUCKETS >> 32


def _chosen(share: float, day: int) -> frozenset[int]:
    count = min(BUCKETS, math.ceil(share * BUCKETS - 1e-9))
    return frozenset((day * count + step) % BUCKETS for step in range(count))


@dataclass(slots=True)
class _Check:
    repository: Repository
    headers: bool | None
    faults: list[Fault] = field(default_factory=list)
    sizes: dict[Id, int] = field(default_factory=dict)
    index: Index = field(default_factory=Index)
    broken: set[Id] = field(default_factory=set)
    """Packs whose blobs cannot be counted on."""
    packs_read: int = 0
    bytes_read: int = 0

    def run(self, chosen: frozenset[int]) -> Report:
        self.keys()
        snapshots, roots = self.snapshots()  # first: what comes later may need what was not indexed yet
        self.indexes()
        self.sizes = {bytes.fromhex(stored.name): stored.size for stored in self.repository.backend.list("data")}
        by_pack = self.index.by_pack()
        for pack, blobs in by_pack.items():
            self.pack(pack, blobs, read=bucket(pack) in chosen)
        self.walk(roots)
        return Report(
            tuple(self.faults),
            snapshots,
            len(self.sizes),
            len(self.index),
            sum(self.sizes.values()),
            len(self.sizes.keys() - by_pack.keys()),
            self.packs_read,
            self.bytes_read,
        )

    def keys(self) -> None:
        """Also those that nobody needed today: the one in the recovery kit has to open on the bad day."""
        for stored in list(self.repository.backend.list("keys")):
            try:
                content = self.repository.backend.load("keys", stored.name)
            except errors.NotFound:  # removed since it was listed
                continue
            if hashlib.sha256(content).hexdigest() != stored.name:
                self.fault("key", stored.name, "is not what its name says")

    def snapshots(self) -> tuple[int, dict[Id, str]]:
        count, roots = 0, {}
        for stored in self.repository.backend.list("snapshots"):
            try:
                snapshot = self.repository.load_snapshot(stored.name)
                roots[snapshot.tree_id] = stored.name
                count += 1
            except errors.NotFound:  # forgotten since it was listed
                continue
            except errors.Damaged as error:
                self.fault("snapshot", stored.name, str(error))
        return count, roots

    def indexes(self) -> None:
        backend, envelope = self.repository.backend, self.repository.envelope()
        for stored in list(backend.list("index")):
            try:
                found, _ = indexes.decode(envelope.load(backend, "index", stored.name))
            except (errors.Damaged, errors.NotFound) as error:
                self.fault("index", stored.name, str(error))
                continue
            for pack, blobs in found:
                self.index.add(pack, blobs)

    def pack(self, pack: Id, blobs: list[Blob], *, read: bool) -> None:
        size = self.sizes.get(pack)
        try:
            if size is None:
                raise errors.Damaged("is missing")
            end = 0
            for blob in blobs:
                if blob.offset != end:
                    raise errors.Damaged("has blobs in the index that do not follow one another")
                end += blob.length
            wanted = end + packs.size_of_header(len(blobs), sum(1 for blob in blobs if blob.plain_length))
            if size != wanted:
                raise errors.Damaged(f"has {size} bytes, and the index says {wanted}")
            if read:
                self.read(pack, size, blobs)
            elif self.headers or (self.headers is None and self.repository.backend.properties.local):
                sealer = self.repository.envelope().sealer
                _compare(packs.read_header(self.repository.backend, pack, size, sealer), blobs)
        except (errors.Damaged, errors.NotFound) as error:
            self.broken.add(pack)
            self.fault("pack", pack.hex(), str(error))

    def read(self, pack: Id, size: int, blobs: list[Blob]) -> None:
        content = memoryview(self.repository.backend.load("data", pack.hex()))
        self.packs_read += 1
        self.bytes_read += len(content)
        if len(content) != size or hashlib.sha256(content).digest() != pack:
            raise errors.Damaged("has another content than its name says")
        envelope = self.repository.envelope()
        length = packs.header_length(content[-4:], size, pack.hex())
        _compare(packs.decode_header(content[-4 - length : -4], size, pack.hex(), envelope.sealer), blobs)
        for blob in blobs:
            envelope.unpack(blob, content[blob.offset : blob.offset + blob.length])

    def walk(self, roots: dict[Id, str]) -> None:
        """Every blob that the snapshots need is in a pack that is there."""
        seen: set[Id] = set()
        for root, snapshot in roots.items():
            for tree, nodes in reach.trees(self.load, [root], seen):
                self.nodes(tree, nodes, snapshot)

    def load(self, tree: Id) -> list[trees.Node]:
        """A tree, by the index that was just checked; one that cannot be loaded is a fault, and has no nodes."""
        problem: errors.CosmosError = errors.Damaged("is in no index")
        for pack, blob in self.index.places("tree", tree):
            try:
                for _, plain in self.repository.load_from_pack(pack, [blob]):
                    return trees.decode(plain)
            except (errors.Damaged, errors.NotFound) as error:
                problem = error
        self.fault("tree", tree.hex(), str(problem))
        return []

    def nodes(self, tree: Id, nodes: list[trees.Node], snapshot: str) -> None:
        for node in nodes:
            name = f"{node.name[:80]!r}"
            if node.type == "dir" and node.subtree is None:
                self.fault("tree", tree.hex(), f"has a folder {name} without a tree; snapshot {snapshot[:8]} needs it")
            if node.type == "file" and node.content is None:
                self.fault("tree", tree.hex(), f"has a file {name} without content; snapshot {snapshot[:8]} needs it")
            for blob in node.blobs:
                places = list(self.index.places("data", blob))
                if not any(place.pack in self.sizes and place.pack not in self.broken for place in places):
                    where = "lies in no sound pack" if places else "is in no index"
                    what = f"{name} needs data blob {blob.hex()[:8]}, which {where}; snapshot {snapshot[:8]} needs it"
                    self.fault("tree", tree.hex(), what)

    def fault(self, kind: FaultKind, name: str, what: str) -> None:
        self.faults.append(Fault(kind, name, what))


def _compare(header: tuple[Blob, ...], blobs: list[Blob]) -> None:
    if list(header) != blobs:
        raise errors.Damaged("has other blobs than the index says")
