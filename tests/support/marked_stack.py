"""A small stack on a real engine: three stores with the same mark in each, and a writer."""

from __future__ import annotations

import contextlib
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from cosmos_coherence.cut import freezer
from support.docker_stack import HOST, ComposeStack
from support.faulty import FaultyStack
from support.waiting import eventually

SERVICES = {"db", "redis", "writer"}
IMAGES = ("postgres:15", "redis:7", "busybox:1")
COMPOSE = """
services:
  db:
    image: postgres:15
    environment: {POSTGRES_USER: shop, POSTGRES_DB: shop, POSTGRES_PASSWORD: test-only}
    command: ["postgres", "-c", "fsync=off"]
    volumes: ["db-data:/var/lib/postgresql/data"]
    healthcheck: {test: ["CMD", "pg_isready", "-q", "-h", "127.0.0.1", "-U", "shop"], interval: 1s, retries: 60}
    network_mode: none
    restart: unless-stopped
  redis:
    image: redis:7
    command: ["redis-server", "--appendonly", "yes"]
    volumes: ["redis-data:/data"]
    healthcheck: {test: ["CMD-SHELL", "redis-cli ping | grep -q PONG"], interval: 1s, retries: 60}
    network_mode: none
    restart: unless-stopped
  writer:
    image: busybox:1
    command: ["sh", "-c", "while :; do echo >>/data/count; usleep 5000; done"]
    init: true
    stop_grace_period: 1s
    volumes: ["files:/data"]
    network_mode: none
    restart: unless-stopped
volumes: {db-data: {}, redis-data: {}, files: {}}
"""


class MarkedStack(FaultyStack):
    """A mix of old and new has two marks."""

    def ask(self, service: str, *argv: str) -> str:
        with self.runtime.run(service, argv) as child:
            return child.stdout.read().decode().strip()

    def sql(self, statement: str) -> str:
        return self.ask("db", "psql", "-qXAt", "-v", "ON_ERROR_STOP=1", "-U", "shop", "-d", "shop", "-c", statement)

    @property
    def files(self) -> Path:
        return self.runtime.stack().volume("files").path

    def mark(self, text: str) -> None:
        self.sql(f"DELETE FROM marks; INSERT INTO marks VALUES ('{text}')")
        self.ask("redis", "redis-cli", "SET", "mark", text)
        (self.files / "mark").write_text(text)

    def change(self) -> None:
        self.mark(secrets.token_hex(5))

    def state(self) -> set[str]:
        found = (self.sql("SELECT * FROM marks"), self.ask("redis", "redis-cli", "GET", "mark"))
        return {*found, (self.files / "mark").read_text()}

    def goes_on(self) -> bool:
        """All services run; the writer is not paused by the engine, not frozen behind its back, and writes."""
        assert eventually(lambda: self.running() == SERVICES)
        count = self.files / "count"
        size = count.stat().st_size
        return eventually(lambda: count.stat().st_size > size) and self.nothing_held()

    def nothing_held(self) -> bool:
        stack = self.runtime.stack()
        targets = self.runtime.hold_targets(stack.services)
        running = {*freezer.still_running(targets, within_s=10)}
        return running == {target.name for target in targets} and "paused" not in {s.state for s in stack.services}

    def leftovers(self) -> list[str]:
        return self.files_left() + self.sql("SELECT datname FROM pg_database WHERE datname ~ '^cosmos_'").split()


@contextlib.contextmanager
def marked_stack(door: str = HOST) -> Iterator[MarkedStack]:
    """``door``: how the program under test reaches the engine."""
    folder = Path(tempfile.mkdtemp(prefix="cosmos-test-", dir="/var/tmp"))
    try:
        with ComposeStack(folder, COMPOSE) as compose:
            made = MarkedStack(compose.folder, compose.project, door)
            made.sql("CREATE TABLE marks (mark text)")
            yield made
    finally:
        shutil.rmtree(folder, ignore_errors=True)
