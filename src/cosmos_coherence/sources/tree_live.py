"""What a tree holds, read by name while the stack may change it."""

from __future__ import annotations

import io
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Final

from msgspec import structs

from cosmos_coherence.copied import Copied, Found
from cosmos_coherence.drivers.folders import GONE, Folders, data_runs, from_stat, open_file, xattrs, xattrs_at
from cosmos_coherence.parts import TreeWriter
from cosmos_coherence.sources import tree_read, tree_scan

ONE_READ: Final = 1 << 19
"""A file up to this size is read in one call."""


class LiveTree:
    """The names below ``root``. Whatever cannot be read is ``CaptureFailed``."""

    def __init__(self, root: Path) -> None:
        """Opens nothing yet."""
        self._root = root

    @contextmanager
    def reading(self, path: bytes) -> Iterator[None]:
        """An ``OSError`` from inside becomes ``CaptureFailed``, which names this path."""
        try:
            yield
        except OSError as error:
            raise tree_scan.unreadable(path, self._root, error) from error

    @contextmanager
    def opened(self, folders: Folders, found: Found) -> Iterator[tuple[int, Copied | None]]:
        """The file's descriptor, and what is to be noted of it; None when the one that was found is not there now."""
        with self.reading(found.path):
            opened = open_file(folders, found.path)
        if opened is None:
            yield -1, None
            return
        file, status = opened
        try:
            with self.reading(found.path):
                now = from_stat(found.path, status, folders.device)
                same = now is not None and (now.dev, now.ino) == (found.dev, found.ino)
                data = data_runs(file, status)
                attributes = xattrs(file)
            yield file, Copied(now, attributes, data) if now is not None and same else None
        finally:
            os.close(file)

    def read(self, files: Iterable[Found], tree: TreeWriter) -> Iterator[Copied]:
        """Have the store take these files, as many at a time as it can; those that are there."""
        if tree.at_once == 1:
            with Folders(self._root) as folders:
                yield from filter(None, (self._read_one(folders, found, tree) for found in files))
            return

        def one(found: Found) -> Copied | None:
            with Folders(self._root) as folders:
                return self._read_one(folders, found, tree)

        with ThreadPoolExecutor(tree.at_once, "reader") as pool:
            yield from filter(None, pool.map(one, files))

    def look(self, folders: Folders, found: Found) -> Copied | None:
        """What is to be noted of a name that is no file; None when it is not there any more."""
        with self.reading(found.path):
            try:
                return Copied(found, xattrs_at(folders, found.path))
            except OSError as error:
                if error.errno not in GONE:
                    raise
        return None

    def _read_one(self, folders: Folders, found: Found, tree: TreeWriter) -> Copied | None:
        with self.opened(folders, found) as (file, copied):
            if copied is None:
                return None
            with self._content(file, copied) as content:
                return structs.replace(copied, digest=tree.add(copied.entry(), content))

    def _content(self, file: int, copied: Copied) -> BinaryIO:
        """What the file holds: exactly its size, whatever becomes of it meanwhile."""
        path, size = copied.found.path, copied.found.size
        if size <= ONE_READ and copied.data is None:
            with self.reading(path):
                return io.BytesIO(os.pread(file, size, 0).ljust(size, b"\0"))
        runs = [(offset, length, offset) for offset, length in copied.runs()]
        return tree_read.content(tree_read.OpenFile(file, path, self._root), size, runs)
