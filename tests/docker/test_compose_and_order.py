"""Compose as it is found on machines, stopping and starting in order, and who may talk to the engine."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cosmos_coherence import errors
from cosmos_coherence.drivers import compose
from support.docker_stack import HOST, ComposeStack
from support.program import NOBODY, SOURCE
from support.waiting import eventually

pytestmark = pytest.mark.docker

SCRIPT = (
    "rm -f /log/$$NAME; echo start $$NAME >>/log/log; trap 'echo stop $$NAME >>/log/log; exit' TERM; sleep 0.3; "
    "touch /log/$$NAME; while :; do sleep 0.05; done"
)
CHAIN = f"""
x-link: &link
  image: busybox:1
  command: ["sh", "-c", "{SCRIPT}"]
  volumes: ["log:/log"]
services:
  front:
    <<: *link
    environment: {{NAME: front}}
    depends_on: {{middle: {{condition: service_started}}}}
  middle:
    <<: *link
    environment: {{NAME: middle}}
    depends_on: {{back: {{condition: service_healthy}}, prepare: {{condition: service_completed_successfully}}}}
  back:
    <<: *link
    environment: {{NAME: back}}
    healthcheck: {{test: ["CMD", "test", "-e", "/log/back"], interval: 200ms, retries: 200}}
  prepare:
    <<: *link
    command: ["sh", "-c", "sleep 0.3; echo prepared >>/log/log"]
    depends_on: {{back: {{condition: service_started}}}}
volumes: {{log: {{}}}}
"""


@pytest.fixture
def chain(tmp_path: Path) -> Iterator[ComposeStack]:
    with ComposeStack(tmp_path, CHAIN, start=False) as stack:
        stack.compose("create")
        yield stack


def log(stack: ComposeStack) -> list[str]:
    path = stack.runtime().stack().volume("log").path
    file = path / "log"
    return file.read_text().splitlines() if file.exists() else []


def test_starts_when_what_it_depends_on_is_as_it_must_be(chain: ComposeStack) -> None:
    runtime = chain.runtime()
    everything = ["front", "middle", "back", "prepare"]
    runtime.start(everything)
    runtime.wait_ready(everything)
    assert eventually(lambda: len(log(chain)) == 4)
    assert log(chain) == ["start back", "prepared", "start middle", "start front"]
    runtime.stop(["back", "front"])  # middle is between them, and stays
    assert log(chain)[4:] == ["stop front", "stop back"]
    states = {s.name: s.state for s in runtime.stack().services}
    assert states == {"front": "exited", "middle": "running", "back": "exited", "prepare": "exited"}


def test_a_job_that_fails_is_not_ready(tmp_path: Path) -> None:
    failing = CHAIN.replace("echo prepared >>/log/log", "exit 3")
    with ComposeStack(tmp_path, failing, start=False) as stack:
        stack.compose("create")
        with pytest.raises(errors.ServiceDown, match=r"prepare.*status 3"):
            stack.runtime().start(["front", "middle", "back", "prepare"])


def test_what_cannot_start_is_named(tmp_path: Path) -> None:
    broken = 'services: {web: {image: "busybox:1", command: ["/no/such/program"]}}'
    with ComposeStack(tmp_path, broken, start=False) as stack:
        stack.compose("create")
        with pytest.raises(errors.ServiceDown, match="web cannot start"):
            stack.runtime().start(["web"])


def test_an_image_that_is_missing_is_named_by_create(tmp_path: Path) -> None:
    lost = 'services: {web: {image: "127.0.0.1:1/cosmos-test/no-such-image:1"}}'
    with ComposeStack(tmp_path, lost, start=False) as stack:
        with pytest.raises(errors.CommandFailed, match="cannot be created") as caught:
            stack.runtime().create()
        assert "pull or build" in caught.value.remedy


def test_compose_files_that_make_no_sense(tmp_path: Path) -> None:
    with ComposeStack(tmp_path, "services: {web: {image: [1]}}", start=False) as stack:
        with pytest.raises(errors.ConfigurationError, match=stack.project):
            stack.runtime(config_files=(stack.folder / "compose.yaml",)).stack()
        with pytest.raises(errors.NotFound, match=r"other\.yaml"):
            stack.runtime(config_files=(stack.folder / "other.yaml",)).stack()


# ------------------------------------------------------------------------------------------------ other Composes
def stand_in(folder: Path, name: str, script: str) -> None:
    """A program that behaves as a docker client without a plugin, or as version 1, does."""
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


NO_PLUGIN = "echo \"docker: 'compose' is not a docker command.\" >&2; exit 1"


@pytest.mark.parametrize(
    ("programs", "sentence"),
    [
        ({"docker": NO_PLUGIN, "docker-compose": "echo 1.29.2"}, "version 1 is not supported"),
        ({"docker": '[ "$3" = --short ] && { echo 1.29.2; exit; }; exit 1'}, "version 1 is not supported"),
        ({"docker": NO_PLUGIN}, "`docker compose` is not installed"),
        ({}, "`docker compose` is not installed"),
    ],
)
def test_without_compose_2_there_is_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, programs: dict[str, str], sentence: str
) -> None:
    for name, script in programs.items():
        stand_in(tmp_path / "bin", name, script)
    stand_in(tmp_path / "bin", "unrelated", "true")
    file = tmp_path / "compose.yaml"
    file.write_text("services: {}\n")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    with pytest.raises(errors.Unsupported, match=sentence) as caught:
        compose.read("x", tmp_path, [file])
    assert "version 2" in caught.value.remedy


def test_without_compose_a_stack_that_runs_is_still_found(chain: ComposeStack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    found = chain.runtime().stack()
    assert {s.name for s in found.services} == {"front", "middle", "back", "prepare"}


# --------------------------------------------------------------------------------------------------- permission
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody who may not talk to the engine")
def test_a_user_who_may_not_talk_to_the_engine() -> None:
    """As another user for real: root may everything."""
    script = (
        "import os, docker, requests, cosmos_coherence.settings  # while root can still read them\n"
        "from cosmos_coherence import errors\n"
        "from cosmos_coherence.drivers.docker import DockerRuntime\n"
        "from pathlib import Path\n"
        f"os.setgroups([]); os.setgid({NOBODY}); os.setuid({NOBODY})\n"
        "try:\n"
        f"    DockerRuntime('x', directory=Path('/'), docker_host={HOST!r}).stack()\n"
        "except errors.EngineForbidden as error:\n"
        "    print(error.message)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(SOURCE)},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == f"this user may not talk to the Docker engine at {HOST}"
