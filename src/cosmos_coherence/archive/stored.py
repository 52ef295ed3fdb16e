"""Files of an archive's spool, which know their size and checksum as they grow."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import msgspec

from cosmos_coherence.model import PartFile
from cosmos_coherence.storage import local


class Stored(msgspec.Struct, frozen=True):
    """A finished file of the archive, and the (offset, size) pieces of a spool file it is made of, in their order."""

    file: PartFile
    spool: Path
    pieces: tuple[tuple[int, int], ...]


class StoredFile:
    """A new file, mode 0600, written once from start to end. Errors as in ``local.translated``."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor = local.create(path)
        self._digest = hashlib.sha256()
        self.size = 0

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Append all of the bytes."""
        with local.translated(f"writing {self._path}"):
            local.write_all(self._descriptor, data)
        self._digest.update(data)
        self.size += len(data)

    def close(self) -> None:
        """Nothing more will be written."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def discard(self) -> None:
        """Close and remove it."""
        self.close()
        self._path.unlink(missing_ok=True)

    def part_file(self, name: str, plain_size: int) -> PartFile:
        """What the manifest says about it."""
        return PartFile(path=name, size=self.size, sha256=self.sha256(), plain_size=plain_size)

    def sha256(self) -> str:
        """Checksum of what was written so far, in hex."""
        return self._digest.hexdigest()


def sha256(content: bytes) -> str:
    """The SHA-256 in hex."""
    return hashlib.sha256(content).hexdigest()
