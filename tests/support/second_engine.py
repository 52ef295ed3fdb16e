"""A Docker engine of its own, thrown away afterwards: for what would hurt an engine that others use.

It lives in a network namespace of its own, so its bridges and published ports meet nobody else's. The programs that
talk to it need its socket only; reach a published port with ``inside``.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from support import stores


@dataclass
class Daemon:
    """The engine's own process, which can be started again over the same data."""

    host: str
    argv: Sequence[str]
    log: Path
    process: subprocess.Popen[bytes] = field(init=False)

    def __post_init__(self) -> None:
        self.start()

    def start(self) -> None:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(self.argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(timeout=60)

    def ready(self) -> None:
        _await(self.host, self.process, self.log)


@contextlib.contextmanager
def second_engine(folder: Path) -> Iterator[str]:
    """Start an engine whose data lie below ``folder``; its address. Everything of it is gone afterwards."""
    with daemon(folder) as started:
        yield started.host


@contextlib.contextmanager
def daemon(folder: Path, *options: str) -> Iterator[Daemon]:
    """The same, with more ``options`` of dockerd; it may be stopped and started inside."""
    if os.geteuid() or not all(shutil.which(name) for name in ("dockerd", "ip", "nsenter")):
        stores.missing("a second Docker engine (root, dockerd, ip and nsenter)")
    short = Path(tempfile.mkdtemp(prefix="engine-"))  # a socket's path has room for some hundred letters only
    name = short.name
    data = folder / f"data-{uuid.uuid4().hex[:8]}"
    host = f"unix://{short}/docker.sock"
    _run("ip", "netns", "add", name)
    try:
        _run("ip", "-n", name, "link", "set", "lo", "up")
        argv = ("nsenter", f"--net=/run/netns/{name}", "dockerd", "-H", host, "--data-root", str(data),
                "--exec-root", str(short / "exec"), "--pidfile", str(short / "pid"), *options)  # fmt: skip
        started = Daemon(host, argv, short / "log")
        try:
            started.ready()
            yield started
        finally:
            _remove_containers(host)
            started.stop()
    finally:
        _run("ip", "netns", "delete", name)
        shutil.rmtree(data, ignore_errors=True)
        shutil.rmtree(short, ignore_errors=True)


def load(images: Sequence[str], *, into: str, from_host: str) -> None:
    """Copy ``images`` from the engine ``from_host`` to the engine ``into``."""
    with subprocess.Popen(("docker", "-H", from_host, "save", *images), stdout=subprocess.PIPE) as saved:
        subprocess.run(("docker", "-H", into, "load", "--quiet"), stdin=saved.stdout, check=True, capture_output=True)
    assert saved.returncode == 0, f"docker save {' '.join(images)}"


def inside(host: str, *argv: str) -> tuple[str, ...]:
    """The same command, run where the published ports of the engine ``host`` are open."""
    return ("nsenter", f"--net=/run/netns/{Path(host.removeprefix('unix://')).parent.name}", *argv)


def _run(*argv: str) -> str:
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(argv)}: {done.stderr}"
    return done.stdout


def _await(host: str, daemon: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 60
    while subprocess.run(("docker", "-H", host, "version"), capture_output=True, check=False).returncode:
        assert daemon.poll() is None and time.monotonic() < deadline, log.read_text()[-2000:]
        time.sleep(0.2)


def _remove_containers(host: str) -> None:
    """The engine's own end waits ten seconds for each that ignores the signal."""
    if names := _run("docker", "-H", host, "ps", "-aq").split():
        _run("docker", "-H", host, "rm", "--force", "--volumes", *names)
