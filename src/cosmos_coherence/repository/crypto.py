"""Sealing: AES-256 in counter mode with a Poly1305-AES tag.

After "Keys, Encryption and MAC" of the restic design document. Sealed bytes are ``IV (16) || ciphertext || tag (16)``.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Final

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.poly1305 import Poly1305

from cosmos_coherence import errors

Buffer = bytes | bytearray | memoryview

IV_SIZE: Final = 16
TAG_SIZE: Final = 16
OVERHEAD: Final = IV_SIZE + TAG_SIZE
"""How many bytes sealing adds."""

_DRAWN_AT_ONCE: Final = 1024
_R_MASK: Final = 0x0FFFFFFC0FFFFFFC0FFFFFFC0FFFFFFF


@dataclass(frozen=True, slots=True)
class Key:
    """What seals and opens: of the whole repository, or of one key file. Never shown."""

    encrypt: bytes = field(repr=False)
    """32 bytes, for AES-256."""
    mac_k: bytes = field(repr=False)
    """16 bytes, the AES key of Poly1305-AES."""
    mac_r: bytes = field(repr=False)
    """16 bytes, the number that Poly1305 evaluates at."""

    def __post_init__(self) -> None:
        if (len(self.encrypt), len(self.mac_k), len(self.mac_r)) != (32, 16, 16):
            raise errors.Damaged("a key of the repository has the wrong length")

    @classmethod
    def new(cls) -> Key:
        """A random one."""
        r = int.from_bytes(os.urandom(16), "little") & _R_MASK
        return cls(os.urandom(32), os.urandom(16), r.to_bytes(16, "little"))


class Scrypt(msgspec.Struct, frozen=True):
    """Parameters of the key derivation."""

    n: int
    r: int
    p: int

    def __post_init__(self) -> None:
        if self.n < 2 or self.n & (self.n - 1) or self.r < 1 or self.p < 1:
            raise errors.Damaged("a key file has impossible scrypt parameters")
        if 128 * self.n * self.r > _MOST_MEMORY or self.n * self.r * self.p > _MOST_WORK:
            raise errors.Damaged("a key file asks for more scrypt than is reasonable")


_MOST_MEMORY: Final = 256 << 20
_MOST_WORK: Final = 1 << 27  # about a minute

PASSPHRASE: Final = Scrypt(65536, 8, 4)
"""For what people choose: 64 MiB and about half a second a guess."""
GENERATED: Final = Scrypt(32768, 8, 1)
"""For ``keys.generate_password``: as quick as the format's readers expect; 255 random bits need no stretching."""


@lru_cache(maxsize=2)
def derive(password: str, salt: bytes, scrypt: Scrypt) -> Key:
    """The key of a password. Takes up to seconds, and lets other threads run meanwhile; the last ones are remembered,
    since one run may open a repository several times."""
    out = hashlib.scrypt(
        password.encode("utf-8", "surrogateescape"),
        salt=salt,
        n=scrypt.n,
        r=scrypt.r,
        p=scrypt.p,
        maxmem=_MOST_MEMORY + (64 << 20),
        dklen=64,
    )
    return Key(out[:32], out[32:48], out[48:])


class Sealer:
    """Seals and opens for **one thread**; each thread has its own. Fast: ciphers and IVs are made in advance."""

    def __init__(self, key: Key) -> None:
        self._r = key.mac_r
        self._ctr = Cipher(algorithms.AES(key.encrypt), modes.CTR(bytes(IV_SIZE))).encryptor()
        self._nonces = Cipher(algorithms.AES(key.mac_k), modes.ECB()).encryptor()  # noqa: S305 - one block each
        self._drawn: list[tuple[bytes, bytes]] = []
        self._process = 0

    def seal_into(self, plain: Buffer, room: memoryview) -> int:
        """Write the sealed bytes to the start of ``room`` and say how many: ``len(plain) + OVERHEAD``."""
        iv, nonce = self._iv()
        end = IV_SIZE + len(plain)
        body = room[IV_SIZE:end]
        self._ctr.reset_nonce(iv)
        self._ctr.update_into(plain, body)
        room[:IV_SIZE] = iv
        room[end : end + TAG_SIZE] = Poly1305.generate_tag(self._r + nonce, body)
        return end + TAG_SIZE

    def seal(self, plain: Buffer) -> bytes:
        """The sealed bytes."""
        room = bytearray(len(plain) + OVERHEAD)
        self.seal_into(plain, memoryview(room))
        return bytes(room)

    def open(self, sealed: Buffer, room: bytearray | None = None) -> bytearray | memoryview:
        """The plain bytes, at the start of ``room`` if that is given. Raises ``Damaged`` when they were not sealed with
        this key, or changed since."""
        view = memoryview(sealed)
        if len(view) < OVERHEAD:
            raise errors.Damaged("too short to be sealed")
        iv = view[:IV_SIZE].tobytes()
        body = view[IV_SIZE:-TAG_SIZE]
        try:  # in constant time
            Poly1305.verify_tag(self._r + self._nonces.update(iv), body, view[-TAG_SIZE:].tobytes())
        except InvalidSignature:
            raise errors.Damaged("the seal is broken") from None
        plain = bytearray(len(body)) if room is None else memoryview(room)[: len(body)]
        self._ctr.reset_nonce(iv)
        self._ctr.update_into(body, plain)
        return plain

    def _iv(self) -> tuple[bytes, bytes]:
        """A new IV, and what AES makes of it for the tag."""
        # A forked child has inherited the drawn ones: with them it would seal other bytes under the same IV.
        if not self._drawn or self._process != os.getpid():
            self._process = os.getpid()
            ivs = os.urandom(IV_SIZE * _DRAWN_AT_ONCE)
            nonces = self._nonces.update(ivs)
            starts = range(0, len(ivs), IV_SIZE)
            self._drawn = [(ivs[at : at + IV_SIZE], nonces[at : at + IV_SIZE]) for at in starts]
        return self._drawn.pop()
