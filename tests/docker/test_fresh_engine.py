"""A new host: an engine that has the images and nothing else, and on it a folder with the project, or with nothing.

The stack runs in production, from two Compose files named on the command line, while an override for development lies
beside them. Production it must stay, though nobody names the files again.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from support.docker_stack import HOST
from support.second_engine import load, second_engine
from support.shop_stack import WRITER_IMAGE, Found, ShopStack, shop_stack

pytestmark = [pytest.mark.docker, pytest.mark.private_engine, pytest.mark.timeout(600)]

PRODUCTION = """
services:
  writer:
    environment: {MODE: production}
    volumes: ["outputs:/outputs"]
volumes: {outputs: {}}
"""
DEVELOPMENT = """
services:
  writer:
    environment: {MODE: development}
  toy: {image: redis:7}
"""


@dataclass(frozen=True)
class OldHost:
    """What a backup was made of, and the archive."""

    shop: ShopStack
    archive: Path
    began: dict[int, int]
    ended: dict[int, int]
    standing: dict[str, Any]
    configuration: dict[str, tuple[int, str]]


@pytest.fixture(scope="module")
def old_host() -> Iterator[OldHost]:
    with shop_stack() as shop:
        (shop.folder / "compose.prod.yaml").write_text(PRODUCTION)
        (shop.folder / "compose.override.yaml").write_text(DEVELOPMENT)
        shop.compose("-f", "compose.yaml", "-f", "compose.prod.yaml", "up", "-d", "--wait")
        (shop.volume("outputs") / "report").write_text("done\n")
        shop.write(up=False)
        began, standing = shop.reached(), shop.standing()
        saved = json.loads(shop.cosmos("backup", "--json").stdout)
        assert saved["status"] == "done", saved
        yield OldHost(shop, Path(saved["path"]), began, shop.reached(), standing, shop.configuration())


@pytest.fixture(scope="module")
def engine(old_host: OldHost, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with second_engine(tmp_path_factory.mktemp("engine")) as host:
        load(("postgres:15", "redis:7", WRITER_IMAGE), into=host, from_host=HOST)
        yield host


@pytest.fixture
def new_host(old_host: OldHost, engine: str, tmp_path: Path) -> Iterator[ShopStack]:
    """The engine, and a folder with nothing but the archive, which is named otherwise than the project."""
    shop = old_host.shop.on(engine, tmp_path)
    shutil.copy2(old_host.archive, tmp_path)
    assert not shop.run("docker", "ps", "-aq").stdout + shop.run("docker", "volume", "ls", "-q").stdout
    yield shop
    shop.run("docker", "compose", "-p", shop.project, "down", "-v", "--remove-orphans", "--timeout", "2", check=False)
    shop.run("docker", "volume", "rm", f"{shop.project}_cosmos-state", check=False)


def same(shop: ShopStack, old: OldHost) -> None:
    found: dict[int, Found] = shop.sequences()
    assert all(one.of_one_instant for one in found.values()), found
    assert all(old.began[w] <= found[w].database <= old.ended[w] for w in found), (old.began, found, old.ended)
    assert shop.standing() == old.standing
    assert (shop.volume("outputs") / "report").read_text() == "done\n"


def in_production(shop: ShopStack) -> None:
    listed = shop.run("docker", "ps", "--all", "--format", "{{.Names}}").stdout.split()
    assert sorted(listed) == [f"{shop.project}-{service}-1" for service in ("cache", "db", "writer")]
    (writer,) = json.loads(shop.run("docker", "inspect", f"{shop.project}-writer-1").stdout)
    assert "MODE=production" in writer["Config"]["Env"]
    files = writer["Config"]["Labels"]["com.docker.compose.project.config_files"]
    assert files.split(",") == [str(shop.folder / name) for name in ("compose.yaml", "compose.prod.yaml")]


def test_migrating_to_a_new_host_with_the_project_s_folder(old_host: OldHost, new_host: ShopStack) -> None:
    for name in old_host.configuration:
        (new_host.folder / name).parent.mkdir(exist_ok=True)
        shutil.copy2(old_host.shop.folder / name, new_host.folder / name)
    restored = json.loads(new_host.cosmos("restore", old_host.archive.name, "--yes", "--json").stdout)
    assert (restored["status"], restored["safety_backup"]) == ("done", "")
    same(new_host, old_host)
    in_production(new_host)
    new_host.write(up=False)
    saved = json.loads(new_host.cosmos("backup", "--json").stdout)
    assert saved["status"] == "done"
    manifest = json.loads(new_host.cosmos("show", saved["backup"], "--json").stdout)
    assert manifest["config_files"] == ["compose.yaml", "compose.prod.yaml"]


def test_with_nothing_but_the_archive(old_host: OldHost, new_host: ShopStack) -> None:
    restored = json.loads(new_host.cosmos("restore", old_host.archive.name, "--yes", "--json").stdout)
    assert restored["status"] == "done"
    same(new_host, old_host)
    in_production(new_host)
    (new_host.folder / old_host.archive.name).unlink()
    in_use = {name: of for name, of in old_host.configuration.items() if name != "compose.override.yaml"}
    assert new_host.configuration() == in_use
    new_host.write(up=False)


def test_a_failed_restore_on_a_new_host_can_be_tried_again(old_host: OldHost, new_host: ShopStack) -> None:
    """An image that is missing: a sentence and a remedy, nothing of the archive is lost, the same call converges."""
    shop = new_host
    shop.run("docker", "tag", "redis:7", "kept:1")
    shop.run("docker", "rmi", "redis:7")
    try:
        failed = shop.cosmos("restore", old_host.archive.name, "--yes", "--json", check=False)
        report = json.loads(failed.stdout)
        assert (failed.returncode, report["status"]) == (1, "failed")
        assert report["failure"]["remedy"]
    finally:
        shop.run("docker", "tag", "kept:1", "redis:7")
        shop.run("docker", "rmi", "kept:1")
    restored = json.loads(shop.cosmos("restore", old_host.archive.name, "--yes", "--json").stdout)
    assert restored["status"] == "done"
    same(shop, old_host)
    in_production(shop)
