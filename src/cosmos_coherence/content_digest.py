"""The digest of a file's content, which fingerprints are made of: SHA-256 of a small file, BLAKE3 of a large one.

A small file is one blob of a repository, whose name is its SHA-256, so that nothing is hashed twice. The blobs of a
large one do not say what it is as a whole, and a second SHA-256 over all of it costs three times as much as BLAKE3.
"""

from __future__ import annotations

import hashlib
from typing import Final

from blake3 import blake3

SMALL: Final = (512 << 10) - 1
"""Bytes of a small file at most. It never changes: fingerprints of earlier backups would not be right any more."""
EMPTY: Final = hashlib.sha256().hexdigest()


class ContentDigest:
    """Takes content piece by piece, as the objects of ``hashlib`` do, and decides in the end what it was."""

    def __init__(self) -> None:
        self.size = 0
        self._small = hashlib.sha256()
        self._large = blake3()

    def update(self, data: bytes | bytearray | memoryview) -> None:
        """What comes next."""
        with memoryview(data) as view:
            self.size += view.nbytes
        if self.size <= SMALL:
            self._small.update(data)
        self._large.update(data)

    def zeros(self, count: int) -> None:
        """So many zeros come next: a hole."""
        for done in range(0, count, len(_ZEROS)):
            self.update(_ZEROS[: count - done])

    def hexdigest(self) -> str:
        """Of all that has come."""
        return (self._small if self.size <= SMALL else self._large).hexdigest()


_ZEROS: Final = memoryview(bytes(1 << 20))


def of(content: bytes | memoryview) -> str:
    """The digest of content that is at hand."""
    return (hashlib.sha256 if len(content) <= SMALL else blake3)(content).hexdigest()
