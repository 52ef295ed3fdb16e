"""The way back of a Redis or Valkey server: its data files are exchanged while it is stopped.

A server with AOF on ignores a dump, so one gets an AOF that begins with the dump, in the form that its version reads.
"""

from __future__ import annotations

import os
import re
import shutil
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Final, Literal

import msgspec
from msgspec.structs import replace

from cosmos_coherence import errors
from cosmos_coherence.drivers.runtime import Runtime
from cosmos_coherence.model import Part
from cosmos_coherence.parts import PartReader
from cosmos_coherence.sources import redis_session as sessions
from cosmos_coherence.sources import staging
from cosmos_coherence.sources.redis_dump import DumpCheck, require_readable
from cosmos_coherence.sources.redis_session import Session
from cosmos_coherence.sources.staging import Staging

Phase = Literal["staging", "staged", "out", "in", "swapped", "clear", "back", "undone"]

_CHUNK: Final = 1 << 20
_POLL_S: Final = 0.05
_PATIENCE_S: Final = 60.0
"""How long a started server may stay silent; while it says that it loads, there is no bound."""
_PLACES: Final = {
    "appendonly": "no",
    "dbfilename": "dump.rdb",
    "appenddirname": "appendonlydir",
    "appendfilename": "appendonly.aof",
}
"""Settings that say where the data are, with what they are by themselves."""
_FILE_NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
_MULTIPART: Final = (7, 0)
"""Since this version an AOF is a folder with a manifest."""


class _Journal(msgspec.Struct, frozen=True):
    """What is being done to the data folder, written before it is done.

    ``out`` the old files move out · ``in`` the new ones move in · ``swapped`` · ``clear`` the new ones are removed ·
    ``back`` the old ones move back · ``undone``. In ``out`` and ``back`` what lies in the folder under one of the
    names is old, from ``in`` to ``clear`` it is new.
    """

    phase: Phase
    names: tuple[str, ...] = ()
    """What is exchanged."""


class _Layout(msgspec.Struct, frozen=True):
    """Which files the server reads."""

    server: sessions.Server
    aof: bool
    dump: str
    folder: str
    """Of the AOF, since version 7."""
    base: str
    """How the files of the AOF begin; before version 7 its only file."""


class RedisRestorer:
    """Brings a dump back into ``data_root``, the folder of this machine that the server keeps its data in.

    All state lies in ``data_root/.cosmos-restore-<run>``. The server must be stopped for ``swap``, and for ``undo``
    once that has begun.
    """

    stops = True

    def __init__(self, part: Part, runtime: Runtime, service: str, data_root: Path, run: str) -> None:
        self._part, self._runtime, self._service, self._run = part, runtime, service, run
        self._root = data_root
        self._staging = Staging(data_root, run)

    @property
    def part(self) -> Part:
        """What it brings back."""
        return self._part

    def stage(self, reader: PartReader) -> None:
        """Write the files beside the live ones; the server may run or not. May be repeated until ``swap``.

        Raises ``Unsupported`` for a server too old for the dump and for one that is not its own master, ``Damaged`` for
        no whole dump, ``NoRoom``.
        """
        journal = self._staging.load(_Journal)
        if journal is not None and journal.phase not in ("staging", "staged"):
            raise errors.RestoreFailed(f"a restore of {self._root} is under way", remedy="Run `cosmos recover`.")
        layout = self._layout()
        self._staging.remove()
        with staging.translated(self._root):
            owner = self._owner(layout)
            self._staging.create()
            self._staging.save(_Journal("staging"))
            self._staging.new.mkdir(0o700)
            self._staging.old.mkdir(0o700)
            self._write(reader, layout)
            for path in self._staging.new.rglob("*"):
                path.chmod(0o700 if path.is_dir() else 0o600)
                if os.geteuid() == 0:
                    os.chown(path, *owner)
                _sync(path)
            staging.sync(self._staging.new)
        names = {layout.dump, layout.folder, layout.base, *(path.name for path in self._staging.new.iterdir())}
        self._staging.save(_Journal("staged", tuple(sorted(names))))

    def swap(self) -> None:
        """Move the old files aside and the staged ones in. The server is stopped. May be repeated."""
        journal = self._staging.load(_Journal)
        if journal is None or journal.phase not in ("staged", "out", "in", "swapped"):
            raise errors.RestoreFailed(f"nothing is staged for {self._root}")
        with staging.translated(self._root):
            if journal.phase == "staged":
                journal = self._enter("out", journal)
            if journal.phase == "out":
                self._move(journal.names, self._root, self._staging.old)
                journal = self._enter("in", journal)
            if journal.phase == "in":
                self._move(journal.names, self._staging.new, self._root)
                self._enter("swapped", journal)

    def verify(self) -> None:
        """Wait until the server has loaded and count its keys. ``NotEqual`` says what differs, ``ServiceDown``."""
        found = self._loaded()
        expected = self._part.fingerprint
        for database in sorted({*found, *expected.keys, *expected.expiring_keys}):
            plain, expiring = found.get(database, (0, 0))
            bound = expected.expiring_keys.get(database, 0)
            if database not in expected.keys and database in expected.expiring_keys:
                plain, expiring = 0, plain + expiring
            wanted = expected.keys.get(database, 0)
            if plain != wanted or expiring > bound:
                raise errors.NotEqual(
                    f"database {database} of Redis in {self._service} holds {plain} keys and {expiring} that expire,"
                    f" instead of {wanted} and at most {bound}"
                )

    def undo(self) -> None:
        """Back to the old files, from whatever point. The server is stopped if ``swap`` had begun. May be repeated."""
        with staging.translated(self._root):
            journal = self._staging.load(_Journal)
            if journal is not None and journal.phase in ("in", "swapped"):
                journal = self._enter("clear", journal)
            if journal is not None and journal.phase == "clear":
                with staging.opened(self._root) as root:
                    for name in journal.names:
                        if staging.exists(root, name):
                            staging.remove_tree(root, name)
                    os.fsync(root)
            if journal is not None and journal.phase in ("out", "clear", "back"):
                journal = self._enter("back", journal)
                self._move(journal.names, self._staging.old, self._root)
                self._enter("undone", journal)
            self._staging.remove()

    def finish(self) -> None:
        """Remove the old files. May be repeated. ``RestoreFailed`` when half swapped."""
        journal = self._staging.load(_Journal)
        if journal is not None and journal.phase in ("out", "in", "clear", "back"):
            raise errors.RestoreFailed(f"the restore of {self._root} stopped half way", remedy="Run `cosmos recover`.")
        self._staging.remove()

    def _enter(self, phase: Phase, journal: _Journal) -> _Journal:
        journal = replace(journal, phase=phase)
        self._staging.save(journal)
        return journal

    def _move(self, names: Iterable[str], source: Path, target: Path) -> None:
        with staging.opened(source) as here, staging.opened(target) as there:
            for name in names:
                if staging.exists(here, name):
                    staging.move(name, here, there)
            # the next phase reads the names by the journal alone, so they are on the disk before it is
            os.fsync(there)
            os.fsync(here)

    def _layout(self) -> _Layout:
        """As the running server says, or where it does not answer any more, as the backup does."""
        places = dict(self._part.details)
        server = sessions.Server(places.get("server", "redis"), self._part.version)
        with suppress(errors.ServiceDown), Session(self._runtime, self._service, self._run) as session:
            server = sessions.server(sessions.require_alone(session, self._service))
            for name in _PLACES:
                if value := session.config(name):
                    places[name] = value
        names = {name: places.get(name, usual) for name, usual in _PLACES.items()}
        if odd := [value for value in names.values() if not _FILE_NAME.fullmatch(value)]:
            raise errors.Unsupported(f"Redis in {self._service} keeps its data in a file with the odd name {odd[0]!r}")
        return _Layout(
            server, names["appendonly"] == "yes", names["dbfilename"], names["appenddirname"], names["appendfilename"]
        )

    def _owner(self, layout: _Layout) -> tuple[int, int]:
        """Whose the files are that are there now, or the folder; root's are what somebody copied in by hand."""
        paths = [self._root / name for name in (layout.folder, layout.base, layout.dump)] + [self._root]
        found = [(status.st_uid, status.st_gid) for status in (path.stat() for path in paths if path.exists())]
        return next((owner for owner in found if owner[0]), found[-1])

    def _write(self, reader: PartReader, layout: _Layout) -> None:
        dump, check = self._staging.new / layout.dump, DumpCheck()
        with reader.open(self._part.details.get("stream", "redis/dump.rdb")) as source, dump.open("wb") as out:
            while piece := source.read(_CHUNK):
                check.feed(piece)
                out.write(piece)
        require_readable(check.finish(), layout.server.name, layout.server.release)
        if layout.aof and layout.server.release >= _MULTIPART:
            folder = self._staging.new / layout.folder
            folder.mkdir()
            base = f"{layout.base}.1.base.rdb"
            shutil.copyfile(dump, folder / base)
            (folder / f"{layout.base}.manifest").write_text(f"file {base} seq 1 type b\n")
        elif layout.aof:
            shutil.copyfile(dump, self._staging.new / layout.base)

    def _loaded(self) -> dict[str, tuple[int, int]]:
        give_up = time.monotonic() + _PATIENCE_S
        while True:
            try:
                with Session(self._runtime, self._service, self._run) as session:
                    if session.info("persistence").get("loading") == "0":
                        return sessions.keyspace(session.ask("INFO keyspace"))
                give_up = time.monotonic() + _PATIENCE_S
            except errors.ServiceDown as error:
                if "LOADING" in error.message:
                    give_up = time.monotonic() + _PATIENCE_S
                elif time.monotonic() > give_up:
                    raise
            time.sleep(_POLL_S)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
