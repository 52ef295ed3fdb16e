"""An archive read once from beginning to end: everything verified, and kept in a spool if there is one.

The file is hostile until proven otherwise. No name of it ever becomes a name on this disk: contents go into numbered
files, links are only remembered.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from pathlib import Path

import msgspec
from msgspec.structs import replace

from cosmos_coherence import errors, manifests
from cosmos_coherence.archive import names, sums, tarformat
from cosmos_coherence.archive.folder import FolderFile, part_file
from cosmos_coherence.archive.gzipped import MEMBER, Gunzip, Slice
from cosmos_coherence.archive.manifest import beginning
from cosmos_coherence.archive.stored import StoredFile, sha256
from cosmos_coherence.model import Entry, Manifest, PartFile
from cosmos_coherence.parts import CONFIGS
from cosmos_coherence.storage import local

_MOST_MEMBERS = 100_000
_LARGEST_LOOSE = 16 * 1024 * 1024
"""Bytes of a file that no part declares: the page for people, the AOF manifest."""
_DIGEST = re.compile("[0-9a-f]{64}")


class Unpacked(msgspec.Struct, frozen=True):
    """A verified archive. Paths are those of the spool, None when nothing was kept."""

    manifest: Manifest
    parts: dict[str, tuple[PartFile, Path | None]] = msgspec.field(default_factory=dict)
    """By the path in the archive; the configuration is not among them."""
    folder: tuple[FolderFile, ...] = ()
    """The configuration."""


def unpack(file: Path, spool: Path | None = None, *, limit_bytes: int | None = None) -> Unpacked:
    """Verify the whole archive, and keep its contents in ``spool``, an empty folder.

    ``Damaged`` for bytes that do not match their sums, are cut short or followed by others, and for a file that is no
    archive of ours; ``Hostile`` for members that the manifest does not name, unsafe names and links, and for more bytes
    than declared; ``NoRoom`` when what is declared exceeds the disk of the spool or ``limit_bytes``; ``Unsupported``
    for an archive of a newer version; ``NotFound``.
    """
    with local.translated(f"opening {file}"):
        raw = file.open("rb", buffering=0)
    with raw:
        try:
            members = tarformat.members(Gunzip(raw))
            manifest, listed = beginning(file, members)
            declared = _declared(manifest)
            _require_room(sum(part.size for part in declared.values()), spool, limit_bytes)
            return _Unpacker(manifest, declared, listed, spool).run(members)
        except errors.Damaged as error:
            if str(file) in error.message:
                raise
            raise type(error)(f"{file}: {error.message}") from error


def _declared(manifest: Manifest) -> dict[str, PartFile]:
    declared: dict[str, PartFile] = {}
    for part in manifest.parts:
        for file in part.files:
            names.safe(file.path.encode("utf-8", "surrogateescape"))
            if not file.path or file.path in declared or file.size < 0 or not _DIGEST.fullmatch(file.sha256):
                raise errors.Hostile(f"the manifest declares {file.path!r} in a way that makes no sense")
            declared[file.path] = file
    return declared


def _require_room(size: int, spool: Path | None, limit_bytes: int | None) -> None:
    if limit_bytes is not None and size > limit_bytes:
        raise errors.NoRoom(f"the archive unpacks to {size} bytes, allowed are {limit_bytes}")
    if spool is not None:
        local.require_room(spool, size)


class _Unpacker:
    def __init__(
        self, manifest: Manifest, declared: dict[str, PartFile], listed: dict[bytes, str], spool: Path | None
    ) -> None:
        self._manifest, self._declared, self._listed, self._spool = manifest, declared, listed, spool
        self._root = manifest.id.encode() + b"/"
        self._found = {manifests.NAME.encode(): listed[manifests.NAME.encode()]}
        self._parts: dict[str, tuple[PartFile, Path | None]] = {}
        self._folder: list[FolderFile] = []
        self._folder_left = declared[CONFIGS].size if CONFIGS in declared else 0
        self._count = 0

    def run(self, members: Iterator[tuple[Entry, Slice | None]]) -> Unpacked:
        for entry, content in members:
            self._count += 1
            if self._count > _MOST_MEMBERS:
                raise errors.Hostile(f"the archive has more than {_MOST_MEMBERS} members")
            if not entry.path.startswith(self._root):
                raise errors.Hostile(f"the archive holds {names.shown(entry.path)}, outside of its folder")
            self._take(replace(entry, path=entry.path[len(self._root) :]), content)
        self._compare()
        return Unpacked(self._manifest, self._parts, tuple(self._folder))

    def _take(self, entry: Entry, content: Slice | None) -> None:
        configs = CONFIGS.encode()
        if entry.path == configs or entry.path.startswith(configs + b"/"):
            self._take_configs(replace(entry, path=entry.path[len(configs) + 1 :]), content)
        elif entry.kind == "hardlink":
            self._take_link(entry)
        elif content is not None and entry.data is None:
            self._take_file(entry, content)
        elif entry.kind != "dir":
            raise errors.Hostile(f"the archive holds {names.shown(entry.path)}, a {entry.kind} where only files belong")

    def _take_configs(self, entry: Entry, content: Slice | None) -> None:
        if CONFIGS not in self._declared or entry.kind not in ("dir", "file", "symlink") or entry.data is not None:
            raise errors.Hostile(f"the archive holds configs/{names.shown(entry.path)}, which nobody asked for")
        if content is None:
            self._folder.append(FolderFile(entry))
            return
        self._folder_left -= entry.size
        if self._folder_left < 0:
            raise errors.Hostile("the configuration is larger than its manifest declares")
        digest, path = self._store(content)
        self._folder.append(FolderFile(entry, digest, path))
        self._found[b"configs/" + entry.path] = digest

    def _take_link(self, entry: Entry) -> None:
        dump = entry.target.removeprefix(self._root).decode("utf-8", "surrogateescape")
        if not names.is_redis_dump(dump) or entry.path != names.aof_base(dump).encode() or dump not in self._parts:
            raise errors.Hostile(f"the archive holds {names.shown(entry.path)}, a hard link that nobody asked for")
        self._found[entry.path] = self._parts[dump][0].sha256

    def _take_file(self, entry: Entry, content: Slice) -> None:
        name = entry.path.decode("utf-8", "surrogateescape")
        if (declared := self._declared.get(name)) is not None:
            if entry.size != declared.size:
                raise errors.Damaged(f"{name} has {entry.size} bytes, its manifest declares {declared.size}")
            digest, path = self._store(content)
            if digest != declared.sha256:
                raise errors.Damaged(f"{name} does not match its checksum")
            self._parts[name] = (declared, path)
            self._found[entry.path] = digest
            return
        dumps = filter(names.is_redis_dump, self._declared)
        if name not in {"README.txt", *map(names.aof_manifest, dumps)}:
            raise errors.Hostile(f"the archive holds {names.shown(entry.path)}, which its manifest does not name")
        if entry.size > _LARGEST_LOOSE:
            raise errors.Hostile(f"{name} has {entry.size} bytes, more than any real one")
        self._found[entry.path] = sha256(content.read())

    def _compare(self) -> None:
        missing = self._declared.keys() - self._parts.keys() - {CONFIGS}
        if missing:
            raise errors.Damaged(f"the archive does not hold {min(missing)}, which its manifest names")
        if CONFIGS in self._declared:
            found, declared = part_file(self._folder), self._declared[CONFIGS]
            if (found.size, found.sha256) != (declared.size, declared.sha256):
                raise errors.Damaged("the configuration does not match its checksum")
        if self._listed != self._found:
            wrong = min(path for path, _ in self._listed.items() ^ self._found.items())
            raise errors.Damaged(f"{sums.NAME} does not agree about {names.shown(wrong)}")

    def _store(self, content: Slice) -> tuple[str, Path | None]:
        if self._spool is None:
            digest = hashlib.sha256()
            while piece := content.read(MEMBER):
                digest.update(piece)
            return digest.hexdigest(), None
        path = self._spool / str(self._count)
        file = StoredFile(path)
        try:
            while piece := content.read(MEMBER):
                file.write(piece)
        finally:
            file.close()
        return file.sha256(), path
