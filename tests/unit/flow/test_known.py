"""What this host knows of a repository: one backup that somebody removed is missed."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from cosmos_coherence import errors
from cosmos_coherence.flow import known
from cosmos_coherence.flow.known import Backup
from cosmos_coherence.repository import gotext, layout
from cosmos_coherence.repository.repository import Repository
from cosmos_coherence.repository.snapshots import Snapshot
from cosmos_coherence.storage import local
from support.memory_backend import MemoryBackend

PROJECT = "shop"


@pytest.fixture
def repository() -> Repository:
    return Repository.init(MemoryBackend(), "right-Horse-9", generated=True)


def publish(repository: Repository, second: int, project: str = PROJECT) -> Backup:
    """A snapshot that is a backup, as far as its file says."""
    identity = f"20240101_0000{second:02}"
    snapshot = Snapshot(
        time=gotext.format_time((1_704_067_200 + second) * 10**9), tree="0" * 64, paths=[f"/{project}"],
        tags=layout.tags_of(identity, safety=False, complete=True, tags=()),
    )  # fmt: skip
    return Backup(identity, repository.save_snapshot(snapshot))


def add(state: Path, repository: Repository, second: int) -> Backup:
    made = publish(repository, second)
    assert known.add(state, repository, PROJECT, made) == ""
    return made


def test_a_backup_that_was_removed_is_missed_until_it_is_back(tmp_path: Path, repository: Repository) -> None:
    first, second = add(tmp_path, repository, 1), add(tmp_path, repository, 2)
    assert known.missing(tmp_path, repository, PROJECT) == ((), "")
    content = repository.backend.load("snapshots", first.snapshot)
    repository.remove_snapshot(first.snapshot)
    assert known.missing(tmp_path, repository, PROJECT) == ((first,), "")
    add(tmp_path, repository, 3)
    repository.remove_snapshot(second.snapshot)
    assert set(known.missing(tmp_path, repository, PROJECT)[0]) == {first, second}
    repository.backend.save("snapshots", first.snapshot, [content])
    assert known.missing(tmp_path, repository, PROJECT) == ((second,), "")


def test_what_we_forget_is_not_missed(tmp_path: Path, repository: Repository) -> None:
    first, second = add(tmp_path, repository, 1), add(tmp_path, repository, 2)
    known.forget(tmp_path, repository.config.id, first.snapshot)
    repository.remove_snapshot(first.snapshot)
    assert known.missing(tmp_path, repository, PROJECT) == ((), "")
    repository.remove_snapshot(second.snapshot)
    assert known.missing(tmp_path, repository, PROJECT) == ((second,), "")
    known.forget(tmp_path, "0" * 64, first.snapshot)  # of a repository that nobody knows


def test_the_record_is_private_and_names_backups_and_snapshots(tmp_path: Path, repository: Repository) -> None:
    made = add(tmp_path, repository, 1)
    file = known.file_of(tmp_path, repository.config.id)
    assert json.loads(file.read_bytes()) == {"backups": [{"backup": made.backup, "snapshot": made.snapshot}]}
    assert (file.stat().st_mode & 0o777, file.parent.stat().st_mode & 0o777) == (0o600, 0o700)
    assert [path.name for path in file.parent.iterdir()] == [file.name]


def test_two_repositories_have_two_records(tmp_path: Path, repository: Repository) -> None:
    other = Repository.init(MemoryBackend(), "right-Horse-9", generated=True)
    add(tmp_path, repository, 1)
    add(tmp_path, other, 2)
    assert known.missing(tmp_path, repository, PROJECT) == known.missing(tmp_path, other, PROJECT) == ((), "")


def test_a_new_host_begins_with_what_is_there_of_its_stack(tmp_path: Path, repository: Repository) -> None:
    first, foreign = publish(repository, 1), publish(repository, 2, "another")
    gone, said = known.missing(tmp_path, repository, PROJECT)
    assert gone == ()
    assert "had no record" in said
    assert "begun anew with the 1 that are there" in said
    for each in (first, foreign):
        repository.remove_snapshot(each.snapshot)
    assert known.missing(tmp_path, repository, PROJECT) == ((first,), "")


@pytest.mark.parametrize("junk", [b"", b"{", b"[]", b'{"backups":[{"backup":1}]}', b"\xff\xfe", b"[" * 100_000])
def test_a_damaged_record_is_said_and_begun_anew(tmp_path: Path, repository: Repository, junk: bytes) -> None:
    first, second = add(tmp_path, repository, 1), add(tmp_path, repository, 2)
    file = known.file_of(tmp_path, repository.config.id)
    file.write_bytes(junk)
    third = publish(repository, 3)
    said = known.add(tmp_path, repository, PROJECT, third)
    assert "is damaged" in said
    assert "with the 2 others" in said
    assert known.missing(tmp_path, repository, PROJECT) == ((), "")
    file.write_bytes(junk)
    repository.remove_snapshot(second.snapshot)
    gone, said = known.missing(tmp_path, repository, PROJECT)
    assert (gone, "is damaged" in said) == ((), True)
    repository.remove_snapshot(first.snapshot)
    assert known.missing(tmp_path, repository, PROJECT) == ((first,), "")


def test_a_lost_record_is_said_by_the_next_backup(tmp_path: Path, repository: Repository) -> None:
    add(tmp_path, repository, 1)
    known.file_of(tmp_path, repository.config.id).unlink()
    said = known.add(tmp_path, repository, PROJECT, publish(repository, 2))
    assert "had no record" in said
    assert "with the 1 others" in said


def test_a_record_that_cannot_be_written_fails_no_backup(
    tmp_path: Path, repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise errors.NoRoom("no room")

    made = add(tmp_path, repository, 1)
    monkeypatch.setattr(local, "write_atomically", full)
    assert "not noted" in known.add(tmp_path, repository, PROJECT, publish(repository, 2))
    known.forget(tmp_path, repository.config.id, made.snapshot)
    assert not known.file_of(tmp_path, repository.config.id).exists(), "a record that is wrong is worse than none"


def test_a_folder_that_cannot_be_made_fails_no_backup(tmp_path: Path, repository: Repository) -> None:
    (tmp_path / known.FOLDER).write_text("in the way")
    assert "not noted" in known.add(tmp_path, repository, PROJECT, publish(repository, 1))
    known.forget(tmp_path, repository.config.id, "0" * 64)


def test_a_repository_that_cannot_be_listed_fails_no_backup(
    tmp_path: Path, repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = publish(repository, 1)

    def nobody(kind: str) -> object:
        raise errors.BackendUnavailable("nobody answers")

    monkeypatch.setattr(repository.backend, "list", nobody)
    assert "not noted" in known.add(tmp_path, repository, PROJECT, made)


def test_a_damaged_snapshot_keeps_nothing_from_being_noted(tmp_path: Path, repository: Repository) -> None:
    assert isinstance(repository.backend, MemoryBackend)
    made = publish(repository, 1)
    repository.backend.files[f"snapshots/{os.urandom(32).hex()}"] = b"junk"
    assert "not noted" not in known.add(tmp_path, repository, PROJECT, made)


def test_what_is_published_or_forgotten_while_we_look_is_not_missed(
    tmp_path: Path, repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = add(tmp_path, repository, 1)
    listing = repository.backend.list

    def meanwhile(kind: str) -> object:
        monkeypatch.setattr(repository.backend, "list", listing)
        known.forget(tmp_path, repository.config.id, first.snapshot)
        repository.remove_snapshot(first.snapshot)
        names = list(listing("snapshots"))
        add(tmp_path, repository, 2)
        return iter(names)

    monkeypatch.setattr(repository.backend, "list", meanwhile)
    assert known.missing(tmp_path, repository, PROJECT) == ((), "")
