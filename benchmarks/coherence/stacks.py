"""Stacks with the writers in them, on either runtime, and everything that is asked of them from outside."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import struct
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from msgspec import structs

from benchmarks.coherence.record import STORES
from benchmarks.coherence.writer import TABLE
from cosmos_coherence.drivers import stackfile
from cosmos_coherence.drivers.docker import DockerRuntime
from cosmos_coherence.drivers.embedded import DATABASE, DATABASE_USER, lay_out_demo
from cosmos_coherence.drivers.local import LocalRuntime
from cosmos_coherence.drivers.stackfile import MountSpec
from cosmos_coherence.flow import demo_data

SERVICES = {"writer-a": (0, 1), "writer-b": (2, 3)}
"""Two services, so that more than one thing has to be held at the same instant."""
WRITERS = sum(len(ids) for ids in SERVICES.values())
ROOT = Path(__file__).resolve().parents[2]
_TIMEOUT_S = 600
_CREATE = f"CREATE TABLE {TABLE} (writer int, k bigint, record text NOT NULL, PRIMARY KEY (writer, k))"


@dataclass(frozen=True)
class CountingStack:
    """A running stack. Its writers stand still until ``begin``, also when a restore has started them again."""

    folder: Path
    runtime: LocalRuntime | DockerRuntime
    stores: tuple[str, ...] = STORES
    environment: Mapping[str, str] = field(default_factory=dict)
    """What the program is called with beyond our own."""

    @property
    def files(self) -> Path:
        """The volume that the writers write to."""
        path = next(v.path for v in self.runtime.stack().volumes if v.short == "files")
        assert path is not None
        return path

    def run(self, service: str, *argv: str, stdin: bytes | None = None) -> bytes:
        """What a command in a service writes."""
        with self.runtime.run(service, argv, stdin=stdin is not None) as child:
            if stdin is not None:
                child.stdin.write(stdin)
                child.stdin.close()
            return child.stdout.read()

    def sql(self, statement: str, database: str = DATABASE) -> str:
        """The rows that statements answer."""
        argv = ("psql", "-XAtq", "-v", "ON_ERROR_STOP=1", "-d", database)
        return self.run("db", *argv, stdin=statement.encode()).decode().rstrip("\n")

    def redis(self, *words: str) -> str:
        """What ``redis-cli`` says."""
        return self.run("redis", "redis-cli", *words).decode().rstrip("\n")

    def cosmos(self, *argv: str, good: Sequence[int] = (0,), **environment: str) -> dict[str, Any]:
        """What the program reports in a process of its own, as a person calls it; it has to end with a ``good`` one."""
        done = subprocess.run(
            [sys.executable, "-m", "cosmos_coherence.cli.main", "-C", str(self.folder), *argv, "--json"],
            env={**os.environ, "PYTHONPATH": str(ROOT / "src"), **self.environment, **environment},
            stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_TIMEOUT_S,
        )  # fmt: skip
        if done.returncode not in good:
            raise RuntimeError(f"cosmos {' '.join(argv)} ended with {done.returncode}: {done.stdout}{done.stderr}")
        return dict(json.loads(done.stdout))

    def begin(self, session: int) -> None:
        """Empty stores, and all writers at full speed."""
        self._board("begin", str(session), str(WRITERS))

    def stop(self) -> None:
        """Let each writer end its operation and stand still."""
        self._board("stop", str(WRITERS))

    def acknowledged(self) -> int:
        """How many operations are, of all writers."""
        return sum(json.loads(self._board("show", str(WRITERS))))

    def ledger(self) -> dict[int, tuple[int, ...]]:
        """When each operation of each writer began."""
        data, found = self._board("ledger", str(WRITERS)), {}
        for writer in range(WRITERS):
            (count,) = struct.unpack_from("<q", data)
            found[writer] = struct.unpack_from(f"<{count}q", data, 8)
            data = data[8 * (count + 1) :]
        return found

    def _board(self, *argv: str) -> bytes:
        if isinstance(self.runtime, DockerRuntime):
            return self.run("writer-a", "python", "-m", "benchmarks.coherence.board", "/dev/shm/board", *argv)
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        call = [sys.executable, "-m", "benchmarks.coherence.board", str(self.folder / "board"), *argv]
        return subprocess.run(call, env=environment, check=True, capture_output=True, timeout=_TIMEOUT_S).stdout


def _seeded(stack: CountingStack) -> CountingStack:
    demo_data.seed(stack.runtime)
    stack.sql(_CREATE)
    return stack


@contextlib.contextmanager
def process_stack(stores: tuple[str, ...] = STORES, *, below: Path = Path("/var/tmp")) -> Iterator[CountingStack]:
    """PostgreSQL, Redis and the writers as local processes in a folder ``below`` that one; gone afterwards."""
    parent = Path(tempfile.mkdtemp(prefix="cosmos-coherence-", dir=below))
    parent.chmod(0o711)  # the servers run as another user
    runtime = None
    try:
        runtime = lay_out_demo(parent / "stack")
        folder = runtime.folder
        spec = stackfile.read(folder)
        demo = next(service for service in spec.services if service.name == "writer")
        writers = [
            structs.replace(
                demo,
                name=name,
                argv=(sys.executable, *_writer_argv(ids, stores, folder / "volumes/files", folder / "board")),
                volumes=(MountSpec(volume="files", target="/files"),),
                environment={**demo.environment, "PYTHONPATH": str(ROOT)},
            )
            for name, ids in SERVICES.items()
        ]
        servers = [service for service in spec.services if service.name != "writer"]
        stackfile.write(folder, structs.replace(spec, services=(*servers, *writers)))
        runtime.start(["db", "redis"])
        runtime.wait_ready(["db", "redis"])
        stack = _seeded(CountingStack(folder, runtime, stores))
        runtime.start(list(SERVICES))
        yield stack
    finally:
        if runtime is not None:
            runtime.destroy()
        shutil.rmtree(parent, ignore_errors=True)


def _writer_argv(ids: Sequence[int], stores: Sequence[str], files: Path, board: Path) -> list[str]:
    return [
        "-m", "benchmarks.coherence.writer", "--ids", ",".join(map(str, ids)), "--of", str(WRITERS),
        "--stores", str(len(stores)), "--files", str(files), "--board", str(board),
    ]  # fmt: skip


_WRITER = """\
  {name}:
    image: python:3.11-slim
    init: true
    command: {command}
    ipc: {ipc}
    environment:
      {{PYTHONPATH: /program, PGHOST: db, PGUSER: {user}, PGDATABASE: {database}, PGPASSWORD: test-only,
        REDIS_HOST: redis, REDIS_PORT: "6379"}}
    volumes: ["./program:/program:ro", "files:/files"]
    depends_on: {depends}
"""
_COMPOSE = """\
name: {project}
services:
  db:
    image: postgres:15
    environment:
      {{POSTGRES_USER: {user}, POSTGRES_DB: {database}, POSTGRES_PASSWORD: test-only, PGUSER: {user}}}
    volumes: ["postgres-data:/var/lib/postgresql/data"]
    healthcheck:
      {{test: ["CMD", "pg_isready", "-q", "-h", "127.0.0.1", "-U", "{user}"], interval: 1s, retries: 60}}
  redis:
    image: redis:7
    command: ["redis-server", "--appendonly", "yes"]
    volumes: ["redis-data:/data"]
    healthcheck: {{test: ["CMD-SHELL", "redis-cli ping | grep -q PONG"], interval: 1s, retries: 60}}
{writers}
volumes: {{postgres-data: {{}}, redis-data: {{}}, files: {{}}}}
"""


@contextlib.contextmanager
def docker_stack(
    stores: tuple[str, ...] = STORES, *, host: str = "", kept: Path | None = None
) -> Iterator[CountingStack]:
    """The same on a Docker engine, each service of writers in a container of its own; gone afterwards.

    ``kept``: it lies in this folder and stays, and a call that finds one there goes on with it.
    """
    host = host or os.environ.get("COSMOS_TEST_DOCKER_HOST") or os.environ.get("DOCKER_HOST", "")
    project = f"cosmos-test-coherence-{kept.name if kept else uuid.uuid4().hex[:8]}"
    folder = kept or Path(tempfile.mkdtemp(prefix="cosmos-coherence-", dir="/var/tmp"))
    is_there = (folder / "compose.yaml").exists()
    engine = {"DOCKER_HOST": host} if host else {}

    def docker(*argv: str, check: bool = True) -> None:
        environment = {**os.environ, **engine}
        done = subprocess.run(["docker", *argv], cwd=folder, env=environment, capture_output=True, timeout=_TIMEOUT_S)
        if check and done.returncode:
            raise RuntimeError(f"docker {' '.join(argv)}: {done.stderr.decode(errors='replace')}")

    try:
        program = folder / "program/benchmarks/coherence"
        program.mkdir(parents=True, exist_ok=True)
        (program.parent / "__init__.py").touch()
        for name in ("__init__", "board", "record", "wire", "writer"):
            shutil.copy(Path(__file__).with_name(f"{name}.py"), program)
        (folder / "compose.yaml").write_text(_compose(project, stores))
        docker("compose", "up", "--detach", "--wait")
        runtime = DockerRuntime(project, directory=folder, docker_host=host)
        stack = CountingStack(folder, runtime, stores, engine)
        yield stack if is_there else _seeded(stack)
    finally:
        if not kept:
            docker("compose", "-p", project, "down", "--volumes", "--timeout", "1", check=False)
            docker("volume", "rm", f"{project}_cosmos-state", check=False)
            shutil.rmtree(folder, ignore_errors=True)


def _compose(project: str, stores: Sequence[str]) -> str:
    names = {"user": DATABASE_USER, "database": DATABASE}
    healthy = {server: {"condition": "service_healthy"} for server in ("db", "redis")}
    first = next(iter(SERVICES))
    writers = "".join(
        _WRITER.format(
            name=name,
            command=json.dumps(["python", *_writer_argv(ids, stores, Path("/files"), Path("/dev/shm/board"))]),
            ipc="shareable" if name == first else f'"service:{first}"',
            depends=json.dumps(healthy if name == first else {**healthy, first: {"condition": "service_started"}}),
            **names,
        )
        for name, ids in SERVICES.items()
    )
    return _COMPOSE.format(project=project, writers=writers, **names)
