"""The writers: ``python -m benchmarks.coherence.writer --ids 0,1 --of 4 --files DIR --board DIR``, one process each.

Each waits until the board wants a session, begins it with empty stores, and then counts at full speed: every number to
PostgreSQL (committed), Redis, a file, SQLite, each when the one before is acknowledged. The kinds of file take turns:
lines appended with fsync, lines appended, slots written in place with fdatasync, slots written through a mapping.
"""

from __future__ import annotations

import argparse
import contextlib
import mmap
import os
import signal
import sqlite3
import struct
import sys
import time
import traceback
from pathlib import Path
from typing import Any, Protocol

from benchmarks.coherence import wire
from benchmarks.coherence.board import Board
from benchmarks.coherence.record import PER_FILE, STORES, WIDTH, Record, line, place, text

TABLE = "coherence"
KINDS = ("synced", "appended", "slots", "mapped")
_IDLE_S = 0.01


def key(writer: int) -> str:
    """The list of a writer in Redis."""
    return f"coherence:{writer}"


class Store(Protocol):
    """One store, as one writer sees it."""

    def clear(self) -> None:
        """Begin with nothing."""

    def put(self, record: Record) -> None:
        """Return when the record is acknowledged."""


class Rows:
    """Rows of a table, a transaction each."""

    def __init__(self, writer: int, door: wire.Postgres) -> None:
        self._writer, self._door = writer, door

    def clear(self) -> None:
        self._door.run(f"DELETE FROM {TABLE} WHERE writer = {self._writer}")

    def put(self, record: Record) -> None:
        self._door.run(f"INSERT INTO {TABLE} VALUES ({self._writer}, {record.k}, '{text(record)}')")


class Items:
    """Items of a list in Redis."""

    def __init__(self, writer: int, door: wire.Redis) -> None:
        self._key, self._door = key(writer), door

    def clear(self) -> None:
        self._door.run("DEL", self._key)

    def put(self, record: Record) -> None:
        self._door.run("RPUSH", self._key, text(record))


class Files:
    """Files of ``PER_FILE`` records each, written in the way of this kind."""

    def __init__(self, writer: int, folder: Path) -> None:
        self._writer, self._folder, self._kind = writer, folder, KINDS[writer % len(KINDS)]
        self._handle = -1
        self._map: mmap.mmap | None = None

    def clear(self) -> None:
        for path in self._folder.glob(f"{self._writer}-*"):
            path.unlink()

    def put(self, record: Record) -> None:
        number, slot = divmod(record.k - 1, PER_FILE)
        if slot == 0:
            self._open(self._folder / f"{self._writer}-{number:05}.{self._kind}")
        data = line(record)
        if self._map is not None:
            start = place(slot) * WIDTH
            self._map[start : start + WIDTH] = data
            return
        os.pwrite(self._handle, data, slot * WIDTH) if self._kind == "slots" else os.write(self._handle, data)
        if self._kind == "synced":
            os.fsync(self._handle)
        elif self._kind == "slots":
            os.fdatasync(self._handle)

    def _open(self, path: Path) -> None:
        if self._map is not None:
            self._map.close()
        if self._handle >= 0:
            os.close(self._handle)
        append = os.O_APPEND if self._kind in ("synced", "appended") else 0
        self._handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | append, 0o644)
        if not append:
            os.ftruncate(self._handle, PER_FILE * WIDTH)
        self._map = mmap.mmap(self._handle, PER_FILE * WIDTH) if self._kind == "mapped" else None


class Lite:
    """Rows of an SQLite database in the volume, write-ahead log on, as synchronous as SQLite is by itself."""

    def __init__(self, writer: int, folder: Path) -> None:
        self._path = folder / f"{writer}.sqlite"
        self._door: sqlite3.Connection | None = None

    def clear(self) -> None:
        if self._door is not None:
            self._door.close()
        for suffix in ("", "-wal", "-shm"):
            Path(f"{self._path}{suffix}").unlink(missing_ok=True)
        self._door = sqlite3.connect(self._path, isolation_level=None, timeout=60)
        self._door.execute("PRAGMA journal_mode = WAL")
        self._door.execute("CREATE TABLE coherence (k INTEGER PRIMARY KEY, record TEXT NOT NULL)")

    def put(self, record: Record) -> None:
        assert self._door is not None
        self._door.execute("INSERT INTO coherence VALUES (?, ?)", (record.k, text(record)))


def connect(writer: int, options: argparse.Namespace) -> list[Store]:
    """The stores in the order of writing."""
    given: dict[str, Any] = {name: os.environ.get(name, "") for name in ("PGHOST", "PGUSER", "PGPASSWORD")}
    rows = wire.Postgres(
        given["PGHOST"], int(os.environ.get("PGPORT", "5432")), given["PGUSER"], given["PGPASSWORD"],
        os.environ["PGDATABASE"],
    )  # fmt: skip
    host, port = os.environ.get("REDIS_HOST", "127.0.0.1"), int(os.environ["REDIS_PORT"])
    items = wire.Redis(host, port, os.environ.get("REDISCLI_AUTH", ""))
    stores: list[Store] = [Rows(writer, rows), Items(writer, items), Files(writer, options.files)]
    return [*stores, Lite(writer, options.files)] if options.stores == len(STORES) else stores


def count(writer: int, of: int, stores: list[Store], board: Board, session: int) -> None:
    """Write until the board wants something else."""
    for store in stores:
        store.clear()
    board.acknowledge(writer, 0)
    ledger = os.open(board.ledger(writer), os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o644)
    board.enter(writer, session)
    while set(board.sessions(of)) != {session} and board.wanted == session:
        time.sleep(_IDLE_S)
    k = done = 0
    try:
        while board.wanted == session:
            k += 1
            for store in stores:
                seen, at_ns = board.acknowledged(of), time.time_ns()
                os.write(ledger, struct.pack("<q", at_ns))
                store.put(Record(k, at_ns, seen))
                done += 1
                board.acknowledge(writer, done)
    finally:
        os.close(ledger)


def serve(writer: int, options: argparse.Namespace, parent: int) -> None:
    """One writer, until its parent is gone."""
    board = Board(options.board)
    while os.getppid() == parent:
        board.enter(writer, 0)
        while board.wanted == 0 and os.getppid() == parent:
            time.sleep(_IDLE_S)
        if session := board.wanted:
            count(writer, options.of, connect(writer, options), board, session)


def main() -> None:
    """Start the writers of these ids and end with the first that ends."""
    parser = argparse.ArgumentParser(description="Count through every store at full speed.")
    parser.add_argument("--ids", type=lambda given: [int(n) for n in given.split(",")], required=True)
    parser.add_argument("--of", type=int, required=True, help="writers in all")
    parser.add_argument("--stores", type=int, default=len(STORES))
    parser.add_argument("--files", type=Path, required=True)
    parser.add_argument("--board", type=Path, required=True)
    options = parser.parse_args()
    parent, children = os.getpid(), []
    for writer in options.ids:
        child = os.fork()
        if child == 0:
            try:
                serve(writer, options, parent)
            finally:
                if sys.exc_info()[0]:
                    traceback.print_exc()
                os._exit(1)
        children.append(child)

    def end(*_: object) -> None:
        for child in children:
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
        os._exit(0)

    signal.signal(signal.SIGTERM, end)
    os.wait()
    end()


if __name__ == "__main__":
    main()
