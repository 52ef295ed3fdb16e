"""The real restic judges what we write, and we read what it writes; both versions, both directions."""

from __future__ import annotations

import os
import random
import shutil
import signal
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cosmos_coherence import errors
from cosmos_coherence.drivers.folders import Folders
from cosmos_coherence.repository import copying, gotext, keys, locks, prune, small_files, trees
from cosmos_coherence.repository.check import check
from cosmos_coherence.repository.forked import Team
from cosmos_coherence.repository.reach import trees as reachable
from cosmos_coherence.repository.repository import Repository
from cosmos_coherence.repository.snapshots import Snapshot
from cosmos_coherence.repository.tree_restore import restore_tree
from cosmos_coherence.storage.backend import Kind
from cosmos_coherence.storage.folder import FolderBackend
from support.restic import PASSWORD, VERSIONS, Restic, contents, restic
from support.saving import Saved, save_ancestors, save_folder
from support.trees import looks, odd_tree

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="owners and trusted attributes need root")
STAMP = 1_700_000_000_123_456_700


@pytest.fixture(params=VERSIONS)
def referee(request: pytest.FixtureRequest, tmp_path: Path) -> Restic:
    return restic(request.param, tmp_path / "restic-home")


@pytest.fixture
def source(tmp_path: Path, rng: random.Random) -> Path:
    """A tree with everything in it, and files that are cut into several chunks."""
    root = tmp_path / "source"
    root.mkdir()
    odd_tree(root)
    os.removexattr(root / "dangling", "trusted.link", follow_symlinks=False)  # restic leaves those of links alone
    (root / "large").write_bytes(rng.randbytes(10 << 20) + b"0123456789" * 500_000 + bytes(9 << 20))
    (root / "<&>\u2028 ü 漢").write_text("markup")
    os.symlink(b"bad-\xff\xfe-target", os.fsencode(root) + b"/bad-target")  # noqa: PTH211
    os.mknod(root / "device", 0o600 | 0o020000, os.makedev(1, 3))
    return root


def ours(folder: Path) -> Repository:
    return Repository.init(FolderBackend(folder), PASSWORD, generated=True)


def back_up(repository: Repository, root: Path, stamp: int = STAMP) -> Saved:
    """One snapshot of ``root``, found under its full path as restic does it."""
    with repository.saver() as saver:
        saved = save_folder(repository, saver, root)
        top = save_ancestors(saver, root, saved.tree)
    snapshot = Snapshot(
        time=gotext.format_time(stamp),
        tree=top.hex(),
        paths=[str(root)],
        hostname="host",
        username="root",
        tags=["tag"],
        program_version="cosmos test",
    )
    repository.save_snapshot(snapshot)
    return saved


def in_processes(repository: Repository, root: Path) -> Saved:
    """As ``back_up``, with processes that read the small files."""
    with locks.acquire(repository, refresh=False, settle=False) as lock, Team(repository, 2) as team:
        lock.start_refreshing()
        with repository.saver() as saver:
            saved = save_folder(repository, saver, root, team=team)
            top = save_ancestors(saver, root, saved.tree)
        lock.ensure()
        repository.save_snapshot(
            Snapshot(time=gotext.format_time(STAMP), tree=top.hex(), paths=[str(root)], hostname="host")
        )
    return saved


def below(repository: Repository, snapshot: Snapshot, root: Path) -> bytes:
    """The tree of ``root`` in a snapshot that has it under its full path."""
    tree = snapshot.tree_id
    for step in os.fsencode(root).strip(b"/").split(b"/"):
        (node,) = [node for node in repository.load_tree(tree) if node.file_name == step]
        assert node.subtree is not None
        tree = bytes.fromhex(node.subtree)
    return tree


def same(
    found: dict[bytes, tuple[Any, ...]], wanted: dict[bytes, tuple[Any, ...]], *, but: tuple[bytes, ...] = ()
) -> None:
    assert sorted(found) == sorted(wanted)
    for path, entry in wanted.items():
        if path not in but:
            assert found[path] == entry, path


def test_it_lists_checks_and_restores_ours(tmp_path: Path, source: Path, referee: Restic) -> None:
    repository = ours(tmp_path / "repository")
    back_up(repository, source)
    (listed,) = referee.snapshots(tmp_path / "repository")
    assert (listed["hostname"], listed["tags"], listed["paths"]) == ("host", ["tag"], [str(source)])
    referee.check(tmp_path / "repository")
    referee.run(tmp_path / "repository", "restore", "latest", "--target", tmp_path / "restored")
    restored = tmp_path / "restored" / source.relative_to("/")
    # 0.14 does not know link targets that are not UTF-8.
    same(looks(restored), looks(source), but=(b"bad-target",) if referee.version == "0.14" else ())
    assert check(repository, read_share=1).sound


def test_it_checks_and_restores_what_processes_saved(tmp_path: Path, source: Path, referee: Restic) -> None:
    repository = ours(tmp_path / "repository")
    saved = in_processes(repository, source)
    with repository.saver() as saver:
        assert save_folder(repository, saver, source).tree == saved.tree
    referee.check(tmp_path / "repository")
    referee.run(tmp_path / "repository", "restore", "latest", "--target", tmp_path / "restored")
    restored = tmp_path / "restored" / source.relative_to("/")
    same(looks(restored), looks(source), but=(b"bad-target",) if referee.version == "0.14" else ())


def test_a_process_that_is_killed_leaves_no_snapshot_and_a_sound_repository(
    tmp_path: Path, source: Path, referee: Restic, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(200):
        (source / f"many-{number:03}").write_bytes(os.urandom(200_000))
    repository = ours(tmp_path / "repository")
    us, opened, left = os.getpid(), small_files.open_file, [110]

    def dying(folders: Folders, path: bytes) -> tuple[int, os.stat_result] | None:
        left[0] -= 1
        if not left[0] and os.getpid() != us:
            os.kill(os.getpid(), signal.SIGKILL)
        return opened(folders, path)

    monkeypatch.setattr(small_files, "open_file", dying)
    with pytest.raises(errors.CosmosError, match="has died"):
        in_processes(repository, source)
    assert list(repository.backend.list("data")), "packs were stored before"
    assert referee.snapshots(tmp_path / "repository") == []
    referee.check(tmp_path / "repository")
    monkeypatch.undo()
    in_processes(Repository.open(repository.backend, PASSWORD), source)
    referee.check(tmp_path / "repository")


def test_its_backup_on_top_of_ours_finds_every_file_unmodified(tmp_path: Path, source: Path, referee: Restic) -> None:
    repository = ours(tmp_path / "repository")
    back_up(repository, source)
    said = referee.run(tmp_path / "repository", "backup", "--host", "host", source)
    files = sum(1 for entry in looks(source).values() if (entry[0] & 0o170000) == 0o100000)
    assert f"0 new,     0 changed, {files:5d} unmodified" in said, said
    referee.check(tmp_path / "repository")
    report = check(Repository.open(repository.backend, PASSWORD), read_share=1)
    assert report.sound, report.faults
    assert report.snapshots == 2


def test_we_list_check_and_read_what_it_wrote(tmp_path: Path, source: Path, referee: Restic) -> None:
    where = tmp_path / "repository"
    if referee.version == "0.14":  # it loses link targets that are not UTF-8
        (source / "bad-target").unlink()
    referee.run(where, "init")
    referee.run(where, "backup", "--host", "host", "--tag", "a", source)
    repository = Repository.open(FolderBackend(where), PASSWORD)
    (listed,) = repository.snapshots()
    assert (listed.snapshot.hostname, listed.snapshot.tags) == ("host", ["a"])
    report = check(repository, read_share=1)
    assert report.sound, report.faults
    tree = below(repository, listed.snapshot, source)
    same(contents(repository, tree), looks(source))
    (tmp_path / "there").mkdir()
    restore_tree(repository, tree, tmp_path / "there", devices=True)
    same(looks(tmp_path / "there"), looks(source))
    for tree_id, nodes in reachable(repository.load_tree, [listed.snapshot.tree_id]):
        assert trees.encode(nodes) == bytes(repository.load_blob("tree", tree_id))

    # and ours goes into the same repository
    back_up(repository, source)
    referee.check(where)
    assert len(referee.snapshots(where)) == 2


def test_a_folder_becomes_the_same_tree_to_the_byte(tmp_path: Path, source: Path) -> None:
    # With this switch it writes ``device_id`` only for files with several names; we never do
    newer = restic("0.19", tmp_path / "restic-home", {"RESTIC_FEATURES": "device-id-for-hardlinks=true"})
    for other in ("large", "sparse", "only-a-hole", "hole-at-the-end", "a-second", "sub/third", "pipe"):
        (source / other).unlink()
    repository = ours(tmp_path / "repository")
    with repository.saver() as saver:
        saved = save_folder(repository, saver, source)
    newer.run(tmp_path / "repository", "backup", ".", cwd=source)
    (listed,) = repository.snapshots()
    assert listed.snapshot.tree == saved.tree.hex()


def test_it_prunes_and_copies_ours(tmp_path: Path, source: Path, referee: Restic) -> None:
    where, second = tmp_path / "repository", tmp_path / "second"
    repository = ours(where)
    back_up(repository, source, STAMP)
    first = repository.snapshots()[0]
    (source / "large").write_bytes(b"now small")
    (source / "nothing").write_bytes(os.urandom(3 << 20))
    wanted = looks(source)
    back_up(repository, source, STAMP + 10**12)
    referee.run(where, "forget", "--prune", "--max-unused", "0", first.id)
    referee.check(where)
    repository = Repository.open(repository.backend, PASSWORD)
    (left,) = repository.snapshots()
    same(contents(repository, below(repository, left.snapshot, source)), wanted)
    assert check(repository, read_share=1).sound

    ours(second)  # with a key that is quick to derive
    referee.run(second, "copy", "--from-repo", where)
    referee.check(second)
    copied = Repository.open(FolderBackend(second), PASSWORD)
    (listed,) = copied.snapshots()
    same(contents(copied, below(copied, listed.snapshot, source)), wanted)


class Dying(FolderBackend):
    """Does what changes it ``alive`` times, then nothing any more."""

    alive = 1 << 30

    def save(self, kind: Kind, name: str, content: Sequence[bytes | bytearray | memoryview]) -> None:
        self._live()
        super().save(kind, name, content)

    def remove(self, kind: Kind, name: str) -> None:
        self._live()
        super().remove(kind, name)

    def _live(self) -> None:
        self.alive -= 1
        if self.alive < 0:
            raise errors.BackendUnavailable("dead")


def prune_ours(repository: Repository) -> prune.Plan:
    with locks.acquire(repository, exclusive=True) as lock:
        planned = prune.plan(repository, max_unused=0)
        prune.apply(repository, planned, lock)
    return planned


def two_states(where: Path, source: Path) -> tuple[Repository, Snapshot]:
    """A repository from whose two snapshots the first was forgotten, and the other one."""
    repository = ours(where)
    back_up(repository, source, STAMP)
    (first,) = repository.snapshots()
    (source / "large").write_bytes(b"now small")
    (source / "nothing").write_bytes(os.urandom(2 << 20))
    back_up(repository, source, STAMP + 10**12)
    repository.remove_snapshot(first.id)
    (left,) = repository.snapshots()
    return repository, left.snapshot


def test_it_judges_our_prune_and_copy(tmp_path: Path, source: Path, referee: Restic) -> None:
    where, second = tmp_path / "repository", tmp_path / "second"
    repository, left = two_states(where, source)
    referee.run(where, "backup", "--host", "host", source)  # its packs are among what is pruned
    planned = prune_ours(Repository.open(repository.backend, PASSWORD))
    assert planned.repack
    assert planned.freed_size > 10 << 20
    referee.check(where)
    repository = Repository.open(repository.backend, PASSWORD)
    same(contents(repository, below(repository, left, source)), looks(source))
    assert check(repository, read_share=1).unused_packs == 0

    target = ours(second)
    copying.copy(repository, target, [each.id for each in repository.snapshots()])
    referee.check(second)
    assert [each["paths"] for each in referee.snapshots(second)] == [[str(source)]] * 2


def test_our_prune_killed_at_every_step(tmp_path: Path, source: Path) -> None:
    newer = restic("0.19", tmp_path / "restic-home")
    begin = tmp_path / "begin"
    _, left = two_states(begin, source)
    wanted = looks(source)
    for step in range(100):
        where = tmp_path / f"killed-{step}"
        shutil.copytree(begin, where)
        repository = Repository.open(Dying(where), PASSWORD)
        assert isinstance(repository.backend, Dying)
        repository.backend.alive = step
        try:
            prune_ours(repository)
            done = repository.backend.alive >= 0  # else it died letting go of the lock
        except errors.BackendUnavailable:
            done = False
        locks.unlock(Repository.open(FolderBackend(where), PASSWORD), every=True)
        newer.check(where)
        if done:
            break
        shutil.rmtree(where)
    assert step > 6
    repository = Repository.open(FolderBackend(where), PASSWORD)
    same(contents(repository, below(repository, left, source)), wanted)


def test_locks_are_seen_by_both(tmp_path: Path, referee: Restic) -> None:
    where = tmp_path / "repository"
    repository = ours(where)
    with locks.acquire(repository, exclusive=True):
        assert "locked exclusively" in referee.run(where, "snapshots", fails=True)
    with locks.acquire(repository):
        assert referee.snapshots(where) == []
        assert "locked" in referee.run(where, "prune", fails=True)
    referee.run(where, "prune")
    assert not locks.held(repository)


def test_keys_open_for_both(tmp_path: Path, referee: Restic) -> None:
    where = tmp_path / "repository"
    repository = ours(where)
    other = "another-Horse-7"
    keys.create(repository.backend, other, repository.key, generated=True)
    (tmp_path / "new").write_text("its-own-Horse-5\n")
    replace(referee, environment={"RESTIC_PASSWORD": other}).run(where, "cat", "config")
    referee.run(where, "key", "add", "--new-password-file", tmp_path / "new")
    opened = Repository.open(repository.backend, "its-own-Horse-5")
    assert opened.config == repository.config
    changed = keys.change_password(repository.backend, opened.opened, "changed-Horse-3", generated=True)
    assert changed.master == repository.key
    replace(referee, environment={"RESTIC_PASSWORD": "changed-Horse-3"}).run(where, "cat", "config")
