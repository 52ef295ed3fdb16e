"""Backups of one folder and a stream in a repository, by the product's own writer, reader and sources, without a stack.

Small enough to try every byte of; what a restore would see is compared byte by byte.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from cosmos_coherence import content_digest
from cosmos_coherence.flow import contents
from cosmos_coherence.model import Manifest, Part, SourceRef
from cosmos_coherence.repository import (
    chunker,
    crypto,
    keys,
    layout,
    locks,
    packs,
    prune,
    reader,
    saver,
    small_files,
    tree_before,
    tree_writer,
)
from cosmos_coherence.repository.reader import RepositoryReader
from cosmos_coherence.repository.repository import Repository
from cosmos_coherence.repository.snapshots import Listed
from cosmos_coherence.repository.writer import RepositoryWriter
from cosmos_coherence.sources.volume import TreeSource
from cosmos_coherence.storage.backend import Backend
from support.restic import PASSWORD
from support.trees import looks

PROJECT = "small"
VOLUME = "small_files"
REF = SourceRef(kind="volume", part="volumes/files", volume=VOLUME)
OTHER_PASSWORD = "another-Horse-7"


def new(backend: Backend) -> Repository:
    return Repository.init(backend, PASSWORD, generated=True)


def opened(backend: Backend) -> Repository:
    return Repository.open(backend, PASSWORD)


def quick_to_open(patch: pytest.MonkeyPatch) -> None:
    """The same password, salt and numbers give the same key: it is derived once."""
    patch.setattr(keys, "derive", functools.lru_cache(maxsize=64)(crypto.derive))
    patch.setattr(locks, "_SETTLE_S", 0.001)


def many_small_packs(patch: pytest.MonkeyPatch, *, pack: int = 20_000, chunk: int | None = None) -> None:
    """More steps for few bytes: small packs, an index after a few of them, and chunks of ``chunk`` bytes."""
    patch.setattr(packs, "TARGET_SIZE", pack)
    patch.setattr(saver, "INDEX_BYTES", 3 * pack)
    patch.setattr(prune, "INDEX_BLOBS", 20)
    if chunk:
        patch.setattr(chunker, "cutter", lambda seed: lambda data: min(len(data), chunk))
        patch.setattr(tree_writer, "MIN_SIZE", chunk)
        for module in (content_digest, small_files, tree_writer, tree_before, reader):
            patch.setattr(module, "SMALL", chunk - 1)


def grow(root: Path, rng: random.Random, *, files: int = 8, size: int = 3_000) -> None:
    """Make, change and remove some files, so that no two backups hold the same."""
    root.mkdir(exist_ok=True)
    (root / "sub").mkdir(exist_ok=True)
    there = sorted(path for path in root.rglob("*") if path.is_file() and not path.is_symlink())
    for path in rng.sample(there, min(len(there), files // 3)):
        path.unlink()
    for _ in range(files):
        folder = root if rng.random() < 0.5 else root / "sub"
        (folder / f"file-{rng.randrange(3 * files)}").write_bytes(rng.randbytes(rng.randrange(size)))
    (root / "text").write_bytes(b"the same line again\n" * rng.randrange(100))
    (root / "link").unlink(missing_ok=True)
    (root / "link").symlink_to(f"file-{rng.randrange(9)}")
    (root / "second").unlink(missing_ok=True)
    (root / "second").hardlink_to(root / "text")


def back_up(
    repository: Repository, root: Path, identity: str, *, work: Path, stream: bytes = b"", workers: int = 2
) -> Listed:
    """A backup of the folder and of a stream, made as the flow makes one. Errors pass."""
    writer = RepositoryWriter(repository, identity, PROJECT, work / f"spool-{identity}", workers=workers)
    try:
        with writer.stream("database.sql") as out:
            out.write(stream)
        source = TreeSource(replace(REF, path=root), root, spool=writer.spool)
        try:
            source.prepare(writer)
            source.anchor()
            part = source.capture(writer)
        finally:
            source.close()
        database = Part("postgres/db", "postgres", files=(out.file(),), service="db")
        writer.pack(_manifest(identity, (database, part)))
        writer.verify()
        writer.publish()
    finally:
        writer.abort()
    return next(each for each in reversed(repository.snapshots()) if layout.backup_id(each.snapshot) == identity)


def _manifest(identity: str, parts: tuple[Part, ...]) -> Manifest:
    moment = f"{identity[:4]}-{identity[4:6]}-{identity[6:8]}T{identity[9:11]}:{identity[11:13]}:{identity[13:15]}"
    return Manifest(identity, PROJECT, "process", f"{moment}.000000Z", 1.0, "a test", parts=parts)


def identities() -> Iterator[str]:
    """Ids of backups, one second after another."""
    for second in range(1 << 20):
        day, rest = divmod(second, 86400)
        yield f"2024{1 + day // 28:02}{1 + day % 28:02}_{rest // 3600:02}{rest // 60 % 60:02}{rest % 60:02}"


def extracted(repository: Repository, listed: Listed, folder: Path) -> tuple[Any, ...]:
    """What lies on the disk after a restore into a folder: the stream, and every name with all that it has."""
    contents.extract(RepositoryReader(repository, listed), folder)
    return (folder / "database.sql").read_bytes(), looks(folder / "volumes" / VOLUME)


def on_disk(root: Path, stream: bytes) -> tuple[Any, ...]:
    """What ``extracted`` must be, from the folder itself."""
    return stream, looks(root)


def seen(repository: Repository, listed: Listed) -> list[object]:
    """Everything that a restore would see, without a disk."""
    reader = RepositoryReader(repository, listed)
    found: list[object] = [reader.manifest]
    for name in reader.names():
        if contents.is_tree(name):
            found += [(entry, content and content.read()) for entry, content in reader.tree(name)]
            found += [(entry.path, sha256) for entry, sha256 in reader.hashed(name)]
        else:
            with reader.open(name) as content:
                found.append(content.read())
    return found


@contextmanager
def patched() -> Iterator[pytest.MonkeyPatch]:
    """For fixtures of a whole module."""
    with pytest.MonkeyPatch.context() as patch:
        yield patch
