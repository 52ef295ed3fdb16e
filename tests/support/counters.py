"""Real writers that never stop counting, as local processes or in a container, for tests that hold them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

import docker
from cosmos_coherence.drivers import process
from cosmos_coherence.model import HoldTarget

SOCKET = os.environ.get("COSMOS_TEST_DOCKER_HOST", "unix:///var/run/docker.sock").removeprefix("unix://")

_WRITER = """
import os, sys, threading, time

def count(name):
    handle = os.open(os.path.join(sys.argv[1], name), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    while True:
        os.write(handle, b"x")
        time.sleep(0.001)

if os.fork() == 0:
    os.setpgid(0, 0)
    count("child-in-a-group-of-its-own")
if os.fork() == 0:
    if os.fork() == 0:
        count("grandchild")
    count("child")
for number in range(3):
    threading.Thread(target=count, args=(f"thread-{number}",)).start()
"""


class Counters:
    """What the writers have counted so far, one file each."""

    def __init__(self, folder: Path, target: HoldTarget, expected: int) -> None:
        self.folder, self.target, self._expected = folder, target, expected
        self.wait_moving()

    def values(self) -> dict[str, int]:
        return {path.name: path.stat().st_size for path in self.folder.iterdir()}

    def still(self) -> bool:
        before = self.values()
        time.sleep(0.05)
        return self.values() == before

    def moving(self) -> bool:
        """Whether every writer goes on within some seconds."""
        before = self.values()
        give_up = time.monotonic() + 10
        while time.monotonic() < give_up:
            now = self.values()
            if len(now) == self._expected and all(now[name] > before.get(name, 0) for name in now):
                return True
            time.sleep(0.01)
        return False

    def wait_moving(self) -> None:
        assert self.moving(), f"the writers do not count: {self.values()}"


@contextmanager
def local(folder: Path) -> Iterator[Counters]:
    """A session of processes and threads, some in another process group."""
    folder.mkdir()
    with session(_WRITER, folder) as target:
        yield Counters(folder, target, expected=6)


@contextmanager
def session(program: str, folder: Path) -> Iterator[HoldTarget]:
    """A Python program in a session of its own, which is ended with all that it started."""
    leader = subprocess.Popen([sys.executable, "-c", program, str(folder)], start_new_session=True)
    facts = process.facts(leader.pid)
    assert facts is not None
    try:
        yield HoldTarget("signal", "writer", id=str(leader.pid), birth=facts.birth)
    finally:
        while members := _of_session(leader.pid):
            for pid in members:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        leader.wait()


def _of_session(leader: int) -> list[int]:
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(FileNotFoundError, ProcessLookupError):
            fields = stat.read_text().rpartition(")")[2].split()
            if fields[0] != "Z" and int(fields[3]) == leader:
                found.append(int(stat.parent.name))
    return found


@contextmanager
def engine() -> Iterator[docker.DockerClient]:
    """The engine that tests may use."""
    try:
        client = docker.DockerClient(base_url=f"unix://{SOCKET}")
    except docker.errors.DockerException:
        pytest.skip(f"no Docker engine at {SOCKET}")
    try:
        yield client
    finally:
        client.close()


@contextmanager
def contained(folder: Path, client: docker.DockerClient, means: str, **options: Any) -> Iterator[Counters]:
    """Two processes in a container, to be held by its ``cgroup`` or by the ``engine``."""
    folder.mkdir()
    count = "while :; do echo -n x >>/counters/{0}; done"
    name = f"test-cut-{uuid.uuid4().hex[:12]}"
    container = client.containers.run(
        "busybox:1",
        ["sh", "-c", f"{count.format('child')} & {count.format('parent')}"],
        name=name,
        detach=True,
        volumes={str(folder): {"bind": "/counters", "mode": "rw"}},
        network_mode="none",
        **options,
    )
    target = HoldTarget("engine", name, where=SOCKET, id=container.id)
    try:
        if means == "cgroup":
            container.reload()
            target = cgroup_target(name, container.attrs["State"]["Pid"])
        yield Counters(folder, target, expected=2)
    finally:
        for file, word in (("freezer.state", "THAWED"), ("cgroup.freeze", "0")):
            if (path := Path(target.where, file)).exists():
                path.write_text(word)  # a frozen one cannot be killed
        with suppress(docker.errors.NotFound):
            container.remove(force=True)


def cgroup_target(name: str, pid: int) -> HoldTarget:
    """The freezer of a container's main process, as the kernel lists it; skips where it cannot be written."""
    groups = dict(line.split(":", 2)[1:] for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines())
    if "freezer" in groups and (path := Path("/sys/fs/cgroup/freezer" + groups["freezer"])).is_dir():
        return HoldTarget("cgroup1", name, where=str(path))
    path = Path("/sys/fs/cgroup" + groups.get("", "/nothing"))
    if not os.access(path / "cgroup.freeze", os.W_OK):
        pytest.skip("the freezer of containers cannot be written here")
    return HoldTarget("cgroup2", name, where=str(path))
