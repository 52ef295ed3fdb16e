"""A small tree whose files lie in the archive as they are: the configuration."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

import msgspec
from msgspec.structs import replace

from cosmos_coherence import errors
from cosmos_coherence.archive import names, sums
from cosmos_coherence.archive.gzipped import MEMBER
from cosmos_coherence.archive.stored import StoredFile, sha256
from cosmos_coherence.content_digest import ContentDigest
from cosmos_coherence.copied import Copied
from cosmos_coherence.model import Entry, PartFile
from cosmos_coherence.parts import CONFIGS

_ORDER = {"dir": 0, "file": 1, "symlink": 2}


class FolderFile(msgspec.Struct, frozen=True):
    """One name of the finished folder; ``path`` is where a file's content lies in the spool."""

    entry: Entry
    sha256: str = ""
    path: Path | None = None


class FolderWriter:
    """A ``parts.TreeWriter`` for files that stay files. Hard links become files of their own."""

    def __init__(self, spool: Path, done: Callable[[tuple[FolderFile, ...]], None]) -> None:
        """Contents go into numbered files of ``spool``, a folder that exists; ``done`` is told the finished folder."""
        self._spool, self._done = spool, done
        self._files: dict[bytes, FolderFile] = {}
        self._count = 0

    @property
    def at_once(self) -> int:
        """One file after the other."""
        return 1

    def known(self) -> Mapping[bytes, Copied]:
        """Nothing: an archive stands alone."""
        return {}

    def add_small(self, root: Path, paths: Iterable[bytes]) -> Iterator[Copied]:
        """None: a tree of this kind is filled file by file."""
        return iter(())

    def add(self, entry: Entry, content: BinaryIO) -> str:
        """As ``parts.TreeWriter`` says. ``CaptureFailed`` when the content cannot be read."""
        self._count += 1
        path = self._spool / str(self._count)
        file, digest = StoredFile(path), ContentDigest()
        try:
            while piece := content.read(MEMBER):
                file.write(piece)
                digest.update(piece)
        except OSError as error:
            raise errors.CaptureFailed(f"{names.shown(entry.path)} cannot be read: {error.strerror}") from error
        finally:
            file.close()
        self._files[entry.path] = FolderFile(replace(entry, size=file.size, data=None), file.sha256(), path)
        return digest.hexdigest()

    def drop(self, path: bytes) -> None:
        """Forget a file that was added; one that was not is fine."""
        self._files.pop(path, None)

    def same_print(self) -> None:
        """An archive stands alone."""

    def finish(self, copied: Iterable[Copied]) -> PartFile:
        """As ``parts.TreeWriter`` says; ``CaptureFailed`` for what is neither file, folder nor link."""
        folder = tuple(sorted((self._final(each.entry()) for each in copied), key=lambda file: _ORDER[file.entry.kind]))
        assert self._files.keys() <= {file.entry.path for file in folder}, (
            "a file was added that the tree does not name"
        )
        self._done(folder)
        return part_file(folder)

    def _final(self, entry: Entry) -> FolderFile:
        if entry.kind in ("dir", "symlink"):
            return FolderFile(entry)
        if entry.kind not in ("file", "hardlink"):
            raise errors.CaptureFailed(f"{names.shown(entry.path)} is no file, folder or link")
        source = entry.path if entry.kind == "file" else entry.target
        assert source in self._files, f"{source!r} was never added"
        added = self._files[source]
        return replace(added, entry=replace(entry, kind="file", target=b"", size=added.entry.size, data=None))


def part_file(folder: Iterable[FolderFile]) -> PartFile:
    """What the manifest says about the folder as a whole: its digest is that of its lines in SHA256SUMS."""
    files = [file for file in folder if file.entry.kind == "file"]
    listed = sums.encode({file.entry.path: file.sha256 for file in files})
    size = sum(file.entry.size for file in files)
    return PartFile(CONFIGS, size, sha256(listed), size)
