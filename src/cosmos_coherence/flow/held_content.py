"""Whether a backup holds what a volume holds now: read from where the backup lies, compared name by name.

"Checked" is not a word of some earlier run here. A backup that was read back when it was published is read once more,
the part of this volume to its last byte, before anything is removed on the strength of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import BinaryIO, Final

import msgspec

from cosmos_coherence import errors
from cosmos_coherence.archive import reader as archives
from cosmos_coherence.copied import Found
from cosmos_coherence.flow import inventory, store
from cosmos_coherence.flow.recover import RESTORE_SPOOL
from cosmos_coherence.model import Entry, Part, TreePrint, Volume
from cosmos_coherence.parts import BackupReader
from cosmos_coherence.settings import Settings
from cosmos_coherence.sources import tree_name, tree_print, tree_scan
from cosmos_coherence.storage import local

_SHOWN: Final = 5
_PIECE: Final = 1 << 20


class Held(msgspec.Struct, frozen=True):
    """What a search for a backup of a volume came to."""

    backup: str
    """The backup that holds all of it; empty when none does."""
    why: str
    """A clause: what it was compared with, or what differs."""


def search(settings: Settings, backups: Path, project: str, volume: Volume, names: Mapping[bytes, Found]) -> Held:
    """Look for a complete backup that holds the volume as it is now; ``names`` is a walk through it.

    Of a database server's volume, whose files no dump can be compared with, a backup of the server counts when its
    instant is later than every change in the volume. Raises ``CaptureFailed`` for a volume that cannot be read, and
    what opening a backup raises.
    """
    assert volume.path is not None
    now: TreePrint | None = None
    newest: tuple[inventory.Entry, Part] | None = None
    for backup in _complete(settings, backups, project):
        part = next((p for p in backup.manifest.parts if p.volume == volume.name), None)
        if part is None:
            continue
        newest = newest or (backup, part)
        if part.kind != "volume":
            if not _changed_since(names, backup.manifest.instant):
                with opened(settings, backups, backup.name, project) as reader:
                    _read_streams(reader, part)
                return Held(backup.name, f"backup {backup.name} of {part.name} is newer than its last change")
            continue
        now = now or tree_print.print_of_tree(volume.path)
        if part.fingerprint.tree != now:
            continue
        with opened(settings, backups, backup.name, project) as reader:
            if _read_tree(reader, tree_name(part)) == now:
                return Held(backup.name, f"backup {backup.name} holds all {len(names)} names of it")
    if newest is None:
        return Held("", "no complete backup holds anything of it")
    return Held("", _difference(settings, backups, project, volume, names, newest))


def entries_of(settings: Settings, backups: Path, project: str, volume: Volume) -> tuple[str, Mapping[bytes, Entry]]:
    """The newest backup that holds the files of the volume, and every name of it; nothing when there is none.

    Raises what opening a backup raises.
    """
    for backup in _newest_first(settings, backups, project):
        part = next((p for p in backup.manifest.parts if p.kind == "volume" and p.volume == volume.name), None)
        if part is not None:
            with opened(settings, backups, backup.name, project) as reader:
                return backup.name, {entry.path: entry for entry, _ in reader.tree(tree_name(part))}
    return "", {}


@contextmanager
def opened(settings: Settings, backups: Path, name: str, project: str) -> Iterator[BackupReader]:
    """The backup that the inventory calls so. An archive is unpacked beside the others, and proven first."""
    if not name.endswith(".tar.gz"):
        with store.open_backup(settings, name, project=project) as reader:
            yield reader
        return
    with (
        local.spool(backups, RESTORE_SPOOL) as spool,
        archives.ArchiveReader.open_archive(backups / name, spool) as archive,
    ):
        yield archive


def _newest_first(settings: Settings, backups: Path, project: str) -> Iterator[inventory.Entry]:
    found, _ = inventory.backups(settings, backups, project=project)
    return (b for b in reversed(found) if b.manifest.project == project and not b.manifest.safety)


def _complete(settings: Settings, backups: Path, project: str) -> Iterator[inventory.Entry]:
    return (backup for backup in _newest_first(settings, backups, project) if backup.manifest.complete)


def _read_tree(reader: BackupReader, name: str) -> TreePrint:
    """The fingerprint of the tree as it lies in the backup; every byte is read."""
    return tree_print.tree_print(
        (entry, "" if content is None else archives.digest_of(entry, content)) for entry, content in reader.tree(name)
    )


def _read_streams(reader: BackupReader, part: Part) -> None:
    """Read every stream of the part to its end. ``Damaged`` when one is not as long as the manifest says."""
    for file in part.files:
        with reader.open(reader.logical(file)) as content:
            if (size := _length(content)) != file.plain_size:
                raise errors.Damaged(f"{reader.logical(file)} has {size} bytes, {file.plain_size} are declared")


def _length(content: BinaryIO) -> int:
    size = 0
    while piece := content.read(_PIECE):
        size += len(piece)
    return size


def _changed_since(names: Mapping[bytes, Found], instant: str) -> list[bytes]:
    """The names that were changed at this instant or later."""
    since_ns = int(datetime.fromisoformat(instant).timestamp() * 1_000_000) * 1000
    return sorted(path for path, found in names.items() if found.ctime_ns >= since_ns)


def _difference(
    settings: Settings,
    backups: Path,
    project: str,
    volume: Volume,
    names: Mapping[bytes, Found],
    newest: tuple[inventory.Entry, Part],
) -> str:
    """What the newest backup does not have as the volume has it."""
    assert volume.path is not None
    backup, part = newest
    if part.kind != "volume":
        changed = _changed_since(names, backup.manifest.instant)
        first = ", ".join(map(tree_scan.show, changed[:_SHOWN]))
        return (
            f"it is the data of a {part.kind} server, whose files cannot be compared with a dump, and {len(changed)} "
            f"of them were written after backup {backup.name}: {first}"
        )
    with opened(settings, backups, backup.name, project) as reader:
        lines = {entry.path: tree_print.line_digest(entry, digest) for entry, digest in reader.hashed(tree_name(part))}
    found = tree_print.differences(lines, volume.path, at_most=_SHOWN)
    return f"it is not what backup {backup.name} holds: {', '.join(found) or 'the backup cannot be read back whole'}"
