"""Real processes, cgroups and containers stand still, and go on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from msgspec import structs

from cosmos_coherence import errors
from cosmos_coherence.cut import freezer
from cosmos_coherence.drivers import process
from cosmos_coherence.model import HoldTarget
from support import counters
from support.counters import Counters

CONTAINED = ["cgroup", "engine"]


@pytest.fixture
def writer(tmp_path: Path) -> Iterator[Counters]:
    with counters.local(tmp_path / "counters") as found:
        yield found


def assert_holds_and_lets_go(writer: Counters) -> None:
    for _ in range(3):
        freezer.freeze(writer.target)
        assert writer.still()
        assert freezer.is_frozen(writer.target)
        freezer.freeze(writer.target)  # twice is fine
        freezer.thaw(writer.target)
        assert not freezer.is_frozen(writer.target)
        freezer.thaw(writer.target)
        assert writer.moving()


def test_every_thread_and_process_of_a_session_stands_still_and_goes_on(writer: Counters) -> None:
    assert_holds_and_lets_go(writer)


@pytest.mark.docker
@pytest.mark.parametrize("means", CONTAINED)
def test_a_container_stands_still_and_goes_on(tmp_path: Path, means: str) -> None:
    with counters.engine() as client, counters.contained(tmp_path / "counters", client, means) as writer:
        assert_holds_and_lets_go(writer)


_JOIN_AND_COUNT = """
import os, pathlib, sys
pathlib.Path(sys.argv[1], "cgroup.procs").write_text(str(os.getpid()))
with open(sys.argv[2], "ab", 0) as file:
    while True:
        file.write(b"x")
"""


@pytest.mark.docker
def test_the_engine_is_asked_until_it_is_so(tmp_path: Path) -> None:
    with counters.engine() as client, counters.contained(tmp_path / "counters", client, "engine") as writer:
        truth = counters.cgroup_target("truth", client.api.inspect_container(writer.target.name)["State"]["Pid"])
        for _ in range(150):  # right behind each other, the engine is wrong about one in some hundred
            freezer.freeze(writer.target)
            assert freezer.is_frozen(truth)
            freezer.thaw(writer.target)
            assert not freezer.is_frozen(truth)


@pytest.mark.docker
def test_a_version_2_cgroup_stands_still_and_goes_on(tmp_path: Path) -> None:
    mounts = [line.split()[1:3] for line in Path("/proc/mounts").read_text().splitlines()]
    root = next((Path(path) for path, kind in mounts if kind == "cgroup2"), None)
    if root is None or not os.access(root, os.W_OK):
        pytest.skip("no cgroup of version 2 can be made here")
    group = root / f"test-cut-{uuid.uuid4().hex[:12]}"
    group.mkdir()
    folder = tmp_path / "counters"
    folder.mkdir()
    joined = subprocess.Popen([sys.executable, "-c", _JOIN_AND_COUNT, str(group), str(folder / "one")])
    try:
        assert_holds_and_lets_go(Counters(folder, HoldTarget("cgroup2", "writer", where=str(group)), expected=1))
    finally:
        joined.kill()
        joined.wait()
        while "populated 1" in (group / "cgroup.events").read_text():
            time.sleep(0.01)
        group.rmdir()


@pytest.mark.docker
@pytest.mark.parametrize("means", CONTAINED)
def test_what_has_ended_counts_as_held_and_has_nothing_to_release(tmp_path: Path, means: str) -> None:
    with counters.engine() as client, counters.contained(tmp_path / "counters", client, means) as writer:
        client.containers.get(writer.target.name).kill()
        client.containers.get(writer.target.name).wait()
        freezer.freeze(writer.target)
        assert freezer.is_frozen(writer.target)
        freezer.thaw(writer.target)
        client.containers.get(writer.target.name).remove()
        freezer.freeze(writer.target)
        assert freezer.is_frozen(writer.target)
        freezer.thaw(writer.target)


@pytest.mark.docker
def test_health_stays_good_through_short_holds_by_cgroup(tmp_path: Path) -> None:
    # A probe that comes within the hold fails at once (it cannot be started); the engine's three tries outlast that.
    probe = {"test": ["CMD", "true"], "interval": 100_000_000, "timeout": 5_000_000_000, "retries": 3}
    with ExitStack() as stack:
        client = stack.enter_context(counters.engine())
        writer = stack.enter_context(counters.contained(tmp_path / "c", client, "cgroup", healthcheck=probe))

        def health() -> Any:
            return client.api.inspect_container(writer.target.name)["State"]["Health"]

        def wait_for_a_good_probe() -> None:
            before = {entry["Start"] for entry in health()["Log"]}
            give_up = time.monotonic() + 30
            while time.monotonic() < give_up:
                if any(entry["ExitCode"] == 0 and entry["Start"] not in before for entry in health()["Log"]):
                    return
                time.sleep(0.02)
            raise AssertionError(health())

        wait_for_a_good_probe()
        for _ in range(10):
            freezer.freeze(writer.target)
            time.sleep(0.03)
            assert health()["Status"] == "healthy"
            freezer.thaw(writer.target)
            assert health()["Status"] == "healthy"
            wait_for_a_good_probe()


@pytest.mark.docker
def test_a_hold_that_meets_commands_being_started_in_the_container_is_not_stuck(tmp_path: Path) -> None:
    with counters.engine() as client, counters.contained(tmp_path / "counters", client, "cgroup") as writer:
        starter = subprocess.Popen(
            [sys.executable, "-c", _EXEC_FOR_EVER, counters.SOCKET, writer.target.name], stderr=subprocess.PIPE
        )
        try:
            for _ in range(40):
                freezer.freeze(writer.target, within_s=2)  # stuck, it took as long as the command's own limit
                freezer.thaw(writer.target)
                time.sleep(0.05)
            assert starter.poll() is None
        finally:
            starter.kill()
            starter.communicate()


_EXEC_FOR_EVER = """
import sys, docker
client = docker.DockerClient(base_url="unix://" + sys.argv[1])
container = client.containers.get(sys.argv[2])
while True:
    try:
        container.exec_run("true")
    except docker.errors.APIError:
        pass
"""


def test_a_session_that_starts_processes_all_the_time_is_not_stuck(tmp_path: Path) -> None:
    folder = tmp_path / "counters"
    folder.mkdir()
    with counters.session(_START_FOR_EVER, folder) as target:
        writer = Counters(folder, target, expected=1)
        for _ in range(40):
            freezer.freeze(target, within_s=5)
            assert freezer.is_frozen(target)
            freezer.thaw(target)
        assert writer.moving()


_START_FOR_EVER = """
import pathlib, subprocess, sys
with pathlib.Path(sys.argv[1], "starts").open("ab", 0) as file:
    while True:
        subprocess.run(["true"])
        file.write(b"x")
"""


def test_a_session_caught_while_it_starts_a_process_is_let_go_and_caught_again(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    with counters.session(_STUCK_IN_VFORK, tmp_path) as target:
        while (facts := process.facts(int(target.id))) is None or facts.state != "D":
            time.sleep(0.01)

        def let_it_start() -> None:
            time.sleep(0.1)
            opened.append(os.open(fifo, os.O_RDWR))

        opened: list[int] = []
        thread = threading.Thread(target=let_it_start)
        thread.start()
        freezer.freeze(target, within_s=10)
        thread.join()
        os.close(opened.pop())
        assert freezer.is_frozen(target)
        freezer.thaw(target)


_STUCK_IN_VFORK = """
import os, sys, time
# The child waits in the kernel for the other end of the fifo, and its parent, unstoppable, for the child's exec.
os.posix_spawn("/bin/sh", ["sh", "-c", "sleep 60"], {}, file_actions=[
    (os.POSIX_SPAWN_OPEN, 0, sys.argv[1] + "/fifo", os.O_RDONLY, 0)])
time.sleep(60)
"""


def test_a_recycled_process_id_is_left_alone(writer: Counters) -> None:
    stranger = structs.replace(writer.target, birth=writer.target.birth - 1)
    freezer.freeze(stranger)
    assert writer.moving()
    assert freezer.is_frozen(stranger)  # ours has ended
    freezer.freeze(writer.target)
    freezer.thaw(stranger)
    assert writer.still()
    freezer.thaw(writer.target)
    assert writer.moving()


def test_children_are_held_and_released_when_their_leader_has_ended(writer: Counters) -> None:
    os.kill(int(writer.target.id), signal.SIGKILL)
    os.waitid(os.P_PID, int(writer.target.id), os.WEXITED | os.WNOWAIT)
    freezer.freeze(writer.target)
    assert writer.still()
    before = writer.values()
    freezer.thaw(writer.target)
    time.sleep(0.2)
    grown = {name for name, value in writer.values().items() if value > before[name]}
    assert grown == {"child", "grandchild", "child-in-a-group-of-its-own"}


def test_one_that_cannot_be_held_or_released_is_named_and_the_others_are_tried(
    writer: Counters, tmp_path: Path
) -> None:
    nowhere = HoldTarget("engine", "web", where=str(tmp_path / "no.sock"), id="0" * 64)
    with pytest.raises(errors.CutFailed, match="web could not be frozen"):
        freezer.freeze_all((nowhere, writer.target), within_s=5)
    assert writer.still()
    with pytest.raises(errors.CutFailed, match="web could not be released") as caught:
        freezer.thaw_all((nowhere, writer.target))
    assert "docker unpause" in caught.value.remedy
    assert writer.moving()


def test_a_session_that_keeps_waking_up_fails_in_time(writer: Counters) -> None:
    # A vfork parent, a process in the disk's hands: something that does not stop. Here: one that another wakes.
    waker = subprocess.Popen(
        [sys.executable, "-c", f"import os, signal\nwhile True: os.kill({writer.target.id}, signal.SIGCONT)"]
    )
    try:
        time.sleep(0.2)
        with pytest.raises(errors.CutFailed, match="writer could not be frozen within 300 ms"):
            for _ in range(50):  # it may be caught asleep
                freezer.freeze_all((writer.target,), within_s=0.3)
    finally:
        waker.kill()
        waker.wait()
        freezer.thaw(writer.target)
