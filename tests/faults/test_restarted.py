"""What runs the backup, and what runs the stack, is ended in the middle and started again: then all is as before."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from cosmos_coherence.archive.verify import verify_archive
from cosmos_coherence.drivers import process
from cosmos_coherence.history.ledger import Ledger, look
from support import second_engine
from support.docker_stack import HOST
from support.embedded_stack import EmbeddedStack, embedded_stack
from support.marked_stack import IMAGES, marked_stack
from support.program import SOURCE
from support.waiting import eventually


@pytest.fixture(scope="module")
def stack() -> Iterator[EmbeddedStack]:
    with embedded_stack(rate=20) as made:
        assert made.backup().status == "done"
        yield made


def agent(stack: EmbeddedStack, *, overdue: bool = True) -> subprocess.Popen[bytes]:
    """It finds that a backup is overdue."""
    if overdue:
        Ledger(stack.folder / ".cosmos").pass_over("backup", datetime(2020, 1, 1, tzinfo=UTC))
    return subprocess.Popen(
        [sys.executable, "-m", "cosmos_coherence.cli.main", "-C", str(stack.folder), "serve", "agent"],
        env={**os.environ, "PYTHONPATH": str(SOURCE), "COSMOS_RUNTIME": "process"},
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip


def children(running: subprocess.Popen[bytes]) -> list[int]:
    return [int(pid) for pid in Path(f"/proc/{running.pid}/task/{running.pid}/children").read_text().split()]


def test_a_job_whose_agent_is_killed_goes_back_by_itself(stack: EmbeddedStack) -> None:
    listed, journal = stack.published(), stack.folder / ".cosmos" / "journal"
    killed = agent(stack)
    assert eventually(lambda: [*journal.glob("*.json")]), "it does not begin"
    (job,) = children(killed)
    killed.kill()
    killed.wait()
    assert eventually(lambda: process.facts(job) is None), "it outlives its agent"
    assert [*journal.glob("*.json")] == []
    if stack.published() == listed:  # else it was faster
        state = look(stack.folder / ".cosmos")["backup"]
        assert state.outcome == "interrupted", state.said
    assert stack.goes_on()


def test_an_agent_that_is_told_to_stop_interrupts_its_job_and_makes_up_for_it(stack: EmbeddedStack) -> None:
    listed, journal = stack.published(), stack.folder / ".cosmos" / "journal"
    stopped = agent(stack)
    assert eventually(lambda: [*journal.glob("*.json")]), "it does not begin"
    stopped.terminate()
    assert stopped.wait(timeout=60) == 0
    assert [*journal.glob("*.json")] == []
    if stack.published() != listed:
        return  # it was faster
    state = look(stack.folder / ".cosmos")["backup"]
    assert state.outcome == "interrupted", state.said
    again = agent(stack, overdue=False)
    try:
        assert eventually(lambda: stack.published() != listed)
        assert eventually(lambda: look(stack.folder / ".cosmos")["backup"].outcome == "done")
    finally:
        again.terminate()
        again.wait()
    assert len(stack.published()) == len(listed) + 1


def test_the_agent_is_killed_in_the_middle(stack: EmbeddedStack, rng: random.Random) -> None:
    stack.change()
    old, listed = stack.state(), stack.published()
    journal = stack.folder / ".cosmos" / "journal"
    first = agent(stack)
    assert eventually(lambda: [*journal.glob("*.json")]), "it does not begin"
    time.sleep(rng.uniform(0, 0.4))
    jobs = children(first)
    first.kill()
    for job in jobs:  # as when a container or a machine goes; alone, they would end by going back
        os.kill(job, signal.SIGKILL)
    first.wait()
    assert [*journal.glob("*.json")], "it had ended before it was killed"
    assert stack.published() == listed
    second = agent(stack)
    try:
        assert eventually(lambda: stack.published() != listed)
        assert eventually(lambda: stack.leftovers() == [])
    finally:
        second.terminate()
        second.wait()
    assert stack.goes_on()
    made = stack.backups / f"{stack.published()[-1]}.tar.gz"
    assert verify_archive(made).complete
    stack.change()
    assert stack.restore(made).status == "done"
    assert stack.state() == old


@pytest.mark.soak
@pytest.mark.docker
@pytest.mark.private_engine
@pytest.mark.timeout(900)
@pytest.mark.parametrize("live_restore", [False, True])
def test_dockerd_is_restarted_in_the_middle(
    tmp_path: Path, rng: random.Random, monkeypatch: pytest.MonkeyPatch, live_restore: bool
) -> None:
    """Without ``live-restore`` its containers end with it; their restart policy brings them back."""
    options = ["--bridge=none", "--iptables=false", *(["--live-restore"] if live_restore else [])]
    with second_engine.daemon(tmp_path, *options) as daemon:
        second_engine.load(IMAGES, into=daemon.host, from_host=HOST)
        monkeypatch.setattr("support.docker_stack.HOST", daemon.host)
        with marked_stack(daemon.host) as shop:
            shop.mark("archived")
            archive = Path(shop.backup().path)
            shop.mark("live")
            for verb, at in (("backup", "capture"), ("restore", "stage"), ("restore", "swap")):
                print(verb, at)
                left = [at]

                def step(reached: str, left: list[str] = left) -> None:
                    if left and reached == left[0]:
                        left.clear()
                        daemon.stop()
                        daemon.start()
                        if rng.random() < 0.5:
                            daemon.ready()

                listed = shop.published()
                report = shop.backup(step) if verb == "backup" else shop.restore(archive, step)
                print(report.status, report.failure)
                assert left == []
                daemon.ready()
                assert (shop.published() != listed) == (report.verb == "backup" and report.status == "done")
                if at != "swap":  # what a restore has stopped stays so until it is taken back
                    assert eventually(lambda: {"db", "redis"} <= shop.running())
                healed = shop.recover()
                assert healed.status == "done", healed.failure
                assert shop.goes_on()
                assert shop.state() in ({"live"}, {"archived"} if verb == "restore" else {"live"})
                again = shop.backup() if verb == "backup" else shop.restore(archive)
                assert again.status == "done", again.failure
                assert shop.state() == ({"archived"} if verb == "restore" else {"live"})
                assert shop.leftovers() == []
                shop.mark("live")
