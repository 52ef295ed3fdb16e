"""Key files: each opens the same master key with another password.

They are the only files that are not sealed as a whole: JSON in the format's own spelling ("Keys, Encryption and MAC" of
the restic design document).
"""

from __future__ import annotations

import binascii
import hashlib
import os
import pwd
import secrets
import socket
from base64 import b64decode
from datetime import UTC, datetime
from typing import Final

import msgspec

from cosmos_coherence import errors
from cosmos_coherence.repository.crypto import GENERATED, PASSPHRASE, Key, Scrypt, Sealer, derive
from cosmos_coherence.storage.backend import Backend

_SALT_SIZE: Final = 64
_LARGEST: Final = 64 << 10
_ALPHABET: Final = "abcdefghijkmnpqrstuvwxyz23456789"


class KeyInfo(msgspec.Struct, frozen=True):
    """What a key file says about itself; nothing of it is proven."""

    id: str
    hostname: str
    username: str
    created_at: str


class Opened(msgspec.Struct, frozen=True):
    """A master key, and the id of the key file that gave it."""

    id: str
    master: Key


class _KeyFile(msgspec.Struct, frozen=True):
    created: str = ""
    username: str = ""
    hostname: str = ""
    kdf: str = ""
    N: int = 0
    r: int = 0
    p: int = 0
    salt: str = ""
    data: str = ""


class _Mac(msgspec.Struct, frozen=True):
    k: bytes
    r: bytes


class _Master(msgspec.Struct, frozen=True):
    mac: _Mac
    encrypt: bytes


def generate_password() -> str:
    """A password of 255 random bits: 51 letters and digits of which no two look alike."""
    return "".join(secrets.choice(_ALPHABET) for _ in range(51))


def create(backend: Backend, password: str, master: Key, *, generated: bool = False) -> str:
    """Add a key file that opens ``master`` with ``password``, and return its id.

    ``generated`` says that the password came from ``generate_password``: deriving its key may then be cheap. Raises
    ``UsageError`` for an empty password, and the backend's errors.
    """
    if not password:
        raise errors.UsageError("the password is empty", remedy="Give a password, or let `cosmos init` make one.")
    salt, scrypt = os.urandom(_SALT_SIZE), GENERATED if generated else PASSPHRASE
    plain = msgspec.json.encode(_Master(_Mac(master.mac_k, master.mac_r), master.encrypt))
    sealed = Sealer(derive(password, salt, scrypt)).seal(plain)
    content = msgspec.json.encode(
        _KeyFile(
            created=datetime.now(UTC).isoformat().replace("+00:00", "Z"),
            username=username(),
            hostname=socket.gethostname(),
            kdf="scrypt",
            N=scrypt.n,
            r=scrypt.r,
            p=scrypt.p,
            salt=_base64(salt),
            data=_base64(sealed),
        )
    )
    name = hashlib.sha256(content).hexdigest()
    backend.save("keys", name, [content])
    return name


def find(backend: Backend, password: str) -> Opened:
    """The master key, from whichever key file opens with ``password``.

    Raises ``WrongPassword`` when none does, ``NotFound`` when there is none (no repository), ``Damaged`` when none
    opens and one cannot be read.
    """
    names = sorted(stored.name for stored in backend.list("keys") if stored.size <= _LARGEST)
    if not names:
        raise errors.NotFound(f"there is no repository in {backend.location}", remedy="`cosmos init` makes one.")
    damaged: errors.CosmosError | None = None
    for name in names:
        try:
            master = _open(_load(backend, name), password)
        except (errors.Damaged, errors.NotFound) as error:  # another may still open, and one may just be removed
            damaged = error
            continue
        if master is not None:
            return Opened(name, master)
    if damaged is not None:
        raise errors.Damaged(f"no key of {backend.location} opens, and one of them is damaged: {damaged}")
    raise errors.WrongPassword(f"no key of {backend.location} opens with this password")


def listing(backend: Backend) -> tuple[KeyInfo, ...]:
    """What is known of every key file, oldest first. One that cannot be read is listed with its id alone."""
    found = []
    for stored in backend.list("keys"):
        try:
            file = _load(backend, stored.name)
        except errors.Damaged:
            file = _KeyFile()
        found.append(KeyInfo(stored.name, file.hostname, file.username, file.created))
    return tuple(sorted(found, key=lambda key: (key.created_at, key.id)))


def remove(backend: Backend, name: str, *, in_use: str) -> None:
    """Remove the key file ``name``. ``in_use`` is the one the repository was opened with.

    Raises ``NotFound``, and ``Refused`` for the last key and for the one in use. Whoever had the password may have kept
    the master key: after a leak only a new repository helps.
    """
    names = {stored.name for stored in backend.list("keys")}
    if name not in names:
        raise errors.NotFound(f"the repository has no key {name}")
    if len(names) == 1:
        raise errors.Refused("it is the last key: without it the repository is lost", remedy="Add another key first.")
    if name == in_use:
        raise errors.Refused("it is the key in use", remedy="Open the repository with another password first.")
    backend.remove("keys", name)


def change_password(backend: Backend, opened: Opened, password: str, *, generated: bool = False) -> Opened:
    """Put a key file for the new password in the place of the one in use.

    The new one is durable, and has been opened, before the old one goes. Errors as in ``create``.
    """
    name = create(backend, password, opened.master, generated=generated)
    if _open(_load(backend, name), password) != opened.master:
        raise errors.Damaged("the new key file does not open; the old one was kept")
    if name != opened.id:
        backend.remove("keys", opened.id)
    return Opened(name, opened.master)


def _load(backend: Backend, name: str) -> _KeyFile:
    content = backend.load("keys", name)
    if hashlib.sha256(content).hexdigest() != name:
        raise errors.Damaged(f"key file {name[:8]} is not what its name says")
    try:
        return msgspec.json.decode(content, type=_KeyFile)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise errors.Damaged(f"key file {name[:8]} is not one: {error}") from error


def _open(file: _KeyFile, password: str) -> Key | None:
    """The master key; None when the password is another's."""
    if file.kdf != "scrypt":
        raise errors.Damaged(f"a key file derives with {file.kdf!r}")
    scrypt = Scrypt(file.N, file.r, file.p)
    try:
        salt, sealed = b64decode(file.salt, validate=True), b64decode(file.data, validate=True)
    except (binascii.Error, ValueError) as error:
        raise errors.Damaged(f"a key file is not Base64: {error}") from error
    try:
        plain = Sealer(derive(password, salt, scrypt)).open(sealed)
    except errors.Damaged:
        return None
    try:
        master = msgspec.json.decode(plain, type=_Master)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise errors.Damaged(f"a key file holds no master key: {error}") from error
    return Key(master.encrypt, master.mac.k, master.mac.r)


def _base64(data: bytes) -> str:
    return binascii.b2a_base64(data, newline=False).decode()


def username() -> str:
    """Who we are on this machine, for people."""
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:  # a user id without a name, as in many containers
        return str(os.geteuid())
