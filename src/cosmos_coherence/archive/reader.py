"""An archive for restoring: verified as a whole before anything of it is used."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self, cast

from cosmos_coherence import errors
from cosmos_coherence.archive import names, tarformat
from cosmos_coherence.archive.gzipped import Gunzip, Slice
from cosmos_coherence.archive.unpack import Unpacked, unpack
from cosmos_coherence.content_digest import ContentDigest
from cosmos_coherence.model import Entry, Manifest, PartFile
from cosmos_coherence.parts import CONFIGS
from cosmos_coherence.storage import local

_ORDER = {"dir": 0, "file": 1}
_PIECE = 1 << 20


class ArchiveReader:
    """A ``parts.PartReader`` of one archive. Close it: its spool holds a copy of everything."""

    def __init__(self, unpacked: Unpacked, spool: Path, *, devices: bool = False) -> None:
        """Use ``open_archive``."""
        self._unpacked, self._spool, self._devices = unpacked, spool, devices

    @classmethod
    def open_archive(
        cls, file: Path, spool: Path, *, limit_bytes: int | None = None, devices: bool = False
    ) -> ArchiveReader:
        """Verify the whole archive and unpack it into ``spool``, a folder that is empty or does not exist yet.

        Device nodes in a tree are ``Hostile`` unless ``devices``. Raises what ``unpack`` raises; the spool then goes.
        """
        local.make_private(spool)
        with local.translated(f"opening {spool}"):
            if any(spool.iterdir()):
                raise errors.Refused(f"{spool} is not empty", remedy="Run `cosmos recover`.")
        try:
            return cls(unpack(file, spool, limit_bytes=limit_bytes), spool, devices=devices)
        except BaseException:
            shutil.rmtree(spool, ignore_errors=True)
            raise

    @property
    def manifest(self) -> Manifest:
        """The manifest, verified."""
        return self._unpacked.manifest

    def logical(self, file: PartFile) -> str:
        """As ``parts.BackupReader`` says."""
        return names.logical(file.path)

    def names(self) -> tuple[str, ...]:
        """All logical names, sorted."""
        held = [names.logical(path) for path in self._unpacked.parts]
        return tuple(sorted([*held, CONFIGS] if self._unpacked.folder else held))

    @contextmanager
    def open(self, name: str) -> Iterator[BinaryIO]:
        """The plain bytes of a stream. ``NotFound`` when the archive does not hold it, ``Damaged`` while reading."""
        stored = names.stream_file(name)
        file, path = self._find(stored, name)
        with path.open("rb", buffering=0) as raw:
            if stored.endswith(".gz"):
                yield cast(BinaryIO, _Whole(Gunzip(raw, file.plain_size), file.plain_size))
            else:
                yield raw

    def tree(self, name: str) -> Iterator[tuple[Entry, BinaryIO | None]]:
        """As ``parts.PartReader`` says. ``NotFound``, and ``Damaged`` or ``Hostile`` at the entry that is."""
        stored = names.tree_file(name)
        if stored == CONFIGS:
            yield from self._configs()
            return
        file, path = self._find(stored, name)
        with path.open("rb", buffering=0) as raw:
            stream = Gunzip(raw, file.plain_size)
            reached = 0
            for number, (entry, content) in enumerate(tarformat.members(stream)):
                stage = _ORDER.get(entry.kind, 2)
                if stage < reached or (entry.kind == "dir" and not entry.path) != (number == 0):
                    raise errors.Hostile(f"{names.shown(entry.path)} is out of order in {name}")
                reached = stage
                if entry.kind in ("char", "block") and not self._devices:
                    raise errors.Hostile(f"{names.shown(entry.path)} in {name} is a device, which nobody asked for")
                yield entry, cast(BinaryIO | None, content)
            if stream.total != file.plain_size:
                raise errors.Damaged(f"{name} unpacks to {stream.total} bytes, declared are {file.plain_size}")

    def place(self, name: str, folder: Path) -> None:
        """An archive is read entry by entry."""

    def hashed(self, name: str) -> Iterator[tuple[Entry, str]]:
        """As ``parts.BackupReader`` says; everything is read."""
        for entry, content in self.tree(name):
            yield entry, "" if content is None else digest_of(entry, content)

    def close(self) -> None:
        """Remove the spool. May be called again."""
        shutil.rmtree(self._spool, ignore_errors=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.close()

    def _find(self, stored: str, name: str) -> tuple[PartFile, Path]:
        if stored not in self._unpacked.parts:
            raise errors.NotFound(f"backup {self.manifest.id} holds no {name}")
        file, path = self._unpacked.parts[stored]
        assert path is not None, "unpacked without a spool"
        return file, path

    def _configs(self) -> Iterator[tuple[Entry, BinaryIO | None]]:
        if not self._unpacked.folder:
            raise errors.NotFound(f"backup {self.manifest.id} holds no {CONFIGS}")
        for file in sorted(self._unpacked.folder, key=lambda file: _ORDER.get(file.entry.kind, 2)):
            if file.path is None:
                yield file.entry, None
            else:
                with file.path.open("rb") as content:
                    yield file.entry, content


def digest_of(entry: Entry, content: BinaryIO) -> str:
    """The digest of a file's content, its holes read as zeros."""
    digest, at = ContentDigest(), 0
    for offset, length in ((0, entry.size),) if entry.data is None else (*entry.data, (entry.size, 0)):
        digest.zeros(offset - at)
        at = offset + length
        left = length
        while left and (piece := content.read(min(_PIECE, left))):
            digest.update(piece)
            left -= len(piece)
    return digest.hexdigest()


class _Whole(Slice):
    """A stream of exactly the declared size, its last checksum included; ``Damaged`` when it is not."""

    def __init__(self, stream: Gunzip, size: int) -> None:
        super().__init__(stream, size)
        self._end = stream

    def read(self, size: int | None = -1) -> bytes:
        data = super().read(size)
        if not self.left and self._end.read(1):
            raise errors.Damaged("a file has more bytes than it declares")
        return data
