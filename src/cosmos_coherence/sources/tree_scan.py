"""A fast look at a file tree: one light record for each name, nothing opened but folders.

The walk goes by folder descriptors and follows no link, so whatever is swapped in while it runs, it stays inside its
root. It stays on the root's file system too. Paths are bytes, relative to the root, which is ``b""`` itself.
"""

from __future__ import annotations

import ctypes
import fnmatch
import os
import re
import stat
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from msgspec import structs

from cosmos_coherence import errors
from cosmos_coherence.drivers.folders import FOLDER_FLAGS, GONE, from_stat
from cosmos_coherence.model import Copied, Found

WORK_PREFIX: Final = b".cosmos-restore-"
"""A restore keeps what it stages in a folder of this name below the root; no walk ever sees it."""

_ENCODING: Final = sys.getfilesystemencoding()


@dataclass(frozen=True, slots=True)
class Scan:
    """What one walk found, and what it passed by."""

    names: dict[bytes, Found]
    """By path, in no particular order."""
    sockets: int
    """Sockets seen: they are made by the program that listens, so they are never captured."""
    mounts: tuple[bytes, ...]
    """Folders on another file system, not entered."""
    excluded: tuple[bytes, ...]
    """Names that a pattern left out, the topmost only."""

    linked: tuple[Found, ...]
    """Files that have further names, here or elsewhere."""

    def links(self) -> dict[bytes, bytes]:
        """The further names of hard-linked files, each with the first name (in byte order) of its file."""
        groups: dict[tuple[int, int], list[bytes]] = {}
        for found in self.linked:
            groups.setdefault((found.dev, found.ino), []).append(found.path)
        return {path: first for first, *others in map(sorted, groups.values()) for path in others}


def walk(root: Path, exclude: Iterable[str] = ()) -> Scan:
    """Look at every name below ``root`` (and the root itself).

    A pattern of ``exclude`` (as in ``fnmatch``, ``*`` also matches ``/``) is held against each relative path; a folder
    that matches is left out with all below it. What disappears meanwhile is left out quietly. Raises ``CaptureFailed``
    naming what cannot be read.
    """
    return _Walk(root, _matcher(exclude)).run()


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


def show(path: bytes) -> str:
    """A path for a sentence: whatever could disturb a terminal or break the line is escaped."""
    text = path.decode("utf-8", "backslashreplace") or "."
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def unreadable(path: bytes, root: Path, error: OSError) -> errors.CaptureFailed:
    """The error for a name that cannot be read, with the remedy."""
    return errors.CaptureFailed(
        f"{show(path)} in {root} cannot be read: {error.strerror}",
        remedy="Run as a user who may read it, or leave it out with `cosmos.exclude`.",
    )


def sync(folder: int) -> None:
    """Write everything of the file system that holds this open folder to its disk. Raises ``OSError``."""
    if ctypes.CDLL(None, use_errno=True).syncfs(folder) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


class _Walk:
    """Depth first, with one descriptor open for each folder between the root and the present one."""

    def __init__(self, root: Path, left_out: Callable[[bytes], bool] | None) -> None:
        self._root = root
        self._left_out = left_out
        self._names: dict[bytes, Found] = {}
        self._sockets = 0
        self._mounts: list[bytes] = []
        self._excluded: list[bytes] = []
        self._linked: list[Found] = []
        self._chain: list[int] = []
        self._pending: list[tuple[int, bytes]] = []
        self._device = 0

    def run(self) -> Scan:
        try:
            self._chain.append(os.open(self._root, FOLDER_FLAGS & ~os.O_NOFOLLOW))
            status = os.fstat(self._chain[0])
            self._device = status.st_dev
            top = from_stat(b"", status, self._device)
            assert top is not None
            self._names[b""] = top
            self._list(b"", 0)
            while self._pending:
                self._enter(*self._pending.pop())
        except OSError as error:
            raise errors.CaptureFailed(f"{self._root} cannot be read: {error.strerror}") from error
        finally:
            for folder in self._chain:
                os.close(folder)
        return Scan(self._names, self._sockets, tuple(self._mounts), tuple(self._excluded), tuple(self._linked))

    def _enter(self, depth: int, path: bytes) -> None:
        while len(self._chain) > depth:
            os.close(self._chain.pop())
        try:
            self._chain.append(os.open(path.rpartition(b"/")[2], FOLDER_FLAGS, dir_fd=self._chain[-1]))
            self._list(path + b"/", depth)
        except OSError as error:
            if error.errno not in GONE:
                raise unreadable(path, self._root, error) from error
            self._names.pop(path, None)

    def _list(self, prefix: bytes, depth: int) -> None:
        folder = self._chain[depth]
        names, left_out = self._names, self._left_out
        with os.scandir(folder) as listing:
            for item in listing:
                name = item.name.encode(_ENCODING, "surrogateescape")
                path = prefix + name
                if left_out is not None and left_out(path):
                    self._excluded.append(path)
                    continue
                if not prefix and name.startswith(WORK_PREFIX):
                    continue
                try:
                    target = os.readlink(name, dir_fd=folder) if item.is_symlink() else b""
                    found = from_stat(path, item.stat(follow_symlinks=False), self._device, target)
                except FileNotFoundError:
                    continue
                except OSError as error:
                    raise unreadable(path, self._root, error) from error
                if found is None:
                    self._sockets += 1
                elif found.kind != "dir":
                    names[path] = found
                    if found.nlink > 1 and found.kind == "file":
                        self._linked.append(found)
                elif found.dev:
                    self._mounts.append(path)
                else:
                    names[path] = found
                    self._pending.append((depth + 1, path))


def _matcher(patterns: Iterable[str]) -> Callable[[bytes], bool] | None:
    wanted = [fnmatch.translate(pattern.strip("/")) for pattern in patterns]
    if not wanted:
        return None
    match = re.compile("|".join(wanted)).match
    return lambda path: match(os.fsdecode(path)) is not None
