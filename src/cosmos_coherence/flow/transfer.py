"""A backup from one form into the other: a repository's as an archive, an archive's into a repository."""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO, Final

from msgspec.structs import replace

from cosmos_coherence.archive.writer import ArchiveWriter
from cosmos_coherence.copied import Copied
from cosmos_coherence.model import Entry, Manifest, PartFile
from cosmos_coherence.parts import CONFIGS, TREES, BackupReader, BackupWriter
from cosmos_coherence.sources import tree_read

_PIECE: Final = 1 << 20


def export(reader: BackupReader, directory: Path, *, workers: int = 2) -> Path:
    """Make the archive of a backup in ``directory``; where it is. Raises as reader and ``ArchiveWriter``."""
    writer = ArchiveWriter(directory, reader.manifest.id, workers=workers)
    try:
        writer.pack(copied(reader, writer))
        writer.verify()
        return writer.publish()
    finally:
        writer.abort()


def copied(reader: BackupReader, writer: BackupWriter) -> Manifest:
    """Copy every part; the manifest with the files as they are stored now. Instant and fingerprint stay the same."""
    parts = tuple(
        replace(part, files=tuple(_copy(reader, writer, reader.logical(file)) for file in part.files))
        for part in reader.manifest.parts
    )
    return replace(reader.manifest, parts=parts)


def _copy(reader: BackupReader, writer: BackupWriter, name: str) -> PartFile:
    if name == CONFIGS or name.startswith(tuple(f"{kind}/" for kind in TREES)):
        tree = writer.tree(name)
        names: list[Copied] = []
        for entry, content in reader.tree(name):
            digest = tree.add(entry, _with_holes(entry, content)) if content is not None else ""
            names.append(Copied.of(entry, digest))
        return tree.finish(sorted(names, key=lambda each: each.found.path))
    with reader.open(name) as source, writer.stream(name) as out:
        while piece := source.read(_PIECE):
            out.write(piece)
    return out.file()


class _InOrder:
    """Content that can only be read forwards, as a ``tree_read.Store`` whose positions come in order."""

    def __init__(self, content: BinaryIO) -> None:
        self._content = content

    def read_at(self, _position: int, room: memoryview) -> int:
        """The next bytes."""
        piece = self._content.read(len(room))
        room[: len(piece)] = piece
        return len(piece)


def _with_holes(entry: Entry, content: BinaryIO) -> BinaryIO:
    """The content of a sparse file with its holes as zeros, which a reader leaves out and a writer wants."""
    if entry.data is None:
        return content
    runs, position = [], 0
    for offset, length in entry.data:
        runs.append((offset, length, position))
        position += length
    return tree_read.content(_InOrder(content), entry.size, runs)
