"""``manifest.json``: everything about one backup, as text that people and programs read."""

from __future__ import annotations

import msgspec

from cosmos_coherence import errors
from cosmos_coherence.model import Manifest

NAME = "manifest.json"
FORMAT = 2
"""Format 1, in which fingerprints were of other digests, was never released."""
LARGEST = 64 * 1024 * 1024
"""Bytes of JSON above which nothing is parsed."""


class _Versioned(msgspec.Struct):
    format: int


def encode(manifest: Manifest) -> bytes:
    """The manifest as indented JSON with a final newline."""
    return msgspec.json.format(msgspec.json.encode(manifest), indent=2) + b"\n"


def decode(data: bytes) -> Manifest:
    """Read a manifest. ``Damaged`` when it is none, ``Unsupported`` when another version of this program wrote it."""
    if len(data) > LARGEST:
        raise errors.Damaged(f"the manifest has {len(data)} bytes, more than any real one")
    try:
        found = msgspec.json.decode(data, type=_Versioned).format
        if found == FORMAT:
            manifest = msgspec.json.decode(data, type=Manifest)
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise errors.Damaged(f"the manifest cannot be read: {error}") from error
    if found < 1:
        raise errors.Damaged(f"the manifest names format {found}, which never existed")
    if found != FORMAT:
        raise errors.Unsupported(
            f"the backup has format {found}, this version reads {FORMAT}",
            remedy="Restore it with the version of cosmos that made it.",
        )
    return manifest
