"""What the last backup saw of each tree, kept on this machine: the next one need not fetch and read every folder again.

Nothing depends on it. It belongs to one snapshot; one that is missing, of another snapshot or damaged counts as none,
and the trees in the repository say the same, only slower.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import msgspec

from cosmos_coherence import errors
from cosmos_coherence.model import Copied
from cosmos_coherence.repository.tree_writer import Before
from cosmos_coherence.storage import local

_DIGEST_SIZE: Final = 32


class _State(msgspec.Struct, array_like=True, gc=False):
    snapshot: str
    name: str
    names: list[Copied]
    large: dict[bytes, tuple[str, ...]]
    folders: dict[bytes, tuple[str, int]]


_decode: Final = msgspec.msgpack.Decoder(_State).decode


class TreeCache:
    """Such states in a private folder, which is made when needed; those of one stack in one repository."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def load(self, snapshot: str, name: str) -> Before | None:
        """The tree as that snapshot has it; None when nothing is known."""
        try:
            plain = self._file(name).read_bytes()
            body = memoryview(plain)[_DIGEST_SIZE:]
            if hashlib.sha256(body).digest() != plain[:_DIGEST_SIZE]:
                return None
            state = _decode(body)
        except (OSError, msgspec.MsgspecError, RecursionError):
            return None
        if (state.snapshot, state.name) != (snapshot, name):
            return None
        return Before({each.found.path: each for each in state.names}, state.large, state.folders)

    def save(self, snapshot: str, states: Mapping[str, Before]) -> None:
        """Keep the trees of a snapshot. Never raises: without room there is no cache."""
        with contextlib.suppress(errors.CosmosError, OSError):
            local.make_private(self._folder)
            for useless in set(self._folder.iterdir()) - {self._file(name) for name in states}:
                useless.unlink()
            for name, state in states.items():
                body = msgspec.msgpack.encode(
                    _State(snapshot, name, list(state.names.values()), dict(state.large), dict(state.folders))
                )
                local.write_atomically(self._file(name), hashlib.sha256(body).digest() + body)

    def _file(self, name: str) -> Path:
        return self._folder / hashlib.sha256(name.encode("utf-8", "surrogateescape")).hexdigest()[:32]
