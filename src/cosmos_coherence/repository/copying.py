"""Snapshots from one repository into another; what is there already is not sent again."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import msgspec

from cosmos_coherence import errors
from cosmos_coherence.repository import reach
from cosmos_coherence.repository.blob import Blob, BlobKind, Id
from cosmos_coherence.repository.repository import Repository
from cosmos_coherence.repository.saver import Saver


@dataclass(slots=True)
class Copied:
    """What a copy did: ids of the snapshots in the target by those in the source, and those that were there."""

    snapshots: dict[str, str] = field(default_factory=dict)
    skipped: tuple[str, ...] = ()
    blobs: int = 0


def copy(source: Repository, target: Repository, wanted: Iterable[str], *, workers: int = 2) -> Copied:
    """Copy these snapshots of ``source``, oldest first. Both are locked by the caller.

    Each is published when all of it is stored. One that was copied before (its ``original`` says so) is skipped. Raises
    ``NotFound`` for an unknown snapshot, and what loading and saving raise.
    """
    if source.config.id == target.config.id:
        raise errors.UsageError("a repository cannot be copied into itself")
    ids = set(wanted)
    listed = [each for each in source.snapshots() if each.id in ids]
    if missing := ids - {each.id for each in listed}:
        raise errors.NotFound(f"the repository holds no backup {min(missing)}")
    there = {each.snapshot.original or each.id for each in target.snapshots()}
    copied = Copied(skipped=tuple(each.id for each in listed if (each.snapshot.original or each.id) in there))
    seen: set[Id] = set()
    with target.saver(workers=workers) as saver:
        for each in listed:
            if each.id in copied.skipped:
                continue
            copied.blobs += _copy_blobs(source, target, each.snapshot.tree_id, saver, seen)
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
        for found_blob, plain in source.load_from_pack(pack, lacking):
            saver.save(found_blob.kind, plain)
    return len(found)
