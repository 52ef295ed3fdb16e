"""Files below a folder, opened step by step.

No link is ever followed, so whatever is swapped in meanwhile, what is read or written stays inside the root.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from cosmos_coherence.copied import Found
from cosmos_coherence.model import EntryKind

FOLDER_FLAGS: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
GONE: Final = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP})
"""What opening a name says when somebody has removed or replaced it since it was listed."""
SYSTEM_XATTRS: Final = frozenset({"security.selinux", "security.ima", "security.evm", "security.SMACK64"})
"""Attributes that the machine's security module gives by itself: neither captured, compared nor restored."""

_FILE_FLAGS: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
"""Without O_NONBLOCK a pipe put in the place of a file would hang the run."""
_NO_XATTRS: Final = frozenset({errno.ENOTSUP, errno.ENODATA, errno.ENOSYS})
_KINDS: Final[Mapping[int, EntryKind]] = {
    stat.S_IFREG: "file",
    stat.S_IFDIR: "dir",
    stat.S_IFLNK: "symlink",
    stat.S_IFIFO: "fifo",
    stat.S_IFCHR: "char",
    stat.S_IFBLK: "block",
}
_KIND_BITS: Final = 0o170000

Xattrs = tuple[tuple[str, bytes], ...]
Runs = tuple[tuple[int, int], ...]


class Folders:
    """Descriptors of the folders below a root.

    The chain to the last folder stays open, so that names which come in order cost one step each. A context manager.
    """

    def __init__(self, root: Path | int) -> None:
        flags = FOLDER_FLAGS & ~os.O_NOFOLLOW
        self.root = os.dup(root) if isinstance(root, int) else os.open(root, flags)
        self.device = os.fstat(self.root).st_dev
        self._above: bytes | None = b""
        self._steps: list[bytes] = []
        self._chain = [self.root]

    def __enter__(self) -> Folders:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Give the descriptors back."""
        for folder in self._chain:
            os.close(folder)
        self._chain = []

    def parent(self, path: bytes) -> tuple[int, bytes]:
        """The open folder that holds ``path``, valid until the next call, and the last step of it. ``OSError``."""
        above, _, name = path.rpartition(b"/")
        if above != self._above:
            self._above = None
            self._go(above.split(b"/") if above else [])
            self._above = above
        return self._chain[-1], name

    def _go(self, steps: list[bytes]) -> None:
        same = 0
        while same < min(len(steps), len(self._steps)) and steps[same] == self._steps[same]:
            same += 1
        while len(self._steps) > same:
            os.close(self._chain.pop())
            self._steps.pop()
        for step in steps[same:]:
            self._chain.append(os.open(step, FOLDER_FLAGS, dir_fd=self._chain[-1]))
            self._steps.append(step)


def from_stat(path: bytes, status: os.stat_result, device: int, target: bytes = b"") -> Found | None:
    """The record of one name below a root on ``device``, or None for a socket, which is made by the program that
    listens."""
    mode = status.st_mode
    kind = _KINDS.get(mode & _KIND_BITS)
    if kind is None:
        return None
    return Found(
        path,
        kind,
        mode & 0o7777,
        status.st_uid,
        status.st_gid,
        status.st_size if kind == "file" else 0,
        status.st_mtime_ns,
        status.st_ctime_ns,
        0 if status.st_dev == device else status.st_dev,
        status.st_ino,
        0 if kind == "dir" or kind == "fifo" else status.st_nlink,
        status.st_rdev,
        target,
    )


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


def names_in(folder: int) -> list[bytes]:
    """The names in an open folder, in no particular order. ``OSError``."""
    return os.listdir(link_place(folder, b"."))  # noqa: PTH208 - names, as bytes, and a million of them


def show(path: bytes) -> str:
    """A path for a sentence: whatever could disturb a terminal or break the line is escaped."""
    text = path.decode("utf-8", "backslashreplace") or "."
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def data_runs(file: int, status: os.stat_result) -> Runs | None:
    """The (offset, length) runs of data of an open sparse file; None when it has no holes. ``OSError``."""
    size = status.st_size
    if status.st_blocks * 512 >= size:
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
