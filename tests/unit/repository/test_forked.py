"""Small files read by processes beside us: the same tree, and no backup when one of them dies."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from cosmos_coherence import errors
from cosmos_coherence.drivers.folders import Folders
from cosmos_coherence.repository import chunker, packs, small_files
from cosmos_coherence.repository.blob import Blob, Id
from cosmos_coherence.repository.check import check
from cosmos_coherence.repository.forked import Team
from cosmos_coherence.repository.repository import Repository
from cosmos_coherence.repository.tree_restore import restore_tree
from cosmos_coherence.repository.tree_writer import NOTHING, Before
from cosmos_coherence.storage.folder import FolderBackend
from support.saving import Saved, save_folder
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


def in_processes(repository: Repository, root: Path, before: Before = NOTHING) -> tuple[Saved, int]:
    """What was saved, and how many data blobs were new."""
    with Team(repository, 3) as team, repository.saver() as out:
        saved = save_folder(repository, out, root, before=before, team=team)
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
    assert (together.tree, together.part.fingerprint) == (alone.tree, alone.part.fingerprint)
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
    monkeypatch.setattr(small_files, "open_file", None)
    second, added = in_processes(repository, root, first.state)
    assert (second.tree, second.part.fingerprint, added) == (first.tree, first.part.fingerprint, 0)
    monkeypatch.undo()

    (root / "1" / "5" / "file-3").write_bytes(b"new")
    (root / "2" / "2" / "file-1").unlink()
    (root / "0" / "0" / "file-9").rename(root / "0" / "0" / "renamed")
    (root / "3" / "new").mkdir()
    (root / "empty" / "deep" / "er").rmdir()
    (root / "relative").unlink()
    (root / "3" / "large").write_bytes(b"small now")
    os.setxattr(root / "0", "user.x", b"y")
    third, added = in_processes(repository, root, first.state)
    assert added == 2
    with again(repository).saver() as out:
        assert save_folder(again(repository), out, root).tree == third.tree
    (tmp_path / "there").mkdir()
    restore_tree(again(repository), third.tree, tmp_path / "there")
    assert looks(tmp_path / "there") == looks(root)


def test_a_failure_in_a_process_is_its_own(tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    us, opened = os.getpid(), small_files.open_file

    def failing(folders: Folders, path: bytes) -> tuple[int, os.stat_result] | None:
        if os.getpid() == us:
            return opened(folders, path)
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(small_files, "open_file", failing)
    with pytest.raises(errors.CaptureFailed, match=r" in .*root cannot be read: Permission denied"):
        in_processes(new(tmp_path), root)


def test_one_that_is_killed_fails_the_whole(tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    us, opened = os.getpid(), small_files.open_file

    def dying(folders: Folders, path: bytes) -> tuple[int, os.stat_result] | None:
        if path.endswith(b"file-7") and os.getpid() != us:
            os.kill(os.getpid(), signal.SIGKILL)
        return opened(folders, path)

    monkeypatch.setattr(small_files, "open_file", dying)
    repository = new(tmp_path)
    with pytest.raises(errors.CosmosError, match="has died"):
        in_processes(repository, root)
    report = check(again(repository), read_share=1)
    assert report.sound, report.faults
    assert report.snapshots == 0


@pytest.mark.parametrize("team", [True, False])
def test_what_changes_under_the_reader_is_as_long_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, team: bool
) -> None:
    root = tmp_path / "root"
    root.mkdir()
    for number in range(100):
        (root / f"{number:03}").write_bytes(b"x" * 50)
    paths = [b"%03d" % number for number in range(100)]
    opened = small_files.open_file

    def shrinking(folders: Folders, path: bytes) -> tuple[int, os.stat_result] | None:
        found = opened(folders, path)
        os.truncate(root / os.fsdecode(path), 20)
        return found

    monkeypatch.setattr(small_files, "open_file", shrinking)
    repository = new(tmp_path)
    plain: list[bytes] = []

    def save(data: memoryview) -> str:
        plain.append(bytes(data))
        return "ab" * 32

    if team:
        with Team(repository, 2) as processes, repository.saver() as out:
            sizes = {each.found.size for each in processes.copied(root, paths, out)}
    else:
        sizes = {each.found.size for each in small_files.copied(root, paths, save)}
        assert set(plain) == {b"x" * 20 + bytes(30)}
    assert sizes == {50}


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
    root = tmp_path / "root" / ("y" * 200) / ("z" * 200) / ("w" * 200)
    root.mkdir(parents=True)
    for number in range(3000):
        (root / ("x" * 200 + f"{number:04}")).touch()
    together, _ = in_processes(new(tmp_path), tmp_path / "root")
    assert together.files == 3000


@pytest.mark.parametrize("size", [chunker.MIN_SIZE - 1, chunker.MIN_SIZE, chunker.MIN_SIZE + 1])
def test_sizes_around_one_blob(tmp_path: Path, size: int) -> None:
    root = tmp_path / "root"
    root.mkdir()
    (root / "file").write_bytes(os.urandom(size))
    repository = new(tmp_path)
    together, _ = in_processes(repository, root)
    with repository.saver() as out:
        assert save_folder(repository, out, root).tree == together.tree
    assert together.part.files[0].size == size


def test_a_pack_is_told_to_whom_wants_to_know(tmp_path: Path) -> None:
    repository = new(tmp_path)
    told: list[tuple[Id, Sequence[Blob]]] = []
    with repository.saver(workers=0, told=lambda pack, blobs: told.append((pack, blobs))) as out:
        blob = out.save("data", b"x" * 1000)
    ((_, blobs),) = told
    assert [each.id for each in blobs] == [blob]
    assert not list(repository.backend.list("index"))


def test_settling_stores_only_what_is_worth_a_pack(tmp_path: Path, rng: random.Random) -> None:
    repository = new(tmp_path)
    told: list[Id] = []
    with repository.saver(workers=0, told=lambda pack, blobs: told.append(pack)) as out:
        small = out.save("data", rng.randbytes(1000))
        out.settle()
        assert not told
        large = [out.save("data", rng.randbytes(1 << 20)) for _ in range(5)]
        out.settle()
        (pack,) = told
        size = next(stored.size for stored in repository.backend.list("data"))
        header = packs.read_header(repository.backend, pack, size, repository.envelope().sealer)
        assert {each.id for each in header} == {small, *large}
        assert not list(out.leave())


def test_what_is_left_is_settled_before_the_end(tmp_path: Path, rng: random.Random) -> None:
    root = tmp_path / "root"
    root.mkdir()
    for number in range(300):
        (root / f"{number}").write_bytes(rng.randbytes(60_000))
    repository = new(tmp_path)
    in_processes(repository, root)
    large = [stored.size for stored in repository.backend.list("data") if stored.size > 4 << 20]
    assert len(large) > 1, "what is left goes into one pack unless the processes have stored their own"
    assert not check(again(repository), read_share=1).faults
