"""Services that are held by a hook of their own or stopped, and who writes from outside, on a real engine."""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from cosmos_coherence import manifests
from cosmos_coherence.archive.manifest import read_manifest
from cosmos_coherence.flow.events import Report
from cosmos_coherence.settings import Settings, load
from support.docker_stack import HOST, ComposeStack, docker
from support.faulty import FaultyStack, act_at
from support.waiting import eventually

pytestmark = [pytest.mark.docker, pytest.mark.timeout(300)]

STACK = """
services:
  buffered:
    image: busybox:1
    command: ["sh", "-c", "while :; do usleep 100000; done"]
    init: true
    stop_grace_period: 1s
    network_mode: none
    tmpfs: [/memory]
    volumes: ["files:/data"]
    labels:
      EXAMPLE
  own:
    image: busybox:1
    command:
      - sh
      - -c
      - |
        while :; do
          if [ -e /memory/quiet ]; then touch /memory/stands; else rm -f /memory/stands; echo >>/data/count; fi
          usleep 2000
        done
    init: true
    stop_grace_period: 1s
    network_mode: none
    tmpfs: [/memory]
    volumes: ["counts:/data"]
    labels:
      cosmos.hold: hook
      cosmos.hold.before: touch /memory/quiet; until [ -e /memory/stands ]; do usleep 1000; done
      cosmos.hold.after: rm -f /memory/quiet
  stopped:
    image: busybox:1
    command:
      - sh
      - -c
      - trap 'echo closed >/data/state; exit' TERM; echo open >/data/state; while :; do usleep 20000; done
    network_mode: none
    volumes: ["states:/data", "./shared:/shared"]
    labels: {cosmos.hold: stop}
volumes: {files: {}, counts: {}, states: {}}
"""
EXAMPLE = Path(__file__).parents[2] / "docs" / "protect-your-stack.md"
ALL = {"buffered", "own", "stopped"}


@dataclass(frozen=True)
class Quiet(FaultyStack):
    max_pause: str = "1s"

    @property
    def settings(self) -> Settings:
        return load(self.folder, environ={}, stack__project=self.project, cut__max_pause=self.max_pause)

    def path(self, volume: str) -> Path:
        found = self.runtime.stack().volume(volume)
        assert found and found.path
        return found.path

    def ask(self, service: str, command: str) -> str:
        with self.runtime.run(service, ["sh", "-c", command]) as child:
            return child.stdout.read().decode()

    def goes_on(self) -> bool:
        count = self.path("counts") / "count"
        size = count.stat().st_size
        return self.running() == ALL and eventually(lambda: count.stat().st_size > size)

    def buffer(self, text: str) -> None:
        self.ask("buffered", f"rm -f /memory/door; echo {text} >/memory/orders")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Quiet]:
    before, after = re.findall(r"^ +(cosmos\.hold\.(?:before|after): .+)$", EXAMPLE.read_text(), re.MULTILINE)
    text = STACK.replace("EXAMPLE", f"{before}\n      {after}")
    with ComposeStack(tmp_path_factory.mktemp("quiet"), text) as compose:
        made = Quiet(compose.folder, compose.project, HOST)
        assert eventually((made.path("counts") / "count").exists)
        yield made


@pytest.fixture
def stack(made: Quiet) -> Iterator[Quiet]:
    made.buffer("something")
    yield made
    assert made.goes_on()
    assert made.files_left() == []


def left_out(report: Report) -> list[str]:
    return [gap.what for gap in report.missing if not gap.chosen]


def test_what_a_hook_flushed_and_a_stop_wrote_is_restored(stack: Quiet) -> None:
    stack.buffer("flushed-by-the-hook")
    counted: list[int] = []
    count = stack.path("counts") / "count"

    def look() -> None:
        counted.append(count.stat().st_size)

    held = act_at(**{"hold: journalled": look, "hold: anchored": look})
    report = stack.backup(held)
    assert (report.status, left_out(report), held.left) == ("done", [], {}), report
    assert counted[0] == counted[1], "its hook had told it to stand still"
    manifest = read_manifest(Path(report.path))
    assert manifest.held == (f"{stack.project}-buffered-1",)
    assert set(manifest.quiet_ms) == ALL
    assert all(ms > manifest.pause_ms for ms in manifest.quiet_ms.values())
    assert manifests.decode(manifests.encode(manifest)) == manifest
    assert [note.rsplit(" for ", 1)[0] for note in report.notes] == [
        "buffered was held by its own hook",
        "own was held by its own hook",
        "stopped was stopped",
    ]

    for name in ("orders", "later"):
        (stack.path("files") / name).write_text("spoilt")
    assert eventually(lambda: (stack.path("states") / "state").read_text() == "open\n")
    found: list[str] = []
    start = act_at(start=lambda: found.append((stack.path("states") / "state").read_text()))
    restored = stack.restore(Path(report.path), start)
    assert restored.status == "done", restored.failure
    assert found == ["closed\n"], "what it wrote when it was stopped, before it runs again"
    assert "flushed-by-the-hook" in (stack.path("files") / "orders").read_text().split()
    assert not (stack.path("files") / "later").exists()


def test_killed_while_it_is_quiet_recover_starts_and_lets_go(stack: Quiet) -> None:
    stack.killed_at("hold", "backup")
    assert stack.running() == ALL - {"stopped"}
    assert stack.ask("own", "ls /memory") == "quiet\nstands\n"
    assert stack.ask("buffered", "ls /memory") == ""
    healed = stack.recover()
    assert healed.status == "done", healed.failure
    said = "; ".join(healed.notes)
    assert "started stopped again" in said
    assert "ran cosmos.hold.after of own" in said
    assert stack.ask("buffered", "cat /memory/door") == "open\n"


def test_a_failing_before_publishes_nothing_and_lets_all_go_on(stack: Quiet) -> None:
    stack.ask("buffered", "rm /memory/orders")
    listed = stack.published()
    report = stack.backup()
    assert (report.status, report.exit_status) == ("failed", 1)
    assert "cosmos.hold.before of buffered failed" in report.failure.message
    assert "/memory/orders" in report.failure.message, "its own words"
    assert stack.ask("buffered", "cat /memory/door") == "open\n"
    assert stack.published() == listed


def test_a_budget_blown_three_times_fails_with_the_numbers_of_every_source(stack: Quiet) -> None:
    slow = Quiet(stack.folder, stack.project, HOST, max_pause="500ms")
    prepared = []

    def step(name: str) -> None:
        if name == "prepare":
            prepared.append(name)
            stack.buffer("again")
        if name == "hold: frozen":
            time.sleep(0.6)

    listed = stack.published()
    report = slow.backup(step)
    assert (report.status, report.failure.code, len(prepared)) == ("failed", "cut-failed", 3)
    said = report.failure.message.split("attempt ")[1:]
    assert len(said) == 3
    for attempt in said:
        assert "the budget of 500 ms was over" in attempt
        for part in ("volumes/files", "volumes/counts", "volumes/states", "config"):
            assert f"{part} " in attempt, attempt
    assert stack.published() == listed


@contextlib.contextmanager
def outsider(stack: Quiet, *options: str, mount: str = "files:/data") -> Iterator[str]:
    name = f"{stack.project}-outsider"
    command = ("busybox:1", "sh", "-c", "while :; do echo >>/data/outside; usleep 2000; done")
    volume = f"{stack.project}_{mount}" if not mount.startswith("/") else mount
    docker("run", "--detach", "--init", "--name", name, "--network", "none", *options, "-v", volume, *command)
    try:
        yield name
    finally:
        docker("rm", "--force", name)


def test_a_container_from_outside_that_shares_a_volume_is_held(stack: Quiet) -> None:
    with outsider(stack, "--label", "cosmos.hold=stop") as name:
        report = stack.backup()
        assert (report.status, left_out(report)) == ("done", []), report
        assert name in read_manifest(Path(report.path)).held
        assert docker("inspect", "-f", "{{.State.Status}} {{.RestartCount}}", name).split() == ["running", "0"]


def test_a_container_that_shares_a_folder_of_the_host_is_found(stack: Quiet) -> None:
    with outsider(stack, mount=f"{stack.folder}/shared/inside:/data") as name:
        assert [s.container for s in stack.runtime.stack().neighbours] == [name]


def test_this_program_beside_the_volumes_is_nobody_from_outside(stack: Quiet) -> None:
    with outsider(stack, "--label", "cosmos.role=run"):
        assert stack.runtime.stack().neighbours == ()


def test_one_that_is_not_held_is_named_and_the_backup_incomplete(stack: Quiet) -> None:
    with outsider(stack, "--label", "cosmos.hold=never") as name:
        report = stack.backup()
    assert (report.status, report.exit_status) == ("incomplete", 3)
    assert left_out(report)[0] == f"what container {name} from outside the stack writes to volumes/files"
    assert not read_manifest(Path(report.path)).complete


def test_one_that_comes_up_during_the_copying_is_held_too(stack: Quiet) -> None:
    with contextlib.ExitStack() as late:
        names: list[str] = []
        report = stack.backup(act_at(prepare=lambda: names.append(late.enter_context(outsider(stack)))))
        assert report.status == "done", report
        assert names[0] in read_manifest(Path(report.path)).held


def test_what_somebody_has_paused_or_stopped_stays_so(stack: Quiet) -> None:
    container = f"{stack.project}-{{}}-1"
    docker("pause", container.format("own"))
    docker("stop", "--time", "1", container.format("stopped"))
    try:
        report = stack.backup()
        assert report.status == "done", report
        assert set(read_manifest(Path(report.path)).quiet_ms) == {"buffered"}
        states = {s.name: s.state for s in stack.runtime.stack().services}
        assert states == {"buffered": "running", "own": "paused", "stopped": "exited"}
    finally:
        docker("unpause", container.format("own"))
        docker("start", container.format("stopped"))
