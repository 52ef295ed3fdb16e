"""Durable files on the local disk: whole under their final name, or not there at all."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cosmos_coherence import errors

_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_DENIED = {errno.EACCES, errno.EPERM, errno.EROFS}


@contextmanager
def translated(doing: str) -> Iterator[None]:
    """Turn an ``OSError`` of the block into the catalogue's error; ``doing`` reads like ``writing /a/b``.

    ``NoRoom`` when the disk, the quota or the limit on file sizes is exhausted, ``Refused`` when we may not,
    ``NotFound`` when a file is missing, ``CosmosError`` for everything else.
    """
    try:
        yield
    except OSError as error:
        why = error.strerror or str(error)
        if error.errno in _NO_ROOM:
            raise errors.NoRoom(f"no room while {doing}: {why}") from error
        if error.errno in _DENIED:
            raise errors.Refused(
                f"not allowed while {doing}: {why}", remedy="Run as the owner of that folder or as root."
            ) from error
        if error.errno == errno.ENOENT:
            raise errors.NotFound(f"file missing while {doing}: {why}") from error
        raise errors.CosmosError(f"failed while {doing}: {why}") from error


@contextmanager
def spool(directory: Path, prefix: str) -> Iterator[Path]:
    """A new private folder, ``prefix`` and random letters, which goes at the end with all that is in it.

    It is claimed as long as this process lives, so that ``remove_abandoned`` knows what a killed one left. Errors as
    in ``translated``.
    """
    make_private(directory)
    path = directory / f"{prefix}{secrets.token_hex(6)}"
    with translated(f"making {path}"):
        unclaimed = directory / f".making-{path.name}"
        unclaimed.mkdir(mode=0o700)
        claim = os.open(unclaimed, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        fcntl.flock(claim, fcntl.LOCK_EX)
        unclaimed.rename(path)  # nobody sees it before it is claimed
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
        os.close(claim)


def remove_abandoned(directory: Path, prefix: str) -> tuple[Path, ...]:
    """Remove the spools of that prefix whose process has died; which they were. Errors as in ``translated``."""
    removed = []
    with translated(f"clearing {directory}"):
        for path in sorted(directory.glob(f"{prefix}*")) if directory.is_dir() else ():
            try:
                claim = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
            except (FileNotFoundError, NotADirectoryError):
                continue
            try:
                fcntl.flock(claim, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(path, ignore_errors=True)
                removed.append(path)
            except BlockingIOError:
                continue  # its process lives
            finally:
                os.close(claim)
    return tuple(removed)


def create(path: Path, mode: int = 0o600) -> int:
    """A new empty file, open for reading and writing, as a file descriptor. Never follows a link, never reuses a file.

    What root makes belongs to whom its folder belongs, so that a person whose backups are made by root, in a container
    or by the agent, can list and copy them. Errors as in ``translated``.
    """
    with translated(f"creating {path}"):
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
        own(descriptor, path.parent.stat())
        return descriptor


def own(created: int | Path, folder: os.stat_result) -> None:
    """Give what root has created to whom its folder belongs; as anybody else, or where the disk cannot, do nothing."""
    if os.geteuid() == 0:
        with contextlib.suppress(OSError):  # a disk without owners, or one that does not trust this root
            os.chown(created, folder.st_uid, folder.st_gid)


def write_all(descriptor: int, data: bytes | bytearray | memoryview) -> None:
    """Write every byte. Raises ``OSError``: the caller knows what it was doing."""
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def free_bytes(folder: Path) -> int:
    """Bytes that may still be written to the disk of ``folder``, or of its nearest parent that exists."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    with translated(f"measuring the room in {folder}"):
        disk = os.statvfs(folder)
    return disk.f_bavail * disk.f_frsize


def require_room(folder: Path, size: int) -> None:
    """Raise ``NoRoom`` unless the disk of ``folder`` has ``size`` bytes left."""
    if (free := free_bytes(folder)) < size:
        raise errors.NoRoom(f"{folder} has {free} bytes free, {size} are needed")


def make_private(folder: Path) -> None:
    """Make the folder and its parents, mode 0700, where they are missing. Errors as in ``translated``."""
    with translated(f"making {folder}"):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)


def publish(temporary: Path, final: Path) -> None:
    """Give a finished file its final name in the same folder so that a power cut leaves all of it or nothing.

    What had that name is replaced. Errors as in ``translated``.
    """
    with translated(f"publishing {final}"):
        _sync(temporary)
        temporary.rename(final)
        _sync(final.parent)


def publish_link(existing: Path, final: Path) -> None:
    """Make ``final`` a second name of ``existing``, in the same folder, replacing what had that name in one step.

    It is a hard link, so that copying it copies a real file; on a disk without hard links a relative symlink.
    """
    temporary = _temporary(final)
    with translated(f"publishing {final}"):
        try:
            try:
                os.link(existing, temporary)
            except OSError as error:
                if error.errno not in {errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK}:
                    raise
                temporary.symlink_to(existing.name)
            temporary.rename(final)
        finally:
            temporary.unlink(missing_ok=True)  # a rename between two names of one file leaves both
        _sync(final.parent)


def write_atomically(path: Path, data: bytes, mode: int = 0o600) -> None:
    """Write a small file: afterwards it is whole, durable and of that mode, whatever was there before.

    Errors as in ``translated``; the old content is then untouched.
    """
    temporary = _temporary(path)
    try:
        descriptor = create(temporary, mode)
        try:
            with translated(f"writing {path}"):
                os.fchmod(descriptor, mode)  # whatever the umask
                write_all(descriptor, data)
        finally:
            os.close(descriptor)
        publish(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """One program at a time is inside, of all that ask for the same folder, which is made if it is missing.

    Errors as in ``translated``.
    """
    make_private(folder)
    with translated(f"opening {folder}"):
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def sync_folder(folder: Path) -> None:
    """Make the removals and renames in a folder durable. Errors as in ``translated``."""
    with translated(f"syncing {folder}"):
        _sync(folder)


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
