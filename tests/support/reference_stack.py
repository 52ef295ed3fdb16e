"""The reference stack, brought up from a fresh copy of the tree on a private engine.

Its names are fixed (`cosmos-db`, `cosmos-coherence_postgres-data`), so only one may be up at a time and never beside
one that somebody uses: a lock keeps test sessions apart, and names that are taken are a refusal.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from support import stores

ROOT = Path(__file__).parents[2]
DEVELOPMENT = ("compose.yaml", "compose.override.yaml")
PRODUCTION = ("compose.yaml", "compose.prod.yaml")
PEBBLE = "cosmos-test-pebble:latest"
_COPIED = (
    "compose.yaml", "compose.override.yaml", "compose.prod.yaml", "Dockerfile", ".dockerignore", ".gitignore", "docker",
    "configs", "src", "scripts", "pyproject.toml", "uv.lock", "README.md", "LICENSE",
)  # fmt: skip


@dataclass(frozen=True)
class ReferenceStack:
    """A folder with the project's files, and the environment that its commands run in."""

    folder: Path
    environment: Mapping[str, str]
    ports: Mapping[str, int] = field(default_factory=dict)

    def run(self, *argv: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """A command in the folder."""
        done = subprocess.run(
            argv, cwd=self.folder, env=dict(self.environment), capture_output=True, text=True, check=False
        )
        if check and done.returncode:
            raise AssertionError(f"{' '.join(argv)} ended with {done.returncode}\n{done.stdout}\n{done.stderr}")
        return done

    def shell(self, line: str) -> str:
        """A line of a manual, as a person would type it; every part of a pipe must end well."""
        return self.run("bash", "-euo", "pipefail", "-c", line).stdout

    def compose(self, *argv: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """``docker compose`` in the folder."""
        return self.run("docker", "compose", *argv, check=check)

    def up(self, *argv: str) -> None:
        """Bring it up and wait until everything is healthy; on failure the logs tell why."""
        if self.compose("up", "-d", "--wait", *argv, check=False).returncode:
            raise AssertionError(self.compose("ps", "-a").stdout + self.compose("logs", "--tail", "30").stdout)

    def inspect(self) -> dict[str, dict[str, Any]]:
        """Every container of the project by name."""
        names = self.compose("ps", "-aq").stdout.split()
        found = json.loads(self.run("docker", "inspect", *names).stdout)
        return {container["Name"].lstrip("/"): container for container in found}


@contextlib.contextmanager
def reference_stack(folder: Path, files: tuple[str, ...] = DEVELOPMENT, **variables: str) -> Iterator[ReferenceStack]:
    """A fresh copy in ``folder``, not started yet; everything it made in the engine is gone afterwards."""
    engine = _private_engine()
    ports = {name: stores.free_port() for name in ("API", "DASHBOARD", "HTTP", "HTTPS")}
    environment = {
        **{k: v for k, v in os.environ.items() if not k.startswith(("COSMOS_", "COMPOSE_", "POSTGRES_", "REDIS_"))},
        **{f"COSMOS_{name}_PORT": str(port) for name, port in ports.items()},
        "COMPOSE_FILE": ":".join(files),
        "DOCKER_HOST": engine,
        "COSMOS_DOCKER_SOCKET": engine.removeprefix("unix://"),
        "DOCKER_BUILDKIT": "0",
        **variables,
    }
    if files == DEVELOPMENT:
        del environment["COMPOSE_FILE"]
    copy_tree(folder)
    stack = ReferenceStack(folder, environment, {name.lower(): port for name, port in ports.items()})
    with _names():
        _refuse_foreign(stack)
        _images(stack, production=files != DEVELOPMENT)
        try:
            yield stack
        finally:
            stack.compose("down", "--volumes", "--timeout", "5")


def copy_tree(folder: Path) -> None:
    """The project's folder as a fresh clone has it: git knows every file."""
    for name in _COPIED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        elif source.exists():
            shutil.copy2(source, folder / name)
    (folder / "tests").mkdir()
    shutil.copy2(ROOT / "tests" / "conftest.py", folder / "tests")
    for words in (("init", "--quiet"), ("add", "--all")):
        subprocess.run(("git", "-C", str(folder), *words), check=True, capture_output=True)


def eventually(what, *, within_s: float = 60.0) -> None:
    """Return when ``what()`` no longer fails; its last failure otherwise."""
    deadline = time.monotonic() + within_s
    while True:
        try:
            what()
        except (AssertionError, OSError):
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)
        else:
            return


def _private_engine() -> str:
    engine = os.environ.get("COSMOS_TEST_DOCKER_HOST", "")
    if not engine.startswith("unix://"):
        stores.missing("a private Docker engine on this machine (COSMOS_TEST_DOCKER_HOST)")
    return engine


@contextlib.contextmanager
def _names() -> Iterator[None]:
    with (Path(tempfile.gettempdir()) / "cosmos-coherence-names.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _refuse_foreign(stack: ReferenceStack) -> None:
    there = stack.run("docker", "ps", "-aq", "--filter", "label=com.docker.compose.project=cosmos-coherence").stdout
    there += stack.run("docker", "volume", "ls", "-q", "--filter", "name=^cosmos-coherence_").stdout
    assert not there, f"a stack cosmos-coherence is there already; it is not touched: {there}"


def _images(stack: ReferenceStack, *, production: bool) -> None:
    engine = ROOT / "tests" / "docker" / "engine"
    if not _has(stack, "docker:cli"):
        stack.run("sh", str(engine / "docker-cli" / "build.sh"))
    _build(stack, "cosmos-coherence:latest", stack.folder)
    if production:
        for tag, folder in (("certbot/certbot:latest", "certbot"), (PEBBLE, "pebble")):
            if not _has(stack, tag):
                _build(stack, tag, engine / folder)
        _build(stack, "cosmos-coherence-nginx:latest", stack.folder / "docker" / "nginx")
        _build(stack, "cosmos-coherence-certbot:latest", stack.folder / "docker" / "certbot")


def _has(stack: ReferenceStack, tag: str) -> bool:
    return stack.run("docker", "image", "inspect", tag, check=False).returncode == 0


def _build(stack: ReferenceStack, tag: str, folder: Path) -> None:
    stack.run("docker", "build", "--network", "host", "--quiet", "--tag", tag, str(folder))
