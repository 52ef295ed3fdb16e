"""What a repository asks of its place, tried out before the first backup relies on it."""

from __future__ import annotations

import contextlib
import hashlib
import secrets

from cosmos_coherence import errors
from cosmos_coherence.storage.backend import Backend, Kind

_SIZE = 3000
_KIND: Kind = "locks"
"""The one kind that every store lets go of, append-only ones too. At ``init`` nobody else is there to take it for a
lock; a killed probe leaves one that is no lock, and that ``unlock`` removes."""


def probe(backend: Backend) -> None:
    """Write a small random object, look at it from all sides, and remove it; nothing is left behind.

    Raises ``Refused`` naming what the store does wrong, and whatever the calls themselves raise.
    """
    content = secrets.token_bytes(_SIZE)
    name = hashlib.sha256(content).hexdigest()
    try:
        backend.save(_KIND, name, [content[:1000], content[1000:]])
        _look(backend, name, content)
        _overwrite(backend, name, content)
        backend.remove(_KIND, name)
        _require(name not in _listed(backend), backend, "what was removed is still listed")
    except BaseException:
        with contextlib.suppress(errors.CosmosError):
            backend.remove(_KIND, name)
        raise


def _look(backend: Backend, name: str, content: bytes) -> None:
    _require(_listed(backend).get(name) is not None, backend, "what was just written is not listed")
    _require(_listed(backend)[name] == _SIZE, backend, "a listing tells a wrong size")
    _require(backend.size(_KIND, name) == _SIZE, backend, "it tells a wrong size")
    _require(backend.load(_KIND, name) == content, backend, "it gives back other bytes than were written")
    for what, offset, length in (("the middle", 1234, 777), ("the first byte", 0, 1), ("the last bytes", _SIZE - 9, 9)):
        _require_part(backend, name, what, offset, length, content[offset : offset + length])
    _require_part(backend, name, "the tail", 2000, None, content[2000:])


def _require_part(backend: Backend, name: str, what: str, offset: int, length: int | None, wanted: bytes) -> None:
    try:
        found = backend.load(_KIND, name, offset, length)
    except errors.Damaged as error:
        raise _refusal(backend, f"it does not answer ranged reads ({what} was asked for): {error}") from error
    _require(found == wanted, backend, f"a ranged read of {what} gives other bytes")


def _overwrite(backend: Backend, name: str, content: bytes) -> None:
    """A file that is there stays as it is; a shorter one of the same name is refused."""
    backend.save(_KIND, name, [content])
    with contextlib.suppress(errors.Refused):
        backend.save(_KIND, name, [content[:-1]])
    _require(backend.load(_KIND, name) == content, backend, "it overwrites what is there")


def _listed(backend: Backend) -> dict[str, int]:
    return {stored.name: stored.size for stored in backend.list(_KIND)}


def _require(holds: bool, backend: Backend, wrong: str) -> None:
    if not holds:
        raise _refusal(backend, wrong)


def _refusal(backend: Backend, wrong: str) -> errors.Refused:
    return errors.Refused(
        f"a repository cannot lie in {backend.location}: {wrong}",
        remedy="Use another store or a newer version of this one; `docs/tested-on.md` names stores that pass.",
    )
