"""The one file of an archive: a tar in a gzip that does not compress again what is compressed already."""

from __future__ import annotations

import os
from pathlib import Path
from types import TracebackType
from typing import Self

from msgspec.structs import replace

from cosmos_coherence import errors
from cosmos_coherence.archive import tarformat
from cosmos_coherence.archive.folder import FolderFile
from cosmos_coherence.archive.gzipped import MEMBER, StoredGzip
from cosmos_coherence.archive.stored import Stored
from cosmos_coherence.model import Entry
from cosmos_coherence.parts import CONFIGS
from cosmos_coherence.storage import local


class OuterTar:
    """Writes a new file, mode 0600, of members below one folder; whole once its block ended without an exception."""

    def __init__(self, path: Path, root: bytes, mtime_ns: int) -> None:
        """``root`` is the one folder; everything that has no time of its own gets ``mtime_ns``."""
        self._root, self._mtime_ns = root, mtime_ns
        self._path = path
        self._descriptor = local.create(path)
        self._gzip = StoredGzip()
        self._folders: set[bytes] = set()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        try:
            if kind is None:
                self._write(tarformat.END)
                self._put(self._gzip.end())
        finally:
            os.close(self._descriptor)

    def content(self, path: str, content: bytes) -> None:
        """A small file of our own."""
        self._head(self._ours(path, len(content)))
        self._write(content + tarformat.padding(len(content)))

    def file(self, stored: Stored) -> None:
        """A file of the spool, which is removed: its bytes are in the archive now."""
        self._head(self._ours(stored.file.path, stored.file.size))
        self._copy(stored.spool, stored.pieces)
        stored.spool.unlink()

    def link(self, path: str, target: str) -> None:
        """A second name of a file that is in the archive already."""
        entry = self._ours(path, 0)
        self._head(replace(entry, kind="hardlink", target=self._root + b"/" + target.encode()))

    def folder_file(self, file: FolderFile) -> None:
        """One name of the configuration, with its own metadata."""
        path = b"/".join(step for step in (self._root, CONFIGS.encode(), file.entry.path) if step)
        entry = replace(file.entry, path=path)
        self._head(entry)
        if entry.kind == "dir":
            self._folders.add(path)
        if file.path is not None:
            self._copy(file.path, ((0, entry.size),))

    def _ours(self, path: str, size: int) -> Entry:
        name = self._root + b"/" + path.encode()
        return Entry(path=name, kind="file", mode=0o600, mtime_ns=self._mtime_ns, size=size)

    def _head(self, entry: Entry) -> None:
        steps = entry.path.split(b"/")
        for depth in range(1, len(steps)):
            folder = b"/".join(steps[:depth])
            if folder not in self._folders:
                self._folders.add(folder)
                self._write(tarformat.header(Entry(path=folder, kind="dir", mode=0o700, mtime_ns=self._mtime_ns)))
        self._write(tarformat.header(entry))

    def _copy(self, path: Path, pieces: tuple[tuple[int, int], ...]) -> None:
        with path.open("rb", buffering=0) as file:
            for offset, size in pieces:
                file.seek(offset)
                left = size
                while left:
                    data = file.read(min(left, MEMBER))
                    if not data:
                        raise errors.CaptureFailed(f"{path} was cut short by somebody else")
                    self._write(data)
                    left -= len(data)
        self._write(tarformat.padding(sum(size for _, size in pieces)))

    def _write(self, data: bytes) -> None:
        self._put(self._gzip.pack(data))

    def _put(self, packed: bytes) -> None:
        with local.translated(f"writing {self._path}"):
            local.write_all(self._descriptor, packed)
