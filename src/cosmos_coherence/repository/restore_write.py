"""Names below a folder, made from what nobody has to trust.

Each step to a name is opened without following a link, relative to the one before, and each file is made anew, so that
nothing can reach outside or write through something else, whatever lies or is put there.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from cosmos_coherence import errors
from cosmos_coherence.drivers import disk
from cosmos_coherence.drivers.folders import FOLDER_FLAGS, SYSTEM_XATTRS, Folders
from cosmos_coherence.repository.crypto import Buffer
from cosmos_coherence.repository.restore_plan import File, Look, Other

_NEW: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_THERE: Final = os.O_WRONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_READ: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_NO_ROOM: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_CANNOT: Final = frozenset({errno.EPERM, errno.EACCES, errno.ENOTSUP})
_HOLE: Final = 64 << 10
_ZEROS: Final = bytes(_HOLE)


class Places:
    """Writes below an open folder, for one thread or process. ``close`` gives the descriptors back."""

    def __init__(self, target: Path, root: int) -> None:
        self._target = target
        self._folders = Folders(root)
        self.unset = 0
        """Names whose owner or attributes this user or file system could not set."""
        self._uid, self._gid = os.geteuid(), os.getegid()

    def close(self) -> None:
        """Give the descriptors back."""
        self._folders.close()

    def sync(self) -> None:
        """Have everything of the file system on its disk. Raises ``NoRoom``, ``RestoreFailed``."""
        with self.at(b""):
            disk.sync(self._folders.root)

    @contextmanager
    def at(self, path: bytes) -> Iterator[None]:
        """Turn an ``OSError`` of the block into ``NoRoom`` or ``RestoreFailed`` that names the path."""
        try:
            yield
        except OSError as error:
            raise self.failure(path, error) from error

    def failure(self, path: bytes, error: OSError) -> errors.CosmosError:
        """The catalogue's error for what the system said."""
        where = f"{ascii(os.fsdecode(path))[1:-1]} in {self._target}" if path else str(self._target)
        if error.errno in _NO_ROOM:
            return errors.NoRoom(f"no room to write {where}: {error.strerror}")
        return errors.RestoreFailed(f"{where} cannot be written: {error.strerror}")

    def parent(self, path: bytes) -> tuple[int, bytes]:
        """The open folder that holds ``path``, valid until the next call, and the last step. ``OSError``."""
        return self._folders.parent(path)

    def folder(self, path: bytes) -> None:
        """Make a folder that is ours alone, or find it there. ``OSError``."""
        parent, name = self.parent(path)
        try:
            os.mkdir(name, 0o700, dir_fd=parent)
        except FileExistsError:
            if not stat.S_ISDIR(os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode):
                os.unlink(name, dir_fd=parent)
                os.mkdir(name, 0o700, dir_fd=parent)

    def create(self, path: bytes) -> int:
        """A new file, nobody else's, open to write; what had that name has gone. ``OSError``."""
        parent, name = self.parent(path)
        try:
            return os.open(name, _NEW, 0o600, dir_fd=parent)
        except FileExistsError:
            os.unlink(name, dir_fd=parent)
            return os.open(name, _NEW, 0o600, dir_fd=parent)

    def reopen(self, path: bytes) -> int:
        """A file that we have made, open to write. ``OSError``."""
        parent, name = self.parent(path)
        return os.open(name, _THERE, dir_fd=parent)

    def whole(self, file: File, content: Buffer) -> None:
        """Make a file of one blob. ``OSError``."""
        opened = self.create(file.path)
        try:
            if file.size >= _HOLE:
                os.truncate(opened, file.size)
                write(opened, content, 0)
            elif os.write(opened, content) != file.size:
                write(opened, content, 0)
            self.apply(opened, file.look)
        finally:
            os.close(opened)

    def other(self, other: Other) -> None:
        """Make a link, pipe or device. ``OSError``."""
        parent, name = self.parent(other.path)
        try:
            _make(parent, name, other)
        except FileExistsError:
            os.unlink(name, dir_fd=parent)
            _make(parent, name, other)
        self.apply(b"/proc/self/fd/%d/%s" % (parent, name), other.look, link=other.kind == "symlink")

    def hard_link(self, path: bytes, first: bytes, others: Places) -> None:
        """Give a file another name; ``others`` finds the first one. ``OSError``."""
        source, old = others.parent(first)
        parent, name = self.parent(path)
        try:
            os.link(old, name, src_dir_fd=source, dst_dir_fd=parent, follow_symlinks=False)
        except FileExistsError:
            os.unlink(name, dir_fd=parent)
            os.link(old, name, src_dir_fd=source, dst_dir_fd=parent, follow_symlinks=False)

    def is_there(self, file: File) -> bool:
        """Whether a file of that size and time has the name, and no other name that it should not have. ``OSError``."""
        try:
            parent, name = self.parent(file.path)
            found = os.stat(name, dir_fd=parent, follow_symlinks=False)
        except FileNotFoundError:
            return False
        return (
            stat.S_ISREG(found.st_mode)
            and (found.st_size, found.st_mtime_ns) == (file.size, file.look.mtime_ns)
            and found.st_nlink <= max(1, file.links)
        )

    def apply_to_file(self, path: bytes, look: Look) -> None:
        """``apply`` to a file that is there. ``OSError``."""
        parent, name = self.parent(path)
        try:
            opened = os.open(name, _READ, dir_fd=parent)
        except PermissionError:
            opened = os.open(name, _THERE, dir_fd=parent)
        try:
            self.apply(opened, look)
        finally:
            os.close(opened)

    def apply_to_folder(self, path: bytes, look: Look) -> None:
        """``apply`` to a folder, which may not be ours to enter afterwards. ``OSError``."""
        parent, name = self.parent(path)
        opened = os.open(name, FOLDER_FLAGS, dir_fd=parent)
        try:
            self.apply(opened, look)
        finally:
            os.close(opened)

    def apply(self, place: int | bytes, look: Look, *, link: bool = False) -> None:
        """Give an open file or folder, or a name (not followed), its owner, attributes, mode and times.

        The owner comes first, since changing it clears set-id bits and capabilities; these bits are not given to a file
        whose owner could not be. Attributes come before a mode that may forbid them, the times last. ``OSError`` for
        what is not merely a missing right or ability.
        """
        follow = isinstance(place, int)
        mode, unset = look.mode, False
        try:
            os.chown(place, look.uid, look.gid, follow_symlinks=follow)
        except PermissionError:
            now = os.stat(place, follow_symlinks=follow)  # noqa: PTH116 - may be a descriptor
            if (now.st_uid, now.st_gid) != (look.uid, look.gid):
                unset = True
                mode &= ~(stat.S_ISUID | stat.S_ISGID)
        for xattr in look.xattrs:
            if xattr.name not in SYSTEM_XATTRS:
                try:
                    os.setxattr(place, xattr.name, xattr.value or b"", follow_symlinks=follow)
                except OSError as error:
                    if error.errno not in _CANNOT:
                        raise
                    unset = True
        if not link:
            os.chmod(place, mode)  # noqa: PTH101 - may be a descriptor
        os.utime(place, ns=(look.atime_ns, look.mtime_ns), follow_symlinks=follow)
        self.unset += unset


def write(file: int, content: Buffer, at: int) -> None:
    """Write all of it there into a file of its final size; runs of zeros are left out, so they stay holes. ``OSError``.

    Nothing may be in that place of the file yet.
    """
    if isinstance(content, memoryview):
        content = bytes(content)
    view = memoryview(content)
    start, length = 0, len(view)
    for end in range(0, length, _HOLE):
        if content.startswith(_ZEROS if length - end >= _HOLE else _ZEROS[: length - end], end):
            _write(file, view[start:end], at + start)
            start = min(end + _HOLE, length)
    _write(file, view[start:], at + start)


def _write(file: int, rest: memoryview, at: int) -> None:
    while rest:
        written = os.pwrite(file, rest, at)
        at, rest = at + written, rest[written:]


def _make(parent: int, name: bytes, other: Other) -> None:
    if other.kind == "symlink":
        os.symlink(other.target, name, dir_fd=parent)
    elif other.kind == "fifo":
        os.mkfifo(name, 0o600, dir_fd=parent)
    else:
        kind = stat.S_IFCHR if other.kind == "chardev" else stat.S_IFBLK
        os.mknod(name, kind | 0o600, other.device, dir_fd=parent)
