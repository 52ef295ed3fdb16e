"""SQLite databases in a file tree: found by their first bytes, and proven on a copy.

Where the writers stand still, the files of a database (the main one, ``-wal``, ``-journal``) are of one instant, just
as a killed program leaves them, and SQLite recovers from that by itself. They are backed up as they are. Nothing opens
them in the pause, since a writer may stand still with their locks; ``prove`` lets SQLite recover a private copy later.

Where nobody stands still, ``sqlite_live`` copies them instead.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
import tempfile
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Final
from urllib.parse import quote

from cosmos_coherence import errors
from cosmos_coherence.copied import Copied, Found
from cosmos_coherence.drivers.folders import Folders, from_stat, open_file
from cosmos_coherence.model import Gap
from cosmos_coherence.sources.tree_held import Held
from cosmos_coherence.sources.tree_scan import show

BESIDE: Final = (b"-wal", b"-journal", b"-shm")
"""What SQLite keeps beside a database. A ``-shm`` it makes anew whenever nobody has the database open."""

_HEADER: Final = b"SQLite format 3\0"
_ENDINGS: Final[tuple[bytes, ...]] = (b".db", b".db3", b".sdb", b".s3db", b".sqlite", b".sqlite2", b".sqlite3")
_LIKELY: Final = (*_ENDINGS, *BESIDE)
_SEVERAL: Final = bytes.fromhex("d9d505f920a163d7")
"""Ends a journal that names another one: a transaction over several databases."""
_MIB: Final = 1 << 20
_AGAIN: Final = 1024 * _MIB
"""A database that was not read in this run, because the last backup has it, is proven again up to this size."""
_ROOM: Final = 64 * _MIB
"""The copy leaves this much free."""
_LIMIT_S: Final = 300.0
_NAMED: Final = 100
_FEW: Final = 8
"""So few names are looked into whatever they are."""


@dataclass(slots=True)
class Databases:
    """What is known of the databases of a tree, by path."""

    whole: list[bytes] = field(default_factory=list)
    """SQLite has read them through."""
    damaged: dict[bytes, str] = field(default_factory=dict)
    unknown: dict[bytes, str] = field(default_factory=dict)
    """Why SQLite has said nothing. Their files are of the instant all the same."""
    apart: dict[bytes, Copied] = field(default_factory=dict)
    """What is stored of them is SQLite's own copy, and nothing that lies beside them."""
    unsure: dict[bytes, str] = field(default_factory=dict)
    """SQLite should have copied them and could not."""

    def beside(self) -> set[bytes]:
        """Paths that are not wanted, since the database is ``apart``."""
        return {path + each for path in self.apart for each in BESIDE}

    def gaps(self, of: str, changed: Collection[bytes]) -> list[Gap]:
        """What of them is not as it should be. ``changed`` are the files that were written to the last moment."""
        why = "SQLite finds it damaged; it is kept as it is"
        gaps = [Gap(f"{show(path)} {of}", f"{why}: {said}") for path, said in sorted(self.damaged.items())]
        why = "it was written while it was copied, and SQLite could not copy it"
        return gaps + [
            Gap(f"{show(path)} {of}", f"{why}: {said}")
            for path, said in sorted(self.unsure.items())
            if any(path + each in changed for each in (b"", *BESIDE))
        ]

    def details(self) -> dict[str, str]:
        """For the manifest."""
        said = {
            "sqlite": [show(path) for path in sorted(self.whole)],
            "sqlite_damaged": [f"{show(path)} ({why})" for path, why in sorted(self.damaged.items())],
            "sqlite_unchecked": [f"{show(path)} ({why})" for path, why in sorted(self.unknown.items())],
        }
        more = {key: [f"{len(each) - _NAMED} more"] if len(each) > _NAMED else [] for key, each in said.items()}
        return {key: ", ".join([*each[:_NAMED], *more[key]]) for key, each in said.items() if each}

    def note(self, path: bytes, place: Path) -> bool:
        """Let SQLite recover the database at ``place``, which is ours, and read it through; whether it is whole."""
        deadline = time.monotonic() + _LIMIT_S
        try:
            with closing(sqlite3.connect(f"file:{quote(str(place))}?mode=rw", uri=True)) as database:
                database.set_progress_handler(lambda: time.monotonic() > deadline, 1_000_000)
                # A stranger wrote the schema: nothing of it is run.
                for pragma in ("trusted_schema = OFF", "cell_size_check = ON", "mmap_size = 0"):
                    database.execute(f"PRAGMA {pragma}")
                found = [str(row[0]) for row in database.execute("PRAGMA quick_check(1)")]
        except sqlite3.Error as error:
            if is_damage(error):
                self.damaged[path] = str(error)
            else:
                self.unknown[path] = f"SQLite {sqlite3.sqlite_version}: {error}"
            return False
        if found != ["ok"]:
            self.damaged[path] = " ".join(found[0].split()) if found else "no answer"
            return False
        self.whole.append(path)
        return True


def files_of(place: Path) -> frozenset[bytes]:
    """The names, in its folder, of all that a database at ``place`` consists of."""
    name = os.fsencode(place.name)
    return frozenset({name, *(name + each for each in BESIDE)})


def require_database(place: Path) -> None:
    """Raise ``CaptureFailed`` when no database lies there. An empty file is one that nobody has written to yet."""
    why = ""
    try:
        with Folders(place.parent) as folders:
            opened = open_file(folders, os.fsencode(place.name))
            if opened is None:
                why = "it is no file" if os.path.lexists(place) else "it is not there"
            else:
                os.close(opened[0])
                if opened[1].st_size and head(folders, os.fsencode(place.name))[: len(_HEADER)] != _HEADER:
                    why = "it does not begin like one"
    except OSError as error:
        why = error.strerror or "it cannot be read"
    if why:
        raise errors.CaptureFailed(
            f"{place} is no SQLite database: {why}", remedy="Name the file itself as `path` of its `[[source]]`."
        )


def databases(folders: Folders, names: Mapping[bytes, Found], held: Held | None = None) -> Iterator[Found]:
    """The databases among these files. Of many opened is only what its name makes one likely: by its ending, or what
    lies beside. What cannot be read is none."""
    named = names if len(names) <= _FEW else [path for path in names if path.endswith(_LIKELY)]
    likely = {*named, *(path.rpartition(b"-")[0] for path in named if path.endswith(BESIDE))}
    for path in sorted(likely):
        found = names.get(path)
        if found is None or found.kind != "file" or found.size < len(_HEADER):
            continue
        if held is not None and path in held.paths():
            with held.content(path, found.size) as content:
                first = content.read(len(_HEADER))
        else:
            first = head(folders, path)[: len(_HEADER)]
        if first == _HEADER:
            yield found


def prove(
    root: Path, names: Mapping[bytes, Found], held: Held, spool: Path, read: Collection[bytes], into: Databases
) -> None:
    """Have SQLite look at every database among ``names``, as they were at the instant, that ``into`` does not know.

    ``held`` has what was read at the instant; everything else is copied now from the disk, and counts when it has not
    changed since. ``read`` are the paths that this run has read.
    """
    try:
        opened = Folders(root)
    except OSError:
        return
    with opened as folders:
        for found in databases(folders, names, held):
            path = found.path
            files = [names[name] for name in (path, path + b"-wal", path + b"-journal") if name in names]
            if path in into.apart:
                continue
            if sum(each.size for each in files) > _AGAIN and not any(each.path in read for each in files):
                into.unknown[path] = "unchanged since the last backup"
                continue
            try:
                with tempfile.TemporaryDirectory(prefix="sqlite-", dir=spool) as folder:
                    place = Path(folder, "database")
                    if why := _copy(folders, files, held, place):
                        into.unknown[path] = why
                    else:
                        into.note(path, place)
            except OSError as error:
                into.unknown[path] = f"it could not be copied: {error.strerror}"


def _copy(folders: Folders, files: list[Found], held: Held, place: Path) -> str:
    """Copy the files of a database as they were at the instant; why not, if not. Raises ``OSError``."""
    if shutil.disk_usage(place.parent).free < 2 * sum(each.size for each in files) + _ROOM:
        return "no room for a copy"
    late = [found for found in files if found.path not in held.paths()]  # first, as their writers run again
    for found in [*late, *(each for each in files if each not in late)]:
        ending = found.path[len(files[0].path) :]
        with Path(f"{place}{ending.decode()}").open("w+b") as out:
            if found not in late:
                with held.content(found.path, found.size) as content:
                    shutil.copyfileobj(content, out, _MIB)
            elif found.nlink > 1:
                return "it has several names"
            elif not _copy_unchanged(folders, found, out):
                return "it changed before it could be looked at"
            if ending == b"-journal" and _is_of_several(out):
                return "it is in a transaction over several databases"
    return ""


def _is_of_several(journal: BinaryIO) -> bool:
    """Such a journal counts only where the other one lies, which a copy elsewhere does not know."""
    size = journal.seek(0, os.SEEK_END)
    journal.seek(max(0, size - len(_SEVERAL)))
    return journal.read() == _SEVERAL


def _copy_unchanged(folders: Folders, found: Found, out: BinaryIO) -> bool:
    opened = open_file(folders, found.path)
    if opened is None:
        return False
    file, _ = opened
    try:
        with open(file, "rb", closefd=False) as live:
            shutil.copyfileobj(live, out, _MIB)
        return from_stat(found.path, os.fstat(file), folders.device) == found
    finally:
        os.close(file)


def is_damage(error: sqlite3.Error) -> bool:
    """Whether SQLite says that the database is damaged. A schema that this SQLite is too old for sounds like it."""
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    return code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB) and "malformed database schema" not in str(error)


def head(folders: Folders, path: bytes) -> bytes:
    """The first bytes of a file; none when it cannot be read."""
    with suppress(OSError):
        opened = open_file(folders, path)
        if opened is not None:
            try:
                return os.pread(opened[0], 20, 0)
            finally:
                os.close(opened[0])
    return b""
