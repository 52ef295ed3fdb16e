"""Faults between the steps, and what only one of them has; ``test_every_step`` breaks each step in every way."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
from pathlib import Path

import pytest

from cosmos_coherence.archive import listing
from cosmos_coherence.archive.verify import verify_archive
from cosmos_coherence.cut.journal import Journal, SettingsRecord
from cosmos_coherence.flow import events
from support.embedded_stack import embedded_stack
from support.faulty import act_at, fail_at
from support.program import cosmos
from support.waiting import eventually

ALL = {"db", "redis", "writer"}


@pytest.fixture(scope="module")
def stack():
    with embedded_stack(rate=20) as made:
        assert eventually(made.lines)
        yield made


@pytest.fixture(scope="module")
def archived(stack):
    """A backup, and what it holds."""
    state, report = stack.state(), stack.backup()
    assert report.status == "done", report.failure
    return Path(report.path), state


@pytest.fixture
def before(stack, archived):
    """What is live, which the backup does not hold, and a check of what must hold in the end."""
    stack.change()
    state = stack.state()
    assert state != archived[1]
    yield state
    assert stack.leftovers() == []
    assert stack.running() == ALL
    lines = stack.lines()
    assert eventually(lambda: stack.lines() > lines), "the writer stands still"
    for archive in listing.list_archives(stack.backups):
        assert archive.safety or archive.manifest.complete
    assert verify_archive(stack.backups / "latest.tar.gz").id == stack.published()[-1]


# ------------------------------------------------------------------------------------------------ broken steps
def test_an_archive_that_does_not_read_back_is_not_published(stack, before):
    def damage():
        (packed,) = stack.backups.glob(".*.tar.gz.tmp")
        with packed.open("r+b") as file:
            file.seek(packed.stat().st_size // 2)
            byte = file.read(1)
            file.seek(-1, os.SEEK_CUR)
            file.write(bytes([byte[0] ^ 1]))

    listed = stack.published()
    step = act_at(verify=damage)
    report = stack.backup(step)
    assert (report.status, report.exit_status, step.left) == ("failed", 6, {})
    assert stack.published() == listed


@pytest.mark.parametrize("name", ["safety", "swap", "probe"])
def test_a_restore_that_is_interrupted_leaves_the_stack_as_it_was(stack, archived, before, name):
    def interrupt():
        raise KeyboardInterrupt

    step = act_at(**{name: interrupt})
    report = stack.restore(archived[0], step)
    assert (report.exit_status, step.left) == (130, {})
    assert "interrupted; the stack is as it was before" in report.failure.message
    assert stack.state() == before


def test_an_undo_that_fails_is_told_and_is_done_later(stack, archived, before):
    step = fail_at("compare", "undo")
    report = stack.restore(archived[0], step)
    assert (report.status, report.failure.code, step.left) == ("failed", "restore-failed", [])
    assert "at compare" in report.failure.message
    assert "at undo" in report.failure.message
    assert "as it was before" not in report.failure.message
    assert stack.recover().status == "done"
    assert stack.state() == before


# ------------------------------------------------------------------------------------------------------- kill -9
@pytest.mark.parametrize("verb", ["backup", "restore"])
def test_after_a_killed_restore_the_next_run_heals_by_itself(stack, archived, before, verb):
    archive, new = archived
    stack.killed_at("compare", "restore", archive)
    assert stack.running() < ALL
    again = stack.backup() if verb == "backup" else stack.restore(archive)
    assert (again.status, again.missing) == ("done", ()), again
    assert stack.state() == (before if verb == "backup" else new)
    if verb == "backup":  # it was planned when nothing ran, and has held the writer all the same
        assert verify_archive(Path(again.path)).held == ("writer",)


def at_any_moment(stack, archived, rng, verb, *, direct):
    """Kill it anywhere; then the data are the old or the new, and the same command again converges."""
    archive, new = archived
    stack.change()
    old = stack.state()
    seconds = 6.0
    while not stack.killed_within(moment := rng.uniform(0, seconds), verb, archive):
        stack.change()
        old, seconds = stack.state(), moment
    print(f"killed after {moment:.3f} s")
    if not direct:
        healed = stack.recover()
        assert healed.status == "done", healed.failure
        assert stack.leftovers() == []
        assert stack.state() in ((old,) if verb == "backup" else (old, new))
    again = stack.backup() if verb == "backup" else stack.restore(archive)
    assert again.status == "done", again.failure
    assert stack.state() == (old if verb == "backup" else new)
    assert stack.leftovers() == []
    assert stack.running() == ALL


@pytest.mark.parametrize("turn", range(3))
@pytest.mark.parametrize("verb", ["backup", "restore"])
def test_killed_at_any_moment(stack, archived, before, rng, verb, turn):
    at_any_moment(stack, archived, rng, verb, direct=turn == 0)


# ------------------------------------------------------------------------------------------ servers that give out
def kill_service(stack, name):
    pid = int((stack.folder / "run" / f"{name}.pid").read_text().split()[0])
    os.killpg(pid, signal.SIGKILL)
    assert eventually(lambda: name not in stack.running())


def start_again(stack, name):
    stack.runtime.start([name])
    stack.runtime.wait_ready([name])


@pytest.mark.parametrize("name", ["db", "redis"])
def test_a_server_that_is_killed_during_capture(stack, before, name):
    listed = stack.published()
    step = act_at(capture=lambda: kill_service(stack, name))
    report = stack.backup(step)
    assert (report.status, report.exit_status, step.left) == ("failed", 1, {})
    assert name in report.failure.message
    assert stack.published() == listed
    start_again(stack, name)
    assert stack.recover().status == "done"
    assert stack.state() == before


@pytest.mark.parametrize("name", ["db", "redis"])
def test_a_server_that_is_killed_while_the_new_state_is_written(stack, archived, before, name):
    struck = []

    def emit(event):
        if event == events.PartDone("config", getattr(event, "size", 0)):
            kill_service(stack, name)
            struck.append(name)

    report = stack.restore(archived[0], emit=emit)
    assert struck == [name]
    # Redis is stopped for its swap anyway
    assert report.status == ("failed" if name == "db" else "done"), report
    assert stack.state() == (before if name == "db" else archived[1])


def test_redis_that_refuses_to_start_after_the_swap(stack, archived, before):
    config = stack.folder / "configs" / "redis.conf"
    good = config.read_text()
    step = act_at(compare=lambda: config.write_text(good + "no such setting\n"), undo=lambda: config.write_text(good))
    report = stack.restore(archived[0], step)
    assert (report.status, report.failure.code, step.left) == ("failed", "service-down", {})
    assert report.failure.message.endswith("; the stack is as it was before")
    assert stack.state() == before


def test_a_probe_that_fails(stack, archived, before):
    step = act_at(probe=lambda: kill_service(stack, "db"))
    report = stack.restore(archived[0], step)
    assert (report.status, report.failure.code, step.left) == ("failed", "service-down", {})
    assert report.failure.message.endswith("; the stack is as it was before")
    assert stack.state() == before


def test_recovery_waits_for_a_database_that_does_not_start(stack, archived, before):
    stack.killed_at("start", "restore", archived[0])
    program = stack.folder / "configs" / "serve-postgres"
    stack.runtime.stop(["db"])
    program.rename(program.with_name("away"))
    for run in (stack.recover, stack.backup):  # nothing builds on half a restore
        report = run()
        assert (report.status, report.failure.code) == ("failed", "restore-failed")
        assert "postgres/db" in report.failure.message
        assert "writer" not in stack.running()
    program.with_name("away").rename(program)
    assert stack.recover().status == "done"
    assert stack.state() == before


def test_nothing_runs_on_a_mix_of_old_and_new(stack, archived, before):
    stack.killed_at("start", "restore", archived[0])
    (journal,) = stack.files.glob(".cosmos-restore-*/journal")
    whole = journal.read_bytes()
    journal.write_bytes(b"nobody wrote this")
    report = stack.recover()
    assert (report.status, report.failure.code) == ("failed", "restore-failed")
    assert "volumes/files" in report.failure.message
    assert "writer" not in stack.running()
    journal.write_bytes(whole)
    assert stack.recover().status == "done"
    assert stack.state() == before


def test_recovery_without_a_service_that_ran(stack, archived, before):
    stack.killed_at("start", "restore", archived[0])
    path = stack.folder / "stack.json"
    whole = path.read_text()
    spec = json.loads(whole)
    spec["services"] = [one for one in spec["services"] if one["name"] != "writer"]
    path.write_text(json.dumps(spec))
    try:
        healed = stack.recover()
        assert healed.status == "done", healed.failure
        assert stack.state() == before
    finally:
        path.write_text(whole)
    stack.runtime.start(["writer"])


def test_settings_of_a_service_that_is_gone_are_forgotten(stack, before):
    Journal(stack.folder / ".cosmos").open(SettingsRecord("20260101020000", "elsewhere", {"save": "60 1"}))
    healed = stack.recover()
    assert healed.status == "done"
    assert any("elsewhere is gone" in note for note in healed.notes)


def test_a_redis_that_cannot_start_any_more_is_restored(stack, archived, before):
    stack.runtime.stop(["redis"])
    kept = stack.folder / "kept"
    aof = stack.folder / "volumes" / "redis-data" / "appendonlydir"
    (base,) = [p for p in aof.iterdir() if ".base." in p.name]
    shutil.copy(base, kept)
    base.write_bytes(b"no data of anybody")
    report = stack.restore(archived[0])
    kept.unlink()
    assert report.status == "done", report.failure
    assert any("redis" in note for note in report.notes)
    assert stack.state() == archived[1]
    stack.runtime.start(["redis"])


# ---------------------------------------------------------------------------------------------- two runs at once
def test_the_second_of_two_runs_is_refused(stack, archived, before):
    said = []

    def others():
        said.extend(
            cosmos("-C", str(stack.folder), *verb, "--json")
            for verb in (("backup",), ("recover",), ("restore", "latest", "--yes"))
        )

    step = act_at(capture=others)
    report = stack.backup(step)
    assert (report.status, step.left) == ("done", {})
    assert [one.returncode for one in said] == [5, 5, 5]
    for one in said:
        message = json.loads(one.stdout)["failure"]["message"]
        assert re.search(rf"another run \(backup {report.run}, pid {os.getpid()} on .*\) is under way", message)
    assert stack.state() == before
