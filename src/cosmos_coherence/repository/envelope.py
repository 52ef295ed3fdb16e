"""What turns bytes into stored bytes and back: compression, then sealing. One for each thread, as its parts are."""

from __future__ import annotations

import hashlib
from typing import Final

import zstandard

from cosmos_coherence import errors
from cosmos_coherence.repository.blob import Blob, Id, id_of
from cosmos_coherence.repository.crypto import Buffer, Key, Sealer
from cosmos_coherence.storage.backend import Backend, Kind

DEFAULT_LEVEL: Final = 1
"""Of zstd: 3 takes half as long again for 5 % less."""
LARGEST_BLOB: Final = 1 << 30
"""Plain bytes of one blob that we are ready to hold: a tree of two million names."""
_LARGEST_FILE: Final = 1 << 30
_LARGE: Final = 256 << 10
_ROOM: Final = (8 << 20) + 64
_COMPRESSED: Final = 2  # first byte of a file whose rest is zstd
_JSON: Final = (ord("{"), ord("["))


class Envelope:
    """Compresses and seals, opens and decompresses, for **one thread**."""

    def __init__(self, key: Key, level: int = DEFAULT_LEVEL) -> None:
        self.sealer = Sealer(key)
        self._compress = self._compress_large = zstandard.ZstdCompressor(level=level).compress
        if level == DEFAULT_LEVEL:
            # Of some fifty sets of parameters the best one for large blobs: a tenth faster and 4 % smaller.
            chosen = zstandard.ZstdCompressionParameters.from_level(
                level, source_size=1 << 20, window_log=18, hash_log=16, min_match=7
            )
            self._compress_large = zstandard.ZstdCompressor(compression_params=chosen).compress
        self._kept = bytearray()
        self._decompress = zstandard.ZstdDecompressor().decompress

    def pack(self, plain: Buffer) -> tuple[Buffer, int]:
        """What to store of a blob, and its plain length: 0 when it does not get smaller and is stored as it is."""
        smaller = self._compress(plain) if len(plain) < _LARGE else self._compress_large(plain)
        return (smaller, len(plain)) if len(smaller) < len(plain) else (plain, 0)

    def unpack(self, blob: Blob, sealed: Buffer) -> Buffer:
        """The plain bytes of a blob, whose hash is its id. Raises ``Damaged``."""
        try:
            if blob.size > LARGEST_BLOB:
                raise errors.Damaged(f"it claims to have {blob.size} bytes")
            if len(sealed) != blob.length:
                raise errors.Damaged("it is cut short")
            plain: Buffer = self.sealer.open(sealed, self._room(len(sealed)) if blob.plain_length else None)
            if blob.plain_length:
                plain = self._expand(plain, blob.plain_length)
            if id_of(plain) != blob.id:
                raise errors.Damaged("it has another content than its name says")
        except errors.Damaged as error:
            raise errors.Damaged(f"blob {blob.id.hex()[:8]}: {error}") from error
        return plain

    def _room(self, size: int) -> bytearray | None:
        """Room for sealed bytes that are not needed any more when they are decompressed."""
        if size > _ROOM:
            return None
        if not self._kept:
            self._kept = bytearray(_ROOM)
        return self._kept

    def save(self, backend: Backend, kind: Kind, plain: Buffer) -> Id:
        """Store a JSON document compressed and sealed, and return its id. Raises the backend's errors."""
        sealed = self.sealer.seal(bytes([_COMPRESSED]) + self._compress(plain))
        file_id = hashlib.sha256(sealed).digest()
        backend.save(kind, file_id.hex(), [sealed])
        return file_id

    def load(self, backend: Backend, kind: Kind, name: str) -> Buffer:
        """The JSON document of a stored file. Raises ``Damaged`` and the backend's errors."""
        return self.read(kind, name, backend.load(kind, name))

    def read(self, kind: Kind, name: str, stored: Buffer) -> Buffer:
        """The JSON document in a file's bytes. Raises ``Damaged``."""
        what = f"{kind}/{name[:8]}"
        if hashlib.sha256(stored).hexdigest() != name:
            raise errors.Damaged(f"{what} is not what its name says")
        try:
            plain = self.sealer.open(stored)
            if not plain:
                raise errors.Damaged("it is empty")
            if plain[0] in _JSON:
                return plain
            if plain[0] != _COMPRESSED:
                raise errors.Damaged(f"it is in an encoding that nobody knows: {plain[0]}")
            return self._expand(memoryview(plain)[1:], _LARGEST_FILE)
        except errors.Damaged as error:
            raise errors.Damaged(f"{what}: {error}") from error

    def _expand(self, body: Buffer, most: int) -> bytes:
        """What it was before it was compressed, unless that is more than ``most`` bytes. ``Damaged``."""
        try:
            if zstandard.frame_content_size(body) > most:  # its own word, believed only as far as we expect it
                raise errors.Damaged("it becomes larger than it says")
            return self._decompress(body, max_output_size=most)
        except zstandard.ZstdError as error:
            raise errors.Damaged(f"it cannot be decompressed: {error}") from error
