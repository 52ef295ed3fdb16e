"""How far a backup or a restore has come: bytes and files as they pass, told a few times a second."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, cast

from cosmos_coherence.copied import Copied
from cosmos_coherence.flow.events import Advanced, Emit
from cosmos_coherence.model import Entry, Manifest, PartFile, TreePrint
from cosmos_coherence.parts import BackupReader, BackupWriter, Placed, Stream, TreeWriter

_EVERY_S = 0.2
_TOLD_TOGETHER = 256
"""Files that pass without a word for each."""


class Meter:
    """Counts bytes and files by name, and tells them. Safe to use from several threads.

    ``expected`` says how many bytes a name held the last time: from it comes what is left. Where nobody knows, nothing
    is guessed.
    """

    def __init__(self, emit: Emit, expected: Mapping[str, int], clock: Callable[[], float] = time.monotonic) -> None:
        self._emit, self._expected, self._clock = emit, expected, clock
        self._lock = threading.Lock()
        self._bytes: dict[str, int] = {}
        self._files: dict[str, int] = {}
        self._began = self._told = clock()

    def add(self, name: str, size: int, files: int = 0) -> None:
        """So much more of a name has passed."""
        with self._lock:
            self._bytes[name] = self._bytes.get(name, 0) + size
            self._files[name] = self._files.get(name, 0) + files
            now = self._clock()
            if now - self._told < _EVERY_S:
                return
            self._told = now
            event = self._event(name, now)
        self._emit(event)

    def _event(self, name: str, now: float) -> Advanced:
        done, seconds = sum(self._bytes.values()), max(now - self._began, 1e-3)
        total = sum(max(size, self._bytes.get(each, 0)) for each, size in self._expected.items())
        total += sum(size for each, size in self._bytes.items() if each not in self._expected)
        known = bool(self._expected)
        speed = done / seconds
        return Advanced(
            name=name,
            bytes_done=self._bytes[name],
            files_done=self._files[name],
            all_bytes=done,
            all_files=sum(self._files.values()),
            total_bytes=total if known else None,
            bytes_per_s=speed,
            seconds_left=(total - done) / speed if known and speed else None,
        )


def expected_of(manifest: Manifest | None) -> dict[str, int]:
    """What the parts of a backup held, by the path that names them less what an archive adds to it."""
    files = [file for part in manifest.parts for file in part.files] if manifest else []
    return {file.path.removesuffix(".tar.gz").removesuffix(".gz"): file.plain_size or file.size for file in files}


class MeteredWriter:
    """A ``parts.BackupWriter`` that passes everything on and tells the meter."""

    def __init__(self, writer: BackupWriter, meter: Meter) -> None:
        self._writer, self._meter = writer, meter

    @property
    def id(self) -> str:
        """As ``parts.BackupWriter`` says."""
        return self._writer.id

    @property
    def spool(self) -> Path:
        """As ``parts.BackupWriter`` says."""
        return self._writer.spool

    @property
    def stored(self) -> int:
        """As ``parts.BackupWriter`` says."""
        return self._writer.stored

    @contextmanager
    def stream(self, name: str) -> Iterator[Stream]:
        """As ``parts.Sink`` says."""
        with self._writer.stream(name) as stream:
            yield _MeteredStream(stream, lambda size: self._meter.add(name, size))

    def tree(self, name: str) -> TreeWriter:
        """As ``parts.Sink`` says."""
        return _MeteredTree(self._writer.tree(name), lambda size, files: self._meter.add(name, size, files))

    def last(self) -> Manifest | None:
        """As ``parts.BackupWriter`` says."""
        return self._writer.last()

    def pack(self, manifest: Manifest) -> object:
        """As ``parts.BackupWriter`` says."""
        return self._writer.pack(manifest)

    def verify(self) -> None:
        """As ``parts.BackupWriter`` says."""
        self._writer.verify()

    def publish(self) -> Path | str:
        """As ``parts.BackupWriter`` says."""
        return self._writer.publish()

    def abort(self) -> None:
        """As ``parts.BackupWriter`` says."""
        self._writer.abort()


class MeteredReader:
    """A ``parts.BackupReader`` that passes everything on and tells the meter."""

    def __init__(self, reader: BackupReader, meter: Meter) -> None:
        self._reader, self._meter = reader, meter

    @property
    def manifest(self) -> Manifest:
        """As ``parts.BackupReader`` says."""
        return self._reader.manifest

    def names(self) -> tuple[str, ...]:
        """As ``parts.PartReader`` says."""
        return self._reader.names()

    def logical(self, file: PartFile) -> str:
        """As ``parts.BackupReader`` says."""
        return self._reader.logical(file)

    def hashed(self, name: str) -> Iterator[tuple[Entry, str]]:
        """As ``parts.BackupReader`` says."""
        return self._reader.hashed(name)

    def place(self, name: str, folder: Path) -> Placed | None:
        """As ``parts.PartReader`` says; told when it is done."""
        placed = self._reader.place(name, folder)
        if placed is not None:
            trees = (p.fingerprint.tree for p in self.manifest.parts if name in map(self.logical, p.files))
            tree = next((tree for tree in trees if tree), None)
            self._meter.add(name, tree.size if tree else 0, tree.files if tree else 0)
        return placed

    @contextmanager
    def open(self, name: str) -> Iterator[BinaryIO]:
        """As ``parts.PartReader`` says."""
        with self._reader.open(name) as content:
            yield cast(BinaryIO, _MeteredContent(content, lambda size: self._meter.add(name, size)))

    def tree(self, name: str) -> Iterator[tuple[Entry, BinaryIO | None]]:
        """As ``parts.PartReader`` says."""
        for entry, content in self._reader.tree(name):
            yield entry, content
            if content is not None:
                self._meter.add(name, entry.size, 1)


class _MeteredStream:
    def __init__(self, stream: Stream, passed: Callable[[int], None]) -> None:
        self._stream, self._passed = stream, passed

    def write(self, data: bytes | memoryview, /) -> int:
        size = self._stream.write(data)
        self._passed(len(data))
        return size

    def file(self) -> PartFile:
        return self._stream.file()


class _MeteredTree:
    def __init__(self, tree: TreeWriter, passed: Callable[[int, int], None]) -> None:
        self._tree, self._passed = tree, passed

    @property
    def at_once(self) -> int:
        return self._tree.at_once

    def known(self) -> Mapping[bytes, Copied]:
        known = self._tree.known()
        sizes = [copied.found.size for copied in known.values() if copied.digest]
        self._passed(sum(sizes), len(sizes))
        return known

    def add_small(self, root: Path, paths: Iterable[bytes]) -> Iterator[Copied]:
        return self._counted(self._tree.add_small(root, paths))

    def add(self, entry: Entry, content: BinaryIO) -> str:
        digest = self._tree.add(entry, content)
        self._passed(entry.size, 1)
        return digest

    def drop(self, path: bytes) -> None:
        self._tree.drop(path)

    def finish(self, names: Iterable[Copied]) -> PartFile:
        return self._tree.finish(names)

    def same_print(self) -> TreePrint | None:
        return self._tree.same_print()

    def _counted(self, names: Iterable[Copied]) -> Iterator[Copied]:
        size = count = 0
        for copied in names:
            if copied.digest:
                size += copied.found.size
                count += 1
                if count == _TOLD_TOGETHER:
                    self._passed(size, count)
                    size = count = 0
            yield copied
        self._passed(size, count)


class _MeteredContent:
    """Only what a restorer does with a stream: it reads."""

    def __init__(self, content: BinaryIO, passed: Callable[[int], None]) -> None:
        self._content, self._passed = content, passed

    def read(self, size: int = -1, /) -> bytes:
        data = self._content.read(size)
        self._passed(len(data))
        return data
