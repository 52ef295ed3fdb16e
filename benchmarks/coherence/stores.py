"""What the stores hold after a restore, read with the servers' own programs and none of the product's."""

from __future__ import annotations

import contextlib
import shutil
import sqlite3
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from benchmarks.coherence.checker import State
from benchmarks.coherence.record import Record, in_order, lines, parse
from benchmarks.coherence.stacks import WRITERS, CountingStack
from benchmarks.coherence.writer import TABLE, key
from cosmos_coherence.drivers.embedded import find_redis

_BESIDE = "coherence_beside"
Ask = Callable[[str], str]


def live(stack: CountingStack) -> State:
    """The stack's own stores. The writers have to stand still."""
    return _read(stack.stores, stack.sql, lambda name: stack.redis("LRANGE", name, "0", "-1"), stack.files)


def beside(stack: CountingStack, *, sql: Path, redis: Path, files: Path) -> State:
    """Plain SQL, a folder that a Redis server can start in, and a folder of files, loaded into throw-away stores."""
    stack.sql(f"DROP DATABASE IF EXISTS {_BESIDE}", "postgres")
    stack.sql(f"CREATE DATABASE {_BESIDE}", "postgres")
    try:
        stack.run("db", "psql", "-Xq", "-v", "ON_ERROR_STOP=1", "-d", _BESIDE, stdin=sql.read_bytes())
        with _redis_in(redis) as ask:
            return _read(
                stack.stores,
                lambda statement: stack.sql(statement, _BESIDE),
                lambda name: ask("LRANGE", name, "0", "-1"),
                files,
            )
    finally:
        stack.sql(f"DROP DATABASE {_BESIDE}", "postgres")


def _read(stores: Sequence[str], sql: Ask, items: Ask, files: Path) -> State:
    found: dict[int, dict[str, Sequence[Record | None]]] = {}
    for writer in range(WRITERS):
        rows = sql(f"SELECT record FROM {TABLE} WHERE writer = {writer} ORDER BY k").splitlines()
        found[writer] = {
            "postgres": [parse(row) for row in rows],
            "redis": [parse(item) for item in items(key(writer)).splitlines() if item],
            "file": list(_in_files(files, writer)),
        }
        if "sqlite" in stores:
            found[writer]["sqlite"] = _in_sqlite(files / f"{writer}.sqlite")
    return found


def _in_files(files: Path, writer: int) -> Iterator[Record | None]:
    for path in sorted(files.glob(f"{writer}-*")):
        content = path.read_bytes()
        yield from lines(in_order(content) if path.suffix == ".mapped" else content)


def _in_sqlite(path: Path) -> list[Record | None]:
    """Read in a copy: opening it would write to what was restored."""
    if not path.exists():
        return []
    with tempfile.TemporaryDirectory(prefix="cosmos-coherence-") as copy:
        for file in path.parent.glob(f"{path.name}*"):
            shutil.copy(file, copy)
        with contextlib.closing(sqlite3.connect(Path(copy) / path.name)) as door:
            (whole,) = door.execute("PRAGMA integrity_check").fetchone()
            if whole != "ok":
                raise ValueError(f"{path.name} is damaged: {whole}")
            if not door.execute("SELECT 1 FROM sqlite_master WHERE name = 'coherence'").fetchone():
                return []
            return [parse(text) for (text,) in door.execute("SELECT record FROM coherence ORDER BY k")]


@contextlib.contextmanager
def _redis_in(folder: Path) -> Iterator[Callable[..., str]]:
    """A Redis server on the data of this folder; it takes the append-only files where there are some."""
    programs = find_redis()
    if programs is None:
        raise RuntimeError("there is no Redis server on this machine")
    append = "yes" if any(folder.glob("appendonlydir/*.manifest")) else "no"
    socket = Path(tempfile.mkdtemp(prefix="cosmos-coherence-")) / "redis.sock"
    server = subprocess.Popen(
        [programs.server, "--port", "0", "--unixsocket", socket, "--dir", folder, "--appendonly", append, "--save", ""],
        stdout=subprocess.DEVNULL,
    )

    def ask(*words: str) -> str:
        call = [str(programs.client), "-s", str(socket), *words]
        return subprocess.run(call, capture_output=True, text=True, timeout=60).stdout.rstrip("\n")

    try:
        deadline = time.monotonic() + 60
        while ask("PING") != "PONG":
            if server.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"Redis does not start on {folder}")
            time.sleep(0.01)
        yield ask
    finally:
        server.kill()
        server.wait()
        shutil.rmtree(socket.parent, ignore_errors=True)
