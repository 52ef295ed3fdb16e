"""Which user a container's program writes as, in numbers: names mean what the container's own ``/etc/passwd`` says."""

from __future__ import annotations

import contextlib
import io
import tarfile
import time
from collections.abc import Iterator
from contextlib import contextmanager

from cosmos_coherence import errors
from cosmos_coherence.drivers.docker_facts import ROLE, Facts
from cosmos_coherence.drivers.engine import Engine

_LARGEST = 1 << 20
_LARGEST_ID = 2**32 - 2
_OLD_S = 600.0


def user_of(engine: Engine, container: Facts, target: str) -> tuple[int, int]:
    """As ``Runtime.user_of``, for an inspected container."""
    user, _, group = str(container["Config"].get("User") or "").partition(":")
    uid, gid = _user(engine, container, user or "0")
    if group:
        gid = _group(engine, container, group)
    if uid:
        return uid, gid
    with _from_image(engine, str(container["Image"])) as fresh:
        return _owner(engine, fresh, target) or (uid, gid)


def _user(engine: Engine, container: Facts, name: str) -> tuple[int, int]:
    rows = [row for row in _rows(engine, container, "/etc/passwd") if len(row) > 3]
    for row in rows:
        if name == row[0] or (_number(name) is not None and _number(name) == _number(row[2])):
            uid, gid = _number(row[2]), _number(row[3])
            if uid is not None and gid is not None:
                return uid, gid
    if (number := _number(name)) is not None:
        return number, 0
    raise errors.NotFound(
        f"user {name!r} is not in the /etc/passwd of {str(container.get('Name')).lstrip('/')}",
        remedy="Name the user by its number in the Compose file.",
    )


def _group(engine: Engine, container: Facts, name: str) -> int:
    if (number := _number(name)) is not None:
        return number
    for row in _rows(engine, container, "/etc/group"):
        if len(row) > 2 and row[0] == name and (gid := _number(row[2])) is not None:
            return gid
    raise errors.NotFound(
        f"group {name!r} is not in the /etc/group of {str(container.get('Name')).lstrip('/')}",
        remedy="Name the group by its number in the Compose file.",
    )


def _number(text: str) -> int | None:
    """An id, or None for what is none."""
    fits = text.isascii() and text.isdecimal() and len(text) <= len(str(_LARGEST_ID)) and int(text) <= _LARGEST_ID
    return int(text) if fits else None


def _rows(engine: Engine, container: Facts, path: str) -> list[list[str]]:
    """The lines of a file, split at colons; none where there is no such file."""
    member, content = _member(engine, str(container["Id"]), path, whole=True)
    if member is None or not member.isreg():
        return []
    return [line.split(":") for line in content.decode("utf-8", "replace").splitlines()]


def _owner(engine: Engine, container: str, path: str) -> tuple[int, int] | None:
    """Of a folder in a container; None where there is none."""
    member, _ = _member(engine, container, path, whole=False)
    if member is None or not (0 <= member.uid <= _LARGEST_ID and 0 <= member.gid <= _LARGEST_ID):
        return None
    return member.uid, member.gid


def _member(engine: Engine, container: str, path: str, *, whole: bool) -> tuple[tarfile.TarInfo | None, bytes]:
    """The first member of what the engine gives as the tar of ``path``, and with ``whole`` its content."""
    try:
        pieces, _ = engine.ask("get_archive", container, path)
    except errors.NotFound:
        return None, b""
    data = b""
    for piece in pieces:
        data += piece
        if len(data) > _LARGEST or (not whole and len(data) >= tarfile.RECORDSIZE):
            break
    pieces.close()
    try:
        with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as tar:
            member = tar.next()
            content = tar.extractfile(member) if whole and member is not None and member.isreg() else None
            return member, content.read() if content else b""
    except (tarfile.TarError, OSError):
        return None, b""


@contextmanager
def _from_image(engine: Engine, image: str) -> Iterator[str]:
    """A container that never runs, to look at what the image itself holds. What a killed call left goes first."""
    for old in engine.ask("containers", all=True, filters={"label": f"{ROLE}=look"}):
        if old["Created"] < time.time() - _OLD_S:
            _remove(engine, old["Id"])
    container = str(engine.ask("create_container", image, entrypoint=["true"], command=[], labels={ROLE: "look"})["Id"])
    try:
        yield container
    finally:
        _remove(engine, container)


def _remove(engine: Engine, container: str) -> None:
    with contextlib.suppress(errors.CosmosError):
        engine.ask("remove_container", container, force=True, v=True)
