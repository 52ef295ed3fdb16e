"""Proof that an archive on the disk is what its manifest and its checksums say, without unpacking it."""

from __future__ import annotations

from pathlib import Path

from cosmos_coherence import errors
from cosmos_coherence.archive.unpack import unpack
from cosmos_coherence.model import Manifest


def verify_archive(path: Path, manifest: Manifest | None = None) -> Manifest:
    """Read every byte, compare every checksum, and return the manifest.

    Raises what ``unpack`` raises; ``Damaged`` as well when the manifest inside is not the one given.
    """
    found = unpack(path).manifest
    if manifest is not None and found != manifest:
        raise errors.Damaged(f"{path} does not hold the manifest it was written with")
    return found
