"""The two kinds of blob, and where one lies."""

from __future__ import annotations

import hashlib
from typing import Literal, NamedTuple

from cosmos_coherence.repository.crypto import OVERHEAD, Buffer

BlobKind = Literal["data", "tree"]

Id = bytes
"""A SHA-256: of the plain bytes for a blob, of the file for everything else."""


class Blob(NamedTuple):
    """One blob of a pack."""

    kind: BlobKind
    id: Id
    offset: int
    length: int
    """Sealed bytes in the pack."""
    plain_length: int
    """Bytes before compression; 0 when it is not compressed."""

    @property
    def size(self) -> int:
        """Plain bytes."""
        return self.plain_length or self.length - OVERHEAD


class Location(NamedTuple):
    """A blob and the pack that holds it."""

    pack: Id
    blob: Blob


def id_of(plain: Buffer) -> Id:
    """The id of a blob with these bytes."""
    return hashlib.sha256(plain).digest()
