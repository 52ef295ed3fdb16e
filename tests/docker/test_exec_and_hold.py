"""Commands in containers and containers that stand still: what the docker runtime promises beyond the contract."""

from __future__ import annotations

import contextlib
import hashlib
import os
import socket
import socketserver
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cosmos_coherence import errors
from cosmos_coherence.cut import freezer
from cosmos_coherence.drivers.docker import DockerRuntime
from cosmos_coherence.model import HoldTarget
from support.docker_stack import HOST, ComposeStack, docker
from support.waiting import eventually

pytestmark = pytest.mark.docker

MIB = 1024 * 1024
STACK = """
services:
  counter:
    image: busybox:1
    command: ["sh", "-c", "while :; do echo -n x >>/data/count; usleep 1000; done"]
    volumes: ["data:/data"]
    init: true
    stop_grace_period: 1s
    healthcheck: {test: ["CMD", "test", "-e", "/data/count"], interval: 300ms, retries: 100}
  exempt:
    image: busybox:1
    command: ["sleep", "1000"]
    init: true
    labels: {cosmos.hold: never}
  user:
    image: python:3.11-slim
    command: ["sleep", "1000"]
    user: "65534"
    init: true
volumes: {data: {}}
"""


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ComposeStack]:
    with ComposeStack(tmp_path_factory.mktemp("exec"), STACK) as stack:
        yield stack


@pytest.fixture
def runtime(stack: ComposeStack) -> DockerRuntime:
    return stack.runtime()


def processes(stack: ComposeStack, service: str, word: str) -> int:
    return docker("top", stack.container(service), "-eo", "pid,args").count(word)


# ------------------------------------------------------------------------------------------------------ commands
def test_a_writer_that_reads_nothing_meanwhile_does_not_block_for_what_the_command_complains(
    runtime: DockerRuntime,
) -> None:
    """For each line in, ten on standard error: nobody reads before everything is written."""
    command = "while read -r line; do for i in 1 2 3 4 5 6 7 8 9 10; do echo $line >&2; done; done; echo done"
    line = b"x" * 99 + b"\n"
    with runtime.run("counter", ["sh", "-c", command], stdin=True) as child:
        for _ in range(5_000):
            child.stdin.write(line)
        child.stdin.close()
        assert child.stdout.read() == b"done\n"
    assert (line.decode() * 100).endswith(child.stderr_tail) and len(child.stderr_tail) == 8192


def test_two_mib_echoed_before_anything_is_read(runtime: DockerRuntime) -> None:
    data = os.urandom(2 * MIB)
    with runtime.run("counter", ["cat"], stdin=True) as child:
        child.stdin.write(data)
        child.stdin.close()
        assert child.stdout.read() == data


def test_50_mib_each_way_with_complaints_in_between(runtime: DockerRuntime) -> None:
    program = (
        "import sys\n"
        "while block := sys.stdin.buffer.read1(100000):\n"
        "    sys.stdout.buffer.write(block); sys.stderr.write('e' * 1000)"
    )
    piece = os.urandom(MIB)
    with runtime.run("user", ["python3", "-c", program], stdin=True) as child:

        def write() -> None:
            for _ in range(50):
                child.stdin.write(piece)
            child.stdin.close()

        writer = threading.Thread(target=write)
        writer.start()
        received, size = hashlib.sha256(), 0
        while block := child.stdout.read(77_777):
            received.update(block)
            size += len(block)
        writer.join()
    assert size == 50 * MIB
    assert received.digest() == hashlib.sha256(piece * 50).digest()


def test_environment_goes_to_the_command_and_not_into_its_arguments(
    stack: ComposeStack, runtime: DockerRuntime
) -> None:
    child = runtime.run(
        "user", ["sh", "-c", "echo $SECRET; read -r line"], stdin=True, environment={"SECRET": "s3cret"}
    )
    try:
        assert child.stdout.readline() == b"s3cret\n"
        assert "s3cret" not in docker("top", stack.container("user"), "-eo", "pid,args")
    finally:
        child.kill()


def test_the_user_is_the_service_s_own_or_the_given_one(runtime: DockerRuntime) -> None:
    for user, uid in (("", b"65534\n"), ("0", b"0\n"), ("33:33", b"33\n")):
        with runtime.run("user", ["id", "-u"], user=user) as child:
            assert child.stdout.read() == uid


@pytest.mark.parametrize("user", ["", "0"])
def test_kill_ends_the_command_and_what_it_left_in_the_background(
    stack: ComposeStack, runtime: DockerRuntime, user: str
) -> None:
    child = runtime.run("user", ["sh", "-c", "setsid sleep 7171 & sleep 7172; :"], user=user)
    assert eventually(lambda: processes(stack, "user", "sleep 717") >= 2)
    child.kill()
    assert eventually(lambda: processes(stack, "user", "sleep 717") == 0)
    with pytest.raises(errors.CommandFailed, match="cut off"):
        child.wait()


def test_a_lost_connection_is_a_failed_command_even_if_it_ended_well(runtime: DockerRuntime) -> None:
    child = runtime.run("user", ["sh", "-c", "echo begun; sleep 0.3"])
    assert child.stdout.readline() == b"begun\n"
    child._wire.close()
    with pytest.raises(errors.CommandFailed, match="cut off") as caught:
        child.wait()
    assert caught.value.status == 0


def test_a_program_or_user_that_is_not_there(runtime: DockerRuntime) -> None:
    for argv, user in ((["no-such-program"], ""), (["true"], "no-such-user")):
        with pytest.raises(errors.CommandFailed) as caught:
            runtime.run("user", argv, user=user).wait()
        assert caught.value.status in (126, 127)
        assert "user" in str(caught.value)


def test_nothing_runs_in_a_paused_service(stack: ComposeStack, runtime: DockerRuntime) -> None:
    docker("pause", stack.container("user"))
    try:
        with pytest.raises(errors.ServiceDown, match="paused"):
            runtime.run("user", ["true"])
        with pytest.raises(errors.ServiceDown, match="paused"):
            runtime.start(["user"])
    finally:
        docker("unpause", stack.container("user"))


# ---------------------------------------------------------------------------------------------------------- holding
def count(stack: ComposeStack) -> int:
    path = stack.runtime().stack().volume("data").path
    return (path / "count").stat().st_size


def stands_still(stack: ComposeStack) -> bool:
    before = count(stack)
    time.sleep(0.2)
    return count(stack) == before


def counts(stack: ComposeStack) -> bool:
    before = count(stack)
    return eventually(lambda: count(stack) > before)


def target_of(runtime: DockerRuntime, *names: str) -> tuple[HoldTarget, ...]:
    return runtime.hold_targets([s for s in runtime.stack().services if s.name in names])


@pytest.mark.parametrize("by_engine", [False, True], ids=["cgroup", "engine"])
def test_a_held_container_stands_still_and_its_health_does_not_change(
    stack: ComposeStack, runtime: DockerRuntime, by_engine: bool
) -> None:
    (target,) = target_of(runtime, "counter")
    if by_engine:
        facts = runtime.engine.ask("inspect_container", stack.container("counter"))
        target = HoldTarget("engine", target.name, where=runtime.engine.socket_path, id=facts["Id"])
    elif target.means == "engine":
        pytest.skip("the freezer of containers cannot be written here")
    assert counts(stack)
    try:
        freezer.freeze_all((target,), within_s=10)
        assert stands_still(stack)
    finally:
        freezer.thaw_all((target,))
    assert counts(stack)
    if not by_engine:
        assert stack.state("counter")["Health"]["Status"] == "healthy"


def test_the_freezer_is_the_container_s_own(stack: ComposeStack, runtime: DockerRuntime) -> None:
    (target,) = target_of(runtime, "counter")
    if target.means == "engine":
        pytest.skip("the freezer of containers cannot be written here")
    facts = runtime.engine.ask("inspect_container", stack.container("counter"))
    assert facts["Id"] in target.where
    assert str(facts["State"]["Pid"]) in Path(target.where, "cgroup.procs").read_text().split()


def test_what_is_exempt_or_paused_by_somebody_is_no_target(stack: ComposeStack, runtime: DockerRuntime) -> None:
    docker("pause", stack.container("user"))
    try:
        names = {t.name for t in target_of(runtime, "counter", "exempt", "user")}
        assert names == {stack.container("counter")}
    finally:
        docker("unpause", stack.container("user"))


def test_a_neighbour_can_be_held(stack: ComposeStack, runtime: DockerRuntime) -> None:
    name = f"{stack.project}-neighbour"
    volume = f"{stack.volume('data')}:/data"
    docker("run", "--detach", "--init", "--name", name, "--network", "none", "-v", volume, "busybox:1", "sleep", "1000")
    try:
        targets = runtime.hold_targets(runtime.stack().neighbours)
        assert [t.name for t in targets] == [name]
    finally:
        docker("rm", "--force", name)


# ---------------------------------------------------------------------------------------------- an engine elsewhere
class _Forwarder(socketserver.ThreadingMixIn, socketserver.TCPServer):
    daemon_threads = True


class _Forward(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        with socket.socket(socket.AF_UNIX) as engine:
            engine.connect(HOST.removeprefix("unix://"))
            back = threading.Thread(target=self.copy, args=(engine, self.request), daemon=True)
            back.start()
            self.copy(self.request, engine)
            back.join()

    def copy(self, source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)


@pytest.fixture
def elsewhere(stack: ComposeStack) -> Iterator[DockerRuntime]:
    """The same stack through a network address."""
    with _Forwarder(("127.0.0.1", 0), _Forward) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        runtime = stack.runtime(docker_host=f"tcp://127.0.0.1:{server.server_address[1]}")
        yield runtime
        runtime.engine.close()
        server.shutdown()
        thread.join()


def test_an_engine_behind_a_network_address(stack: ComposeStack, elsewhere: DockerRuntime) -> None:
    assert elsewhere.stack() == stack.runtime().stack()
    with elsewhere.run("user", ["cat"], stdin=True) as child:
        child.stdin.write(b"there and back")
        child.stdin.close()
        assert child.stdout.read() == b"there and back"


# ------------------------------------------------------------------------------------------------------ no engine
def test_no_engine(tmp_path: Path) -> None:
    for host in (f"unix://{tmp_path}/none.sock", "tcp://127.0.0.1:1"):
        with pytest.raises(errors.EngineUnavailable, match="does not answer") as caught:
            DockerRuntime("x", directory=tmp_path, docker_host=host).stack()
        assert caught.value.exit_status == 1


@pytest.mark.parametrize("host", ["unix:/", "tcp://", "nonsense", "ftp://x"])
def test_an_address_that_makes_no_sense(tmp_path: Path, host: str) -> None:
    with pytest.raises((errors.ConfigurationError, errors.EngineUnavailable)):
        DockerRuntime("x", directory=tmp_path, docker_host=host).stack()


def test_an_engine_behind_ssh_is_refused_with_the_way_around(tmp_path: Path) -> None:
    with pytest.raises(errors.Unsupported) as caught:
        DockerRuntime("x", directory=tmp_path, docker_host="ssh://somebody@somewhere").stack()
    assert "ssh -nNT -L" in caught.value.remedy


def test_the_context_in_use_says_where_the_engine_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tmp_path / "config"
    context = config / "contexts" / "meta" / hashlib.sha256(b"elsewhere").hexdigest()
    context.mkdir(parents=True)
    (config / "config.json").write_text('{"currentContext": "elsewhere"}')
    (context / "meta.json").write_text(
        '{"Name": "elsewhere", "Metadata": {}, "Endpoints": {"docker": {"Host": "%s"}}}' % HOST  # noqa: UP031
    )
    monkeypatch.setenv("DOCKER_CONFIG", str(config))
    monkeypatch.delenv("DOCKER_HOST", raising=False)
    assert DockerRuntime("x", directory=tmp_path).engine.host == HOST
    (context / "meta.json").write_text("broken")
    with pytest.raises(errors.ConfigurationError, match="context"):
        DockerRuntime("x", directory=tmp_path).stack()
