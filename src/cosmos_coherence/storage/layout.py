"""The layout that restic gives a repository, the same in every place: which file lies where."""

from __future__ import annotations

import re

from cosmos_coherence import errors
from cosmos_coherence.storage.backend import Kind

SUBFOLDERS = tuple(f"{number:02x}" for number in range(256))
"""Folders of ``data``: the first two letters of the names in them."""

_NAME = re.compile(r"[0-9a-f]{64}")


def is_name(text: str) -> bool:
    """Whether a repository would name a file so: a SHA-256 in lower-case hex. Whatever else lies there is foreign."""
    return _NAME.fullmatch(text) is not None


def folder_of(kind: Kind, name: str) -> str:
    """The folder in which that file lies, below the root and without slashes around it; ``""`` for ``config``.

    Raises ``Damaged`` for a name that no repository has: one that came from a hostile listing must not become a path.
    """
    if kind == "config":
        if name:
            raise errors.Damaged(f"the configuration of a repository has no name, and was asked for as {name!r}")
        return ""
    if not is_name(name):
        raise errors.Damaged(f"{name!r} is not a name that a repository gives to a file")
    return f"data/{name[:2]}" if kind == "data" else kind


def path_of(kind: Kind, name: str) -> str:
    """The path of that file below the root: ``config``, ``keys/ID``, ``data/XX/ID``. Errors as in ``folder_of``."""
    folder = folder_of(kind, name)
    return f"{folder}/{name}" if folder else "config"


def require_same(where: str, found: int, size: int) -> bool:
    """True: what is there has as many bytes as were to be written, so it is the same file. Else ``Refused``."""
    if found != size:
        raise errors.Refused(
            f"{where} is there with {found} bytes, and {size} were to be written",
            remedy="Run `cosmos check`: that file is damaged, or the place is not a repository.",
        )
    return True
