"""Trees onto the disk: compared with what was saved, and trees that mean harm."""

from __future__ import annotations

import os
import random
import signal
import stat
import threading
import time
from pathlib import Path
from typing import Any, ClassVar

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cosmos_coherence import errors
from cosmos_coherence.repository import tree_restore, trees
from cosmos_coherence.repository.crypto import Buffer
from cosmos_coherence.repository.repository import Repository
from cosmos_coherence.repository.restore_plan import File
from cosmos_coherence.repository.restore_write import Places
from cosmos_coherence.repository.tree_restore import restore_tree
from cosmos_coherence.repository.trees import Node
from cosmos_coherence.storage.folder import FolderBackend
from support.memory_backend import MemoryBackend
from support.saving import save_folder
from support.trees import looks, odd_tree, plant, public_folder, random_trees, sparse

PASSWORD = "right-Horse-9"
WAYS = pytest.mark.parametrize("forked", [True, False])


def new(folder: Path) -> Repository:
    return Repository.init(FolderBackend(folder / "repository"), PASSWORD, generated=True)


def saved(repository: Repository, root: Path) -> bytes:
    with repository.saver() as out:
        return save_folder(repository, out, root).tree


def tree_of(repository: Repository, *nodes: Node) -> bytes:
    with repository.saver(workers=0) as out:
        return out.save("tree", trees.encode(nodes))


def blob(repository: Repository, content: bytes) -> str:
    with repository.saver(workers=0) as out:
        return out.save("data", content).hex()


def file(name: bytes, content: list[str], size: int, **fields: Any) -> Node:
    return trees.node(
        name, "file", **{"mode": 0o644, "uid": os.getuid(), "gid": os.getgid(), **fields}, size=size, content=content
    )


@pytest.fixture
def target(tmp_path: Path) -> Path:
    (tmp_path / "target").mkdir()
    return tmp_path / "target"


@WAYS
def test_what_was_saved_comes_back(tmp_path: Path, target: Path, rng: random.Random, forked: bool) -> None:
    root = tmp_path / "root"
    root.mkdir()
    odd_tree(root)
    large = rng.randbytes(20 << 20)
    (root / "large").write_bytes(large)
    (root / "empty" / "large-again").write_bytes(b"shifted" + large)
    sparse(root / "holes", 40 << 20, {(9 << 20) + 5: large[:100_000], 30 << 20: b"x"})
    repository = new(tmp_path)
    restored = restore_tree(repository, saved(repository, root), target, forked=forked)
    wanted = looks(root)
    assert looks(target) == wanted
    assert restored.unset == restored.kept == 0
    assert restored.files == sum(stat.S_ISREG(entry[0]) for entry in wanted.values())
    assert restored.folders == sum(stat.S_ISDIR(entry[0]) for entry in wanted.values())
    assert (target / "holes").stat().st_blocks * 512 < 2 << 20
    with pytest.raises(errors.Refused, match="not empty"):
        restore_tree(repository, saved(repository, root), target)


@given(tree=random_trees, seed=st.integers(0, 1000), forked=st.booleans())
@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
def test_any_tree_comes_back(tree: dict[bytes, Any], seed: int, forked: bool) -> None:
    with public_folder() as folder:
        root, there = folder / "root", folder / "there"
        root.mkdir()
        there.mkdir()
        plant(root, tree, seed)
        repository = new(folder)
        restore_tree(repository, saved(repository, root), there, forked=forked)
        assert looks(there) == looks(root)


@WAYS
def test_what_is_as_it_was_is_not_written_again(tmp_path: Path, target: Path, forked: bool) -> None:
    root = tmp_path / "root"
    (root / "sub").mkdir(parents=True)
    for name in ("a", "b", "sub/c"):
        (root / name).write_bytes(name.encode() * 1000)
    (root / "large").write_bytes(os.urandom(3 << 20))
    (root / "link").symlink_to("a")
    repository = new(tmp_path)
    tree = saved(repository, root)
    restore_tree(repository, tree, target)
    before = {path.name: path.stat().st_ino for path in target.rglob("*") if path.is_file()}
    (target / "a").write_text("other")
    (target / "large").unlink()
    (target / "large").symlink_to("/etc/hostname")
    (target / "link").unlink()
    (target / "link").write_text("a file")
    (target / "sub" / "c").chmod(0o600)
    (target / "extra").write_text("stays")
    outside = Path("/etc/hostname").read_bytes()
    restored = restore_tree(repository, tree, target, existing=True, forked=forked)
    assert (restored.files, restored.kept) == (4, 2)
    assert (target / "b").stat().st_ino == before["b"]
    assert (target / "sub" / "c").stat().st_ino == before["c"]
    assert (target / "extra").read_text() == "stays"
    (target / "extra").unlink()
    assert looks(target) == looks(root)
    assert Path("/etc/hostname").read_bytes() == outside


def test_a_link_in_the_place_of_a_folder_is_replaced(tmp_path: Path, target: Path) -> None:
    root, outside = tmp_path / "root", tmp_path / "outside"
    (root / "sub").mkdir(parents=True)
    outside.mkdir()
    (root / "sub" / "file").write_text("x")
    (target / "sub").symlink_to(outside)
    repository = new(tmp_path)
    restore_tree(repository, saved(repository, root), target, existing=True)
    assert list(outside.iterdir()) == []
    assert not (target / "sub").is_symlink()
    assert looks(target) == looks(root)


@WAYS
def test_a_damaged_pack_stops_it_unless_another_has_the_blob(tmp_path: Path, target: Path, forked: bool) -> None:
    root = tmp_path / "root"
    root.mkdir()
    for number in range(20):
        (root / f"file-{number:02}").write_bytes(os.urandom(50_000))
    repository = new(tmp_path)
    tree = saved(repository, root)
    packs = {place.pack for place in repository.index if place.blob.kind == "data"}
    (path,) = [tmp_path / "repository" / "data" / pack.hex()[:2] / pack.hex() for pack in packs]
    whole = path.read_bytes()
    path.chmod(0o600)
    path.write_bytes(whole[:100_000] + bytes([whole[100_000] ^ 1]) + whole[100_001:])
    with pytest.raises(errors.Damaged):
        restore_tree(repository, tree, target, forked=forked)
    second = Repository(repository.backend, repository.opened, repository.config)
    second._index_loaded = True  # knows no blob, so it stores all of them again
    with second.saver() as out:
        save_folder(second, out, root)
    for left in target.iterdir():
        left.unlink()
    repository.refresh_index()
    restore_tree(repository, tree, target, forked=forked)
    assert looks(target) == looks(root)


def test_every_pack_is_read_once(target: Path, tmp_path: Path) -> None:
    class Counting(MemoryBackend):
        reads: ClassVar[dict[str, int]] = {}

        def load(self, kind: Any, name: str, offset: int = 0, length: int | None = None) -> bytes:
            if kind == "data":
                self.reads[name] = self.reads.get(name, 0) + 1
            return super().load(kind, name, offset, length)

    root = tmp_path / "root"
    root.mkdir()
    for number in range(50):
        (root / f"file-{number}").write_bytes(os.urandom(10_000))
    repository = Repository.init(Counting(), PASSWORD, generated=True)
    tree = saved(repository, root)
    Counting.reads.clear()
    restore_tree(repository, tree, target, forked=False)
    assert set(Counting.reads.values()) == {1}
    assert looks(target) == looks(root)


# -------------------------------------------------------------------------------------------------- hostile
def test_a_tree_that_would_write_elsewhere_writes_nothing(tmp_path: Path, target: Path) -> None:
    repository = new(tmp_path)
    content = blob(repository, b"x")
    for name in ("..", ".", "a/b", "/etc/x", "a\0b", ""):
        node = file(b"ok", [content], 1)
        node.name = name
        with repository.saver(workers=0) as out:
            written = '{"nodes":[' + trees._encode(node, name.encode()) + "]}\n"
            tree = out.save("tree", written.encode())
        with pytest.raises(errors.Damaged):
            restore_tree(repository, tree, target)
    assert not list(target.iterdir())


def test_contradictions_are_found_before_anything_is_written(tmp_path: Path, target: Path) -> None:
    repository = new(tmp_path)
    content = blob(repository, b"12345")
    good = file(b"a", [content], 5)
    for bad in (
        file(b"b", [content], 1 << 60),
        file(b"b", [content], 4),
        file(b"b", [], 4),
        file(b"b", ["ab" * 32], 4),
        file(b"b", [content], 5, uid=(1 << 32) - 1),
        trees.node(b"b", "dir"),
        trees.node(b"b", "dir", subtree="ab" * 32),
        trees.node(b"b", "chardev", device=os.makedev(1, 3)),
        trees.node(b"b", "dev", device=os.makedev(8, 0)),
    ):
        with pytest.raises(errors.Damaged):
            restore_tree(repository, tree_of(repository, good, bad), target)
        assert not list(target.iterdir()), bad


def test_a_bottomless_tree_is_refused(tmp_path: Path, target: Path) -> None:
    repository = new(tmp_path)
    tree = tree_of(repository)
    with repository.saver(workers=0) as out:
        for _ in range(1000):
            tree = out.save("tree", trees.encode([trees.node(b"d", "dir", mode=1 << 31 | 0o755, subtree=tree.hex())]))
    with pytest.raises(errors.Hostile, match="deep"):
        restore_tree(repository, tree, target)
    assert not list(target.iterdir())


def test_what_only_claims_to_be_a_hard_link_is_a_file_of_its_own(tmp_path: Path, target: Path) -> None:
    repository = new(tmp_path)
    one, two = blob(repository, b"one"), blob(repository, b"two")
    tree = tree_of(
        repository,
        *(file(name, [content], 3, inode=7, links=2) for name, content in ((b"a", one), (b"b", two), (b"c", one))),
    )
    restore_tree(repository, tree, target)
    assert [(target / name).read_text() for name in "abc"] == ["one", "two", "one"]
    assert (target / "a").stat().st_ino == (target / "c").stat().st_ino != (target / "b").stat().st_ino


@pytest.mark.skipif(os.geteuid() != 0, reason="devices need root")
def test_devices_are_made_on_request(tmp_path: Path, target: Path) -> None:
    repository = new(tmp_path)
    tree = tree_of(repository, trees.node(b"null", "chardev", mode=1 << 26 | 1 << 21 | 0o666, device=os.makedev(1, 3)))
    restore_tree(repository, tree, target, devices=True)
    found = (target / "null").stat()
    assert stat.S_ISCHR(found.st_mode)
    assert (found.st_rdev, stat.S_IMODE(found.st_mode)) == (os.makedev(1, 3), 0o666)


def test_a_process_that_is_killed_fails_it(tmp_path: Path, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "root"
    root.mkdir()
    for number in range(50):
        (root / f"file-{number:02}").write_bytes(os.urandom(1000))
    repository = new(tmp_path)
    tree = saved(repository, root)
    us, whole = os.getpid(), Places.whole

    def dying(self: Places, file: File, content: Buffer) -> None:
        if file.path == b"file-25" and os.getpid() != us:
            os.kill(os.getpid(), signal.SIGKILL)
        whole(self, file, content)

    monkeypatch.setattr(Places, "whole", dying)
    with pytest.raises(errors.RestoreFailed, match="has died"):
        restore_tree(repository, tree, target)
    monkeypatch.undo()
    restore_tree(repository, tree, target, existing=True)
    assert looks(target) == looks(root)


def test_what_is_written_goes_to_the_disk_meanwhile(
    tmp_path: Path, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "root"
    root.mkdir()
    for number in range(50):
        (root / f"file-{number:02}").write_bytes(os.urandom(1000))
    repository = new(tmp_path)
    tree = saved(repository, root)
    there: list[int] = []
    sync, whole = Places.sync, Places.whole

    def counting(self: Places) -> None:
        sync(self)
        there.append(len(list(target.iterdir())))

    def slow(self: Places, file: File, content: Buffer) -> None:
        whole(self, file, content)
        time.sleep(0.01)

    monkeypatch.setattr(tree_restore, "_SYNC_MS", 20)
    monkeypatch.setattr(Places, "sync", counting)
    monkeypatch.setattr(Places, "whole", slow)
    restore_tree(repository, tree, target)
    assert len(there) > 2
    assert there[-1] == 50
    assert looks(target) == looks(root)


@WAYS
def test_what_the_system_refuses_is_named(tmp_path: Path, target: Path, forked: bool) -> None:
    root = tmp_path / "root"
    root.mkdir()
    (root / "name").write_text("x")
    repository = new(tmp_path)
    tree = saved(repository, root)
    (target / "name").mkdir()
    with pytest.raises(errors.RestoreFailed, match=r"name in .* cannot be written"):
        restore_tree(repository, tree, target, existing=True, forked=forked)
    with pytest.raises(errors.RestoreFailed, match="nowhere"):
        restore_tree(repository, tree, tmp_path / "nowhere")


def test_beside_another_thread_nobody_forks(
    tmp_path: Path, target: Path, rng: random.Random, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "root"
    root.mkdir()
    odd_tree(root)
    repository = new(tmp_path)
    tree = saved(repository, root)
    over = threading.Event()
    other = threading.Thread(target=over.wait, daemon=True)
    other.start()
    monkeypatch.setattr(os, "fork", None)
    try:
        restore_tree(repository, tree, target)
    finally:
        over.set()
        other.join()
    assert looks(target) == looks(root)
