"""What the process runtime promises beyond the contract: pids, pauses, owners, names from elsewhere."""

from __future__ import annotations

import os
import pwd
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cosmos_coherence import errors
from cosmos_coherence.drivers import process, stackfile
from cosmos_coherence.drivers.local import LocalRuntime
from cosmos_coherence.drivers.stackfile import MountSpec, ServiceSpec, StackSpec, VolumeSpec
from cosmos_coherence.model import VolumeRecord
from support.waiting import eventually

SLEEP = ("sleep", "1000")


@pytest.fixture
def lay_out(tmp_path: Path, open_folder: Path) -> Iterator[Callable[..., LocalRuntime]]:
    """Write a stack of these services; whatever of it runs is stopped in the end, before ``open_folder`` goes."""
    made: list[LocalRuntime] = []

    def lay_out(*services: ServiceSpec, folder: Path = tmp_path, volumes: tuple[str, ...] = ()) -> LocalRuntime:
        spec = StackSpec(project="p", services=services, volumes={name: VolumeSpec() for name in volumes})
        stackfile.write(folder, spec)
        made.append(LocalRuntime(folder))
        return made[-1]

    yield lay_out
    for runtime in made:
        runtime.stop([s.name for s in runtime.stack().services], timeout_s=1.0)


def state(runtime: LocalRuntime, name: str) -> str:
    found = runtime.stack().service(name)
    assert found
    return found.state


def pid_file(runtime: LocalRuntime, name: str) -> Path:
    return runtime.folder / "run" / f"{name}.pid"


def pid(runtime: LocalRuntime, name: str) -> int:
    return int(pid_file(runtime, name).read_text().split()[0])


# --------------------------------------------------------------------------------------------------- whose pid
def test_a_service_outlives_its_starter_and_is_known_to_the_next(lay_out: Callable[..., LocalRuntime]) -> None:
    runtime = lay_out(ServiceSpec(name="s", argv=SLEEP))
    assert state(runtime, "s") == "created"
    program = "import sys; from pathlib import Path; from cosmos_coherence.drivers.local import LocalRuntime;"
    program += "LocalRuntime(Path(sys.argv[1])).start(['s'])"
    subprocess.run([sys.executable, "-c", program, str(runtime.folder)], check=True)
    assert state(LocalRuntime(runtime.folder), "s") == "running"
    runtime.stop(["s"])
    assert state(runtime, "s") == "exited"


@pytest.mark.parametrize("field", [1, 2], ids=["birth", "boot"])
def test_another_process_with_the_same_id_is_not_ours(lay_out: Callable[..., LocalRuntime], field: int) -> None:
    runtime = lay_out(ServiceSpec(name="s", argv=SLEEP))
    runtime.start(["s"])
    genuine = pid_file(runtime, "s").read_text()
    words = genuine.split()
    words[field] = str(int(words[field]) - 1) if field == 1 else "00000000-0000-0000-0000-000000000000"
    pid_file(runtime, "s").write_text(" ".join(words))
    service = runtime.stack().services[0]
    assert service.state == "exited"
    assert runtime.hold_targets([service]) == ()
    runtime.stop(["s"])
    assert process.facts(int(words[0])), "a stranger was ended"
    pid_file(runtime, "s").write_text(genuine)


@pytest.mark.parametrize("content", ["", "12", "x y z", "-1 2 3", "99999999999999 1 1"])
def test_a_pid_file_cut_short_names_nobody(lay_out: Callable[..., LocalRuntime], content: str) -> None:
    runtime = lay_out(ServiceSpec(name="s", argv=SLEEP))
    assert runtime.stack()
    (runtime.folder / "run").mkdir(exist_ok=True)
    pid_file(runtime, "s").write_text(content)
    assert state(runtime, "s") == "exited"
    runtime.start(["s"])
    assert state(runtime, "s") == "running"


# ------------------------------------------------------------------------------------------------------ paused
def test_a_paused_service(lay_out: Callable[..., LocalRuntime]) -> None:
    runtime = lay_out(ServiceSpec(name="s", argv=SLEEP))
    runtime.start(["s"])
    os.killpg(pid(runtime, "s"), signal.SIGSTOP)
    assert eventually(lambda: state(runtime, "s") == "paused")
    with pytest.raises(errors.ServiceDown, match="paused"):
        runtime.run("s", ["true"])
    with pytest.raises(errors.ServiceDown, match="paused"):
        runtime.start(["s"])
    with pytest.raises(errors.ServiceDown, match="paused"):
        runtime.wait_ready(["s"], timeout_s=0.1)
    assert runtime.hold_targets(runtime.stack().services) == (), "somebody else holds it"
    runtime.stop(["s"], timeout_s=60)
    assert state(runtime, "s") == "exited"


# ---------------------------------------------------------------------------------------------- start and stop
def test_a_dependent_starts_when_what_it_needs_is_ready(lay_out: Callable[..., LocalRuntime], tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    first = ("sh", "-c", f"sleep 0.3; : >{ready}; exec sleep 1000")
    second = ("sh", "-c", f"test -e {ready} && echo in time; exec sleep 1000")
    runtime = lay_out(
        ServiceSpec(name="second", argv=second, depends_on=("first",)),
        ServiceSpec(name="first", argv=first, ready=("test", "-e", str(ready))),
    )
    runtime.start(["second", "first"])
    assert eventually(lambda: (runtime.folder / "logs/second.log").read_text() == "in time\n")


def test_one_that_ends_is_not_waited_for(lay_out: Callable[..., LocalRuntime]) -> None:
    runtime = lay_out(
        ServiceSpec(name="broken", argv=("sh", "-c", "echo cannot >&2; exit 1"), ready=("false",)),
        ServiceSpec(name="needs", argv=SLEEP, depends_on=("broken",)),
    )
    runtime.start(["broken"])
    with pytest.raises(errors.ServiceDown, match="service broken is exited") as caught:
        runtime.wait_ready(["broken"], timeout_s=1000)
    assert "logs/broken.log" in caught.value.remedy
    assert (runtime.folder / "logs/broken.log").read_text() == "cannot\n"


def test_one_that_is_never_ready(lay_out: Callable[..., LocalRuntime]) -> None:
    runtime = lay_out(ServiceSpec(name="s", argv=SLEEP, ready=("false",)))
    runtime.start(["s"])
    with pytest.raises(errors.ServiceDown, match="not ready"):
        runtime.wait_ready(["s"], timeout_s=0.2)


def test_a_service_whose_volume_is_lost_does_not_start(lay_out: Callable[..., LocalRuntime]) -> None:
    runtime = lay_out(ServiceSpec(name="s", argv=SLEEP, volumes=(MountSpec(volume="v"),)), volumes=("v",))
    with pytest.raises(errors.ServiceDown, match="there is no volume v"):
        runtime.start(["s"])
    runtime.create()
    runtime.start(["s"])
    assert state(runtime, "s") == "running"


def test_its_own_stop_signal(lay_out: Callable[..., LocalRuntime]) -> None:
    script = "trap '' TERM; trap 'echo as asked; exit 0' USR1; echo up; while :; do sleep 0.02; done"
    runtime = lay_out(ServiceSpec(name="s", argv=("sh", "-c", script), stop_signal="SIGUSR1"))
    runtime.start(["s"])
    log = runtime.folder / "logs/s.log"
    assert eventually(lambda: log.read_text() == "up\n")
    runtime.stop(["s"], timeout_s=60)
    assert log.read_text() == "up\nas asked\n"


def test_killing_a_stubborn_one_ends_its_whole_group(lay_out: Callable[..., LocalRuntime], tmp_path: Path) -> None:
    ticks = tmp_path / "ticks"
    script = f"trap '' TERM; while :; do printf x >>{ticks}; sleep 0.01; done & wait; while :; do sleep 0.02; done"
    runtime = lay_out(ServiceSpec(name="s", argv=("sh", "-c", script)))
    runtime.start(["s"])
    assert eventually(ticks.exists)
    runtime.stop(["s"], timeout_s=0.2)
    before = ticks.stat().st_size
    time.sleep(0.2)
    assert ticks.stat().st_size == before


# ----------------------------------------------------------------------------------------------------- volumes
@pytest.mark.parametrize("name", ["p_../up", "p_..", "p_", "p_/etc", "other_v", "v", "p_a/b", "p_\n", "p_v\n"])
def test_a_volume_name_from_elsewhere_stays_inside(lay_out: Callable[..., LocalRuntime], name: str) -> None:
    runtime = lay_out(volumes=("v",))
    with pytest.raises(errors.ConfigurationError):
        runtime.create_volume(VolumeRecord(name=name, short="v"))
    assert [p.name for p in runtime.folder.rglob("*")] == [stackfile.FILE_NAME]


def test_a_volume_that_the_stack_does_not_name_is_listed_too(lay_out: Callable[..., LocalRuntime]) -> None:
    runtime = lay_out(volumes=("v",))
    runtime.create_volume(VolumeRecord(name="p_extra", short="extra"))
    assert [(v.name, v.exists) for v in runtime.stack().volumes] == [("p_extra", True), ("p_v", False)]


def test_destroy_leaves_a_stack_that_can_be_made_again(lay_out: Callable[..., LocalRuntime]) -> None:
    runtime = lay_out(ServiceSpec(name="s", argv=SLEEP, volumes=(MountSpec(volume="v"),)), volumes=("v",))
    runtime.create()
    runtime.start(["s"])
    (runtime.folder / "volumes/v/file").write_text("gone")
    runtime.destroy()
    stack = runtime.stack()
    assert [s.state for s in stack.services] == ["exited"]
    assert [v.exists for v in stack.volumes] == [False]
    runtime.create()
    runtime.start(["s"])
    assert state(runtime, "s") == "running"


def test_a_service_of_another_user(lay_out: Callable[..., LocalRuntime], open_folder: Path) -> None:
    user = "nobody" if os.geteuid() == 0 else pwd.getpwuid(os.geteuid()).pw_name
    spec = ServiceSpec(name="s", argv=SLEEP, user=user, volumes=(MountSpec(volume="v"),))
    runtime = lay_out(spec, folder=open_folder, volumes=("v",))
    runtime.create()
    assert (open_folder / "volumes/v").owner() == user
    runtime.start(["s"])
    assert Path(f"/proc/{pid(runtime, 's')}").owner() == user
    with runtime.run("s", ["id", "-un"]) as child:
        assert child.stdout.read().decode().strip() == user


def test_a_folder_without_a_stack(tmp_path: Path) -> None:
    with pytest.raises(errors.NotFound):
        LocalRuntime(tmp_path).stack()
