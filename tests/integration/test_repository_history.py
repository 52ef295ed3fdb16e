"""A backup that somebody removed from the repository is missed by the host that made it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from cosmos_coherence.flow import known, store
from support.embedded_stack import EmbeddedStack, embedded_stack
from support.program import cosmos

pytestmark = [pytest.mark.postgres, pytest.mark.redis]


@pytest.fixture(scope="module")
def stack():
    with embedded_stack(writer=False) as made:
        told(made, "init")
        yield made


def told(stack: EmbeddedStack, *arguments: str, status: int = 0):
    ended = cosmos("-C", str(stack.folder), *arguments, "--json")
    assert ended.returncode == status, ended.stdout + ended.stderr
    return json.loads(ended.stdout)


def record(stack: EmbeddedStack):
    (file,) = (stack.runtime.state_directory() / known.FOLDER).iterdir()
    return file


def noted(stack: EmbeddedStack) -> list[str]:
    return [each["backup"] for each in json.loads(record(stack).read_bytes())["backups"]]


def test_a_removed_backup_is_missed_and_one_that_was_forgotten_is_not(stack):
    first, second = stack.backup().backup, stack.backup().backup
    repository = store.open_repository(stack.settings)
    gone = store.find(repository, first).snapshot
    file = stack.folder / "backups" / "repository" / "snapshots" / gone
    away = shutil.move(file, stack.folder / "away")
    third = stack.backup().backup  # it does not hide what is missed
    missed = told(stack, "check", status=6)
    assert (missed["status"], missed["checked"], missed["note"]) == ("failed", False, "")
    (fault,) = missed["report"]["faults"]
    assert (fault["kind"], fault["name"]) == ("snapshot", gone)
    assert f"backup {first} was here and is gone" in fault["what"]

    shutil.move(away, file)
    assert told(stack, "forget", "--keep-within", "0s")["remove"] == [first, second]
    assert noted(stack) == [third]
    found = told(stack, "check")
    assert (found["checked"], found["note"]) == (True, "")


def test_a_lost_or_damaged_record_is_said_and_fails_no_backup(stack):
    record(stack).write_bytes(b"{")
    damaged = stack.backup()
    assert damaged.status == "done"
    assert any("is damaged" in note and "begun anew" in note for note in damaged.notes)
    record(stack).unlink()
    checked = told(stack, "check")
    assert checked["checked"] is True
    assert "had no record" in checked["note"]


def test_retention_takes_from_the_record_and_a_safety_backup_is_in_it(stack):
    with (stack.folder / "cosmos.toml").open("a") as file:
        file.write('\n[retention]\nkeep_within = "0s"\n')
    last = stack.backup()
    assert last.removed
    assert noted(stack) == [last.backup]
    restored = stack.restore(Path(last.backup))
    assert restored.status == "done", restored.failure
    kept = store.kept(store.open_repository(stack.settings))
    assert any(each.safety for each in kept)
    assert set(noted(stack)) == {each.id for each in kept}
