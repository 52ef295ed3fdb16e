"""Processes: what ``start``, ``run`` and ``start_detached`` promise beyond the contract of a runtime's commands."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from cosmos_coherence import errors
from cosmos_coherence.drivers import process
from support.waiting import eventually

AS_ROOT = os.geteuid() == 0


def test_inherits_little_and_adds_what_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_SECRET", "x")
    monkeypatch.setenv("DOCKER_HOST", "unix:///somewhere")
    seen = process.run(["env"], environment={"GIVEN": "yes", "LANG": "C.UTF-8"}).decode().splitlines()
    assert {"GIVEN=yes", "LANG=C.UTF-8", "DOCKER_HOST=unix:///somewhere"} <= set(seen)
    assert not [line for line in seen if line.startswith("SOME_SECRET")]


def test_arguments_are_no_shell_text(tmp_path: Path) -> None:
    assert process.run(["printf", "%s", "$(id) `id`; *"], cwd=tmp_path) == b"$(id) `id`; *"


def test_run_is_bounded_in_bytes() -> None:
    assert len(process.run(["head", "-c", "1000", "/dev/zero"], limit=1000)) == 1000
    with pytest.raises(errors.CommandFailed, match="more than 1000 bytes"):
        process.run(["cat", "/dev/zero"], limit=1000)


def test_run_is_bounded_in_time_and_ends_all_of_the_command(tmp_path: Path) -> None:
    ticks = tmp_path / "ticks"
    with pytest.raises(errors.CommandFailed, match=r"did not end within 0\.5 s"):
        process.run(["sh", "-c", f"(while :; do printf x >>'{ticks}'; sleep 0.01; done) & sleep 1000"], timeout_s=0.5)
    before = ticks.stat().st_size
    time.sleep(0.2)
    assert ticks.stat().st_size == before > 0


def test_run_in_time() -> None:
    assert process.run(["echo", "done"], timeout_s=60) == b"done\n"


@pytest.mark.parametrize(
    ("argv", "cwd", "status", "sentence"),
    [
        (["no-such-program"], None, 127, "there is no program no-such-program"),
        (["/etc/hostname"], None, 126, "cannot be started"),
        (["true"], Path("/no/such/folder"), None, "no folder /no/such/folder"),
        (["echo", "zero\0byte"], None, 126, "cannot be started"),
    ],
)
def test_what_cannot_be_started(argv: list[str], cwd: Path | None, status: int | None, sentence: str) -> None:
    with pytest.raises(errors.CommandFailed, match=sentence) as caught:
        process.start(argv, cwd=cwd)
    assert caught.value.status == status
    assert caught.value.remedy


def test_a_command_that_ends_well_without_reading_its_input_is_no_success() -> None:
    with (
        pytest.raises(errors.CommandFailed, match="before it had read all of its input"),
        process.start(["true"], stdin=True) as child,
    ):
        for _ in range(100):
            child.stdin.write(bytes(100_000))


def test_what_is_still_in_the_buffer_counts_as_input() -> None:
    child = process.start(["true"], stdin=True)
    assert eventually(lambda: process.facts(child.pid) is None)
    child.stdin.write(b"a few bytes")
    with pytest.raises(errors.CommandFailed, match="before it had read all of its input"):
        child.wait()


def test_waiting_again_says_the_same() -> None:
    child = process.start(["sh", "-c", "echo why >&2; exit 9"])
    for _ in range(2):
        with pytest.raises(errors.CommandFailed, match="why") as caught:
            child.wait()
        assert caught.value.status == 9
    child.kill()


def test_kill_from_another_thread_wakes_the_reader() -> None:
    child = process.start(["sleep", "1000"])
    timer = threading.Timer(0.1, child.end)
    timer.start()
    assert child.stdout.read() == b""
    with pytest.raises(errors.CommandFailed) as caught:
        child.wait()
    assert caught.value.status == 128 + signal.SIGKILL
    timer.join()


def test_something_left_in_the_background_does_not_hold_up_the_end() -> None:
    child = process.start(["sh", "-c", "sleep 1000 >/dev/null & echo $!"])
    left = int(child.stdout.readline())
    child.wait()
    os.kill(left, signal.SIGKILL)


def test_in_our_own_group_when_asked() -> None:
    for new_group in (True, False):
        with process.start(["cat"], stdin=True, new_group=new_group) as child:
            assert (os.getpgid(child.pid) == os.getpgid(0)) is not new_group


def test_as_another_user() -> None:
    if not AS_ROOT:
        with pytest.raises(errors.CommandFailed, match="only root may change users"):
            process.run(["id", "-un"], user="root")
        return
    assert process.run(["id", "-un"], user="nobody") == b"nobody\n"
    assert b"root" not in process.run(["id"], user="nobody"), "a group of root's was kept"
    assert process.run(["id", "-gn"], group="daemon") == b"daemon\n"


def test_as_ourselves_by_name() -> None:
    name = process.run(["id", "-un"]).decode().strip()
    assert process.run(["id", "-un"], user=name).decode().strip() == name


def test_as_a_user_who_is_not_there() -> None:
    with pytest.raises(errors.CommandFailed, match="no such user"):
        process.start(["true"], user="no-such-user")


# ---------------------------------------------------------------------------------------------------- detached
def test_a_detached_server_outlives_the_program(tmp_path: Path) -> None:
    log = tmp_path / "log"
    program = (
        "import sys; from pathlib import Path; from cosmos_coherence.drivers import process;"
        "print(process.start_detached(['sh', '-c', 'cat; echo up; exec sleep 1000'], log=Path(sys.argv[1])))"
    )
    started = subprocess.run([sys.executable, "-c", program, str(log)], check=True, capture_output=True)
    pid = int(started.stdout)
    try:
        assert eventually(lambda: log.read_text() == "up\n"), "its standard input is not empty"
        facts = process.facts(pid)
        assert facts and facts.group == pid == os.getsid(pid)
        assert stat.S_IMODE(log.stat().st_mode) == 0o600
    finally:
        os.killpg(pid, signal.SIGKILL)
    assert eventually(lambda: process.facts(pid) is None)


def test_a_detached_server_whose_starter_dies_before_it_is_noted_never_begins(tmp_path: Path) -> None:
    begun = tmp_path / "begun"
    program = (
        "import os, sys; from pathlib import Path; from cosmos_coherence.drivers import process\n"
        "def die(pid):\n    print(pid, flush=True)\n    os.kill(os.getpid(), 9)\n"
        "process.start_detached(['touch', sys.argv[1]], log=Path(sys.argv[2]), note=die)"
    )
    started = subprocess.run([sys.executable, "-c", program, str(begun), str(tmp_path / "log")], capture_output=True)
    assert started.returncode == -signal.SIGKILL
    assert eventually(lambda: process.facts(int(started.stdout)) is None)
    assert not begun.exists()


def test_a_detached_server_that_is_no_program(tmp_path: Path) -> None:
    with pytest.raises(errors.CommandFailed, match="there is no program nowhere-to-be-found"):
        process.start_detached(["nowhere-to-be-found"], log=tmp_path / "log")


def test_a_detached_server_of_ours_that_ended_is_reaped(tmp_path: Path) -> None:
    pid = process.start_detached(["true"], log=tmp_path / "log")
    assert eventually(lambda: process.facts(pid) is None)
    assert not Path(f"/proc/{pid}").exists(), "a zombie is left"


def test_facts_take_nothing_from_whoever_awaits_a_command() -> None:
    child = process.start(["sh", "-c", "exit 3"])
    assert eventually(lambda: process.facts(child.pid) is None)
    with pytest.raises(errors.CommandFailed) as caught:
        child.wait()
    assert caught.value.status == 3


def test_facts_of_a_process_with_a_confusing_name(tmp_path: Path) -> None:
    program = tmp_path / "a) T 1 (b"
    program.symlink_to("/bin/sleep")
    pid = process.start_detached([str(program), "1000"], log=tmp_path / "log")
    try:
        ours = process.facts(os.getpid())
        assert eventually(lambda: (facts := process.facts(pid)) is not None and facts.state == "S")
        facts = process.facts(pid)
        assert facts and ours and facts.group == pid and facts.birth >= ours.birth
        os.kill(pid, signal.SIGSTOP)
        assert eventually(lambda: (facts := process.facts(pid)) is not None and facts.state == "T")
    finally:
        os.kill(pid, signal.SIGKILL)


def test_a_log_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(errors.CommandFailed, match="cannot write its log"):
        process.start_detached(["true"], log=tmp_path / "no/such/folder/log")
