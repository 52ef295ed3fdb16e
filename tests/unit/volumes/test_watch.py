"""What the kernel tells is enough to know the size of a tree to the byte; where it is not, the tree is walked."""

from __future__ import annotations

import contextlib
import errno
import os
import pickle
import random
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import inotify_simple
import pytest

from cosmos_coherence.drivers import disk
from cosmos_coherence.volumes import watch as watching
from cosmos_coherence.volumes.ledger import Ledger
from cosmos_coherence.volumes.usage import measure_tree
from cosmos_coherence.volumes.walk import Walk
from cosmos_coherence.volumes.walkers import count_tree
from cosmos_coherence.volumes.watch import TreeWatch


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "root"
    for number in range(12):
        folder = root / f"d{number % 3}" / f"e{number}"
        folder.mkdir(parents=True)
        for each in range(100):
            (folder / f"{each}").write_bytes(bytes(each * 97))
    os.sync()
    return root


@pytest.fixture
def watch(root: Path) -> Iterator[TreeWatch]:
    with TreeWatch(root) as watch:
        assert watch.measure().walked == "the first time"
        yield watch


def equal(watch: TreeWatch, root: Path) -> None:
    """By notification, and to the byte what a walk finds, and what ``du`` finds."""
    os.sync()
    found = watch.measure()
    assert found.how == "by notification"
    assert found.usage == measure_tree(root)
    said = subprocess.run(["du", "-s", "-x", "--block-size=1", str(root)], capture_output=True, check=True).stdout
    assert found.usage.bytes == int(said.split()[0])


def storm(root: Path, chance: random.Random, rounds: int, *, links: bool) -> None:
    """Whatever can be done to a tree; with ``links`` also what nobody tells of, should one come, be written and go."""
    aside = root.parent / "aside"
    aside.mkdir(exist_ok=True)
    folders = [root, *(path for path in root.rglob("*") if path.is_dir())]
    for number in range(rounds):
        folder, other = chance.choice(folders), chance.choice(folders)
        if not folder.is_dir() or not other.is_dir():
            continue
        files = [path for path in folder.iterdir() if not path.is_dir()]
        file = chance.choice(files) if files else folder / "first"
        try:
            match chance.randrange(12):
                case 0 | 1:
                    file.write_bytes(bytes(chance.randrange(100_000)))
                case 2:
                    with file.open("ab") as appending:
                        appending.write(bytes(chance.randrange(50_000)))
                case 3:
                    file.unlink(missing_ok=True)
                case 4 if file.exists():
                    file.rename(other / f"moved{number}")
                case 5 if links and file.exists():
                    os.link(file, other / f"linked{number}", follow_symlinks=False)
                case 6:
                    (other / f"new{number}" / "below").mkdir(parents=True)
                    folders += [other / f"new{number}", other / f"new{number}/below"]
                    (other / f"new{number}/below/content").write_bytes(bytes(9000))
                case 7 if folder not in (root, other) and not other.is_relative_to(folder):
                    folder.rename(other / f"folder{number}")
                    folders.append(other / f"folder{number}")
                case 8 if folder != root:
                    away = aside / f"{number}-{time.monotonic_ns()}"
                    folder.rename(away)
                    if chance.random() < 0.6:
                        away.rename(other / f"back{number}") if other.is_dir() else None
                        folders.append(other / f"back{number}")
                case 9 if folder != root and chance.random() < 0.3:
                    subprocess.run(["rm", "-r", folder], check=True)
                case 10:
                    with (folder / f"hole{number}").open("wb") as sparse:
                        sparse.truncate(1 << 24)
                        sparse.seek(chance.randrange(1 << 23))
                        sparse.write(b"x" * 5000)
                case 11:
                    with contextlib.suppress(FileExistsError):
                        (folder / f"s{number}").symlink_to("nowhere" * chance.randrange(1, 30))
        except OSError as error:
            if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):  # a name that an earlier turn has made
                raise


@pytest.mark.soak
@pytest.mark.parametrize("turn", range(60))
def test_any_storm(watch: TreeWatch, root: Path, rng: random.Random, turn: int) -> None:
    for _ in range(4):
        storm(root, rng, 60 + 40 * (turn % 6), links=False)
        equal(watch, root)


@pytest.mark.parametrize("turn", range(6))
def test_a_storm(watch: TreeWatch, root: Path, turn: int) -> None:
    rng = random.Random(200 + turn)
    for _ in range(4):
        storm(root, rng, 60 + 40 * turn, links=True)
        equal(watch, root)


def test_hard_links_come_and_go(watch: TreeWatch, root: Path) -> None:
    first, far = root / "d0/e0/99", root / "d1/e1/link"
    os.link(first, far)
    equal(watch, root)
    far.write_bytes(bytes(300_000))  # through the other name
    equal(watch, root)
    os.link(far, root / "third")
    first.unlink()
    equal(watch, root)
    far.unlink()
    equal(watch, root)
    (root / "third").write_bytes(b"")
    equal(watch, root)
    (root / "third").unlink()
    equal(watch, root)


def test_a_folder_in_the_place_of_another(watch: TreeWatch, root: Path) -> None:
    """Names that were written to are looked at again, also when their folder is a new one, which is listed whole."""
    folder = root / "d0/e0"
    (folder / "7").write_bytes(bytes(30_000))
    equal(watch, root)
    folder.rename(root / "d1/moved")
    folder.mkdir()
    (folder / "7").write_bytes(bytes(40_000))
    (folder / "8").write_bytes(bytes(50_000))
    equal(watch, root)


def test_a_name_outside(watch: TreeWatch, root: Path) -> None:
    os.link(root / "d0/e0/50", root.parent / "outside")
    equal(watch, root)
    os.link(root.parent / "outside", root / "inside")
    equal(watch, root)


def test_open_files_and_holes(watch: TreeWatch, root: Path) -> None:
    with (root / "d0/data").open("wb") as file:
        for _ in range(3):
            file.write(bytes(200_000))
            file.flush()
            equal(watch, root)
        os.posix_fallocate(file.fileno(), 0, 4 << 20)
        equal(watch, root)
        file.truncate(4096)
        equal(watch, root)


def test_many_names_of_one_folder(watch: TreeWatch, root: Path) -> None:
    for number in range(500):
        (root / "d0/e0" / f"new{number}").write_bytes(b"x" * number)
    for number in range(50):
        (root / "d0/e0" / f"{number}").unlink()
    equal(watch, root)


def test_names_that_are_no_text(watch: TreeWatch, root: Path) -> None:
    odd = Path(os.fsdecode(os.fsencode(root) + b"/\xff\n\x80"))
    odd.mkdir()
    equal(watch, root)
    (odd / os.fsdecode(b"\xfe")).write_bytes(bytes(7000))
    equal(watch, root)


def test_deeper_than_a_path_may_be_long(watch: TreeWatch, root: Path) -> None:
    folder = os.open(root, os.O_RDONLY)
    for _ in range(30):
        os.mkdir("n" * 200, dir_fd=folder)
        below = os.open("n" * 200, os.O_RDONLY, dir_fd=folder)
        os.close(folder)
        folder = below
    equal(watch, root)
    file = os.open("content", os.O_CREAT | os.O_WRONLY, dir_fd=folder)
    os.write(file, bytes(50_000))
    os.close(file)
    os.close(folder)
    equal(watch, root)


def test_a_queue_that_ran_over_means_a_walk_and_then_notification_again(watch: TreeWatch, root: Path) -> None:
    most = int(Path("/proc/sys/fs/inotify/max_queued_events").read_text())
    with watch._lock:  # so that nobody empties it
        for number in range(most // 3 + 10):
            (root / f"f{number % 500}").write_bytes(bytes(number % 9000))
            if number % 3:
                (root / f"f{number % 500}").unlink()
    os.sync()
    found = watch.measure()
    assert found.walked == "the queue of notifications ran over"
    assert found.usage == measure_tree(root)
    (root / "later").write_bytes(bytes(12345))
    equal(watch, root)


def test_more_than_is_remembered(watch: TreeWatch, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watching, "_MOST", 50)
    for number in range(100):
        (root / f"{number}").touch()
    assert watch.measure().walked == "more has changed than is remembered"
    equal(watch, root)


def test_a_root_that_was_replaced(watch: TreeWatch, root: Path) -> None:
    root.rename(root.parent / "old")
    root.mkdir()
    (root / "only").write_bytes(bytes(5000))
    found = watch.measure()
    assert (found.walked, found.usage.files) == ("the folder was replaced", 1)
    equal(watch, root)
    subprocess.run(["rm", "-r", root], check=True)
    with pytest.raises(FileNotFoundError):
        watch.measure()
    root.mkdir()
    assert watch.measure().usage.files == 0


def test_where_others_may_write_unseen_it_walks(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk, "_LOCAL", frozenset())
    with TreeWatch(root) as watch:
        for _ in range(2):
            found = watch.measure()
            assert found.how == "by walk (others may change this file system unseen)"
            assert found.usage == measure_tree(root)


def test_more_folders_than_may_be_watched(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The limit is the whole machine's, which is not ours to set."""
    add, added = inotify_simple.INotify.add_watch, []

    def few(notify: inotify_simple.INotify, path: bytes, mask: int) -> int:
        added.append(path)
        if len(added) > 5:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return int(add(notify, path, mask))

    monkeypatch.setattr(inotify_simple.INotify, "add_watch", few)
    with TreeWatch(root) as watch:
        found = watch.measure()
        assert "watches no more folders" in found.how
        assert found.usage == measure_tree(root)


def test_more_trees_than_may_be_watched(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**_: object) -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(inotify_simple, "INotify", refuse)
    with TreeWatch(root) as watch:
        found = watch.measure()
        assert "watches no more trees" in found.how
        assert found.usage == measure_tree(root)


def test_forked_walkers_notice_too(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = watching.tell_all
    monkeypatch.setattr(watching, "tell_all", lambda *given: told(*given, large=1))
    os.link(root / "d0/e0/7", root / "d1/e1/link")
    os.link(root / "d0/e0/7", root / "d2/e2/link")
    with TreeWatch(root) as watch:
        assert watch.measure().usage == count_tree(root).usage
        for folder in root.rglob("e*"):
            (folder / "new").write_bytes(bytes(5000))
            (folder / "3").write_bytes(bytes(50_000))
            (folder / "4").unlink()
        equal(watch, root)


def test_what_two_processes_know_of_a_folder_is_put_together_in_any_order(root: Path) -> None:
    """One knows the folder itself, which it gave away; the other what is in it."""
    for turn in (0, 1):
        whole, itself, inside = Ledger(), Ledger(), Ledger()
        itself.folder(b"", 8)
        with contextlib.closing(Walk(root / "d0/e0", inside)) as walk:
            walk.todo.append(b"")
            walk.step()
        for each in (itself, inside)[:: 1 if turn else -1]:
            whole.merge(pickle.loads(pickle.dumps(each)))
        assert whole.records[b""].own == 8
        assert len(whole.records[b""].names) == 100


def test_what_left_the_tree_is_watched_no_more(watch: TreeWatch, root: Path) -> None:
    (root / "d0").rename(root.parent / "d0")
    equal(watch, root)
    (root.parent / "d0/e0/0").write_bytes(bytes(5000))
    equal(watch, root)
    assert watch._ledger is not None
    assert set(watch._ledger.paths.values()) == set(watch._ledger.records)
