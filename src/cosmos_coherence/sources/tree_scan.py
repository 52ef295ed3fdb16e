"""A fast look at a file tree: one light record for each name, nothing opened but folders.

The walk goes by folder descriptors and follows no link, so whatever is swapped in while it runs, it stays inside its
root. It stays on the root's file system too. Paths are bytes, relative to the root, which is ``b""`` itself.
"""

from __future__ import annotations

import fnmatch
import os
import re
import stat
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from msgspec import structs

from cosmos_coherence import errors
from cosmos_coherence.copied import Copied, Found
from cosmos_coherence.drivers.folders import FOLDER_FLAGS, GONE, Folders, from_stat
from cosmos_coherence.drivers.folders import show as show

WORK_PREFIX: Final = b".cosmos-restore-"
"""A restore keeps what it stages in a folder of this name below the root; no walk ever sees it."""

_ENCODING: Final = sys.getfilesystemencoding()


Entered = Callable[[int, bytes], None]
"""Is told every open folder and its path before it is listed."""


@dataclass(slots=True)
class Scan:
    """What a walk found, and what it passed by; ``refresh`` brings it up to date."""

    root: Path
    left_out: Callable[[bytes], bool] | None
    names: dict[bytes, Found] = field(default_factory=dict)
    """By path, in no particular order."""
    sockets: set[bytes] = field(default_factory=set)
    """They are made by the program that listens, so they are never captured."""
    mounts: set[bytes] = field(default_factory=set)
    """Folders on another file system, not entered."""
    excluded: set[bytes] = field(default_factory=set)
    """Names that a pattern left out, the topmost only."""
    linked: set[bytes] = field(default_factory=set)
    """Files that have further names, here or elsewhere."""
    only: frozenset[bytes] = frozenset()
    """Of what the root holds only these names count; all when empty."""
    known: Mapping[bytes, Copied] = field(default_factory=dict)
    """Names that look as they do here are these very records: a tree need not be in memory twice."""

    def links(self) -> dict[bytes, bytes]:
        """The further names of hard-linked files, each with the first name (in byte order) of its file."""
        groups: dict[tuple[int, int], list[bytes]] = {}
        for path in self.linked:
            found = self.names[path]
            groups.setdefault((found.dev, found.ino), []).append(path)
        return {path: first for first, *others in map(sorted, groups.values()) for path in others}

    def note(self, path: bytes, found: Found | None) -> bool:
        """Take in what is at a path, None for a socket; whether it is a folder to enter."""
        if (known := self.known.get(path)) is not None and known.found == found:
            found = known.found
            path = found.path
        if found is None:
            self.sockets.add(path)
        elif found.kind != "dir":
            self.names[path] = found
            if found.nlink > 1 and found.kind == "file":
                self.linked.add(path)
        elif found.dev:
            self.mounts.add(path)
        else:
            self.names[path] = found
            return True
        return False

    def refresh(self, paths: Iterable[bytes], renewed: Iterable[bytes], entered: Entered) -> set[bytes]:
        """Look again at these names, at those of ``renewed`` that are folders with all below them, and at every file
        that has several names. Returns the paths that were looked at. Raises as ``walk``."""
        return _Look(self, entered).again(set(paths), set(renewed))


def walk(
    root: Path,
    exclude: Iterable[str] = (),
    entered: Entered = lambda folder, path: None,
    known: Mapping[bytes, Copied] | None = None,
    only: frozenset[bytes] = frozenset(),
) -> Scan:
    """Look at every name below ``root`` (and the root itself).

    A pattern of ``exclude`` (as in ``fnmatch``, ``*`` also matches ``/``) is held against each relative path; a folder
    that matches is left out with all below it. ``only`` and ``known`` are as in ``Scan``. What disappears meanwhile is
    left out quietly. Raises ``CaptureFailed`` naming what cannot be read.
    """
    scan, steps = walking(root, exclude, entered, known, only)
    for _ in steps:
        pass
    return scan


def walking(
    root: Path,
    exclude: Iterable[str] = (),
    entered: Entered = lambda folder, path: None,
    known: Mapping[bytes, Copied] | None = None,
    only: frozenset[bytes] = frozenset(),
) -> tuple[Scan, Iterator[list[bytes]]]:
    """``walk`` folder by folder: the steps give the names in each, and with the last of them the scan is whole."""
    scan = Scan(root, matcher(exclude), known=known or {}, only=only)
    return scan, _Look(scan, entered).at_all()


def looks_like_database(root: Path) -> str:
    """``postgres`` or ``redis`` when ``root`` (or the folder their images make in it) holds such a server's data.

    Such a folder is captured through its server, never as files. Empty for everything else.
    """
    try:
        below = [root, root / "data", root / "pgdata", *root.glob("[0-9]*/docker"), *root.glob("[0-9]*/main")]
        if any((place / "PG_VERSION").is_file() and (place / "global" / "pg_control").is_file() for place in below):
            return "postgres"
        if (root / "dump.rdb").is_file() or (root / "appendonlydir").is_dir() or (root / "appendonly.aof").is_file():
            return "redis"
    except PermissionError:  # what cannot be looked into cannot be copied either, and the copy will say so
        pass
    return ""


def refuse_live_postgres(scan: Scan) -> None:
    """Raise ``Unsupported`` when what was found holds the data of a PostgreSQL server that may be running."""
    for path in [path for path in scan.names if path.endswith(b"postmaster.pid")]:
        folder = path.removesuffix(b"postmaster.pid")
        if folder + b"PG_VERSION" in scan.names and folder + b"global/pg_control" in scan.names:
            raise errors.Unsupported(
                f"{scan.root / os.fsdecode(folder)} is the data directory of a PostgreSQL server that may be running",
                remedy="Declare the server as a source of kind `postgres`, or leave the folder out with "
                "`cosmos.exclude`; a copy of these files would be worthless.",
            )


def size_of(root: Path, paths: Iterable[bytes]) -> int:
    """Bytes of the regular files at or below these paths, as far as they can be read: for saying what is left out."""
    total = 0
    for path in paths:
        place = root / os.fsdecode(path)
        try:
            found = place.lstat()
        except OSError:
            continue
        if stat.S_ISREG(found.st_mode):
            total += found.st_size
        for _, _, files, folder in os.fwalk(place, follow_symlinks=False) if stat.S_ISDIR(found.st_mode) else ():
            for name in files:
                try:
                    total += os.stat(name, dir_fd=folder, follow_symlinks=False).st_size
                except OSError:
                    continue
    return total


def link(found: Found, first: bytes) -> Copied:
    """A further name of the file that has the name ``first``."""
    return Copied(structs.replace(found, kind="hardlink", target=first))


def unreadable(path: bytes, root: Path, error: OSError) -> errors.CaptureFailed:
    """The error for a name that cannot be read, with the remedy."""
    return errors.CaptureFailed(
        f"{show(path)} in {root} cannot be read: {error.strerror}",
        remedy="Run as a user who may read it, or leave it out with `cosmos.exclude`.",
    )


class _Look:
    """Depth first, with one descriptor open for each folder between the beginning and the present one."""

    def __init__(self, scan: Scan, entered: Entered) -> None:
        self._scan, self._entered = scan, entered
        self._chain: list[int] = []
        self._pending: list[tuple[int, bytes]] = []
        self._looked: set[bytes] | None = None
        self._device = 0

    def at_all(self) -> Iterator[list[bytes]]:
        root = self._scan.root
        try:
            folder = os.open(root, FOLDER_FLAGS & ~os.O_NOFOLLOW)
            self._device = os.fstat(folder).st_dev
            yield from self._below(folder, b"")
        except OSError as error:
            raise errors.CaptureFailed(f"{root} cannot be read: {error.strerror}") from error

    def again(self, paths: set[bytes], renewed: set[bytes]) -> set[bytes]:
        looked: set[bytes] = set()
        self._looked = looked
        with Folders(self._scan.root) as folders:
            self._device = folders.device
            self._these(folders, sorted(paths | renewed | self._scan.linked), renewed)
            if numbers := self._more_names(looked):  # those have changed without anybody saying so
                names = self._scan.names.items()
                others = [path for path, found in names if found.ino in numbers and path not in looked]
                self._these(folders, others, set())
        return looked

    def _more_names(self, looked: set[bytes]) -> set[int]:
        """The inodes of files that have more names than were looked at."""
        found = [self._scan.names[path] for path in looked if path in self._scan.names]
        several = [each for each in found if each.nlink > 1 and each.kind != "dir"]
        seen = Counter(each.ino for each in several)
        return {each.ino for each in several if seen[each.ino] < each.nlink}

    def _these(self, folders: Folders, paths: list[bytes], renewed: set[bytes]) -> None:
        """Look at these, a folder before what is in it."""
        names = self._scan.names
        now = {path: self._status(folders, path) for path in paths if not self._hidden(folders, path)}
        known = {path: names.get(path) for path in now}
        gone = {
            path
            for path, was in known.items()
            if was is not None and was.kind == "dir" and (path in renewed or not _is_same_folder(was, now[path][0]))
        }
        self._forget_below(gone)
        looked = self._looked or set()
        entered: tuple[bytes, ...] = ()
        for path, (found, there) in now.items():
            if path in looked or path.startswith(entered):  # all below was looked at later, with a watch on it
                continue
            self._forget(path)
            was = known[path]
            if there and self._note(path, found) and (was is None or was.kind != "dir" or path in gone):
                self._enter_at(folders, path)
                entered += (path + b"/",)

    def _status(self, folders: Folders, path: bytes) -> tuple[Found | None, bool]:
        """What is there, as far as it is captured, and whether anything is."""
        try:
            if not path:
                return from_stat(b"", os.fstat(folders.root), self._device), True
            folder, name = folders.parent(path)
            status = os.stat(name, dir_fd=folder, follow_symlinks=False)
            target = os.readlink(name, dir_fd=folder) if stat.S_ISLNK(status.st_mode) else b""
            return from_stat(path, status, self._device, target), True
        except OSError as error:
            if error.errno in GONE:
                return None, False
            raise unreadable(path, self._scan.root, error) from error

    def _enter_at(self, folders: Folders, path: bytes) -> None:
        folder, name = folders.parent(path)
        with suppress(FileNotFoundError, NotADirectoryError):
            opened = os.open(name, FOLDER_FLAGS, dir_fd=folder)
            self._chain = []
            for _ in self._below(opened, path):
                pass

    def _hidden(self, folders: Folders, path: bytes) -> bool:
        """It is ours, or left out by a pattern; what is below such a folder nobody would have watched."""
        scan = self._scan
        if path and scan.only and path.partition(b"/")[0] not in scan.only:
            return True
        if scan.left_out is None or not path or not scan.left_out(path):
            return path.startswith(WORK_PREFIX)
        if self._status(folders, path)[1]:
            scan.excluded.add(path)
        else:
            scan.excluded.discard(path)
        return True

    def _forget(self, path: bytes) -> None:
        scan = self._scan
        scan.names.pop(path, None)
        for each in (scan.linked, scan.sockets, scan.mounts):
            each.discard(path)

    def _forget_below(self, folders: set[bytes]) -> None:
        prefixes = tuple(path + b"/" for path in folders)
        if prefixes:
            for path in [each for each in self._scan.names if each.startswith(prefixes)]:
                self._forget(path)
            self._scan.excluded = {each for each in self._scan.excluded if not each.startswith(prefixes)}

    def _below(self, folder: int, path: bytes) -> Iterator[list[bytes]]:
        """List an open folder and all below it, one after another; the descriptor is ours to close."""
        self._chain.append(folder)
        try:
            yield self._list(path, 0)
            while self._pending:
                yield self._enter(*self._pending.pop())
        finally:
            for each in self._chain:
                os.close(each)

    def _enter(self, depth: int, path: bytes) -> list[bytes]:
        while len(self._chain) > depth:
            os.close(self._chain.pop())
        try:
            self._chain.append(os.open(path.rpartition(b"/")[2], FOLDER_FLAGS, dir_fd=self._chain[-1]))
            return self._list(path, depth)
        except OSError as error:
            if error.errno not in GONE:
                raise unreadable(path, self._scan.root, error) from error
            self._scan.names.pop(path, None)
            return []

    def _list(self, path: bytes, depth: int) -> list[bytes]:
        """The names that were noted in the folder at the end of the chain."""
        folder, scan = self._chain[depth], self._scan
        noted: list[bytes] = []
        self._entered(folder, path)
        # Once more: nobody tells of what was done in it before it was entered.
        self._note(path, from_stat(path, os.fstat(folder), self._device))
        prefix = path + b"/" if path else b""
        with os.scandir(folder) as listing:
            for item in listing:
                name = item.name.encode(_ENCODING, "surrogateescape")
                below = prefix + name
                if scan.only and not prefix and name not in scan.only:
                    continue
                if scan.left_out is not None and scan.left_out(below):
                    scan.excluded.add(below)
                    continue
                if not prefix and name.startswith(WORK_PREFIX):
                    continue
                try:
                    target = os.readlink(name, dir_fd=folder) if item.is_symlink() else b""
                    found = from_stat(below, item.stat(follow_symlinks=False), self._device, target)
                except FileNotFoundError:
                    continue
                except OSError as error:
                    raise unreadable(below, scan.root, error) from error
                noted.append(below)
                if self._note(below, found):
                    self._pending.append((depth + 1, below))
        return noted

    def _note(self, path: bytes, found: Found | None) -> bool:
        if self._looked is not None:
            self._looked.add(path)
        return self._scan.note(path, found)


def _is_same_folder(was: Found, now: Found | None) -> bool:
    return now is not None and (now.kind, now.ino, now.dev) == (was.kind, was.ino, was.dev)


def matcher(patterns: Iterable[str]) -> Callable[[bytes], bool] | None:
    """Whether a path is left out by the patterns; None where nothing is."""
    wanted = [fnmatch.translate(pattern.strip("/")) for pattern in patterns]
    if not wanted:
        return None
    match = re.compile("|".join(wanted)).match
    return lambda path: match(os.fsdecode(path)) is not None
