"""``manifest.json``: everything about one backup, as text that people and programs read."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec

from cosmos_coherence import errors
from cosmos_coherence.archive import names, sums, tarformat
from cosmos_coherence.archive.gzipped import Gunzip, Slice
from cosmos_coherence.archive.stored import sha256
from cosmos_coherence.model import Entry, Manifest
from cosmos_coherence.storage import local

NAME = "manifest.json"
FORMAT = 1
LARGEST = 64 * 1024 * 1024
"""Bytes of JSON above which nothing is parsed."""


class _Versioned(msgspec.Struct):
    format: int


def encode(manifest: Manifest) -> bytes:
    """The manifest as indented JSON with a final newline."""
    return msgspec.json.format(msgspec.json.encode(manifest), indent=2) + b"\n"


def decode(data: bytes) -> Manifest:
    """Read a manifest. ``Damaged`` when it is none, ``Unsupported`` when a newer version of this program wrote it."""
    if len(data) > LARGEST:
        raise errors.Damaged(f"the manifest has {len(data)} bytes, more than any real one")
    try:
        found = msgspec.json.decode(data, type=_Versioned).format
        if found <= FORMAT:
            manifest = msgspec.json.decode(data, type=Manifest)
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise errors.Damaged(f"the manifest cannot be read: {error}") from error
    if found > FORMAT:
        raise errors.Unsupported(
            f"the backup has format {found}, this version reads up to {FORMAT}",
            remedy="Restore it with the newer version of cosmos that made it.",
        )
    if found < 1:
        raise errors.Damaged(f"the manifest names format {found}, which never existed")
    return manifest


def read_manifest(file: Path) -> Manifest:
    """The manifest of an archive, which is its first file; the rest is not looked at.

    ``NotFound``, ``Damaged`` for a file that is no archive of ours, ``Unsupported``.
    """
    with local.translated(f"opening {file}"):
        raw = file.open("rb")
    with raw:
        return beginning(file, tarformat.members(Gunzip(raw)))[0]


def beginning(file: Path, members: Iterator[tuple[Entry, Slice | None]]) -> tuple[Manifest, dict[bytes, str]]:
    """Take the beginning of an archive: its folder, the manifest, and the checksums, which the manifest matches.

    ``Damaged`` when something else is there: a foreign tar, or no tar at all.
    """
    try:
        folder, _ = next(members)
        if folder.kind != "dir" or not folder.path:
            raise errors.Damaged("it does not begin with a folder of its own")
        entry, content = next(members)
        if content is None or entry.path != folder.path + b"/" + NAME.encode():
            raise errors.Damaged("it does not begin with a manifest")
    except (errors.Damaged, StopIteration) as error:
        kind = type(error) if isinstance(error, errors.Damaged) else errors.Damaged
        raise kind(f"{file} is not a Cosmos backup: {str(error) or 'it is empty'}") from error
    text = _read(entry, content)
    entry, content = next(members, (Entry(b"", "dir"), None))
    if content is None or entry.path != folder.path + b"/" + sums.NAME.encode():
        raise errors.Damaged(f"{file} has no checksums behind its manifest")
    listed = sums.decode(_read(entry, content))
    if listed.get(NAME.encode()) != sha256(text):
        raise errors.Damaged(f"the manifest of {file} does not match its checksum")
    manifest = decode(text)
    if folder.path != manifest.id.encode("utf-8", "replace"):
        raise errors.Damaged(f"{file} holds the manifest of another backup")
    return manifest, listed


def _read(entry: Entry, content: Slice) -> bytes:
    if entry.size > LARGEST or entry.data is not None:
        raise errors.Hostile(f"{names.shown(entry.path)} has {entry.size} bytes, more than any real one")
    return content.read()
