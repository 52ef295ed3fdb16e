"""A file tree on its way from one folder to another: filled by a source, then given to the restorer of the other.

Contents wait as plain files beside the tree that they are for, so that putting them in their places is a rename.
"""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import BinaryIO, Final

from cosmos_coherence import errors
from cosmos_coherence.content_digest import ContentDigest
from cosmos_coherence.copied import Copied
from cosmos_coherence.drivers import disk
from cosmos_coherence.drivers.folders import FOLDER_FLAGS, Folders, link_place
from cosmos_coherence.model import Entry, PartFile
from cosmos_coherence.parts import Placed, Stream
from cosmos_coherence.sources import staging, tree_scan, tree_write

_CHUNK: Final = 1 << 20


def spool_in(root: Path, run: str) -> Path:
    """Where a copy into ``root`` keeps contents; no walk and no restore sees it."""
    return root / f"{os.fsdecode(tree_scan.WORK_PREFIX)}{run}-copy"


class TreeCopy:
    """A ``parts.Sink`` of one tree, and its ``parts.TreeWriter``; what it holds is read through ``reader``.

    ``spool`` lies on the file system of the target. As a context manager it makes the spool and removes it.
    """

    def __init__(self, spool: Path) -> None:
        self._spool = spool
        self._numbers: dict[bytes, int] = {}
        self._made = 0
        self._names: list[Copied] = []
        self._name = ""

    def __enter__(self) -> TreeCopy:
        staging.make_private(self._spool)
        return self

    def __exit__(self, *_: object) -> None:
        with staging.unnoticed(self._spool.parent):
            shutil.rmtree(self._spool, ignore_errors=True)

    def stream(self, name: str) -> AbstractContextManager[Stream]:
        """There is only a tree."""
        raise errors.Unsupported(f"{name} is no file tree")

    def tree(self, name: str) -> TreeCopy:
        """The one tree, whatever its name."""
        self._name = name
        return self

    @property
    def at_once(self) -> int:
        """One file after the other."""
        return 1

    def known(self) -> Mapping[bytes, Copied]:
        """Nothing is."""
        return {}

    def add_small(self, root: Path, paths: Iterable[bytes]) -> Iterator[Copied]:
        """All files come by ``add``."""
        return iter(())

    def add(self, entry: Entry, content: BinaryIO) -> str:
        """As ``parts.TreeWriter`` says. Raises ``NoRoom`` and ``RestoreFailed``."""
        if entry.path not in self._numbers:
            self._made += 1
            self._numbers[entry.path] = self._made
        place = self._place(entry.path)
        with staging.translated(place), place.open("wb") as file:
            return _written(entry, content, file)

    def drop(self, path: bytes) -> None:
        """As ``parts.TreeWriter`` says."""
        if path in self._numbers:
            self._place(path).unlink(missing_ok=True)
            del self._numbers[path]

    def same_print(self) -> None:
        """A copy stands alone."""

    def finish(self, names: Iterable[Copied]) -> PartFile:
        """As ``parts.TreeWriter`` says."""
        self._names = list(names)
        files = {each.found.path for each in self._names if each.found.kind == "file"}
        assert files == self._numbers.keys(), "a file was named and not added, or the other way round"
        return PartFile(self._name, sum(each.found.size for each in self._names if each.found.kind == "file"), "")

    def reader(self) -> CopyReader:
        """What was finished."""
        return CopyReader(self._names, {path: self._place(path) for path in self._numbers})

    def _place(self, path: bytes) -> Path:
        return self._spool / str(self._numbers[path])


class CopyReader:
    """A ``parts.PartReader`` of one finished copy, which can be placed once and not be read."""

    def __init__(self, names: Sequence[Copied], contents: Mapping[bytes, Path]) -> None:
        self._names, self._contents = names, contents

    def open(self, name: str) -> AbstractContextManager[BinaryIO]:
        """There is no stream."""
        raise errors.NotFound(f"the copy holds no {name}")

    def names(self) -> tuple[str, ...]:
        """There are no other names."""
        return ()

    def tree(self, name: str) -> Iterator[tuple[Entry, BinaryIO | None]]:
        """It is placed, not read."""
        raise errors.Unsupported(f"{name} is a copy: it can only be put in its place")

    def hashed(self, name: str) -> Iterator[tuple[Entry, str]]:
        """As ``parts.PartReader`` says; nothing is read."""
        return ((each.entry(), each.digest) for each in self._names)

    def place(self, name: str, folder: Path) -> Placed:
        """As ``parts.PartReader`` says, by renaming, once. Devices are made, too: they are this machine's."""
        unset = 0
        try:
            with Folders(folder) as folders, Folders(folder) as targets:
                entries = [each.entry() for each in self._names if each.found.path]
                for entry in sorted(entries, key=lambda entry: entry.kind == "hardlink"):
                    unset += self._put(entry, folders, targets)
                for entry in reversed([entry for entry in entries if entry.kind == "dir"]):
                    parent, step = folders.parent(entry.path)
                    inside = os.open(step, FOLDER_FLAGS, dir_fd=parent)
                    try:
                        unset += tree_write.apply(inside, entry) != entry
                    finally:
                        os.close(inside)
                disk.sync(folders.root)
        except OSError as error:
            raise tree_write.failure(folder, error) from error
        root = next(each.entry() for each in self._names if not each.found.path)
        return Placed(root, unset)

    def _put(self, entry: Entry, folders: Folders, targets: Folders) -> bool:
        """Make one name, folders without their metadata yet; whether something of it could not be set."""
        folder, step = folders.parent(entry.path)
        match entry.kind:
            case "dir":
                os.mkdir(step, 0o700, dir_fd=folder)
                return False
            case "hardlink":
                source, target = targets.parent(entry.target)
                os.link(target, step, src_dir_fd=source, dst_dir_fd=folder, follow_symlinks=False)
                return False
            case "file":
                os.rename(self._contents[entry.path], step, dst_dir_fd=folder)
            case "symlink":
                os.symlink(entry.target, step, dir_fd=folder)
            case "fifo":
                os.mkfifo(step, 0o600, dir_fd=folder)
            case "char" | "block":
                kind = stat.S_IFCHR if entry.kind == "char" else stat.S_IFBLK
                os.mknod(step, kind | 0o600, os.makedev(*entry.device), dir_fd=folder)
        return tree_write.apply(link_place(folder, step), entry) != entry


def _written(entry: Entry, content: BinaryIO, file: BinaryIO) -> str:
    """Write the content, holes as holes, and return its digest."""
    digest, at = ContentDigest(), 0
    if entry.data is None:
        while piece := content.read(_CHUNK):
            digest.update(piece)
            file.write(piece)
        return digest.hexdigest()
    for offset, length in (*entry.data, (entry.size, 0)):
        digest.zeros(offset - at)
        content.seek(offset)
        file.seek(offset)
        at = offset
        while at < offset + length and (piece := content.read(min(_CHUNK, offset + length - at))):
            digest.update(piece)
            file.write(piece)
            at += len(piece)
    file.truncate(entry.size)
    return digest.hexdigest()
