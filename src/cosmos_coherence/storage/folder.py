"""A repository in a local directory."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path

from cosmos_coherence import errors
from cosmos_coherence.storage import layout, local
from cosmos_coherence.storage.backend import KINDS, Kind, Properties, Stored

_CANNOT = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EISDIR, errno.EMLINK, errno.ENOENT, errno.EINVAL}
"""What a disk answers that knows no files without a name, or no hard links."""
_BUFFERS = 512
"""In one system call; Linux takes up to 1024."""


class FolderBackend:
    """Files below ``path``: private (0600 in folders of 0700), and of whom the folder belongs to when root writes them.

    A killed ``save`` leaves nothing on disks that know files without a name, and a file that everybody passes over,
    called ``ID-tmp-`` and random letters, on others.
    """

    properties = Properties(connections=2, local=True)

    def __init__(self, path: Path) -> None:
        self._root = path
        self.location = str(path)

    def create(self) -> None:
        """Make the folders, durably. Errors as in ``local.translated``."""
        local.make_private(self._root.parent)
        _make_folder(self._root)
        for kind in KINDS:
            if kind != "config":
                _make_folder(self._root / kind)
        for name in layout.SUBFOLDERS:
            _make_folder(self._root / "data" / name)
        local.sync_folder(self._root / "data")
        local.sync_folder(self._root)
        with contextlib.suppress(errors.Refused):  # a parent that we may pass through and not read
            local.sync_folder(self._root.absolute().parent)

    def save(self, kind: Kind, name: str, content: Sequence[bytes | bytearray | memoryview]) -> None:
        """As ``Backend.save``. A missing folder of a repository is made; a missing repository is ``NotFound``."""
        final = self._path(kind, name)
        size = sum(map(len, content))
        with local.translated(f"writing {final}"):
            folder = self._open_folder(final.parent)
            try:
                if not _is_there(final, size):
                    try:
                        _write_new(folder, final, content)
                    except FileExistsError:
                        _is_there(final, size)  # another thread or program was faster
                os.fsync(folder)
            finally:
                os.close(folder)

    def load(self, kind: Kind, name: str, offset: int = 0, length: int | None = None) -> bytes:
        """As ``Backend.load``."""
        path = self._path(kind, name)
        with local.translated(f"reading {path}"):
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                size = os.fstat(descriptor).st_size
                end = size if length is None else offset + length
                if end > size or (offset and offset >= size):
                    raise errors.Damaged(f"{path} has {size} bytes, and bytes {offset} to {end} were asked for")
                return _read(descriptor, offset, end - offset)
            finally:
                os.close(descriptor)

    def size(self, kind: Kind, name: str) -> int:
        """As ``Backend.size``."""
        path = self._path(kind, name)
        with local.translated(f"looking at {path}"):
            return path.stat().st_size

    def list(self, kind: Kind) -> Iterator[Stored]:
        """As ``Backend.list``."""
        if kind == "config":
            with contextlib.suppress(errors.NotFound):
                yield Stored("", self.size("config", ""))
        elif kind == "data":
            for prefix in layout.SUBFOLDERS:
                yield from _scan(self._root / "data" / prefix, prefix)
        else:
            yield from _scan(self._root / kind, "")

    def remove(self, kind: Kind, name: str) -> None:
        """As ``Backend.remove``. Not synced: what a power cut brings back can be removed again."""
        path = self._path(kind, name)
        with local.translated(f"removing {path}"):
            path.unlink(missing_ok=True)

    def close(self) -> None:
        """Nothing is kept open."""

    def _path(self, kind: Kind, name: str) -> Path:
        return self._root / layout.path_of(kind, name)

    def _open_folder(self, folder: Path) -> int:
        """One that is missing is made: what was copied from an object store has no folders that were empty there."""
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
        try:
            return os.open(folder, flags)
        except FileNotFoundError:
            in_data = folder.parent != self._root and folder.parent.exists()
            if not (in_data or (self._root / "config").exists()):  # an empty mount point is no repository
                raise
        missing = [each for each in (folder.parent, folder) if not each.exists()]
        for each in missing:
            _make_folder(each)
            local.sync_folder(each.parent)
        return os.open(folder, flags)


def _make_folder(folder: Path) -> None:
    with local.translated(f"making {folder}"):
        try:
            folder.mkdir(mode=0o700)
        except FileExistsError:
            return
        local.own(folder, folder.parent.stat())


def _is_there(final: Path, size: int) -> bool:
    try:
        found = final.stat().st_size
    except FileNotFoundError:
        return False
    return layout.require_same(str(final), found, size)


def _write_new(folder: int, final: Path, content: Sequence[bytes | bytearray | memoryview]) -> None:
    """Write a file without a name and name it when it is whole; raises ``FileExistsError`` where something is."""
    try:
        descriptor = os.open(".", os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600, dir_fd=folder)
    except (OSError, AttributeError):
        return _write_named(folder, final, content)
    try:
        local.own(descriptor, os.fstat(folder))
        _write(descriptor, content)
        if not _linked(f"/proc/self/fd/{descriptor}", final, folder):
            _write_named(folder, final, content)
    finally:
        os.close(descriptor)


def _write_named(folder: int, final: Path, content: Sequence[bytes | bytearray | memoryview]) -> None:
    temporary = final.with_name(f"{final.name}-tmp-{secrets.token_hex(4)}")
    descriptor = local.create(temporary)
    try:
        try:
            _write(descriptor, content)
        finally:
            os.close(descriptor)
        if not _linked(str(temporary), final, folder):
            if final.exists():
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(final))
            temporary.rename(final)
    finally:
        temporary.unlink(missing_ok=True)


def _linked(existing: str, final: Path, folder: int) -> bool:
    """Whether the file got its final name; not on a disk without hard links. ``FileExistsError`` where one is."""
    try:
        os.link(existing, final.name, dst_dir_fd=folder, follow_symlinks=True)
    except OSError as error:
        if error.errno not in _CANNOT:
            raise
        return False
    return True


def _write(descriptor: int, content: Sequence[bytes | bytearray | memoryview]) -> None:
    for start in range(0, len(content), _BUFFERS):
        batch = content[start : start + _BUFFERS]
        written = os.writev(descriptor, batch)
        for buffer in batch:
            if written < len(buffer):
                local.write_all(descriptor, memoryview(buffer)[written:])
            written = max(0, written - len(buffer))
    os.fsync(descriptor)


def _read(descriptor: int, offset: int, length: int) -> bytes:
    data = os.pread(descriptor, length, offset)
    while len(data) < length:  # one call reads at most 2 GiB
        more = os.pread(descriptor, length - len(data), offset + len(data))
        if not more:
            raise errors.Damaged(f"a file became shorter while it was read: {len(data)} of {length} bytes")
        data += more
    return data


def _scan(folder: Path, prefix: str) -> Iterator[Stored]:
    with local.translated(f"listing {folder}"):
        try:
            entries = os.scandir(folder)
        except FileNotFoundError:
            return
        with entries:
            for entry in entries:
                if not (layout.is_name(entry.name) and entry.name.startswith(prefix)):
                    continue
                with contextlib.suppress(FileNotFoundError):  # removed meanwhile
                    found = entry.stat(follow_symlinks=False)
                    if stat.S_ISREG(found.st_mode):
                        yield Stored(entry.name, found.st_size)
