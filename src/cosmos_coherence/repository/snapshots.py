"""Snapshots: the files that make a backup visible ("Snapshots" of the restic design document)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

import msgspec

from cosmos_coherence import errors
from cosmos_coherence.repository import gotext
from cosmos_coherence.repository.blob import Id
from cosmos_coherence.repository.crypto import Buffer

LATEST: Final = "latest"
_SHORTEST_PREFIX: Final = 4


class Summary(msgspec.Struct, frozen=True, kw_only=True):
    """What a backup did, as restic 0.17 and later write and show it. Sizes are bytes."""

    backup_start: str = gotext.NO_TIME
    backup_end: str = gotext.NO_TIME
    files_new: int = 0
    files_changed: int = 0
    files_unmodified: int = 0
    dirs_new: int = 0
    dirs_changed: int = 0
    dirs_unmodified: int = 0
    data_blobs: int = 0
    tree_blobs: int = 0
    data_added: int = 0
    data_added_packed: int = 0
    total_files_processed: int = 0
    total_bytes_processed: int = 0


class Snapshot(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One backup, with the fields of the format."""

    time: str
    """RFC 3339; the instant of the backup."""
    parent: str | None = None
    """Id of the snapshot that unchanged files were compared with."""
    tree: str
    """Id of the root's tree."""
    paths: Sequence[str] | None
    hostname: str = ""
    username: str = ""
    uid: int = 0
    gid: int = 0
    excludes: Sequence[str] = ()
    tags: Sequence[str] | None = None
    original: str | None = None
    """Id that this snapshot had before somebody changed its tags."""
    program_version: str = ""
    summary: Summary | None = None

    @property
    def time_ns(self) -> int:
        """Nanoseconds since the epoch."""
        return gotext.parse_time(self.time)

    @property
    def tree_id(self) -> Id:
        """The root's tree."""
        return bytes.fromhex(self.tree)


class Listed(msgspec.Struct, frozen=True):
    """A snapshot and the id of its file, 64 hex digits."""

    id: str
    snapshot: Snapshot


def encode(snapshot: Snapshot) -> bytes:
    """The JSON of a snapshot's file."""
    return msgspec.json.encode(snapshot)


def decode(plain: Buffer) -> Snapshot:
    """The snapshot of a file. Raises ``Damaged``."""
    try:
        snapshot = msgspec.json.decode(plain, type=Snapshot)
        gotext.parse_time(snapshot.time)
        if len(snapshot.tree) != 64 or len(bytes.fromhex(snapshot.tree)) != 32:
            raise ValueError("its tree is no id")
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise errors.Damaged(f"not a snapshot: {error}") from error
    return snapshot


def in_order(listed: Iterable[Listed]) -> tuple[Listed, ...]:
    """Oldest first."""
    return tuple(sorted(listed, key=lambda each: (each.snapshot.time_ns, each.id)))


def find(
    listed: Iterable[Listed],
    wanted: str = LATEST,
    *,
    host: str | None = None,
    tags: Iterable[str] = (),
    paths: Iterable[str] = (),
) -> Listed:
    """The snapshot whose id begins with ``wanted``, or the ``latest`` of those that match.

    It matches with that host, with all of those tags and all of those paths. Raises ``NotFound`` when there is none,
    ``UsageError`` when several ids begin like that.
    """
    matching = [
        each
        for each in in_order(listed)
        if (host is None or each.snapshot.hostname == host)
        and set(tags) <= set(each.snapshot.tags or ())
        and set(paths) <= set(each.snapshot.paths or ())
    ]
    if wanted == LATEST:
        if not matching:
            raise errors.NotFound("the repository holds no backup that matches")
        return matching[-1]
    if len(wanted) < _SHORTEST_PREFIX:
        raise errors.UsageError(
            f"{wanted!r} is too short to name a backup", remedy="Give at least four digits of its id."
        )
    named = [each for each in matching if each.id.startswith(wanted.lower())]
    if not named:
        raise errors.NotFound(f"the repository holds no backup {wanted}")
    if len(named) > 1:
        raise errors.UsageError(f"{len(named)} backups begin with {wanted}", remedy="Give more digits of its id.")
    return named[0]
