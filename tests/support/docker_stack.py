"""Compose stacks for tests: of their own name, made in a folder of their own, and removed with all that is theirs."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import re
import subprocess
import textwrap
import uuid
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import pytest

from cosmos_coherence.drivers.docker import DockerRuntime
from cosmos_coherence.drivers.docker_facts import PROJECT
from support.samples import APP, STORE, STUBBORN, Sample

HOST = os.environ.get("COSMOS_TEST_DOCKER_HOST") or os.environ.get("DOCKER_HOST") or "unix:///var/run/docker.sock"
"""The engine that tests use. It need not be a private one: they touch only what they made."""


def docker(*arguments: str, stdin: bytes | None = None, check: bool = True) -> str:
    """What ``docker`` says; a failure fails the test with its words."""
    done = subprocess.run(
        ["docker", *arguments],
        input=stdin,
        stdin=subprocess.DEVNULL if stdin is None else None,
        capture_output=True,
        env={**os.environ, "DOCKER_HOST": HOST},
        timeout=200,
    )
    if check and done.returncode:
        raise AssertionError(f"docker {' '.join(arguments)}: {done.stderr.decode(errors='replace')}")
    return done.stdout.decode(errors="replace")


@functools.cache
def why_not() -> str:
    """Why there is no engine for tests here, empty when there is one."""
    try:
        docker("compose", "version")
        docker("info", "--format", "{{.ID}}")
    except (AssertionError, OSError, subprocess.TimeoutExpired) as error:
        return f"no Docker engine with Compose v2 at {HOST}: {error}"
    return ""


class ComposeStack:
    """A stack of this Compose file, as a context manager: up and healthy inside, gone without a trace afterwards.

    ``files`` are written beside it. Inside, ``project`` is its name and ``folder`` the project's folder.
    """

    def __init__(self, folder: Path, compose: str, *, files: dict[str, str] | None = None, start: bool = True) -> None:
        self.project = f"cosmos-test-{uuid.uuid4().hex[:10]}"
        self.folder = folder / self.project
        self._start = start
        self._anonymous: set[str] = set()
        self.folder.mkdir(parents=True)
        for name, text in {"compose.yaml": textwrap.dedent(compose), **(files or {})}.items():
            path = self.folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)

    def __enter__(self) -> ComposeStack:
        try:
            if self._start:
                self.compose("up", "--detach", "--wait", "--quiet-pull")
        except BaseException:
            self.remove()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.remove()

    def compose(self, *arguments: str, check: bool = True) -> str:
        """``docker compose`` on this stack."""
        if "down" in arguments:
            self._note_anonymous()
        folder = ["--project-directory", str(self.folder), "--file", str(self.folder / "compose.yaml")]
        return docker("compose", "--project-name", self.project, *folder, *arguments, check=check)

    def runtime(self, **options: Any) -> DockerRuntime:
        """A new door to it."""
        return DockerRuntime(
            self.project,
            **{"directory": self.folder, "docker_host": HOST, "image": "cosmos-coherence:latest", **options},
        )

    def execute(self, service: str, *command: str, stdin: bytes | None = None) -> str:
        """What a command in a service writes to standard output."""
        return docker("exec", "--interactive", self.container(service), *command, stdin=stdin)

    def container(self, service: str, number: int = 1) -> str:
        """The name of the container of a service."""
        return f"{self.project}-{service}-{number}"

    def volume(self, short: str) -> str:
        """The full name of a volume."""
        return f"{self.project}_{short}"

    def volumes(self) -> list[str]:
        """The full names of all volumes that carry the project's label or prefix."""
        return [name for name in docker("volume", "ls", "--quiet").split() if name.startswith(f"{self.project}_")]

    def state(self, service: str) -> dict[str, Any]:
        """The engine's word on the state of a service's container."""
        return dict(json.loads(docker("inspect", self.container(service)))[0]["State"])

    def _note_anonymous(self) -> None:
        """``down`` leaves volumes behind that nothing but their containers knows."""
        containers = docker("ps", "--all", "--quiet", "--filter", f"label={PROJECT}={self.project}").split()
        for facts in json.loads(docker("inspect", *containers)) if containers else ():
            names = {mount.get("Name", "") for mount in facts["Mounts"]}
            self._anonymous |= {name for name in names if re.fullmatch("[0-9a-f]{64}", name)}

    def remove(self) -> None:
        """Remove containers, volumes and networks; may be repeated."""
        label = f"label={PROJECT}={self.project}"
        for container in docker("ps", "--all", "--quiet", "--filter", label).split():
            docker("rm", "--force", "--volumes", container, check=False)
        for volume in (*self.volumes(), *self._anonymous):
            docker("volume", "rm", "--force", volume, check=False)
        for network in docker("network", "ls", "--quiet", "--filter", label).split():
            docker("network", "rm", network, check=False)


# ----------------------------------------------------------------------------------- the stack of the contract suite
def _script(text: str) -> str:
    """A shell script as a JSON string for YAML; Compose turns ``$$`` into ``$``."""
    return json.dumps(text.replace("$", "$$"))


_SAMPLE = f"""
services:
  app:
    image: busybox:1
    command: ["sh", "-c", {_script(APP)}]
    environment: {{EVENTS: /events, GREETING: hello}}
    labels: {{cosmos.test: "yes"}}
    volumes: ["events:/events", "./inbox:/inbox"]
    depends_on: {{store: {{condition: service_healthy}}}}
    network_mode: none
  store:
    image: busybox:1
    command: ["sh", "-c", {_script(STORE)}]
    environment: {{EVENTS: /events}}
    volumes: ["events:/events"]
    healthcheck: {{test: ["CMD", "test", "-e", "/events/store-ready"], interval: 1s, retries: 60}}
    network_mode: none
  stubborn:
    image: busybox:1
    command: ["sh", "-c", {_script(STUBBORN)}]
    volumes: ["spare:/spare"]
    network_mode: none
volumes: {{events: {{}}, spare: {{}}}}
"""


@contextlib.contextmanager
def docker_sample(folder: Path) -> Iterator[Sample]:
    """The contract's stack on the engine. Compose makes no volume that nothing uses, so ``stubborn`` has ``spare``."""
    if why := why_not():
        pytest.skip(why)
    with ComposeStack(folder, _SAMPLE, files={"inbox/.keep": ""}) as stack:

        def lose(short: str) -> None:
            docker("rm", "--force", stack.container("stubborn"))
            docker("volume", "rm", stack.volume(short))

        yield Sample(stack.runtime(), lose)


DOCKER_SAMPLE = pytest.param(docker_sample, id="docker", marks=pytest.mark.docker)

# ---------------------------------------------------------------------------------------------- a real application
WRITER = """
import os, signal, socket, sys, threading, time

signal.signal(signal.SIGTERM, lambda *_: os._exit(0))

def redis(*words):
    with socket.create_connection(("redis", 6379)) as door:
        return talk(door, *words)

def talk(door, *words):
    door.sendall(b"*%d\\r\\n" % len(words) + b"".join(b"$%d\\r\\n%s\\r\\n" % (len(w), w) for w in words))
    return door.recv(4096)

door = socket.create_connection(("redis", 6379))
k = 0
while True:
    k += 1
    number = b"%d" % k
    assert talk(door, b"SET", b"writer", number) == b"+OK\\r\\n"
    for path in ("/data/writer", "/uploads/writer"):
        with open(path + ".new", "wb") as file:
            file.write(number)
        os.rename(path + ".new", path)
    open("/data/alive", "w").close()
    time.sleep(0.002)
"""
"""Writes k = 1, 2, 3 ... to Redis, then to a volume, then to a bind mount."""

APPLICATION = """
services:
  db:
    image: postgres:15
    environment: {POSTGRES_USER: shop, POSTGRES_DB: shop, POSTGRES_PASSWORD: test-only}
    volumes: ["db-data:/var/lib/postgresql/data"]
    healthcheck: {test: ["CMD", "pg_isready", "-q", "-h", "127.0.0.1", "-U", "shop"], interval: 1s, retries: 60}
  redis:
    image: redis:7
    command: ["redis-server", "--appendonly", "yes"]
    volumes: ["redis-data:/data"]
    healthcheck: {test: ["CMD-SHELL", "redis-cli ping | grep -q PONG"], interval: 1s, retries: 60}
  writer:
    image: python:3.11-slim
    command: ["python", "/program/writer.py"]
    volumes: ["./program:/program:ro", "files:/data", "./uploads:/uploads"]
    depends_on: {db: {condition: service_healthy}, redis: {condition: service_healthy}}
    healthcheck: {test: ["CMD", "test", "-e", "/data/alive"], interval: 1s, retries: 60}
volumes: {db-data: {}, redis-data: {}, files: {}}
"""


def application(folder: Path) -> ComposeStack:
    """PostgreSQL 15, Redis 7 with AOF, and a writer that never stops counting; to be used as a context manager."""
    return ComposeStack(folder, APPLICATION, files={"program/writer.py": WRITER, "uploads/.keep": ""})
