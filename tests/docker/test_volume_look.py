"""The verbs of ``cosmos volume`` that look: as root, and as a user who may do nothing but talk to the engine."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cosmos_coherence.drivers import named_volume
from support.docker_stack import HOST, ComposeStack, docker
from support.ordinary_user import OrdinaryUser, ordinary_user
from support.program import NOBODY, cosmos
from support.trees import public_folder

pytestmark = [pytest.mark.docker, pytest.mark.timeout(300)]

FILL = "mkdir /data/files && head -c 3000000 /dev/urandom > /data/files/film && ln /data/files/film /data/again"
COMPOSE = f"""
services:
  app:
    image: busybox:1
    command: sh -c "{FILL} && touch /data/ready && trap exit TERM; while :; do sleep 0.1; done"
    volumes: ["data:/data", "spare:/spare"]
    healthcheck: {{test: ["CMD", "test", "-e", "/data/ready"], interval: 200ms, retries: 100}}
    network_mode: none
  reader:
    image: busybox:1
    command: sh -c "trap exit TERM; while :; do sleep 0.1; done"
    volumes: ["data:/data:ro"]
    network_mode: none
volumes: {{data: {{}}, spare: {{}}}}
"""


@pytest.fixture(scope="module")
def stack() -> Iterator[ComposeStack]:
    with public_folder() as folder, ComposeStack(folder, COMPOSE) as stack:
        yield stack


def told(stack: ComposeStack, *arguments: str, status: int = 0) -> Any:
    done = cosmos("-C", str(stack.folder), "-p", stack.project, "volume", *arguments, "--json", DOCKER_HOST=HOST)
    assert done.returncode == status, done.stdout + done.stderr
    return json.loads(done.stdout)


def du(stack: ComposeStack, short: str) -> int:
    os.sync()
    place = docker("volume", "inspect", "--format", "{{.Mountpoint}}", stack.volume(short)).strip()
    said = subprocess.run(["du", "-s", "--block-size=1", place], capture_output=True, check=True).stdout
    return int(said.split()[0])


def test_list_and_inspect(stack: ComposeStack) -> None:
    found = {each["volume"]["name"]: each for each in told(stack, "list")}
    assert set(found) == {stack.volume("data"), stack.volume("spare")}
    data = found[stack.volume("data")]
    assert data["usage"]["bytes"] == du(stack, "data")
    assert data["usage"]["files"] == 2, "a file with two names counts once"
    assert data["used_by"] == ["app", "reader (read-only)"]
    assert data["last_proof"] == "never"
    one = told(stack, "inspect", "data")
    assert one["volume"] == data
    assert one["volume"]["volume"]["labels"]["com.docker.compose.volume"] == "data"


def test_usage_is_that_of_du_and_of_the_engine(stack: ComposeStack) -> None:
    found = told(stack, "usage", "data")
    assert found["usage"]["bytes"] == du(stack, "data")
    assert found["largest"][0]["path"] == "again"
    assert told(stack, "usage", stack.volume("data"))["folders"] == found["folders"]
    assert stack.volume("data") in docker("system", "df", "-v")


def test_a_volume_of_somebody_else_is_not_found(stack: ComposeStack) -> None:
    other = f"{stack.project}-other"
    docker("volume", "create", "--label", "com.docker.compose.project=other", other)
    try:
        assert "data, spare" in told(stack, "usage", other, status=4)["failure"]["remedy"]
        runtime = stack.runtime()
        assert named_volume.find(runtime.engine, runtime.reach, stack.project, other) is None
        there = named_volume.find(runtime.engine, runtime.reach, stack.project, "data")
        assert there == runtime.stack().volume("data")
    finally:
        docker("volume", "rm", other)


def test_forecast(stack: ComposeStack) -> None:
    found = told(stack, "forecast", "data")
    assert found[0]["subject"] == f"volume:{stack.volume('data')}"
    assert found[1]["subject"].startswith("disk:/")


@pytest.fixture
def user(stack: ComposeStack, program_image: str) -> Iterator[OrdinaryUser]:
    with ordinary_user(stack.folder, engine=HOST, image=program_image) as user:
        yield user


def test_an_ordinary_user_sees_the_same(stack: ComposeStack, user: OrdinaryUser) -> None:
    picture = stack.folder / "pictures" / "usage.svg"
    done = user.cosmos("-p", stack.project, "volume", "usage", "data", "--picture", str(picture), "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "running in a container" in done.stderr
    found, of_root = json.loads(done.stdout), told(stack, "usage", "data")
    assert found.pop("disk")["total"] == of_root.pop("disk")["total"], "which in the container is mounted elsewhere"
    assert found == of_root
    assert picture.read_text("utf-8").startswith("<svg")
    assert picture.stat().st_uid == NOBODY
    listed = user.cosmos("-p", stack.project, "volume", "list", "--json")
    assert json.loads(listed.stdout) == told(stack, "list")


def test_the_picture_is_put_where_it_was_asked_for(stack: ComposeStack, tmp_path: Path) -> None:
    told(stack, "usage", "spare", "--picture", str(tmp_path / "p.svg"))
    assert (tmp_path / "p.svg").read_text("utf-8").endswith("</svg>\n")
