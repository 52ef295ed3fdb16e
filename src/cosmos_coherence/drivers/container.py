"""Run this program in a container of its own image, beside volumes that cannot be reached from here."""

from __future__ import annotations

import contextlib
import io
import os
import select
import shutil
import signal
import sys
import termios
import threading
import time
import tty
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, cast

from cosmos_coherence import errors, settings
from cosmos_coherence.drivers.docker import DockerRuntime
from cosmos_coherence.drivers.docker_exec import Frames, Input
from cosmos_coherence.drivers.docker_facts import ROLE
from cosmos_coherence.drivers.engine import DEFAULT_SOCKET, Engine, Wire
from cosmos_coherence.drivers.reach import Reach
from cosmos_coherence.model import Stack

INSIDE = "COSMOS_IN_CONTAINER"
"""Set in such a container, so that the program does not start another one from there."""

_CAPABILITIES = ("CHOWN", "DAC_OVERRIDE", "DAC_READ_SEARCH", "FOWNER", "FSETID", "MKNOD", "SETFCAP")
"""What reading and restoring every user's files takes, and no more."""
_CGROUPS = "/sys/fs/cgroup"
_PASSED_ON = ("TZ", "NO_COLOR", "TERM", "COMPOSE_PROJECT_NAME", "COMPOSE_FILE", "COMPOSE_PROFILES")
_SYSTEM = ("/proc", "/sys", "/dev", "/run", "/var/run", "/etc", "/usr", "/boot", "/bin", "/lib", "/lib64", "/sbin")
_DAY_S = 86400.0


def needs_container(runtime: DockerRuntime) -> str:
    """Why a backup or restore cannot be done from here, as a clause; empty when it can."""
    if settings.environment().get(INSIDE):
        return ""
    if os.geteuid() != 0:
        return "only root can read and restore the files of every user"
    stack = _stack(runtime)
    volumes = [v for v in stack.volumes if v.exists and v.driver == "local" and not v.options] if stack else []
    lost = [v.name for v in volumes if v.path is None]
    if lost:
        return f"the files of volume {lost[0]} cannot be reached from here"
    if not volumes and not Path(_volume_root(runtime.engine)).is_dir():
        return "the engine's volumes cannot be reached from here"
    return ""


def rerun(
    runtime: DockerRuntime, argv: Sequence[str], *, image: str, directory: Path, extra_paths: Sequence[Path] = ()
) -> int:
    """Run ``cosmos`` with these arguments in a container and return its exit status.

    The engine's volumes, the project's folder, ``extra_paths`` and the folders of the host that services write to are
    mounted at the paths they have here; missing ones are made. Output passes through, SIGINT and SIGTERM are passed on,
    and on a terminal questions can be answered. Raises ``NotFound`` without the image, ``Refused`` when one of
    ``extra_paths`` lies in this program's own container and nowhere else.
    """
    engine = runtime.engine
    _require(engine, image)
    _sweep(engine)
    terminal = sys.stdin.isatty() and sys.stdout.isatty()
    source, door = _socket(runtime)
    call: dict[str, Any] = {
        "image": image,
        "entrypoint": ["cosmos"],
        "command": list(argv),
        "user": "0:0",
        "working_dir": str(Path.cwd()),
        "environment": {**_environment(runtime), "DOCKER_HOST": f"unix://{door}", INSIDE: "1"},
        "labels": {ROLE: "run", "cosmos.hold": "never"},
        "stdin_open": terminal,
        "tty": terminal,
    }
    mounts = {**_folders(runtime, directory, extra_paths), door: source}
    container, wire = _started(engine, call, mounts, f"stdin={int(terminal)}&stdout=1&stderr=1")
    try:
        with _signals_passed_to(engine, container):
            if terminal:
                size = shutil.get_terminal_size()
                engine.ask("resize", container, size.lines, size.columns)
                _converse(wire)
            else:
                _copy_out(wire)
        return int(engine.ask("wait", container)["StatusCode"])
    finally:
        wire.close()
        _remove(engine, container)


def start_watchdog_container(runtime: DockerRuntime, image: str) -> tuple[BinaryIO, BinaryIO]:
    """Start ``cosmos_coherence.cut.watchdog`` in a container of its own; its standard input and output.

    When the connection ends, however this program ends, so does its input. The container removes itself.
    """
    source, door = _socket(runtime)
    call: dict[str, Any] = {
        "image": image,
        "entrypoint": ["python", "-m", "cosmos_coherence.cut.watchdog"],
        "user": "0:0",
        "working_dir": "/",
        "labels": {ROLE: "watchdog", "cosmos.hold": "never"},
        "stdin_open": True,
    }
    _, wire = _started(runtime.engine, call, {door: source}, "stdin=1&stdout=1&stderr=1", remove_itself=True)
    output = _Output(wire)
    return (
        cast(BinaryIO, io.BufferedWriter(Input(wire, output))),
        cast(BinaryIO, io.BufferedReader(output)),
    )


class _Output(Frames):
    """The output of a whole container: closing it cuts the connection."""

    def __init__(self, wire: Wire) -> None:
        super().__init__(wire)
        self._wire = wire

    def close(self) -> None:
        super().close()
        self._wire.close()


# ------------------------------------------------------------------------------------------------- what it sees
def _stack(runtime: DockerRuntime) -> Stack | None:
    try:
        return runtime.stack()
    except errors.NotFound:
        return None  # about to be restored from nothing


def _folders(runtime: DockerRuntime, directory: Path, extra_paths: Sequence[Path]) -> dict[str, str]:
    """Where they are to be seen -> where they lie on the engine's machine; none inside another."""
    reach, stack, chosen = runtime.reach, _stack(runtime), runtime.chosen_state_directory
    places: dict[Path, Path] = {}
    for folder in (directory, *extra_paths, *([chosen] if chosen else ())):
        path = folder.resolve()
        if not path.is_file():
            with _on_disk(path):
                path.mkdir(mode=0o700, parents=True, exist_ok=True)
        if (source := reach.host_path(path)) is not None:
            places[path] = source
        elif folder in extra_paths:
            raise errors.Refused(
                f"folder {folder} is in this container only, so what is written there would be lost",
                remedy="Mount a folder of the host there, or name one that is mounted.",
            )
    root = Path(_volume_root(runtime.engine))
    places[root] = root
    for path in _written_to(stack) if stack else ():
        if reach.own_id or path.exists():
            places.setdefault(path, path)
    return {
        str(path): str(source)
        for path, source in places.items()
        if not any(p in path.parents and s / path.relative_to(p) == source for p, s in places.items())
    }


def _written_to(stack: Stack) -> Iterator[Path]:
    """The project's folder, and the folders of the host that services write to, but for the system's own."""
    yield stack.directory
    for service in stack.services:
        for mount in service.mounts:
            path = Path(mount.source)
            system = path == Path("/") or any(path.is_relative_to(folder) for folder in _SYSTEM)
            if mount.kind == "bind" and mount.writable and path.is_absolute() and not system:
                yield path


def _socket(runtime: DockerRuntime) -> tuple[str, str]:
    """Where the engine's socket lies on its machine, and where this program has it."""
    path = runtime.engine.socket_path
    if not path or str(runtime.engine.ask("info").get("OperatingSystem", "")).startswith("Docker Desktop"):
        return DEFAULT_SOCKET, DEFAULT_SOCKET
    return str(_lies_at(runtime.reach, Path(path))), path


def _lies_at(reach: Reach, path: Path) -> Path:
    return reach.host_path(path) or path


def _volume_root(engine: Engine) -> str:
    return f"{engine.ask('info')['DockerRootDir']}/volumes"


def _environment(runtime: DockerRuntime) -> dict[str, str]:
    """Our settings. Nothing that looks like a secret: whoever may inspect the container would see it. A state directory
    that nobody else can see gives way to the volume that host, container and agent share."""
    chosen = runtime.chosen_state_directory
    alone = chosen is not None and runtime.reach.host_path(chosen.resolve()) is None
    return {
        name: value
        for name, value in settings.environment().items()
        if name in _PASSED_ON
        or (
            name.startswith("COSMOS_")
            and (name.endswith("_FILE") or not name.endswith(("PASSWORD", "SECRET", "TOKEN")))
            and not (name == "COSMOS_STATE_DIRECTORY" and alone)
        )
    }


@contextlib.contextmanager
def _on_disk(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise errors.ConfigurationError(f"folder {path} cannot be made: {error.strerror}") from error


# ---------------------------------------------------------------------------------------------------- its life
def _require(engine: Engine, image: str) -> None:
    try:
        engine.ask("inspect_image", image)
    except errors.NotFound:
        raise errors.NotFound(
            f"image {image} is not on the engine",
            remedy="Build it with `make images`, or name another one with COSMOS_IMAGE.",
        ) from None


def _started(
    engine: Engine, call: Mapping[str, Any], mounts: Mapping[str, str], query: str, *, remove_itself: bool = False
) -> tuple[str, Wire]:
    """Create, attach, start. Where the engine does not let it see the host's processes, it holds writers through the
    engine instead of through their control groups."""
    config = {
        "AutoRemove": remove_itself,
        "CapAdd": list(_CAPABILITIES),
        "CapDrop": ["ALL"],
        "LogConfig": {"Type": "none"},
        "NetworkMode": "none",
        "SecurityOpt": ["no-new-privileges", "label=disable"],
        "UsernsMode": "host",
    }
    beside = {"PidMode": "host", "Mounts": _binds({**mounts, _CGROUPS: _CGROUPS})}
    try:
        return _start(engine, call, {**config, **beside}, query)
    except errors.CommandFailed:
        return _start(engine, call, {**config, "Mounts": _binds(mounts)}, query)


def _start(engine: Engine, call: Mapping[str, Any], config: Mapping[str, Any], query: str) -> tuple[str, Wire]:
    try:
        container = str(engine.ask("create_container", **call, host_config=dict(config))["Id"])
    except errors.CommandFailed as error:
        if "bind source path does not exist" in error.message:
            path = error.message.rsplit(": ", 1)[-1]
            raise errors.NotFound(
                f"there is no {path} on the machine of the engine",
                remedy="Run cosmos on that machine, in the project's folder.",
            ) from error
        raise
    try:
        wire = engine.upgrade(f"/containers/{container}/attach?stream=1&{query}")
        try:
            engine.ask("start", container)
        except BaseException:
            wire.close()
            raise
    except BaseException:
        _remove(engine, container)
        raise
    return container, wire


def _binds(mounts: Mapping[str, str]) -> list[dict[str, str]]:
    return [{"Type": "bind", "Source": source, "Target": target} for target, source in mounts.items()]


def _remove(engine: Engine, container: str) -> None:
    with contextlib.suppress(errors.CosmosError):
        engine.ask("remove_container", container, force=True, v=True)


def _sweep(engine: Engine) -> None:
    """Remove what a killed call left; one that has just ended may still be asked for its status."""
    old = engine.ask("containers", all=True, filters={"label": f"{ROLE}=run", "status": "exited"})
    for container in old:
        if container["Created"] < time.time() - _DAY_S:
            _remove(engine, container["Id"])


@contextlib.contextmanager
def _signals_passed_to(engine: Engine, container: str) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def pass_on(number: int, _frame: object) -> None:
        with contextlib.suppress(errors.CosmosError):
            engine.ask("kill", container, number)

    before = {number: signal.signal(number, pass_on) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _copy_out(wire: Wire) -> None:
    """Standard output and standard error, each to our own, until both have ended."""
    while len(head := wire.source.read(8)) == 8:
        target = sys.stderr.buffer if head[0] == 2 else sys.stdout.buffer
        target.write(wire.source.read(int.from_bytes(head[4:], "big")))
        target.flush()


def _converse(wire: Wire) -> None:
    """Our terminal is the container's until that has ended."""
    keys, screen = sys.stdin.fileno(), sys.stdout.fileno()
    before = termios.tcgetattr(keys)
    tty.setraw(keys)
    try:
        watched: list[Any] = [wire.door, keys]
        while True:
            ready, _, _ = select.select(watched, [], [])
            if wire.door in ready:
                if not (said := wire.source.read1(64 * 1024)):
                    return
                os.write(screen, said)
            if keys in ready:
                if typed := os.read(keys, 1024):
                    wire.door.sendall(typed)
                else:
                    watched.remove(keys)
    finally:
        termios.tcsetattr(keys, termios.TCSADRAIN, before)
