"""The writer of the demo stack: ``python -m cosmos_coherence.flow.demo_writer``.

Each of its threads counts k = 1, 2, 3, ... and writes every k first to PostgreSQL, then to Redis, then to a file, each
only when the one before has acknowledged it. So at any one instant PostgreSQL >= Redis >= file and PostgreSQL - file
<= 1: a backup that shows anything else did not take one instant. What is written follows from writer and k alone,
so that every row, key and line can be checked without a copy.

It finds PostgreSQL by libpq's variables and Redis by ``REDIS_PORT`` and ``REDISCLI_AUTH`` (without them it goes on
without Redis), and needs no client library. When a store is lost it connects again and goes on from what is there.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO, Protocol

from cosmos_coherence import errors, settings
from cosmos_coherence.drivers import process

TABLE = "sequence_log"
_RETRY_S = 0.5
_log = logging.getLogger("demo-writer")


# ------------------------------------------------------------------------------------------ what is to be found
def payload(writer: int, k: int) -> str:
    """The text that goes with ``k`` in every store: 64 hex digits."""
    return hashlib.sha256(f"{writer}:{k}".encode()).hexdigest()


def counter_key(writer: int) -> str:
    """The Redis key that holds the last ``k`` of a writer."""
    return f"seq:{writer}"


def entry_key(writer: int, k: int) -> str:
    """The Redis key that holds the payload of ``k``."""
    return f"seq:{writer}:{k}"


def log_name(writer: int) -> str:
    """The file of a writer."""
    return f"{writer}.log"


def log_line(writer: int, k: int) -> bytes:
    """The line of ``k`` in it."""
    return f"{k} {payload(writer, k)}\n".encode()


# -------------------------------------------------------------------------------------------------- the stores
class Store(Protocol):
    """One store, as one writer sees it."""

    def last(self) -> int:
        """The highest ``k`` in it; 0 when there is none."""
        ...

    def put(self, k: int) -> None:
        """Write ``k`` and return when that is acknowledged."""
        ...


class PostgresStore:
    """Rows of ``sequence_log``, through a ``psql`` that stays connected."""

    _DONE = "done"

    def __init__(self, writer: int, psql: process.LocalChild) -> None:
        self._writer, self._psql = writer, psql

    def last(self) -> int:
        """See ``Store``."""
        return int(self.ask(f"SELECT coalesce(max(k), 0) FROM {TABLE} WHERE writer = {self._writer}")[0])

    def put(self, k: int) -> None:
        """See ``Store``."""
        self.ask(f"INSERT INTO {TABLE} VALUES ({self._writer}, {k}, '{payload(self._writer, k)}')")

    def ask(self, statement: str) -> list[str]:
        """The lines that a statement answers; ``CommandFailed`` when it fails, since that ends ``psql``."""
        self._psql.stdin.write(f"{statement};\n\\echo {self._DONE}\n".encode())
        self._psql.stdin.flush()
        lines: list[str] = []
        for line in self._psql.stdout:
            text = line.decode().rstrip("\n")
            if text == self._DONE:
                return lines
            lines.append(text)
        self._psql.wait()
        raise errors.CommandFailed("psql ended before it had answered")


class RedisStore:
    """Keys of Redis, in its own protocol: a command is an array of strings, an answer begins with its kind."""

    def __init__(self, writer: int, connection: socket.socket, answers: BinaryIO) -> None:
        self._writer, self._connection, self._answers = writer, connection, answers

    def last(self) -> int:
        """See ``Store``."""
        return int(self.ask("GET", counter_key(self._writer)) or 0)

    def put(self, k: int) -> None:
        """See ``Store``."""
        self.ask("SET", entry_key(self._writer, k), payload(self._writer, k))
        self.ask("SET", counter_key(self._writer), str(k))

    def ask(self, *words: str) -> bytes | None:
        """The answer to a command that answers with one string; ``CommandFailed`` when it is an error."""
        encoded = [word.encode() for word in words]
        self._connection.sendall(b"*%d\r\n" % len(encoded) + b"".join(b"$%d\r\n%s\r\n" % (len(w), w) for w in encoded))
        answer = self._answers.readline().rstrip(b"\r\n")
        if answer == b"$-1":
            return None
        if answer.startswith(b"$"):
            return self._answers.read(int(answer[1:]) + 2)[:-2]
        if answer.startswith(b"+"):
            return answer[1:]
        raise errors.CommandFailed(f"redis answered {words[0]} with {answer.decode(errors='replace') or 'nothing'}")


class FileStore:
    """Lines of a file; each is one write to its end."""

    def __init__(self, writer: int, descriptor: int, *, sync: bool) -> None:
        self._writer, self._descriptor, self._sync = writer, descriptor, sync

    def last(self) -> int:
        """See ``Store``. A line that a crash has cut short is taken away."""
        size = os.fstat(self._descriptor).st_size
        tail = os.pread(self._descriptor, 4096, max(0, size - 4096))
        whole = tail[: tail.rfind(b"\n") + 1]
        os.ftruncate(self._descriptor, size - len(tail) + len(whole))
        return int(whole.splitlines()[-1].split()[0]) if whole else 0

    def put(self, k: int) -> None:
        """See ``Store``."""
        os.write(self._descriptor, log_line(self._writer, k))
        if self._sync:
            os.fsync(self._descriptor)


@contextlib.contextmanager
def open_stores(writer: int, folder: Path, servers: Mapping[str, str], *, sync: bool = False) -> Iterator[list[Store]]:
    """The stores in the order of writing. ``servers``: the environment that says where they are."""
    with contextlib.ExitStack() as stack:
        psql = process.start(
            ["psql", "--no-psqlrc", "--quiet", "--no-align", "--tuples-only", "--set=ON_ERROR_STOP=1"],
            stdin=True,
            environment={name: value for name, value in servers.items() if name.startswith("PG")},
            new_group=False,  # held and stopped together with us
        )
        stores: list[Store] = [PostgresStore(writer, stack.enter_context(psql))]
        if "REDIS_PORT" in servers:
            connection = socket.create_connection(
                (servers.get("REDIS_HOST", "127.0.0.1"), int(servers["REDIS_PORT"])), timeout=30.0
            )
            answers = stack.enter_context(stack.enter_context(connection).makefile("rb"))
            redis = RedisStore(writer, connection, answers)
            if "REDISCLI_AUTH" in servers:
                redis.ask("AUTH", servers["REDISCLI_AUTH"])
            stores.append(redis)
        descriptor = os.open(folder / log_name(writer), os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        stack.callback(os.close, descriptor)
        stores.append(FileStore(writer, descriptor, sync=sync))
        yield stores


# ------------------------------------------------------------------------------------------------- the writing
def catch_up(stores: Sequence[Store]) -> int:
    """Complete the stores that are behind, so that all agree again, and return the ``k`` on which they do."""
    found = [store.last() for store in stores]
    for store, last in zip(stores, found, strict=True):
        for k in range(last + 1, max(found) + 1):
            store.put(k)
    return max(found)


def write_on(stores: Sequence[Store], stop: threading.Event, *, interval_s: float) -> None:
    """Write every next ``k`` to all stores in their order until told to stop, one each ``interval_s`` seconds."""
    k = catch_up(stores)
    due = time.monotonic()
    while not stop.is_set():
        k += 1
        for store in stores:
            store.put(k)
        due = max(due + interval_s, time.monotonic())  # time that was lost is not made up for
        stop.wait(due - time.monotonic())


def _keep_writing(writer: int, options: argparse.Namespace, servers: Mapping[str, str], stop: threading.Event) -> None:
    interval_s = options.writers / options.rate if options.rate else 0.0
    while not stop.is_set():
        try:
            with open_stores(writer, options.folder, servers, sync=options.fsync) as stores:
                write_on(stores, stop, interval_s=interval_s)
        except (errors.CosmosError, OSError, ValueError) as error:
            _log.warning("writer %d: %s", writer, error)
            stop.wait(_RETRY_S)


def _prepare(servers: Mapping[str, str]) -> None:
    process.run(
        ["psql", "--no-psqlrc", "--quiet", "--set=ON_ERROR_STOP=1", "--command",
         f"CREATE TABLE IF NOT EXISTS {TABLE} (writer int, k bigint, payload text NOT NULL, PRIMARY KEY (writer, k))"],
        environment={name: value for name, value in servers.items() if name.startswith("PG")},
    )  # fmt: skip


def main() -> int:
    """Write until SIGTERM or SIGINT. Exit status 1 when PostgreSQL cannot be reached at the start."""
    parser = argparse.ArgumentParser(prog="demo_writer", description="Keep writing one growing sequence to all stores.")
    parser.add_argument("--folder", type=Path, required=True, help="where the files go")
    parser.add_argument("--writers", type=int, default=2, help="threads (2)")
    parser.add_argument("--rate", type=float, default=200.0, help="writes a second, of all threads; 0: no limit (200)")
    parser.add_argument("--fsync", action="store_true", help="sync the file after each line")
    options = parser.parse_args()
    logging.basicConfig(format="%(asctime)s %(message)s", level=logging.INFO)
    servers, stop = settings.environment(), threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    try:
        _prepare(servers)
    except errors.CosmosError as error:
        _log.error("%s", error)
        return error.exit_status
    threads = [
        threading.Thread(target=_keep_writing, args=(writer, options, servers, stop))
        for writer in range(options.writers)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return 0


if __name__ == "__main__":
    sys.exit(main())
