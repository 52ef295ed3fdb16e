"""Archives, good and bad, for the tests of this folder."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import tarfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from cosmos_coherence.archive import sums, tarformat
from cosmos_coherence.archive.gzipped import Gunzip
from cosmos_coherence.archive.stored import Stored
from cosmos_coherence.archive.tree import TarGzWriter
from cosmos_coherence.archive.writer import ArchiveWriter
from cosmos_coherence.copied import Copied
from cosmos_coherence.model import Entry, Manifest, Part, PartFile

ID = "20240101_120000"
SQL = b"create table t (k int);\n"
RDB = b"REDIS0011\xff not a real dump"
ROOT = Entry(b"", "dir", 0o755)


def manifest(*parts: Part, backup_id: str = ID, safety: bool = False, complete: bool = True) -> Manifest:
    return Manifest(
        id=backup_id,
        project="shop",
        runtime="docker",
        instant="2024-01-01T12:00:00.000000Z",
        pause_ms=1.5,
        created_by="test",
        parts=parts,
        safety=safety,
        complete=complete,
    )


def make_archive(directory: Path, *, backup_id: str = ID, safety: bool = False, complete: bool = True) -> Path:
    """A small archive with one part of every kind."""
    writer = ArchiveWriter(directory, backup_id)
    try:
        writer.pack(fill(writer, safety=safety, complete=complete))
        return writer.publish()
    finally:
        writer.abort()


def fill(writer: ArchiveWriter, *, safety: bool = False, complete: bool = True) -> Manifest:
    files: dict[str, PartFile] = {}
    streams = {"database.sql": SQL, "globals.sql": b"-- roles\n", "databases/db/a/b ü.sql": SQL, "redis/dump.rdb": RDB}
    for name, content in streams.items():
        with writer.stream(name) as stream:
            stream.write(content)
        files[name] = stream.file()
    volume = writer.tree("volumes/shop_uploads")
    note = Entry(b"note", "file", 0o640, uid=7, gid=8, mtime_ns=1_700_000_000_123_456_789)
    volume.add(note, io.BytesIO(b"hello"))
    tree = volume.finish(map(Copied.of, [ROOT, note, Entry(b"to", "symlink", 0o777, target=b"/etc/passwd")]))
    folder = writer.tree("configs")
    env = Entry(b".env", "file", 0o600, mtime_ns=1_700_000_000_000_000_001)
    folder.add(env, io.BytesIO(b"SECRET=1\n"))
    configs = folder.finish(
        map(Copied.of, [ROOT, env, Entry(b"conf", "dir", 0o750), Entry(b"link", "symlink", 0o777, target=b".env")])
    )
    return manifest(
        Part(
            "postgres/db",
            "postgres",
            (files["database.sql"], files["globals.sql"], files["databases/db/a/b ü.sql"]),
            service="db",
            details={"user": "cosmos", "database": "shop"},
        ),
        Part("redis/redis", "redis", (files["redis/dump.rdb"],), service="redis"),
        Part("volumes/uploads", "volume", (tree,), volume="shop_uploads"),
        Part("config", "config", (configs,)),
        backup_id=writer.id,
        safety=safety,
        complete=complete,
    )


@contextmanager
def tree_writer(folder: Path) -> Iterator[tuple[TarGzWriter, list[Stored]]]:
    """A writer of one tree, and the list in which the finished one arrives."""
    done: list[Stored] = []
    with ThreadPoolExecutor(2) as pool:
        writer = TarGzWriter(folder / "tree.spool", "volumes/x.tar.gz", pool, 4, done.append)
        try:
            yield writer, done
        finally:
            writer.close()


def assembled(stored: Stored) -> bytes:
    """The finished file, as the archive will hold it."""
    spool = stored.spool.read_bytes()
    content = b"".join(spool[offset : offset + size] for offset, size in stored.pieces)
    assert (len(content), hashlib.sha256(content).hexdigest()) == (stored.file.size, stored.file.sha256)
    return content


def read_tree(packed: bytes) -> list[tuple[Entry, bytes]]:
    """Every entry with its content; a sparse file's content is its runs of data."""
    return [
        (entry, content.read() if content else b"") for entry, content in tarformat.members(Gunzip(io.BytesIO(packed)))
    ]


class Forge:
    """An archive made by somebody who means ill: consistent in itself, and wrong where the test says."""

    def __init__(self) -> None:
        self.members: list[tuple[tarfile.TarInfo, bytes]] = []
        self.parts: list[dict[str, object]] = []
        self.listed: dict[bytes, str] = {}
        self.tail = b""

    def file(self, path: str, content: bytes, *, declare: bool = True, listed: bool = True) -> Forge:
        info = tarfile.TarInfo(path if path.startswith(("/", "..")) else f"{ID}/{path}")
        info.size = len(content)
        self.members.append((info, content))
        digest = hashlib.sha256(content).hexdigest()
        if declare:
            self.declare(path, len(content), digest)
        if listed:
            self.listed[path.encode()] = digest
        return self

    def declare(self, path: str, size: int, digest: str, plain_size: int = 0) -> Forge:
        self.parts.append({"path": path, "size": size, "sha256": digest, "plain_size": plain_size})
        return self

    def tree(self, packed: bytes, plain_size: int | None = None) -> Forge:
        self.file("volumes/x.tar.gz", packed, declare=False)
        plain = len(gzip.decompress(packed)) if plain_size is None else plain_size
        return self.declare("volumes/x.tar.gz", len(packed), hashlib.sha256(packed).hexdigest(), plain)

    def odd(self, path: str, kind: bytes, target: str = "") -> Forge:
        info = tarfile.TarInfo(f"{ID}/{path}")
        info.type, info.linkname = kind, target
        self.members.append((info, b""))
        return self

    def folder(self, path: str) -> Forge:
        return self.odd(path, tarfile.DIRTYPE)

    def build(self, path: Path, **changes: object) -> Path:
        document = {
            "id": ID, "format": 2, "project": "shop", "runtime": "docker", "instant": "", "pause_ms": 1.0,
            "created_by": "x", "parts": [{"name": "p", "kind": "volume", "files": self.parts}], **changes,
        }  # fmt: skip
        text = json.dumps(document).encode()
        listed = sums.encode({**self.listed, b"manifest.json": hashlib.sha256(text).hexdigest()})
        front = Forge().folder("").file("manifest.json", text).file("SHA256SUMS", listed)
        front.members[0][0].name = ID
        path.write_bytes(packed_tar([*front.members, *self.members], self.tail))
        return path


def packed_tar(members: list[tuple[tarfile.TarInfo, bytes]], tail: bytes = b"") -> bytes:
    plain = io.BytesIO()
    with tarfile.open(fileobj=plain, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for info, content in members:
            tar.addfile(info, io.BytesIO(content))
    return gzip.compress(plain.getvalue() + tail, 1)


def member(
    name: str, content: bytes = b"", kind: bytes = tarfile.REGTYPE, target: str = ""
) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size = kind, target, len(content)
    return info, content
