"""A sink and a reader of parts that keep everything in memory, as the protocols in ``parts`` promise it."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from msgspec.structs import replace

from cosmos_coherence import content_digest, errors
from cosmos_coherence.copied import Copied
from cosmos_coherence.model import Entry, PartFile

Tree = dict[bytes, tuple[Entry, bytes]]
"""Each path with its entry and its stored bytes: of a sparse file the runs of data one after another."""

_ORDER = {"dir": 0, "file": 1}


@dataclass
class MemorySink:
    """A ``Sink``. What ended well in it can be read through ``reader``."""

    streams: dict[str, bytes] = field(default_factory=dict)
    trees: dict[str, Tree] = field(default_factory=dict)
    writers: dict[str, MemoryTree] = field(default_factory=dict)

    @contextmanager
    def stream(self, name: str) -> Iterator[MemoryStream]:
        assert name not in self.streams, f"{name} is there already"
        stream = MemoryStream(name)
        yield stream
        self.streams[name] = bytes(stream.content)
        stream.ended = True

    def tree(self, name: str) -> MemoryTree:
        assert name not in self.writers, f"{name} is there already"
        self.writers[name] = MemoryTree(self.trees, name)
        return self.writers[name]

    def reader(self) -> MemoryReader:
        return MemoryReader(self.streams, self.trees)


@dataclass(frozen=True)
class MemoryReader:
    """A ``PartReader``. Its parts may be changed by a test that wants damaged ones."""

    streams: dict[str, bytes] = field(default_factory=dict)
    trees: dict[str, Tree] = field(default_factory=dict)

    def place(self, name: str, folder: Path) -> None:
        return None

    @contextmanager
    def open(self, name: str) -> Iterator[BinaryIO]:
        if name not in self.streams:
            raise errors.NotFound(f"the backup holds no {name}")
        with io.BytesIO(self.streams[name]) as content:
            yield content

    def tree(self, name: str) -> Iterator[tuple[Entry, BinaryIO | None]]:
        if name not in self.trees:
            raise errors.NotFound(f"the backup holds no {name}")
        return read(self.trees[name].values())

    def names(self) -> tuple[str, ...]:
        return tuple(sorted([*self.streams, *self.trees]))


class MemoryStream:
    def __init__(self, name: str) -> None:
        self.name, self.content, self.ended = name, bytearray(), False

    def write(self, data: bytes | memoryview, /) -> int:
        self.content += data
        return len(data)

    def file(self) -> PartFile:
        assert self.ended, "the stream has not ended"
        return _part_file(self.name, bytes(self.content))


class MemoryTree:
    def __init__(self, trees: dict[str, Tree], name: str) -> None:
        self._trees, self._name = trees, name
        self.files: dict[bytes, tuple[int, tuple[tuple[int, int], ...] | None, bytes]] = {}
        """Path -> size, runs and stored bytes."""
        self.added: list[bytes] = []
        """Every ``add``, in order, for tests that count."""

    @property
    def at_once(self) -> int:
        return 2

    def known(self) -> Mapping[bytes, Copied]:
        return {}

    def add_small(self, root: Path, paths: Iterable[bytes]) -> Iterator[Copied]:
        return iter(())

    def add(self, entry: Entry, content: BinaryIO) -> str:
        assert entry.kind == "file"
        self.added.append(entry.path)
        if entry.data is None:
            stored = content.read()
            self.files[entry.path] = (len(stored), None, stored)
            return content_digest.of(stored)
        plain = bytearray(entry.size)
        stored = b""
        for offset, length in entry.data:
            content.seek(offset)
            piece = content.read(length)
            assert len(piece) == length, "a run ends early"
            plain[offset : offset + length] = piece
            stored += piece
        self.files[entry.path] = (entry.size, entry.data, stored)
        return content_digest.of(bytes(plain))

    def drop(self, path: bytes) -> None:
        self.files.pop(path, None)

    def same_print(self) -> None:
        return None

    def finish(self, names: Iterable[Copied]) -> PartFile:
        tree: Tree = {}
        last = None
        for entry in (each.entry() for each in names):
            assert entry.path == b"" if last is None else entry.path > last, "root first, then in byte order"
            last = entry.path
            if entry.kind == "file":
                size, data, stored = self.files.pop(entry.path)
                tree[entry.path] = (replace(entry, size=size, data=data), stored)
            else:
                tree[entry.path] = (entry, b"")
            if entry.kind == "hardlink":
                assert tree[entry.target][0].kind == "file", "the file comes before its further names"
        assert not self.files, f"added and not named: {sorted(self.files)}"
        self._trees[self._name] = tree
        return _part_file(self._name, repr(sorted(tree.items())).encode())


def read(tree: Iterable[tuple[Entry, bytes]]) -> Iterator[tuple[Entry, BinaryIO | None]]:
    """Entries as a reader gives them: folders, files, everything else."""
    for entry, stored in sorted(tree, key=lambda pair: (_ORDER.get(pair[0].kind, 2), pair[0].path)):
        if entry.kind == "file":
            with io.BytesIO(stored) as content:
                yield entry, content
        else:
            yield entry, None


def _part_file(name: str, content: bytes) -> PartFile:
    return PartFile(name, len(content), hashlib.sha256(content).hexdigest(), len(content))
