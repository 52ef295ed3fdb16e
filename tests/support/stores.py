"""A real PostgreSQL and a real Redis of this machine, on loopback, in a folder of their own, gone afterwards."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import psycopg
import pytest

PASSWORD = "right-Horse-9"


@dataclass(frozen=True)
class Postgres:
    """A running server; user ``cosmos`` with ``PASSWORD``."""

    port: int
    password_file: Path
    pid: int
    start: Callable[[], None] = lambda: None
    """Again, after ``kill``."""
    kill: Callable[[], None] = lambda: None
    """With SIGKILL, all of it at once."""

    def database(self) -> str:
        """A new empty database; its URL without the password."""
        name = f"t_{os.urandom(6).hex()}"
        with psycopg.connect(self._dsn(), autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name}")
        return f"postgresql+psycopg://cosmos@127.0.0.1:{self.port}/{name}"

    def _dsn(self) -> str:
        return f"host=127.0.0.1 port={self.port} user=cosmos password={PASSWORD} dbname=postgres"


@contextlib.contextmanager
def postgres() -> Iterator[Postgres]:
    binaries = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres")) or [
        Path(found) for found in [shutil.which("postgres")] if found
    ]
    if not binaries:
        missing("a PostgreSQL server")
    with _folder() as folder:
        programs, data, port, log = binaries[0].parent, folder / "data", free_port(), folder / "log"
        password = folder / "password"
        password.write_text(PASSWORD)
        owner = _give_away(folder)
        initdb = [programs / "initdb", "-D", data, "-U", "cosmos", "--auth=scram-sha-256", f"--pwfile={password}", "-N"]
        subprocess.run([*map(str, initdb)], check=True, capture_output=True, user=owner, cwd=folder)
        options = ["-D", data, "-p", port, "-h", "127.0.0.1", "-k", folder, "-F"]
        server: subprocess.Popen[bytes] | None = None

        def start() -> None:
            nonlocal server
            with log.open("wb") as out:
                server = subprocess.Popen(
                    [str(programs / "postgres"), *map(str, options)], stdout=out, stderr=out, user=owner, cwd=folder,
                    process_group=0,
                )  # fmt: skip
            _await(lambda: psycopg.connect(found._dsn()).close(), psycopg.OperationalError, log)

        def kill() -> None:
            assert server
            os.killpg(server.pid, signal.SIGKILL)
            server.wait(20)

        found = Postgres(port, password, 0, start, kill)
        try:
            start()
            yield replace(found, pid=server.pid if server else 0)
        finally:
            if server and server.poll() is None:
                server.send_signal(signal.SIGQUIT)  # at once: nothing of it is kept
                server.wait(20)


@contextlib.contextmanager
def redis() -> Iterator[str]:
    """The URL of a running Redis or Valkey."""
    program = shutil.which("redis-server") or shutil.which("valkey-server")
    if not program:
        missing("a Redis server")
    with _folder() as folder:
        port = free_port()
        options = ["--port", str(port), "--bind", "127.0.0.1", "--dir", str(folder), "--save", "", "--daemonize", "no"]
        with (folder / "log").open("wb") as out:
            server = subprocess.Popen([program, *options], stdout=out, stderr=out)
        try:
            _await(lambda: socket.create_connection(("127.0.0.1", port), 1).close(), OSError, folder / "log")
            yield f"redis://127.0.0.1:{port}/0"
        finally:
            server.terminate()
            server.wait(20)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def missing(what: str) -> None:
    """Skip, or fail where nothing may be skipped."""
    if os.environ.get("CI") == "true":
        pytest.fail(f"{what} is required in CI")
    pytest.skip(f"{what} is not installed")


@contextlib.contextmanager
def _folder() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="cosmos-test-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _give_away(folder: Path) -> str | None:
    """PostgreSQL refuses to run as root."""
    if os.geteuid() != 0:
        return None
    for path in (folder, *folder.iterdir()):
        shutil.chown(path, "nobody")
    return "nobody"


def _await(answers, error, log: Path) -> None:
    deadline = time.monotonic() + 30
    while True:
        try:
            answers()
        except error:
            if time.monotonic() > deadline:
                raise AssertionError(log.read_text(errors="replace")) from None
            time.sleep(0.05)
        else:
            return
