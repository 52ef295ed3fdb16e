"""What the kernel tells, against a walk that looks at everything."""

from __future__ import annotations

import mmap
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cosmos_coherence.drivers import disk, open_files
from cosmos_coherence.drivers.folders import Folders
from cosmos_coherence.sources import tree_scan
from cosmos_coherence.sources.tree_scan import Scan
from cosmos_coherence.sources.tree_watch import Watch
from support.storm import writing

WATCHES: list[Watch] = []


@pytest.fixture
def root(tmp_path: Path) -> Iterator[Path]:
    root = tmp_path / "root"
    root.mkdir()
    yield root
    while WATCHES:
        WATCHES.pop().close()


def begin(root: Path, exclude: tuple[str, ...] = ()) -> tuple[Watch, Scan]:
    with Folders(root) as folders:
        watch = Watch(folders.root)
    WATCHES.append(watch)
    return watch, tree_scan.walk(root, exclude, watch.entered)


def brought_up_to_date(watch: Watch, scan: Scan) -> set[bytes]:
    changes = watch.changes()
    assert changes is not None
    return scan.refresh(changes.names, changes.folders, watch.entered)


def assert_same(scan: Scan, other: Scan) -> None:
    assert scan.names == other.names
    for what in ("sockets", "mounts", "excluded", "linked"):
        assert getattr(scan, what) == getattr(other, what), what


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("exclude", [(), ("d1/f1*", "e2")])
def test_after_a_storm_it_is_what_a_walk_finds(root: Path, seed: int, exclude: tuple[str, ...]) -> None:
    with writing(root, seed, links=False) as writer:
        time.sleep(0.05)
        watch, scan = begin(root, exclude)
        for pause in (0.002, 0.01, 0.05, 0.002):
            time.sleep(pause)
            brought_up_to_date(watch, scan)  # while it goes on
        for _ in range(3):
            writer.hold()
            mapped = {b"mapped"}  # what nobody tells of, and ``open_files`` would
            changes = watch.changes()
            assert changes is not None
            scan.refresh(changes.names | mapped, changes.folders, watch.entered)
            assert_same(scan, tree_scan.walk(root, exclude))
            writer.release()
            time.sleep(0.02)


def test_what_rests_is_not_looked_at(root: Path) -> None:
    for number in range(200):
        (root / f"d{number % 7}").mkdir(exist_ok=True)
        (root / f"d{number % 7}" / f"f{number}").write_bytes(b"x")
    watch, scan = begin(root)
    assert brought_up_to_date(watch, scan) == set()
    (root / "d3" / "f3").write_bytes(b"yy")
    (root / "d4" / "new").mkdir()
    (root / "d4" / "new" / "below").touch()
    assert brought_up_to_date(watch, scan) == {b"d3/f3", b"d4", b"d4/new", b"d4/new/below"}
    assert_same(scan, tree_scan.walk(root))
    (root / "d4" / "new" / "below").write_bytes(b"watched too")
    assert brought_up_to_date(watch, scan) == {b"d4/new/below"}


def test_folders_that_change_places_take_everything_along(root: Path) -> None:
    for name in ("a/b/c", "x/y"):
        (root / name).mkdir(parents=True)
        (root / name / "f").write_text(name)
    watch, scan = begin(root)
    (root / "a").rename(root / "moved")
    (root / "x").rename(root / "a")
    (root / "moved" / "b").rename(root / "a" / "b")
    (root / "a" / "b" / "c" / "f").write_text("written under its new name")
    brought_up_to_date(watch, scan)
    assert_same(scan, tree_scan.walk(root))
    (root / "a" / "b" / "c" / "f").write_text("and once more")
    assert brought_up_to_date(watch, scan) == {b"a/b/c/f"}
    assert_same(scan, tree_scan.walk(root))


def test_a_folder_that_comes_again_under_its_old_number(root: Path) -> None:
    (root / "d").mkdir()
    (root / "d" / "f").touch()
    watch, scan = begin(root)
    for _ in range(30):
        subprocess.run(["rm", "-r", root / "d"], check=True)
        (root / "d").mkdir()
        (root / "d" / "g").touch()
        brought_up_to_date(watch, scan)
        (root / "d" / "h").touch()
        brought_up_to_date(watch, scan)
        assert_same(scan, tree_scan.walk(root))


def test_what_happens_in_a_folder_just_before_it_is_entered_is_seen(root: Path) -> None:
    """Nobody tells of it: what was seen before must not count."""
    (root / "old").mkdir()
    with Folders(root) as folders:
        watch = Watch(folders.root)
    WATCHES.append(watch)

    def late(folder: int, path: bytes) -> None:
        if path:
            (root / os.fsdecode(path) / "gone").unlink(missing_ok=True)
            (root / os.fsdecode(path) / "late").touch()
        watch.entered(folder, path)

    scan = tree_scan.walk(root, (), late)
    assert_same(scan, tree_scan.walk(root))
    (root / "new").mkdir()
    (root / "new" / "gone").touch()
    changes = watch.changes()
    assert changes is not None
    scan.refresh(changes.names | {b"new/gone"}, changes.folders, late)
    assert_same(scan, tree_scan.walk(root))


def test_another_name_of_a_file_changes_those_that_were_there(root: Path) -> None:
    (root / "d").mkdir()
    (root / "one").write_bytes(b"1")
    watch, scan = begin(root)
    (root / "d" / "two").hardlink_to(root / "one")
    brought_up_to_date(watch, scan)
    assert_same(scan, tree_scan.walk(root))
    (root / "d" / "two").write_bytes(b"through one name")
    (root / "one").unlink()
    brought_up_to_date(watch, scan)
    assert_same(scan, tree_scan.walk(root))


def test_a_queue_that_ran_over_is_noticed(root: Path) -> None:
    watch, _ = begin(root)
    most = int(Path("/proc/sys/fs/inotify/max_queued_events").read_text())
    for number in range(most // 2 + 10):
        (root / f"f{number % 500}").touch()
        (root / f"f{number % 500}").unlink()
    assert watch.changes() is None
    assert watch.changes() is None, "and not forgotten"


def test_where_others_may_write_unseen_nothing_is_told(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk, "_LOCAL", frozenset())
    watch, _ = begin(root)
    assert watch.changes() is None


def test_who_has_a_file_open_or_mapped_to_write_is_seen(root: Path) -> None:
    (root / "f").write_bytes(bytes(4096))
    number = (root / "f").stat().st_ino

    def seen() -> bool:
        found = open_files.writable_inodes()
        assert found is not None
        return number in found

    if os.geteuid() != 0:
        pytest.skip("not every process can be looked into")
    assert not seen()
    with (root / "f").open("rb"):
        assert not seen()
    with (root / "f").open("r+b") as file:
        assert seen()
        page = mmap.mmap(file.fileno(), 4096)
    assert seen(), "mapped without a descriptor of ours"
    page.close()
    assert not seen()
