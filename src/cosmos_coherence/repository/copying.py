"""Snapshots from one repository into another; what is there already is not sent again."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import msgspec

from cosmos_coherence import errors
from cosmos_coherence.repository import layout, reach
from cosmos_coherence.repository.blob import Blob, BlobKind, Id
from cosmos_coherence.repository.crypto import Buffer
from cosmos_coherence.repository.repository import Repository
from cosmos_coherence.repository.saver import Saver
from cosmos_coherence.repository.snapshots import Listed


@dataclass(slots=True)
class Copied:
    """What a copy did: ids of the snapshots in the target by those in the source, and those that were there."""

    snapshots: dict[str, str] = field(default_factory=dict)
    skipped: tuple[str, ...] = ()
    damaged: dict[str, str] = field(default_factory=dict)
    """Those that were wanted and are not whole, by their id in the source: a sentence that says what is wrong."""
    unreadable: tuple[str, ...] = ()
    """A sentence for each snapshot of the source that cannot be read; nobody can tell whether it was wanted."""
    blobs: int = 0


def copy(source: Repository, target: Repository, wanted: Iterable[str], *, workers: int = 2) -> Copied:
    """Copy these snapshots of ``source``, oldest first. Both are locked by the caller.

    Each is published when all of it is stored. One that was copied before (its ``original`` says so) is skipped; one
    that is damaged in the source stays behind and keeps no other from being copied. Raises ``NotFound`` for an unknown
    snapshot, ``Damaged`` when an index cannot be read, what saving raises, and the backends' errors.
    """
    if source.config.id == target.config.id:
        raise errors.UsageError("a repository cannot be copied into itself")
    ids = set(wanted)
    readable, unreadable = source.readable_snapshots()
    listed = [each for each in readable if each.id in ids]
    if missing := ids - {each.id for each in listed}:
        raise errors.NotFound(f"the repository holds no backup {min(missing)}")
    there = {each.snapshot.original or each.id for each in target.readable_snapshots()[0]}
    copied = Copied(
        skipped=tuple(each.id for each in listed if (each.snapshot.original or each.id) in there),
        unreadable=tuple(error.message for error in unreadable),
    )
    _ = source.index, target.index  # read here, where damage of theirs ends the copy: it is no single snapshot's
    seen: set[Id] = set()
    with target.saver(workers=workers) as saver:
        for each in listed:
            if each.id in copied.skipped:
                continue
            try:
                copied.blobs += _copy_blobs(source, target, each.snapshot.tree_id, saver, seen)
            except errors.Damaged as error:
                seen.clear()  # what is below those trees may not have come, and the next snapshot may need it
                copied.damaged[each.id] = f"{_name(each)}: {error.message}"
                continue
            saver.flush()
            snapshot = msgspec.structs.replace(each.snapshot, parent=None, original=each.snapshot.original or each.id)
            copied.snapshots[each.id] = target.save_snapshot(snapshot)
    return copied


def _copy_blobs(source: Repository, target: Repository, root: Id, saver: Saver, seen: set[Id]) -> int:
    """Have everything below a tree in the target. Each tree is walked: one that is there may lack what is below."""
    missing: dict[Id, list[Blob]] = {}
    found: set[tuple[BlobKind, Id]] = set()

    def want(kind: BlobKind, blob_id: Id) -> None:
        if (kind, blob_id) in found or target.index.has(kind, blob_id):
            return
        place = source.index.find(kind, blob_id)
        if place is None:
            raise errors.Damaged(f"{kind} blob {blob_id.hex()[:8]} is in no index of {source.location}")
        found.add((kind, blob_id))
        missing.setdefault(place.pack, []).append(place.blob)

    for tree, nodes in reach.trees(source.load_tree, [root], seen):
        want("tree", tree)
        for node in nodes:
            for blob in node.blobs:
                want("data", blob)
    for pack, lacking in missing.items():
        for kind, plain in _loaded(source, pack, lacking):
            saver.save(kind, plain)
    return len(found)


def _loaded(source: Repository, pack: Id, blobs: Sequence[Blob]) -> Iterator[tuple[BlobKind, Buffer]]:
    """Some blobs of a pack; when it is damaged, those that come no more are looked for wherever else they are."""
    left = {(blob.kind, blob.id): blob for blob in blobs}
    try:
        for blob, plain in source.load_from_pack(pack, blobs):
            yield blob.kind, plain
            del left[blob.kind, blob.id]
    except (errors.Damaged, errors.NotFound):
        for blob in left.values():
            yield blob.kind, source.load_blob(blob.kind, blob.id)


def _name(listed: Listed) -> str:
    """What a person calls it."""
    backup = layout.backup_id(listed.snapshot)
    return f"backup {backup} (snapshot {listed.id[:8]})" if backup else f"snapshot {listed.id[:8]}"
