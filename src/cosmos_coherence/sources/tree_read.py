"""Reading what a walk has found: contents, extended attributes, the runs of data of a sparse file."""

from __future__ import annotations

import errno
import io
import os
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO, Final, Protocol

from cosmos_coherence.model import Entry, Seen
from cosmos_coherence.sources import tree_scan
from cosmos_coherence.sources.tree_scan import FOLDER_FLAGS, GONE, Found

SYSTEM_XATTRS: Final = frozenset({"security.selinux", "security.ima", "security.evm", "security.SMACK64"})
"""Attributes that the machine's security module gives by itself: neither captured, compared nor restored."""

_FILE_FLAGS: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
"""Without O_NONBLOCK a pipe put in the place of a file would hang the run."""
_NO_XATTRS: Final = frozenset({errno.ENOTSUP, errno.ENODATA, errno.ENOSYS})
_BUFFER: Final = 1 << 20

Xattrs = tuple[tuple[str, bytes], ...]
Runs = tuple[tuple[int, int], ...]


class Folders:
    """Descriptors of the folders below a root, each step opened without following a link.

    The chain to the last folder stays open, so that names which come in order cost one step each. A context manager.
    """

    def __init__(self, root: Path | int) -> None:
        flags = FOLDER_FLAGS & ~os.O_NOFOLLOW
        self.root = os.dup(root) if isinstance(root, int) else os.open(root, flags)
        self._steps: list[bytes] = []
        self._chain = [self.root]

    def __enter__(self) -> Folders:
        return self

    def __exit__(self, *_: object) -> None:
        for folder in self._chain:
            os.close(folder)

    def parent(self, path: bytes) -> tuple[int, bytes]:
        """The open folder that holds ``path``, valid until the next call, and the last step of it. ``OSError``."""
        *steps, name = path.split(b"/")
        same = 0
        while same < min(len(steps), len(self._steps)) and steps[same] == self._steps[same]:
            same += 1
        while len(self._steps) > same:
            os.close(self._chain.pop())
            self._steps.pop()
        for step in steps[same:]:
            self._chain.append(os.open(step, FOLDER_FLAGS, dir_fd=self._chain[-1]))
            self._steps.append(step)
        return self._chain[-1], name


def open_file(folders: Folders, path: bytes) -> tuple[int, os.stat_result] | None:
    """A descriptor of the regular file at ``path`` and its status, or None when there is none (any more).

    Other ``OSError`` passes.
    """
    try:
        folder, name = folders.parent(path)
        try:
            file = os.open(name, _FILE_FLAGS | os.O_NOATIME, dir_fd=folder)
        except PermissionError:  # only the owner may leave the access time alone
            file = os.open(name, _FILE_FLAGS, dir_fd=folder)
    except OSError as error:
        if error.errno in GONE:
            return None
        raise
    status = os.fstat(file)
    if stat.S_ISREG(status.st_mode):
        return file, status
    os.close(file)
    return None


def xattrs(place: int | bytes) -> Xattrs:
    """The extended attributes of an open file or of a name (not followed), sorted. ``OSError``."""
    follow = isinstance(place, int)
    try:
        names = os.listxattr(place, follow_symlinks=follow)
    except OSError as error:
        if error.errno in _NO_XATTRS:
            return ()
        raise
    kept = sorted(name for name in names if name not in SYSTEM_XATTRS) if names else ()
    return tuple((name, os.getxattr(place, name, follow_symlinks=follow)) for name in kept)


def xattrs_at(folders: Folders, path: bytes) -> Xattrs:
    """The extended attributes of whatever lies at ``path``, without opening it. ``OSError``."""
    if not path:
        return xattrs(folders.root)
    return xattrs(link_place(*folders.parent(path)))


def link_place(folder: int, name: bytes) -> bytes:
    """A path to a name in an open folder, for calls that know neither folder descriptors nor links."""
    return b"/proc/self/fd/%d/%s" % (folder, name)


def data_runs(file: int, found: os.stat_result) -> Runs | None:
    """The (offset, length) runs of data of an open sparse file; None when it has no holes. ``OSError``."""
    size = found.st_size
    if found.st_blocks * 512 >= size:
        return None
    runs: list[tuple[int, int]] = []
    at = 0
    while at < size:
        try:
            start = os.lseek(file, at, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:  # only a hole is left
                break
            if error.errno == errno.EINVAL:  # a file system that does not tell
                return None
            raise
        at = min(os.lseek(file, start, os.SEEK_HOLE), size)
        if start < at:
            runs.append((start, at - start))
    return None if runs == [(0, size)] else tuple(runs)


def entry(found: Found, xattrs: Xattrs = (), data: Runs | None = None, first: bytes = b"") -> Entry:
    """The entry of a name; with ``first`` that of a hard link to it."""
    return Entry(
        path=found.path,
        kind="hardlink" if first else found.kind,
        mode=found.mode,
        uid=found.uid,
        gid=found.gid,
        mtime_ns=found.mtime_ns,
        size=found.size if found.kind == "file" else 0,
        target=first or found.target,
        xattrs=xattrs,
        device=(os.major(found.rdev), os.minor(found.rdev)) if found.kind in ("char", "block") else (0, 0),
        data=data,
        seen=Seen(found.ctime_ns, found.dev, found.ino, found.nlink),
    )


class Store(Protocol):
    """Where the bytes of a ``content`` lie."""

    def read_at(self, position: int, room: memoryview) -> int:
        """Fill ``room`` from there as far as possible and say how much."""
        ...


def content(store: Store, size: int, runs: Sequence[tuple[int, int, int]]) -> BinaryIO:
    """A seekable file of exactly ``size`` bytes made of runs (offset, length, position in the store), zeros elsewhere.

    A store that ends early reads as zeros too: a live file that shrinks under its reader has changed, is read again,
    and must not disturb the writer of the tree meanwhile. ``OSError`` comes out as ``CaptureFailed``.
    """
    return io.BufferedReader(_Content(store, size, runs), max(1, min(size, _BUFFER)))


class OpenFile:
    """A file's descriptor as a ``Store``. ``path`` and ``root`` are for the sentence when it cannot be read."""

    def __init__(self, file: int, path: bytes, root: Path) -> None:
        self._file, self._path, self._root = file, path, root

    def read_at(self, position: int, room: memoryview) -> int:
        """Read there. Raises ``CaptureFailed``."""
        try:
            return os.preadv(self._file, [room], position)
        except OSError as error:
            raise tree_scan.unreadable(self._path, self._root, error) from error


class _Content(io.RawIOBase):
    def __init__(self, store: Store, size: int, runs: Sequence[tuple[int, int, int]]) -> None:
        self._store, self._size, self._runs = store, size, runs
        self._at = self._run = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        self._at, self._run = max(0, start + offset), 0
        return self._at

    def readinto(self, buffer: bytearray | memoryview, /) -> int:  # type: ignore[override]
        while self._run < len(self._runs) and self._at >= sum(self._runs[self._run][:2]):
            self._run += 1
        offset, length, position = self._runs[self._run] if self._run < len(self._runs) else (self._size, 0, 0)
        inside = self._at >= offset
        room = memoryview(buffer)[: max(0, (offset + length if inside else offset) - self._at)]
        done = self._store.read_at(position + self._at - offset, room) if inside and room else 0
        if done == 0:
            room[:] = bytes(len(room))
            done = len(room)
        self._at += done
        return done
