"""SQLite databases whose writers run on: SQLite's backup API makes the copy, under the locks of the live database."""

from __future__ import annotations

import os
import sqlite3
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, Final
from urllib.parse import quote

from msgspec import structs

from cosmos_coherence.copied import Copied, Found
from cosmos_coherence.drivers.folders import Folders
from cosmos_coherence.sources.sqlite import Databases, head, is_damage

_WAL: Final = b"\2\2"
"""At offset 18 of a database in WAL mode."""
_STEPS_S: Final = 10.0
"""So long the live database is copied in steps that let its writers in between, then in one go."""
_BUSY_S: Final = 10.0
"""So long somebody may keep it locked."""
_PAGES: Final = 4096


@contextmanager
def copy_of(root: Path, folders: Folders, found: Found, spool: Path, into: Databases) -> Iterator[BinaryIO | None]:
    """What SQLite's backup API makes of a database that may be in use: one whole file without anything beside it.

    The database is opened read-only. None when that is not to be had, and its files are stored as they lie: nobody has
    it open, it is damaged, or SQLite cannot read it, of which ``into`` is told.
    """
    if found.nlink > 1:
        into.unsure[found.path] = "it has several names"
    if found.nlink > 1 or not _is_in_use(folders, found.path):
        yield None
        return
    with tempfile.TemporaryDirectory(prefix="sqlite-", dir=spool) as folder:
        place = Path(folder, "database")
        is_copied = False
        # With `readonly_shm` SQLite makes no file beside the database.
        live = f"file:{quote(os.fsencode(root) + b'/' + found.path)}?mode=ro&readonly_shm=1"
        try:
            with (
                closing(sqlite3.connect(live, uri=True, timeout=_BUSY_S)) as source,
                closing(sqlite3.connect(place)) as target,
            ):
                target.execute("PRAGMA synchronous = OFF")
                _back_up(source, target)
            into.note(found.path, place)
            is_copied = found.path not in into.damaged
        except sqlite3.Error as error:
            if not is_damage(error):
                into.unsure[found.path] = str(error)
        if is_copied:
            with place.open("rb") as content:
                yield content
        else:
            into.damaged.pop(found.path, None)  # said of the files themselves, later
            yield None


def cleaned(copied: Copied, content: BinaryIO) -> Copied:
    """The record of a database whose content SQLite has copied. Its change time is not known: nothing on the disk is
    ever taken for it."""
    size = os.fstat(content.fileno()).st_size
    return structs.replace(copied, found=structs.replace(copied.found, size=size, ctime_ns=0), data=None)


def _is_in_use(folders: Folders, path: bytes) -> bool:
    """Whether somebody may have it open. In WAL mode that shows; and where nobody has, opening it would make files."""
    if head(folders, path)[18:20] != _WAL:
        return True
    return all(_exists(folders, path + each) for each in (b"-wal", b"-shm"))


def _back_up(source: sqlite3.Connection, target: sqlite3.Connection) -> None:
    """In steps first, which hold nobody up but begin anew after every change; in one go when that does not end."""
    is_wal = source.execute("PRAGMA journal_mode").fetchone()[0] == "wal"  # where one go holds nobody up either
    is_copied = not is_wal and _done(source, target, _PAGES, _STEPS_S)
    if not is_copied and not _done(source, target, -1, _BUSY_S):
        raise sqlite3.OperationalError("database is locked")


def _done(source: sqlite3.Connection, target: sqlite3.Connection, pages: int, limit_s: float) -> bool:
    try:
        source.backup(target, pages=pages, progress=_until(time.monotonic() + limit_s), sleep=0.001)
    except TimeoutError:
        return False
    return True


def _until(deadline: float) -> Callable[[int, int, int], None]:
    def progress(status: int, remaining: int, total: int) -> None:
        if status != sqlite3.SQLITE_DONE and time.monotonic() > deadline:
            raise TimeoutError

    return progress


def _exists(folders: Folders, path: bytes) -> bool:
    with suppress(OSError):
        folder, name = folders.parent(path)
        os.stat(name, dir_fd=folder, follow_symlinks=False)
        return True
    return False
