"""What lies in a backup: its names, one file of it, what two backups differ in, and parts of it put into a folder."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Literal

import msgspec

from cosmos_coherence import errors
from cosmos_coherence.flow import table
from cosmos_coherence.model import Entry
from cosmos_coherence.parts import CONFIGS, TREES, BackupReader, stream_steps, tree_steps
from cosmos_coherence.sources import tree_print, tree_write
from cosmos_coherence.storage import local

_PIECE = 1 << 20


class Item(msgspec.Struct, frozen=True):
    """One name in a backup."""

    path: bytes
    """``database.sql``, ``volumes/<full name>/<path in it>``."""
    kind: str
    size: int
    entry: Entry | None = None
    """None for a stream."""


class Difference(msgspec.Struct, frozen=True):
    """One name that two backups do not have alike."""

    path: bytes
    change: Literal["added", "removed", "changed"]
    before: int
    after: int
    """Bytes; 0 where it is not."""


def is_tree(name: str) -> bool:
    """Whether a backup keeps a file tree under this logical name."""
    return name == CONFIGS or name.startswith(tuple(f"{kind}/" for kind in TREES))


def items(reader: BackupReader, below: str = "") -> Iterator[Item]:
    """Every name, or those below one; in byte order within each tree. Raises ``NotFound`` when nothing is there."""
    found = False
    wanted = os.fsencode(below.strip("/"))
    for name in reader.names():
        prefix = os.fsencode(name)
        if not (_within(prefix, wanted) or _within(wanted, prefix)):
            continue
        if not is_tree(name):
            found = True
            yield Item(prefix, "stream", _size(reader, name))
            continue
        for entry in sorted((entry for entry, _ in reader.tree(name)), key=lambda entry: entry.path):
            path = prefix + b"/" + entry.path if entry.path else prefix
            if _within(path, wanted):
                found = True
                yield Item(path, entry.kind, entry.size, entry)
    if not found:
        raise errors.NotFound(
            f"backup {reader.manifest.id} holds nothing called {below}", remedy="`cosmos files` lists it."
        )


def dump(reader: BackupReader, path: str, out: BinaryIO) -> int:
    """Write one stream or one file of a tree to ``out``; how many bytes. ``NotFound`` when there is none."""
    name = next((n for n in reader.names() if path == n or (is_tree(n) and path.startswith(f"{n}/"))), None)
    if name is None:
        raise errors.NotFound(
            f"backup {reader.manifest.id} holds no {path}", remedy="`cosmos files` lists what it holds."
        )
    if not is_tree(name):
        with reader.open(name) as content:
            return _copy(content, out)
    inside = os.fsencode(path[len(name) + 1 :])
    target: bytes | None = None
    for entry, found in reader.tree(name):
        if entry.path == inside and entry.kind == "hardlink":
            target = entry.target
        if entry.path == inside and found is not None and entry.data is None:
            return _copy(found, out)
    if target is not None:
        return dump(reader, f"{name}/{os.fsdecode(target)}", out)
    raise errors.NotFound(f"{path} is no file in backup {reader.manifest.id}", remedy="`cosmos files` lists it.")


def dump_table(reader: BackupReader, path: str, name: str, out: BinaryIO) -> int:
    """Write one table of the SQL at ``path`` to ``out``; how many bytes. ``NotFound`` when either is not there."""
    if path not in reader.names() or not path.endswith(".sql"):
        raise errors.NotFound(
            f"backup {reader.manifest.id} holds no SQL called {path}", remedy="`cosmos files` lists what it holds."
        )
    size = 0
    with reader.open(path) as sql:
        for line in table.only(sql, name):
            size += out.write(line)
    return size


def extract(reader: BackupReader, folder: Path, only: tuple[str, ...] = ()) -> tuple[str, ...]:
    """Write the backup, or the parts of these names, into a new folder as plain files; the names that were written.

    Nothing of a stack is touched. Raises ``Refused`` when the folder holds anything, ``NotFound`` for an unknown name.
    """
    parts = _parts(reader, only)
    wanted = [os.fsencode(one.strip("/")) for one in only]
    names = [n for n in reader.names() if not only or n in parts or any(_within(os.fsencode(n), w) for w in wanted)]
    if not names:
        raise errors.NotFound(
            f"backup {reader.manifest.id} holds nothing called {', '.join(only)}", remedy="`cosmos files` lists it."
        )
    if folder.exists() and any(folder.iterdir()):
        raise errors.Refused(f"{folder} is not empty", remedy="Choose a new folder.")
    local.make_private(folder)
    for name in sorted(names):
        place = folder.joinpath(*(tree_steps(name) if is_tree(name) else stream_steps(name)))
        try:
            local.make_private(place.parent)
            if is_tree(name):
                local.make_private(place)
                tree_write.write_plainly(reader, name, place, size=_tree_size(reader, name))
            else:
                with local.translated(f"writing {place}"), place.open("xb") as out, reader.open(name) as content:
                    _copy(content, out)
        except errors.CosmosError as error:
            error.add(f"what lies in {folder} is not whole")
            raise
    return tuple(sorted(names))


def differences(before: BackupReader, after: BackupReader) -> Iterator[Difference]:
    """What was added, removed and changed between two backups, name by name."""
    old, new = _lines(before), _lines(after)
    for path in sorted(old.keys() | new.keys()):
        was, now = old.get(path), new.get(path)
        if was is None or now is None:
            yield Difference(path, "added" if was is None else "removed", was[1] if was else 0, now[1] if now else 0)
        elif was[0] != now[0]:
            yield Difference(path, "changed", was[1], now[1])


def _lines(reader: BackupReader) -> dict[bytes, tuple[str, int]]:
    """A digest and the size of every name."""
    found: dict[bytes, tuple[str, int]] = {}
    for part in reader.manifest.parts:
        for file in part.files:
            name = reader.logical(file)
            if not is_tree(name):
                found[os.fsencode(name)] = file.sha256, file.plain_size
                continue
            for entry, digest in reader.hashed(name):
                line = tree_print.line_digest(entry, digest)
                found[os.fsencode(name) + b"/" + entry.path] = line, entry.size
    return found


def _parts(reader: BackupReader, only: tuple[str, ...]) -> set[str]:
    """What the parts hold that were asked for, as ``postgres/db``, ``postgres`` or ``db``."""
    asked = (p for p in reader.manifest.parts if {p.name, *p.name.split("/", 1)} & set(only))
    return {reader.logical(file) for part in asked for file in part.files}


def _size(reader: BackupReader, name: str) -> int:
    return next(
        (file.plain_size for part in reader.manifest.parts for file in part.files if reader.logical(file) == name), 0
    )


def _tree_size(reader: BackupReader, name: str) -> int:
    """Bytes that the files of a tree may have together."""
    return sum(
        part.fingerprint.tree.size
        for part in reader.manifest.parts
        if part.fingerprint.tree and any(reader.logical(file) == name for file in part.files)
    )


def _within(path: bytes, folder: bytes) -> bool:
    return not folder or path == folder or path.startswith(folder + b"/")


def _copy(content: BinaryIO, out: BinaryIO) -> int:
    size = 0
    while piece := content.read(_PIECE):
        out.write(piece)
        size += len(piece)
    return size
