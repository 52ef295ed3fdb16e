"""What every runtime promises (``drivers.runtime``), the same tests for all of them."""

from __future__ import annotations

import hashlib
import stat
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cosmos_coherence import errors
from cosmos_coherence.cut import freezer
from cosmos_coherence.drivers.runtime import Child, Runtime
from cosmos_coherence.model import Service, VolumeRecord
from support.docker_stack import DOCKER_SAMPLE
from support.samples import SAMPLES, Sample
from support.waiting import eventually

MIB = 1024 * 1024


@pytest.fixture(params=[*SAMPLES, DOCKER_SAMPLE])
def sample(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Sample]:
    with request.param(tmp_path) as running:
        yield running


@pytest.fixture
def runtime(sample: Sample) -> Runtime:
    return sample.runtime


def output(child: Child) -> bytes:
    with child:
        return child.stdout.read()


def service(runtime: Runtime, name: str) -> Service:
    found = runtime.stack().service(name)
    assert found, f"the stack has no service {name}"
    return found


def size(sample: Sample, name: str) -> int:
    """Bytes of a file of the volume ``events``, as a service sees it."""
    return int(output(sample.runtime.run("store", ["sh", "-c", f"wc -c <'{sample.events}/{name}'"])))


def grows(sample: Sample, name: str) -> bool:
    before = size(sample, name)
    return eventually(lambda: size(sample, name) > before)


def stands_still(sample: Sample, name: str) -> bool:
    before = size(sample, name)
    time.sleep(0.3)
    return size(sample, name) == before


# ------------------------------------------------------------------------------------------------- what is there
def test_lists_services_with_state_labels_and_dependencies(runtime: Runtime) -> None:
    stack = runtime.stack()
    assert stack.runtime == runtime.kind
    assert {s.name for s in stack.services} == {"store", "app", "stubborn"}
    app = service(runtime, "app")
    assert (app.state, app.depends_on, app.project) == ("running", ("store",), stack.project)
    assert app.labels["cosmos.test"] == "yes"
    assert app.command


def test_lists_mounts(runtime: Runtime) -> None:
    stack = runtime.stack()
    mounts = {m.kind: m for m in service(runtime, "app").mounts}
    assert set(mounts) == {"volume", "bind"}
    assert mounts["volume"].source == f"{stack.project}_events"
    assert mounts["volume"].writable and not mounts["volume"].anonymous
    assert mounts["bind"].target == "/inbox"
    assert Path(mounts["bind"].source).is_absolute()


def test_a_volume_s_files_lie_where_its_path_says(sample: Sample) -> None:
    output(sample.runtime.run("app", ["sh", "-c", f"printf found >'{sample.events}/here'"]))
    volume = sample.runtime.stack().volume("events")
    assert volume and volume.exists and volume.path
    assert (volume.path / "here").read_text() == "found"
    assert volume == sample.runtime.stack().volume(volume.name)


def test_state_directory_is_private_and_stays_the_same(runtime: Runtime) -> None:
    assert runtime.found_state_directory() is None, "to look for it made it"
    assert runtime.found_state_directory() is None
    folder = runtime.state_directory()
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert runtime.state_directory() == runtime.found_state_directory() == folder


# --------------------------------------------------------------------------------------------------- commands
def test_a_command_sees_the_environment_of_its_service_and_its_own(runtime: Runtime) -> None:
    seen = output(runtime.run("app", ["sh", "-c", 'echo "$GREETING $MORE"'], environment={"MORE": "world"}))
    assert seen == b"hello world\n"


def test_streams_50_mib_both_ways_at_once(runtime: Runtime) -> None:
    pieces = [hashlib.sha256(b"%d" % i).digest() * (MIB // 32) for i in range(50)]
    with runtime.run("app", ["cat"], stdin=True) as child:

        def write() -> None:
            for piece in pieces:
                child.stdin.write(piece)
            child.stdin.close()

        thread = threading.Thread(target=write)
        thread.start()
        received = hashlib.sha256()
        total = 0
        while block := child.stdout.read(100_000):
            received.update(block)
            total += len(block)
        thread.join()
    assert total == 50 * MIB
    assert received.digest() == hashlib.sha256(b"".join(pieces)).digest()


def test_a_conversation_line_by_line(runtime: Runtime) -> None:
    with runtime.run("app", ["sh", "-c", 'while read -r line; do echo "got $line"; done'], stdin=True) as child:
        for i in range(20):
            child.stdin.write(b"%d\n" % i)
            child.stdin.flush()
            assert child.stdout.readline() == b"got %d\n" % i


def test_standard_error_never_blocks_and_its_tail_is_kept(runtime: Runtime) -> None:
    command = "head -c 5000000 /dev/zero | tr '\\0' e >&2; echo the end >&2; echo done"
    child = runtime.run("app", ["sh", "-c", command])
    assert output(child) == b"done\n"
    assert child.stderr_tail.endswith("the end\n")
    assert len(child.stderr_tail) <= 8 * 1024


def test_a_status_that_is_not_0_raises_with_what_was_said(runtime: Runtime) -> None:
    child = runtime.run("app", ["sh", "-c", "echo first >&2; echo the reason >&2; exit 7"])
    with pytest.raises(errors.CommandFailed, match="the reason") as caught:
        child.wait()
    assert (caught.value.status, caught.value.stderr) == (7, "first\nthe reason\n")


@pytest.mark.parametrize(("ending", "status"), [("exit 3", 3), ("kill -9 $$", 137)])
def test_a_command_that_dies_half_way_is_no_short_stream(runtime: Runtime, ending: str, status: int) -> None:
    with (
        pytest.raises(errors.CommandFailed) as caught,
        runtime.run("app", ["sh", "-c", f"head -c 1000000 /dev/zero; {ending}"]) as child,
    ):
        assert len(child.stdout.read()) == 1_000_000
    assert caught.value.status == status


def test_wait_reads_what_nobody_has_read(runtime: Runtime) -> None:
    child = runtime.run("app", ["sh", "-c", "head -c 1000000 /dev/zero; exit 5"])
    with pytest.raises(errors.CommandFailed) as caught:
        child.wait()
    assert caught.value.status == 5


def test_writing_to_a_command_that_goes_away_is_a_failed_command(runtime: Runtime) -> None:
    command = ["sh", "-c", "head -c 10 >/dev/null; echo no more >&2; exit 4"]
    with (
        pytest.raises(errors.CommandFailed, match="no more") as caught,
        runtime.run("app", command, stdin=True) as child,
    ):
        for _ in range(200):
            child.stdin.write(bytes(MIB))
    assert caught.value.status == 4


def test_a_program_that_is_not_there(runtime: Runtime) -> None:
    with pytest.raises(errors.CommandFailed), runtime.run("app", ["no-such-program"]) as child:
        child.stdout.read()


def test_kill_ends_everything_that_the_command_started(sample: Sample) -> None:
    loop = f"while :; do printf x >>'{sample.events}/background'; sleep 0.02; done"
    child = sample.runtime.run("app", ["sh", "-c", f"({loop}) & {loop}"])
    assert eventually(lambda: b"background" in output(sample.runtime.run("store", ["ls", sample.events])))
    assert grows(sample, "background")
    child.kill()
    assert stands_still(sample, "background")
    child.kill()  # harmless


def test_an_exception_kills_instead_of_waiting(runtime: Runtime) -> None:
    with pytest.raises(KeyError), runtime.run("app", ["sh", "-c", "while :; do echo on and on; done"]) as child:
        assert child.stdout.readline() == b"on and on\n"
        raise KeyError


# -------------------------------------------------------------------------------------------- hold and release
def test_hold_targets_stand_still_and_go_on(sample: Sample) -> None:
    targets = sample.runtime.hold_targets([service(sample.runtime, "app")])
    assert [t.name for t in targets] == [service(sample.runtime, "app").container]
    assert grows(sample, "ticks")
    try:
        for target in targets:
            freezer.freeze(target)
        assert all(freezer.is_frozen(target) for target in targets)
        assert stands_still(sample, "ticks")
    finally:
        for target in targets:
            freezer.thaw(target)
    assert grows(sample, "ticks")


def test_what_does_not_run_is_no_hold_target(runtime: Runtime) -> None:
    both = [service(runtime, "app"), service(runtime, "stubborn")]
    runtime.stop(["app"])
    assert [t.name for t in runtime.hold_targets(both)] == [both[1].container]


# ----------------------------------------------------------------------------------------------- stop and start
def test_stops_dependents_first_and_starts_dependencies_first(sample: Sample) -> None:
    runtime = sample.runtime
    runtime.stop(["store", "app"])
    assert {service(runtime, n).state for n in ("store", "app")} == {"exited"}
    runtime.start(["app", "store"])
    runtime.wait_ready(["app", "store"])
    assert eventually(lambda: len(log(sample)) == 6), log(sample)
    assert log(sample) == ["start store", "start app", "stop app", "stop store", "start store", "start app"]


def log(sample: Sample) -> list[str]:
    return output(sample.runtime.run("store", ["cat", f"{sample.events}/log"])).decode().splitlines()


def test_stop_and_start_leave_alone_what_is_as_wanted(sample: Sample) -> None:
    sample.runtime.start(["store", "app"])
    sample.runtime.stop(["app"])
    sample.runtime.stop(["app"])
    assert log(sample) == ["start store", "start app", "stop app"]


def test_a_service_that_does_not_want_to_stop_is_killed(runtime: Runtime) -> None:
    runtime.stop(["stubborn"], timeout_s=1.0)
    assert service(runtime, "stubborn").state == "exited"


def test_wait_ready_awaits_health(sample: Sample) -> None:
    sample.runtime.stop(["store"])
    sample.runtime.start(["store"])
    sample.runtime.wait_ready(["store"])
    assert b"store-ready" in output(sample.runtime.run("store", ["ls", sample.events]))


def test_wait_ready_names_the_one_that_is_down(runtime: Runtime) -> None:
    runtime.stop(["app"])
    with pytest.raises(errors.ServiceDown, match="app"):
        runtime.wait_ready(["store", "app"], timeout_s=1.0)


def test_nothing_runs_in_a_service_that_is_down(runtime: Runtime) -> None:
    runtime.stop(["app"])
    with pytest.raises(errors.ServiceDown, match="app"):
        runtime.run("app", ["true"])


def test_a_service_that_the_stack_does_not_have(runtime: Runtime) -> None:
    for call in (
        lambda: runtime.run("nobody", ["true"]),
        lambda: runtime.start(["nobody"]),
        lambda: runtime.stop(["nobody"]),
        lambda: runtime.wait_ready(["nobody"]),
    ):
        with pytest.raises(errors.NotFound, match="nobody"):
            call()


# ---------------------------------------------------------------------------------------------------- creation
def test_create_brings_back_what_is_lost_and_starts_nothing(sample: Sample) -> None:
    runtime = sample.runtime
    runtime.stop(["app"])
    sample.lose_volume("spare")
    lost = runtime.stack().volume("spare")
    assert lost is None or not lost.exists
    runtime.create()
    volume = runtime.stack().volume("spare")
    assert volume and volume.exists
    assert service(runtime, "app").state == "exited"


def test_create_volume_makes_a_lost_one_and_keeps_one_that_is_there(sample: Sample) -> None:
    runtime = sample.runtime
    sample.lose_volume("spare")
    record = VolumeRecord(name=f"{runtime.stack().project}_spare", short="spare")
    made = runtime.create_volume(record)
    assert made.exists and made.path and list(made.path.iterdir()) == []
    (made.path / "kept").write_text("as it is")
    assert runtime.create_volume(record) == made == runtime.stack().volume("spare")
    assert (made.path / "kept").read_text() == "as it is"
    (made.path / "kept").unlink()


def test_many_commands_at_once(runtime: Runtime) -> None:
    children = [runtime.run("app", ["sh", "-c", f"echo {i}; cat"], stdin=True) for i in range(8)]
    for i, child in reversed(list(enumerate(children))):
        assert child.stdout.readline() == b"%d\n" % i
    for child in children:
        child.wait()
