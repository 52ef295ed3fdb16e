"""The same on a real engine: a restore that breaks, and a program that is killed, leave data and containers whole."""

from __future__ import annotations

import random
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from cosmos_coherence.archive.verify import verify_archive
from cosmos_coherence.cut import freezer
from support.docker_stack import HOST, ComposeStack
from support.faulty import FaultyStack, fail_at
from support.waiting import eventually

pytestmark = [pytest.mark.docker, pytest.mark.timeout(300)]

UNPUBLISHED = ("recover", "plan", "prepare", "hold", "capture", "pack", "verify", "publish")
UNDONE = ("recover", "create", "safety", "stage", "stop", "swap", "compare", "start", "probe")
SERVICES = {"db", "redis", "writer"}
COMPOSE = """
services:
  db:
    image: postgres:15
    environment: {POSTGRES_USER: shop, POSTGRES_DB: shop, POSTGRES_PASSWORD: test-only}
    command: ["postgres", "-c", "fsync=off"]
    volumes: ["db-data:/var/lib/postgresql/data"]
    healthcheck: {test: ["CMD", "pg_isready", "-q", "-h", "127.0.0.1", "-U", "shop"], interval: 300ms, retries: 200}
    network_mode: none
  redis:
    image: redis:7
    command: ["redis-server", "--appendonly", "yes"]
    volumes: ["redis-data:/data"]
    healthcheck: {test: ["CMD-SHELL", "redis-cli ping | grep -q PONG"], interval: 300ms, retries: 200}
    network_mode: none
  writer:
    image: busybox:1
    command: ["sh", "-c", "while :; do echo >>/data/count; usleep 5000; done"]
    init: true
    stop_grace_period: 1s
    volumes: ["files:/data"]
    network_mode: none
volumes: {db-data: {}, redis-data: {}, files: {}}
"""


class Shop(FaultyStack):
    """Three stores with the same mark in each; a mix of old and new has two marks."""

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

    def marks(self) -> set[str]:
        found = (self.sql("SELECT * FROM marks"), self.ask("redis", "redis-cli", "GET", "mark"))
        return {*found, (self.files / "mark").read_text()}

    def assert_writing(self) -> None:
        """Not paused by the engine, not frozen behind its back, and writing."""
        count = self.files / "count"
        size = count.stat().st_size
        assert eventually(lambda: count.stat().st_size > size), "the writer stands still"

    def assert_nothing_held(self) -> None:
        stack = self.runtime.stack()
        assert {s.name for s in stack.services if s.state == "paused"} == set()
        targets = self.runtime.hold_targets(stack.services)
        assert {*freezer.still_running(targets, within_s=10)} == {target.name for target in targets}

    def left(self) -> list[str]:
        return self.files_left() + self.sql("SELECT datname FROM pg_database WHERE datname ~ '^cosmos_'").split()


@pytest.fixture(scope="module")
def shop() -> Iterator[Shop]:
    folder = Path(tempfile.mkdtemp(prefix="cosmos-test-", dir="/var/tmp"))
    try:
        with ComposeStack(folder, COMPOSE) as compose:
            made = Shop(compose.folder, compose.project, HOST)
            made.sql("CREATE TABLE marks (mark text)")
            yield made
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def archive(shop: Shop) -> Path:
    shop.mark("archived")
    report = shop.backup()
    assert report.status == "done", (report.failure, report.missing)
    return Path(report.path)


@pytest.fixture
def live(shop: Shop, archive: Path) -> Iterator[None]:
    """The live stores say ``live``; in the end nothing may be held, stopped or left behind."""
    shop.mark("live")
    yield
    shop.assert_nothing_held()
    assert shop.running() == SERVICES
    shop.assert_writing()
    assert shop.left() == []
    assert verify_archive(shop.backups / "latest.tar.gz").id == shop.published()[-1]


@pytest.mark.parametrize("name", UNDONE)
def test_a_restore_that_fails_leaves_the_stack_as_it_was(shop, archive, live, name):
    step = fail_at(name)
    report = shop.restore(archive, step)
    assert (report.status, report.exit_status, step.left) == ("failed", 1, [])
    assert ("as it was before" in report.failure.message) == (name != "recover")
    assert shop.marks() == {"live"}


def killed_backup(shop, name):
    listed = shop.published()
    shop.killed_at(name, "backup")
    assert (shop.published() == listed) == (name in UNPUBLISHED)
    healed = shop.recover()
    assert healed.status == "done", healed.failure
    shop.assert_nothing_held()
    shop.assert_writing()
    assert shop.left() == []
    assert shop.marks() == {"live"}


def killed_restore(shop, archive, name):
    shop.mark("live")
    shop.killed_at(name, "restore", archive)
    healed = shop.recover()
    assert healed.status == "done", healed.failure
    assert shop.marks() == {"live" if name in UNDONE else "archived"}
    shop.assert_nothing_held()
    assert shop.running() == SERVICES
    assert shop.left() == []


def test_a_backup_that_is_killed_heals(shop, live, rng: random.Random):
    for name in rng.sample([*UNPUBLISHED, "retention"], 2):
        print(name)
        killed_backup(shop, name)
    again = shop.backup()
    assert again.status == "done", again.failure


def test_a_restore_that_is_killed_heals(shop, archive, live, rng: random.Random):
    for name in rng.sample([*UNDONE, "finish"], 2):
        print(name)
        killed_restore(shop, archive, name)
    again = shop.restore(archive)
    assert again.status == "done", again.failure
    assert shop.marks() == {"archived"}


@pytest.mark.parametrize("verb", ["backup", "restore"])
def test_killed_at_any_moment(shop, archive, live, rng: random.Random, verb: str):
    seconds = 6.0
    while not shop.killed_within(moment := rng.uniform(0, seconds), verb, archive):
        seconds = moment
        shop.mark("live")
    print(f"killed after {moment:.3f} s")
    healed = shop.recover()
    assert healed.status == "done", healed.failure
    assert shop.left() == []
    assert shop.marks() in ({"live"}, {"archived"} if verb == "restore" else {"live"})


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_killed_at_every_step(shop, archive, live):
    for name in (*UNPUBLISHED, "retention"):
        killed_backup(shop, name)
    for name in (*UNDONE, "finish"):
        killed_restore(shop, archive, name)


def test_two_services_that_were_stopped_stay_stopped(shop, archive, live):
    """What comes back after a failed restore is what ran before, not everything."""
    shop.runtime.stop(["writer", "redis"])
    try:
        step = fail_at("stage")
        report = shop.restore(archive, step)
        assert (report.status, step.left) == ("failed", [])
        assert shop.running() == {"db"}
    finally:
        shop.runtime.start(["redis", "writer"])
        shop.runtime.wait_ready(["redis"])
    assert shop.marks() == {"live"}
