"""The beginning of an archive: its manifest, and the checksums of all that follows."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from cosmos_coherence import errors, manifests
from cosmos_coherence.archive import names, sums, tarformat
from cosmos_coherence.archive.gzipped import Gunzip, Slice
from cosmos_coherence.archive.stored import sha256
from cosmos_coherence.model import Entry, Manifest
from cosmos_coherence.storage import local


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
        if content is None or entry.path != folder.path + b"/" + manifests.NAME.encode():
            raise errors.Damaged("it does not begin with a manifest")
    except (errors.Damaged, StopIteration) as error:
        kind = type(error) if isinstance(error, errors.Damaged) else errors.Damaged
        raise kind(f"{file} is not a Cosmos backup: {str(error) or 'it is empty'}") from error
    text = _read(entry, content)
    entry, content = next(members, (Entry(b"", "dir"), None))
    if content is None or entry.path != folder.path + b"/" + sums.NAME.encode():
        raise errors.Damaged(f"{file} has no checksums behind its manifest")
    listed = sums.decode(_read(entry, content))
    if listed.get(manifests.NAME.encode()) != sha256(text):
        raise errors.Damaged(f"the manifest of {file} does not match its checksum")
    manifest = manifests.decode(text)
    if folder.path != manifest.id.encode("utf-8", "replace"):
        raise errors.Damaged(f"{file} holds the manifest of another backup")
    return manifest, listed


def _read(entry: Entry, content: Slice) -> bytes:
    if entry.size > manifests.LARGEST or entry.data is not None:
        raise errors.Hostile(f"{names.shown(entry.path)} has {entry.size} bytes, more than any real one")
    return content.read()
