"""Writing a file tree from entries that nobody has to trust.

Everything goes relative to the root's descriptor, each step opened without following a link and each name made anew,
so that no entry can reach outside or write through another, whatever the tree says.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import BinaryIO, Final

import msgspec
from msgspec.structs import replace

from cosmos_coherence import errors
from cosmos_coherence.content_digest import ContentDigest
from cosmos_coherence.drivers import disk
from cosmos_coherence.drivers.folders import FOLDER_FLAGS, GONE, SYSTEM_XATTRS, Folders, link_place
from cosmos_coherence.model import Entry, TreePrint
from cosmos_coherence.parts import PartReader
from cosmos_coherence.sources import tree_print, tree_scan

_NO_ROOM: Final = frozenset({errno.ENOSPC, errno.EDQUOT})
_CHUNK: Final = 1 << 20
_ZEROS: Final = bytes(_CHUNK)
_LARGEST_ID: Final = 2**32 - 2
"""The one above means "leave as it is" to the system."""


class Written(msgspec.Struct, frozen=True):
    """What came of writing a tree."""

    root: Entry
    """What the root itself shall look like: ``root`` of ``write_tree`` stays private."""
    given: TreePrint
    """Fingerprint of what the entries said, with the content that came: to be compared with the manifest."""
    made: TreePrint
    """Fingerprint of what is on the disk; differs where ``unset`` is not 0."""
    lines: dict[bytes, str]
    """Digest of the line of each name on the disk, for ``tree_print.differences``."""
    unset: int
    """Names whose owner or attributes this user or file system could not set."""


def write_tree(
    entries: Iterable[tuple[Entry, BinaryIO | None]], root: Path, *, size: int, devices: bool = False
) -> Written:
    """Write the entries below ``root``, an existing empty folder that belongs to nobody else.

    ``size`` is what all files together are known to hold; a tree that claims more is cut off there.

    Folders come before what they hold and files before the hard links to them; the content of a sparse file is its runs
    of data one after another. All of it is on the disk when this returns. Raises ``Hostile`` for an entry that would
    leave the root, come twice or make a device nobody allowed, ``Damaged`` for one that contradicts itself, ``NoRoom``,
    and ``RestoreFailed`` for what else the system refuses. What was written so far stays.
    """
    try:
        with Folders(root) as folders, Folders(root) as targets:
            writer = _Writer(root, folders, targets, size, devices)
            for entry, content in entries:
                writer.add(entry, content)
            return writer.finish()
    except OSError as error:
        raise failure(root, error) from error


def write_plainly(reader: PartReader, name: str, root: Path, *, size: int) -> None:
    """Write the tree ``name`` of a backup below ``root``, which gets the look of the tree's root.

    For a folder that nobody lives in: nothing is kept to compare it with. Promises and errors as ``write_tree``.
    """
    placed = reader.place(name, root)
    top = write_tree(reader.tree(name), root, size=size).root if placed is None else placed.root
    try:
        apply(os.fsencode(root), top)
    except OSError as error:
        raise failure(root, error) from error


def write_part(reader: PartReader, name: str, root: Path, *, size: int, devices: bool = False) -> Written:
    """Write the tree ``name`` of a backup below ``root``: by the reader itself where it can, else entry by entry.

    Promises and errors as ``write_tree``.
    """
    placed = None if devices else reader.place(name, root)
    if placed is None:
        return write_tree(reader.tree(name), root, size=size, devices=devices)
    given = list(reader.hashed(name))
    top, unset = placed
    try:
        with Folders(root) as folders:  # as in ``write_tree``, it shows what can be set of the real root
            made_top = apply(folders.root, top)
            os.fchmod(folders.root, 0o700)
    except OSError as error:
        raise failure(root, error) from error
    there = given if not unset else list(tree_print.hashed_tree(root))
    as_given = not unset and made_top == top
    made = there if as_given else [(entry if entry.path else made_top, digest) for entry, digest in there]
    given_print = tree_print.tree_print(given)
    return Written(
        root=top,
        given=given_print,
        made=given_print if as_given else tree_print.tree_print(made),
        lines={entry.path: tree_print.line_digest(entry, digest) for entry, digest in made},
        unset=unset + (made_top != top),
    )


def failure(place: Path, error: OSError, path: bytes = b"") -> errors.CosmosError:
    """The error of the catalogue for what the system said while writing ``path`` below ``place``."""
    where = f"{tree_scan.show(path)} in {place}" if path else str(place)
    if error.errno in _NO_ROOM:
        return errors.NoRoom(f"no room to write {where}: {error.strerror}")
    return errors.RestoreFailed(f"{where} cannot be written: {error.strerror}")


def apply(place: int | bytes, entry: Entry) -> Entry:
    """Give an open file or folder, or a name (not followed), the metadata of the entry; returns what it has now.

    The owner comes first, since changing it clears set-id bits and capabilities; these bits are not given to a file
    whose owner could not be. Attributes come before a mode that may forbid them, the times last. ``OSError`` for what
    is not merely a missing right or ability.
    """
    follow = isinstance(place, int)
    mode = entry.mode
    try:
        os.chown(place, entry.uid, entry.gid, follow_symlinks=follow)
    except PermissionError:
        now = os.stat(place, follow_symlinks=follow)  # noqa: PTH116 - may be a descriptor
        if (now.st_uid, now.st_gid) != (entry.uid, entry.gid):
            entry = replace(entry, uid=now.st_uid, gid=now.st_gid, mode=mode & ~(stat.S_ISUID | stat.S_ISGID))
    kept = tuple(pair for pair in entry.xattrs if pair[0] not in SYSTEM_XATTRS and _set(place, *pair))
    if entry.kind != "symlink":
        os.chmod(place, entry.mode)  # noqa: PTH101
    os.utime(place, ns=(entry.mtime_ns, entry.mtime_ns), follow_symlinks=follow)
    return replace(entry, xattrs=kept)


def _set(place: int | bytes, name: str, value: bytes) -> bool:
    try:
        os.setxattr(place, name, value, follow_symlinks=isinstance(place, int))
    except OSError as error:
        if error.errno in (errno.EPERM, errno.EACCES, errno.ENOTSUP):
            return False
        raise
    return True


class _Writer:
    def __init__(self, place: Path, folders: Folders, targets: Folders, size: int, devices: bool) -> None:
        self._place, self._folders, self._targets = place, folders, targets
        self._room, self._devices = size, devices
        self._given: list[tree_print.Hashed] = []
        self._made: list[tree_print.Hashed] = []
        self._directories: list[Entry] = []
        self._root: Entry | None = None
        self._unset = 0

    def add(self, entry: Entry, content: BinaryIO | None) -> None:
        _check(entry)
        if not entry.path:
            if self._root is not None or entry.kind != "dir":
                raise errors.Hostile("the tree has more than one root, or one that is no folder")
            self._root = entry
            return
        make: Callable[[Entry, BinaryIO | None, int, bytes], None] = {
            "file": self._file,
            "dir": self._directory,
            "symlink": self._symlink,
            "hardlink": self._hardlink,
        }.get(entry.kind, self._special)
        try:
            make(entry, content, *self._folders.parent(entry.path))
        except FileExistsError as error:
            raise errors.Hostile(f"{tree_scan.show(entry.path)} comes twice in the tree") from error
        except OSError as error:
            if error.errno in GONE:
                raise errors.Hostile(f"{tree_scan.show(entry.path)} is not in a folder of its own tree") from error
            raise failure(self._place, error, entry.path) from error

    def finish(self) -> Written:
        if self._root is None:
            raise errors.Damaged("the tree has no root")
        for entry in sorted(self._directories, key=lambda entry: entry.path, reverse=True):
            parent, name = self._folders.parent(entry.path)
            folder = os.open(name, FOLDER_FLAGS, dir_fd=parent)
            try:
                self._note(entry, apply(folder, entry))
            finally:
                os.close(folder)
        # On this stand-in for the real root it shows what can be set at all; ours alone it stays.
        self._note(self._root, apply(self._folders.root, self._root))
        os.fchmod(self._folders.root, 0o700)
        disk.sync(self._folders.root)
        return Written(
            root=self._root,
            given=tree_print.tree_print(self._given),
            made=tree_print.tree_print(self._made),
            lines={entry.path: tree_print.line_digest(entry, digest) for entry, digest in self._made},
            unset=self._unset,
        )

    def _note(self, given: Entry, made: Entry, digest: str = "") -> None:
        self._given.append((given, digest))
        self._made.append((made, digest))
        self._unset += made != given

    def _directory(self, entry: Entry, _: BinaryIO | None, folder: int, name: bytes) -> None:
        os.mkdir(name, 0o700, dir_fd=folder)
        self._directories.append(entry)

    def _file(self, entry: Entry, content: BinaryIO | None, folder: int, name: bytes) -> None:
        assert content is not None
        self._room -= entry.size
        if self._room < 0:
            raise errors.Damaged(f"the tree is larger than its manifest says, from {tree_scan.show(entry.path)} on")
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        file = os.open(name, flags, 0o600, dir_fd=folder)
        try:
            if entry.data is not None:
                os.truncate(file, entry.size)
            digest = _write_runs(entry, content, file)
            self._note(entry, apply(file, entry), digest)
        finally:
            os.close(file)

    def _symlink(self, entry: Entry, _: BinaryIO | None, folder: int, name: bytes) -> None:
        os.symlink(entry.target, name, dir_fd=folder)
        self._note(entry, apply(link_place(folder, name), entry))

    def _hardlink(self, entry: Entry, _: BinaryIO | None, folder: int, name: bytes) -> None:
        _check_path(entry.target)
        source, target = self._targets.parent(entry.target)
        if not stat.S_ISREG(os.stat(target, dir_fd=source, follow_symlinks=False).st_mode):
            raise errors.Hostile(f"{tree_scan.show(entry.path)} links to what is no file of the tree")
        os.link(target, name, src_dir_fd=source, dst_dir_fd=folder, follow_symlinks=False)
        self._note(entry, entry)

    def _special(self, entry: Entry, _: BinaryIO | None, folder: int, name: bytes) -> None:
        if entry.kind == "fifo":
            os.mkfifo(name, 0o600, dir_fd=folder)
        elif self._devices:
            kind = stat.S_IFCHR if entry.kind == "char" else stat.S_IFBLK
            os.mknod(name, kind | 0o600, os.makedev(*entry.device), dir_fd=folder)
        else:
            raise errors.Hostile(f"{tree_scan.show(entry.path)} is a device, and nobody asked for devices")
        self._note(entry, apply(link_place(folder, name), entry))


def _write_runs(entry: Entry, content: BinaryIO, file: int) -> str:
    """Write the content where it belongs and return its digest, holes as zeros."""
    digest = ContentDigest()
    at = 0
    for offset, length in ((0, entry.size),) if entry.data is None else entry.data:
        digest.zeros(offset - at)
        at = offset
        while at < offset + length:
            piece = content.read(min(_CHUNK, offset + length - at))
            if not piece:
                raise errors.Damaged(f"the content of {tree_scan.show(entry.path)} is cut short")
            digest.update(piece)
            rest = memoryview(piece)
            while rest:
                written = os.pwrite(file, rest, at)
                at, rest = at + written, rest[written:]
    digest.zeros(entry.size - at)
    if content.read(1):
        raise errors.Damaged(f"the content of {tree_scan.show(entry.path)} is longer than its entry says")
    return digest.hexdigest()


def _check(entry: Entry) -> None:
    if entry.path:
        _check_path(entry.path)
    at = 0
    for offset, length in entry.data or ():
        if offset < at or length < 0:
            raise errors.Damaged(f"the sparse map of {tree_scan.show(entry.path)} contradicts itself")
        at = offset + length
    numbers_fit = (
        0 <= entry.uid <= _LARGEST_ID
        and 0 <= entry.gid <= _LARGEST_ID
        and 0 <= entry.mode <= 0o7777
        and at <= entry.size < 2**63
        and abs(entry.mtime_ns) < 2**63
        and all(0 <= number < 2**31 for number in entry.device)
    )
    if not numbers_fit or b"\0" in entry.target or any("\0" in name for name, _ in entry.xattrs):
        raise errors.Damaged(f"the metadata of {tree_scan.show(entry.path)} make no sense")


def _check_path(path: bytes) -> None:
    if b"\0" in path or any(step in (b"", b".", b"..") for step in path.split(b"/")):
        raise errors.Hostile(f"{tree_scan.show(path)} would lie outside its tree")
