"""One run at a time; a dead owner is no owner, on this machine at once, on another when its lease has expired."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from itertools import pairwise
from pathlib import Path

import msgspec
import pytest

from cosmos_coherence import errors
from cosmos_coherence.cut import lock
from cosmos_coherence.cut.lock import EXPIRY_S, Holder, holder, run_lock
from cosmos_coherence.drivers import disk
from cosmos_coherence.drivers import owner as owners
from support.waiting import eventually

_OWNER = """
import os, subprocess, sys
from pathlib import Path
from cosmos_coherence.cut.lock import run_lock
with run_lock(Path(sys.argv[1]), run="20260101_020000", what="backup"):
    subprocess.Popen(["sleep", "60"], close_fds=False)  # started meanwhile, and lives on
    print(os.getpid(), flush=True)
    sys.stdin.read()
"""
_RACER = """
import errno, fcntl, sys, time
from pathlib import Path
from cosmos_coherence import errors
from cosmos_coherence.cut import lock
from cosmos_coherence.drivers import disk, owner

def none(handle, how):
    raise OSError(errno.ENOLCK, "no locks available")

folder, host, how = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
if how == "hosts":  # machines whose kernels do not share locks
    fcntl.flock = none
    disk.is_local = lambda descriptor: False
    owner.boot = lambda: host
print("ready", flush=True)
sys.stdin.readline()
try:
    with lock.run_lock(folder, run=host, what="backup"):
        began = time.time()
        time.sleep(0.3)
        print("held", began, time.time(), flush=True)
except errors.Locked:
    print("locked", flush=True)
"""
ELSEWHERE = owners.Owner("elsewhere", 7, "another boot", "pid:[1]", 1)


def test_a_second_run_is_refused_with_the_owner_named_until_the_owner_is_killed(tmp_path: Path) -> None:
    owner = subprocess.Popen(
        [sys.executable, "-c", _OWNER, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, process_group=0
    )
    try:
        assert owner.stdout is not None
        pid = owner.stdout.readline().decode().strip()
        with (
            pytest.raises(errors.Locked, match=rf"another run \(backup 20260101_020000, pid {pid} on .*, since 20"),
            run_lock(tmp_path, run="other", what="restore"),
        ):
            raise AssertionError("two owners")
        assert str(holder(tmp_path)).startswith(f"backup 20260101_020000, pid {pid} on ")
        owner.kill()
        owner.wait()
        assert holder(tmp_path) is None
        with run_lock(tmp_path, run="other", what="restore"):
            pass
    finally:
        os.killpg(owner.pid, signal.SIGKILL)  # what it started, too
        owner.communicate()


def test_the_lock_can_be_taken_again_after_it_was_let_go_and_after_a_failure(tmp_path: Path) -> None:
    for _ in range(2):
        with pytest.raises(RuntimeError), run_lock(tmp_path, run="a", what="backup"):
            raise RuntimeError
    with (
        run_lock(tmp_path, run="first", what="backup"),
        pytest.raises(errors.Locked, match="backup first"),
        run_lock(tmp_path, run="second", what="backup"),
    ):
        raise AssertionError("two owners")
    assert holder(tmp_path) is None
    assert [path.name for path in tmp_path.iterdir()] == ["run.lock"]


def test_a_forked_child_does_not_hold_it(tmp_path: Path) -> None:
    with run_lock(tmp_path, run="one", what="backup"):
        ours, its = os.pipe()
        child = os.fork()
        if not child:
            os.write(its, b".")
            time.sleep(60)
            os._exit(0)
        assert os.read(ours, 1) == b"."
    try:
        with run_lock(tmp_path, run="two", what="backup"):
            pass
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(ours)
        os.close(its)


def test_an_owner_that_cannot_be_read_is_an_owner_all_the_same(tmp_path: Path) -> None:
    with run_lock(tmp_path, run="a", what="backup"):
        (tmp_path / "run.lease").write_bytes(b"")
        with pytest.raises(errors.Locked, match="another run is under way"), run_lock(tmp_path, run="b", what="x"):
            raise AssertionError("two owners")


def test_a_folder_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(errors.ConfigurationError), run_lock(tmp_path / "none", run="a", what="backup"):
        raise AssertionError
    assert holder(tmp_path / "none") is None


# ------------------------------------------------------------------------------------------ a folder of many machines
@pytest.fixture
def shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A disk that other machines may write to, whose leases are all that is seen of them."""
    monkeypatch.setattr(disk, "is_local", lambda _descriptor: False)
    monkeypatch.setattr(lock, "SETTLE_S", 0.0)
    return tmp_path


def leased(folder: Path, owner: owners.Owner = ELSEWHERE, *, age_s: float = 0.0) -> Path:
    path = folder / "run.lease"
    path.write_bytes(msgspec.json.encode(Holder("r7", "backup", owner, "2026-01-01T00:00:00Z", EXPIRY_S, "t")))
    touched = time.time() - age_s
    os.utime(path, (touched, touched))
    return path


def test_a_lease_of_another_host_counts_until_it_has_expired(shared: Path) -> None:
    leased(shared, age_s=EXPIRY_S - 60)
    with (
        pytest.raises(errors.Locked, match=r"backup r7, pid 7 on elsewhere, since 2026-01-01T00:00:00Z"),
        run_lock(shared, run="ours", what="backup"),
    ):
        raise AssertionError("two owners")
    assert str(holder(shared)).startswith("backup r7")
    leased(shared, age_s=EXPIRY_S + 60)
    assert holder(shared) is None
    with run_lock(shared, run="ours", what="backup"):
        assert str(holder(shared)).startswith("backup ours")


@pytest.mark.parametrize("jump_s", [-30 * 86400.0, 30 * 86400.0])
def test_a_clock_that_jumps_leaves_no_lease_for_ever_and_takes_none_that_is_kept(shared: Path, jump_s: float) -> None:
    """After the jump a dead owner's last touch is far off, in the past or the future; a living one touches it again."""
    lease = leased(shared, age_s=jump_s)
    os.utime(lease)
    with pytest.raises(errors.Locked), run_lock(shared, run="ours", what="backup"):
        raise AssertionError("two owners")
    leased(shared, age_s=jump_s)
    with run_lock(shared, run="ours", what="backup"):
        pass


def test_on_a_disk_of_this_machine_alone_a_lease_of_before_the_restart_is_nobody_s(tmp_path: Path) -> None:
    leased(tmp_path)
    handle = os.open(tmp_path, os.O_RDONLY)
    local = disk.is_local(handle)
    os.close(handle)
    if local:
        with run_lock(tmp_path, run="ours", what="backup"):
            pass


def test_a_dead_owner_of_this_boot_does_not_have_to_expire(shared: Path) -> None:
    leased(shared, owners.Owner("here", 2**22 - 1, owners.boot(), owners.ourselves().namespace, 1))
    assert holder(shared) is None
    with run_lock(shared, run="ours", what="backup"):
        pass


def test_a_lease_that_is_kept_stays_young(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "REFRESH_S", 0.01)
    with run_lock(tmp_path, run="ours", what="backup") as held:
        os.utime(tmp_path / "run.lease", (1.0, 1.0))
        held.keep()
        assert eventually(lambda: (tmp_path / "run.lease").stat().st_mtime > time.time() - 60)
    assert not [thread for thread in threading.enumerate() if thread.name == "run.lease"]


def test_a_run_whose_lease_another_has_taken_is_interrupted_and_leaves_it_alone(
    shared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "REFRESH_S", 0.01)
    with pytest.raises(KeyboardInterrupt), run_lock(shared, run="ours", what="backup") as held:
        held.keep()
        leased(shared)
        time.sleep(60)
        raise AssertionError
    assert str(holder(shared)).startswith("backup r7")


@pytest.mark.parametrize("how", ["processes", "hosts", "hosts, expired"])
def test_of_two_that_race_one_at_a_time_has_it(tmp_path: Path, how: str) -> None:
    for _ in range(2):
        if how.endswith("expired"):
            leased(tmp_path, age_s=EXPIRY_S + 60)
        racers = [
            subprocess.Popen(
                [sys.executable, "-c", _RACER, str(tmp_path), f"host{number}", how.split(",")[0]],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            )
            for number in range(2)
        ]  # fmt: skip
        for racer in racers:
            assert racer.stdout and racer.stdout.readline() == "ready\n"
        for racer in racers:
            assert racer.stdin
            racer.stdin.write("\n")
            racer.stdin.flush()
        said = [racer.communicate()[0].split() for racer in racers]
        held = sorted((float(words[1]), float(words[2])) for words in said if words[0] == "held")
        assert held, said
        assert all(ended <= began for (_, ended), (began, _) in pairwise(held)), held
