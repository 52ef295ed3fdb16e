"""Folders read by processes beside us: the same tree, and no backup when one of them dies."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from cosmos_coherence import errors
from cosmos_coherence.repository import chunker
from cosmos_coherence.repository.blob import Blob, Id
from cosmos_coherence.repository.check import check
from cosmos_coherence.repository.folder_read import FolderReader
from cosmos_coherence.repository.forked import Team
from cosmos_coherence.repository.repository import Repository
from cosmos_coherence.repository.tree_restore import restore_tree
from cosmos_coherence.repository.tree_save import Saved, save_folder
from cosmos_coherence.storage.folder import FolderBackend
from support.trees import looks, odd_tree
from support.waiting import eventually

PASSWORD = "right-Horse-9"


def new(folder: Path) -> Repository:
    return Repository.init(FolderBackend(folder / "repository"), PASSWORD, generated=True)


def again(repository: Repository) -> Repository:
    return Repository(repository.backend, repository.opened, repository.config)


@pytest.fixture
def root(tmp_path: Path, rng: random.Random) -> Path:
    root = tmp_path / "root"
    root.mkdir()
    odd_tree(root)
    for number in range(30):
        folder = root / f"{number % 4}" / f"{number}"
        folder.mkdir(parents=True)
        for name in range(10):
            (folder / f"file-{name}").write_bytes(rng.randbytes(rng.randint(0, 9000)))
    (root / "3" / "large").write_bytes(rng.randbytes(4 << 20))
    (root / "empty" / "large").write_bytes(b"0123456789" * 300_000)
    return root


def in_processes(repository: Repository, root: Path, parent: Id | None = None) -> tuple[Saved, int]:
    """What was saved, and how many data blobs were new."""
    with Team(repository, 3) as team, repository.saver() as out:
        saved = save_folder(repository, out, root, parent=parent, team=team)
    return saved, out.added.data_blobs


def test_the_tree_is_the_same(tmp_path: Path, root: Path) -> None:
    repository = new(tmp_path)
    with repository.saver() as out:
        alone = save_folder(repository, out, root)
    (tmp_path / "other").mkdir()
    second = Repository(FolderBackend(tmp_path / "other" / "repository"), repository.opened, repository.config)
    second.backend.create()
    shutil_copy(tmp_path / "repository", tmp_path / "other" / "repository")
    together, added = in_processes(second, root)
    assert together == alone
    assert added >= out.added.data_blobs
    report = check(again(second), read_share=1)
    assert report.packs <= 3, "what was left over is in few packs"
    (tmp_path / "there").mkdir()
    restore_tree(again(second), together.tree, tmp_path / "there")
    assert looks(tmp_path / "there") == looks(root)


def shutil_copy(source: Path, target: Path) -> None:
    for name in ("config", "keys"):
        subprocess.run(["cp", "-a", source / name, target], check=True)


def test_what_is_unchanged_is_neither_read_nor_stored(
    tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository = new(tmp_path)
    first, _ = in_processes(repository, root)
    monkeypatch.setattr(FolderReader, "_small", None)
    monkeypatch.setattr(FolderReader, "large", None)
    second, added = in_processes(repository, root, first.tree)
    assert (second.tree, second.unchanged, added) == (first.tree, first.files, 0)
    assert second.size == first.size
    monkeypatch.undo()

    (root / "1" / "5" / "file-3").write_bytes(b"new")
    (root / "2" / "2" / "file-1").unlink()
    (root / "0" / "0" / "file-9").rename(root / "0" / "0" / "renamed")
    (root / "3" / "new").mkdir()
    (root / "empty" / "deep" / "er").rmdir()
    (root / "relative").unlink()
    os.setxattr(root / "0", "user.x", b"y")
    third, added = in_processes(repository, root, first.tree)
    assert (added, third.files - third.unchanged) == (1, 2)
    with again(repository).saver() as out:
        assert save_folder(again(repository), out, root).tree == third.tree
    (tmp_path / "there").mkdir()
    restore_tree(again(repository), third.tree, tmp_path / "there")
    assert looks(tmp_path / "there") == looks(root)


def test_a_file_whose_blob_has_got_lost_is_read_again(tmp_path: Path, root: Path) -> None:
    repository = new(tmp_path)
    first, added = in_processes(repository, root)
    forgetful = again(repository)
    lost: list[Blob] = []
    for place in repository.index:
        if place.blob.kind == "data" and len(lost) < 20:
            lost.append(place.blob)
        else:
            forgetful._index.add(place.pack, [place.blob])
    forgetful._index_loaded = True
    second, added = in_processes(forgetful, root, first.tree)
    assert second.tree == first.tree
    assert 20 <= added <= 25  # at times two processes have the same


def test_a_failure_in_a_process_is_its_own(tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(self: FolderReader, opened: int, name: bytes, reading: object) -> str:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(FolderReader, "_small", failing)
    with pytest.raises(errors.CaptureFailed, match=r" in .*root cannot be read: Permission denied"):
        in_processes(new(tmp_path), root)


def test_one_that_is_killed_fails_the_whole(tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    us = os.getpid()
    small = FolderReader._small

    def dying(self: FolderReader, opened: int, name: bytes, reading: object) -> str:
        if name == b"file-7" and os.getpid() != us:
            os.kill(os.getpid(), signal.SIGKILL)
        return small(self, opened, name, reading)  # type: ignore[arg-type]

    monkeypatch.setattr(FolderReader, "_small", dying)
    repository = new(tmp_path)
    with pytest.raises(errors.CosmosError, match="has died"):
        in_processes(repository, root)
    report = check(again(repository), read_share=1)
    assert report.sound, report.faults
    assert report.snapshots == 0


def test_they_are_ended_with_the_team(tmp_path: Path) -> None:
    repository = new(tmp_path)
    with Team(repository, 2) as team:
        pids = team.pids
        assert all(Path(f"/proc/{pid}").exists() for pid in pids)
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)


def test_they_end_when_we_are_killed(tmp_path: Path) -> None:
    new(tmp_path)
    program = (
        "import sys, time; from pathlib import Path\n"
        "from cosmos_coherence.repository.forked import Team\n"
        "from cosmos_coherence.repository.repository import Repository\n"
        "from cosmos_coherence.storage.folder import FolderBackend\n"
        f"team = Team(Repository.open(FolderBackend(Path({str(tmp_path / 'repository')!r})), {PASSWORD!r}), 3)\n"
        "print(*team.pids, flush=True); time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pids = [int(pid) for pid in parent.stdout.readline().split()]
        assert len(pids) == 3
        parent.kill()
    assert eventually(lambda: not any(_runs(pid) for pid in pids))


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_orders_larger_than_a_pipe_do_not_block(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    for number in range(3000):
        (root / ("x" * 200 + f"{number:04}")).mkdir()
    repository = new(tmp_path)
    began = time.monotonic()
    together, _ = in_processes(repository, root)
    assert together.folders == 3001
    assert time.monotonic() - began < 60


@pytest.mark.parametrize("size", [chunker.MIN_SIZE - 1, chunker.MIN_SIZE, chunker.MIN_SIZE + 1])
def test_sizes_around_one_blob(tmp_path: Path, size: int) -> None:
    root = tmp_path / "root"
    root.mkdir()
    (root / "file").write_bytes(os.urandom(size))
    repository = new(tmp_path)
    together, _ = in_processes(repository, root)
    with repository.saver() as out:
        assert save_folder(repository, out, root).tree == together.tree
    assert together.size == size


def test_a_pack_is_told_to_whom_wants_to_know(tmp_path: Path) -> None:
    repository = new(tmp_path)
    told: list[tuple[Id, Sequence[Blob]]] = []
    with repository.saver(workers=0, told=lambda pack, blobs: told.append((pack, blobs))) as out:
        blob = out.save("data", b"x" * 1000)
    ((_, blobs),) = told
    assert [each.id for each in blobs] == [blob]
    assert not list(repository.backend.list("index"))
