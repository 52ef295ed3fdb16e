"""Removing what no snapshot needs: first a plan, then, under an exclusive lock, the deed.

The order is what makes it safe to be killed: new packs, a new index of everything that stays, then the old indexes go,
then the old packs. At each step every snapshot has all that it needs in packs that an index names.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Final

import msgspec

from cosmos_coherence import errors
from cosmos_coherence.repository import reach
from cosmos_coherence.repository.blob import Blob, BlobKind, Id
from cosmos_coherence.repository.index import PackBlobs
from cosmos_coherence.repository.locks import Lock
from cosmos_coherence.repository.packs import Builder
from cosmos_coherence.repository.repository import Repository
from cosmos_coherence.repository.saver import INDEX_BLOBS
from cosmos_coherence.storage.backend import Kind

MAX_UNUSED: Final = 0.05
"""Share of the needed bytes that may stay in the repository unneeded: getting at the last of them costs most."""

_REMOVED_AT_ONCE: Final = 100

Progress = Callable[[str, int, int], None]
"""Called with a step's name, how much of it is done, and how much there is."""


class Plan(msgspec.Struct, frozen=True):
    """What a prune is going to do. Sizes are bytes."""

    keep: tuple[PackBlobs, ...]
    """Packs that stay as they are, with all that is in them."""
    repack: tuple[PackBlobs, ...]
    """Packs that go, with those of their blobs that are needed."""
    remove: tuple[Id, ...]
    """Packs in which nothing is needed, and packs in no index."""
    lost: tuple[Id, ...]
    """Packs that an index names and that are missing, without harm: nothing in them is needed."""
    removed_size: int
    repacked_size: int
    """Bytes that are read and written again."""
    freed_size: int
    kept_size: int
    unused_size: int
    """Bytes that stay though nothing needs them."""
    snapshots: frozenset[str]
    indexes: frozenset[str]

    @property
    def empty(self) -> bool:
        """There is nothing to do."""
        return not self.repack and not self.remove and not self.lost


def plan(repository: Repository, *, max_unused: float = MAX_UNUSED) -> Plan:
    """Look for what no snapshot needs; changes nothing. Make it under the lock that ``apply`` gets.

    Raises ``Damaged`` when anything that is needed is missing (run ``check`` first), and the backend's errors.
    """
    snapshots = {stored.name for stored in repository.backend.list("snapshots")}
    roots = [repository.load_snapshot(name).tree_id for name in sorted(snapshots)]
    repository.refresh_index()
    indexes = {stored.name for stored in repository.backend.list("index")}
    sizes = {bytes.fromhex(stored.name): stored.size for stored in repository.backend.list("data")}
    needed = _needed(repository, roots)
    keep: list[PackBlobs] = []
    repack: list[PackBlobs] = []
    remove: list[Id] = []
    kept = repacked = unused = 0
    partly: list[tuple[int, Id, list[Blob], list[Blob]]] = []
    everything = repository.index.by_pack()
    for pack, blobs in sorted(everything.items(), key=lambda item: _unneeded(item[1], needed)):
        if pack not in sizes:
            continue  # of a needed blob there must be another copy, or the plan fails below
        wanted = [blob for blob in blobs if (blob.kind, blob.id) in needed]
        needed.difference_update((blob.kind, blob.id) for blob in wanted)  # one copy is enough
        mixed = len({blob.kind for blob in blobs}) > 1
        if not wanted:
            remove.append(pack)
        elif len(wanted) == len(blobs) and not mixed:
            keep.append((pack, blobs))
            kept += sizes[pack]
        else:
            waste = sizes[pack] if mixed else sum(b.length for b in blobs) - sum(b.length for b in wanted)
            partly.append((waste, pack, blobs, wanted))
    if needed:
        raise errors.Damaged(
            f"{len(needed)} blobs that snapshots need are missing",
            remedy="`cosmos check` says which; nothing was removed.",
        )
    allowed = int(max_unused * sum(sizes[pack] for pack in everything if pack in sizes))
    for waste, pack, blobs, wanted in sorted(partly, key=lambda each: each[0]):
        if unused + waste <= allowed:
            unused += waste
            keep.append((pack, blobs))
            kept += sizes[pack]
        else:
            repack.append((pack, wanted))
            repacked += sum(blob.length for blob in wanted)
    remove += sizes.keys() - everything.keys()
    removed = sum(sizes[pack] for pack in remove)
    return Plan(
        keep=tuple(keep),
        repack=tuple(repack),
        remove=tuple(sorted(remove)),
        lost=tuple(sorted(everything.keys() - sizes.keys())),
        removed_size=removed,
        repacked_size=repacked,
        freed_size=removed + sum(sizes[pack] for pack, _ in repack) - repacked,
        kept_size=kept,
        unused_size=unused,
        snapshots=frozenset(snapshots),
        indexes=frozenset(indexes),
    )


def apply(
    repository: Repository, planned: Plan, lock: Lock, *, progress: Progress = lambda step, done, of: None
) -> None:
    """Do what the plan says. ``lock`` is exclusive, and has been held since before the plan was made.

    Raises ``Refused`` when the repository is not as it was planned for, ``Locked`` when the lock is lost, ``Damaged``
    when a blob that has to be repacked is (nothing was removed then), and the backend's errors. May be run again after
    any of them.
    """
    assert lock.exclusive
    if planned.empty:
        return
    _require_unchanged(repository, planned)
    packs = [*planned.keep, *_repack(repository, planned, progress)]
    lock.ensure()
    progress("index", 0, 1)
    written = _save_indexes(repository, packs, planned.indexes)
    lock.ensure()
    _require_unchanged(repository, planned, written)
    _remove(repository, lock, "index", planned.indexes - written, progress)
    gone = [*planned.remove, *(pack for pack, _ in planned.repack)]
    _remove(repository, lock, "data", {pack.hex() for pack in gone} - {pack.hex() for pack, _ in packs}, progress)
    repository.forget_index()


def _needed(repository: Repository, roots: Iterable[Id]) -> set[tuple[BlobKind, Id]]:
    needed: set[tuple[BlobKind, Id]] = set()
    for tree, nodes in reach.trees(repository.load_tree, roots):
        needed.add(("tree", tree))
        for node in nodes:
            needed.update(("data", blob) for blob in node.blobs)
    return needed


def _unneeded(blobs: list[Blob], needed: set[tuple[BlobKind, Id]]) -> int:
    return sum(blob.length for blob in blobs if (blob.kind, blob.id) not in needed)


def _repack(repository: Repository, planned: Plan, progress: Progress) -> Iterator[PackBlobs]:
    """Copy what is needed of packs that go into new ones, as it is sealed; each blob is opened and checked first."""
    envelope = repository.envelope()
    builders: dict[BlobKind, Builder] = {"data": Builder("data"), "tree": Builder("tree")}
    for count, (pack, blobs) in enumerate(planned.repack):
        progress("repack", count, len(planned.repack))
        for blob, sealed in repository.load_sealed(pack, blobs):
            try:
                envelope.unpack(blob, sealed)
                builder = builders[blob.kind]
                builder.add_sealed(blob, sealed)
            except errors.Damaged:
                # another place may still have it whole
                plain = repository.load_blob(blob.kind, blob.id)
                stored, plain_length = envelope.pack(plain)
                builder = builders[blob.kind]
                builder.add(blob.id, stored, plain_length, envelope.sealer)
            if builder.full:
                yield _finish(repository, builder)
    for builder in builders.values():
        if len(builder):
            yield _finish(repository, builder)


def _finish(repository: Repository, builder: Builder) -> PackBlobs:
    pack = builder.finish(repository.envelope().sealer)
    repository.backend.save("data", pack.id.hex(), [pack.content])
    builder.reset()
    return pack.id, pack.blobs


def _save_indexes(repository: Repository, packs: Iterable[PackBlobs], old: Iterable[str]) -> set[str]:
    """Write the new index files. Only the last says that it replaces the old ones: until it is there, they count."""
    *others, last = [*_shares(packs)] or [[]]
    written = {repository.save_index(share).hex() for share in others}
    return written | {repository.save_index(last, map(bytes.fromhex, sorted(old))).hex()}


def _shares(packs: Iterable[PackBlobs]) -> Iterator[list[PackBlobs]]:
    share: list[PackBlobs] = []
    count = 0
    for pack in packs:
        share.append(pack)
        count += len(pack[1])
        if count >= INDEX_BLOBS:
            yield share
            share, count = [], 0
    if share:
        yield share


def _require_unchanged(repository: Repository, planned: Plan, written: Iterable[str] = ()) -> None:
    snapshots = {stored.name for stored in repository.backend.list("snapshots")}
    indexes = {stored.name for stored in repository.backend.list("index")}
    if not snapshots <= planned.snapshots or indexes - set(written) != planned.indexes:
        raise errors.Refused("the repository has changed since the prune was planned", remedy="Run the prune again.")


def _remove(repository: Repository, lock: Lock, kind: Kind, names: Iterable[str], progress: Progress) -> None:
    ordered = sorted(names)
    for count, name in enumerate(ordered):
        progress(f"remove {kind}", count, len(ordered))
        if count % _REMOVED_AT_ONCE == 0:
            lock.ensure()
        repository.backend.remove(kind, name)
