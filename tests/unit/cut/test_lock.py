"""One run at a time; a dead owner is no owner."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from cosmos_coherence import errors
from cosmos_coherence.cut.lock import run_lock

_OWNER = """
import os, subprocess, sys
from pathlib import Path
from cosmos_coherence.cut.lock import run_lock
with run_lock(Path(sys.argv[1]), run="20260101_020000", what="backup"):
    subprocess.Popen(["sleep", "60"], close_fds=False)  # started meanwhile, and lives on
    print(os.getpid(), flush=True)
    sys.stdin.read()
"""


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
        owner.kill()
        owner.wait()
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


def test_an_owner_that_has_not_signed_yet_is_an_owner_all_the_same(tmp_path: Path) -> None:
    with run_lock(tmp_path, run="a", what="backup"):
        (tmp_path / "run.lock").write_bytes(b"")
        with pytest.raises(errors.Locked, match="another run is under way"), run_lock(tmp_path, run="b", what="x"):
            raise AssertionError("two owners")


def test_a_folder_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(errors.ConfigurationError), run_lock(tmp_path / "none", run="a", what="backup"):
        raise AssertionError
