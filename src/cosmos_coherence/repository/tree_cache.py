"""What the last backup saw of each tree, kept on this machine: the next one need not fetch and read every folder again.

Nothing depends on it. It belongs to a tree, which is named by the hash of all that is in it; one that is missing, of
another tree or damaged counts as none, and the trees in the repository say the same, only slower.

A file is a run of frames, each with its length before it in four bytes, and the SHA-256 of all that in the end. It is
written and read frame by frame, so that it costs no memory beyond the names themselves.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import BinaryIO, Final

import msgspec

from cosmos_coherence import errors, interruption
from cosmos_coherence.copied import Copied
from cosmos_coherence.repository import collection
from cosmos_coherence.repository.tree_writer import Before
from cosmos_coherence.storage import local

_DIGEST_SIZE: Final = 32
_LENGTH_SIZE: Final = 4
_TOGETHER: Final = 4096
"""Names in a frame."""
_PIECE: Final = 1 << 20


class _Head(msgspec.Struct, array_like=True):
    tree: str
    large: dict[bytes, tuple[str, ...]]
    folders: dict[bytes, tuple[str, int]]
    index_files: frozenset[str] = frozenset()


_head: Final = msgspec.msgpack.Decoder(_Head).decode
_names: Final = msgspec.msgpack.Decoder(list[Copied]).decode


class TreeCache:
    """Such states of one stack in a private folder, which is made when needed."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._ahead: dict[Path, tuple[str, Before] | None] = {}

    @contextlib.contextmanager
    def reading_ahead(self) -> Iterator[None]:
        """All that is there is read by a thread during the block, which ends when that has."""
        with collection.paused():
            thread = interruption.Thread(target=self._read_all, name="tree cache")
            thread.start()
            try:
                yield
            finally:
                thread.join()

    def load(self, name: str, tree: str) -> Before | None:
        """What is known of the tree of that id under the name; None when nothing is. To be asked once."""
        file = self._file(name)
        read = self._ahead.pop(file) if file in self._ahead else _read(file)
        return read[1] if read is not None and read[0] == tree else None

    def save(self, states: Mapping[str, Before]) -> None:
        """Keep these trees by their names, and no others. Never raises: without room there is no cache."""
        with contextlib.suppress(errors.CosmosError, OSError):
            local.make_private(self._folder)
            for useless in set(self._folder.iterdir()) - {self._file(name) for name in states}:
                useless.unlink()
            for name, state in states.items():
                if not self._has(name, state):
                    self._save(self._file(name), state)

    def _has(self, name: str, state: Before) -> bool:
        """Whether it is there, by its first frame: what is damaged behind that shows when it is read."""
        with contextlib.suppress(OSError, StopIteration, msgspec.MsgspecError), self._file(name).open("rb") as file:
            head = _head(next(_frames(file, 1)))
            known = head.index_files and head.index_files <= state.index_files
            return head.tree == state.folders[b""][0] and bool(known)
        return False

    def _save(self, path: Path, state: Before) -> None:
        head = _Head(state.folders[b""][0], dict(state.large), dict(state.folders), state.index_files)
        new = path.with_suffix(".new")
        new.unlink(missing_ok=True)
        with open(local.create(new), "wb") as file:  # noqa: PTH123 - a descriptor
            digest = hashlib.sha256()

            def put(frame: bytes) -> None:
                for piece in (len(frame).to_bytes(_LENGTH_SIZE, "little"), frame):
                    digest.update(piece)
                    file.write(piece)

            put(msgspec.msgpack.encode(head))
            left = iter(state.names.values())
            while some := list(islice(left, _TOGETHER)):
                put(msgspec.msgpack.encode(some))
            file.write(digest.digest())
        local.publish(new, path)

    def _file(self, name: str) -> Path:
        return self._folder / hashlib.sha256(name.encode("utf-8", "surrogateescape")).hexdigest()[:32]

    def _read_all(self) -> None:
        with contextlib.suppress(OSError):
            for file in self._folder.iterdir():
                self._ahead[file] = _read(file)


def _read(path: Path) -> tuple[str, Before] | None:
    """The id of a tree, and what is known of it; None where that cannot be read."""
    with contextlib.suppress(OSError, ValueError, StopIteration, msgspec.MsgspecError, RecursionError):
        with path.open("rb") as file:
            frames = _frames(file, _checked(file))
            head = _head(next(frames))
            names = {each.found.path: each for frame in frames for each in _names(frame)}
        return head.tree, Before(names, head.large, head.folders, head.index_files)
    return None


def _checked(file: BinaryIO) -> int:
    """How many bytes of frames there are. ``ValueError`` when they are not what was written."""
    size = file.seek(0, 2) - _DIGEST_SIZE
    file.seek(0)
    digest, left = hashlib.sha256(), size
    while left > 0:
        piece = file.read(min(left, _PIECE))
        digest.update(piece)
        left -= len(piece) or left
    if size < 0 or file.read() != digest.digest():
        raise ValueError("damaged")
    file.seek(0)
    return size


def _frames(file: BinaryIO, size: int) -> Iterator[bytes]:
    while size > 0:
        length = int.from_bytes(file.read(_LENGTH_SIZE), "little")
        yield file.read(length)
        size -= _LENGTH_SIZE + length
