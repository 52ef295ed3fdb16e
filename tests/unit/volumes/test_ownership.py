"""Whom names should belong to: planned from what is there, what a backup knows and who the image's user is."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs
from msgspec.structs import replace

from cosmos_coherence.copied import Found
from cosmos_coherence.drivers.folders import Folders
from cosmos_coherence.model import Entry
from cosmos_coherence.sources import tree_scan
from cosmos_coherence.volumes.ownership import apply_owners, plan_owners, unknown_names

SET_ID = stat.S_ISUID | stat.S_ISGID
KINDS = st.sampled_from(["file", "file", "dir", "symlink", "fifo"])
IDS = st.integers(0, 3)
MODES = st.integers(0, 0o7777)
PATHS = st.sampled_from([b"", b"a", b"a/b", b"a/c", b"d", b"e\n", b"\xff"])
ENTRIES = st.builds(Entry, path=PATHS, kind=KINDS, mode=MODES, uid=IDS, gid=IDS)


@st.composite
def trees(draw) -> dict[bytes, Found]:
    """Names of a tree, some of them of one file."""
    found = {}
    for path in draw(st.sets(PATHS, min_size=1)):
        kind = "dir" if not path else draw(KINDS)
        inode = draw(st.integers(100, 102)) if kind == "file" and draw(st.booleans()) else len(found)
        nlink = 1 if inode < 100 else 2
        found[path] = Found(path, kind, draw(MODES), draw(IDS), draw(IDS), ino=inode, nlink=nlink)
    first: dict[int, Found] = {}
    for path, name in sorted(found.items()):  # names of one file have its metadata
        same = first.setdefault(name.ino, name)
        found[path] = structs.replace(same, path=path) if name.nlink > 1 else name
    return found


def carried_out(names: dict[bytes, Found], changes) -> dict[bytes, Found]:
    """What is there afterwards, as the kernel does it."""
    after = dict(names)
    for change in changes:
        for path, found in names.items():
            same = path == change.path or (found.nlink > 1 and found.ino == change.found.ino)
            if same:
                new = change.after
                after[path] = structs.replace(found, uid=new.uid, gid=new.gid, mode=new.mode)
    return after


@given(trees(), st.lists(ENTRIES), st.none() | st.tuples(IDS, IDS))
def test_the_plan(names, entries, user):
    known = {entry.path: entry for entry in entries}
    changes = plan_owners(names, known, user)
    after = carried_out(names, changes)
    assert plan_owners(after, known, user) == (), "a second time there is nothing to do"
    inodes = [c.found.ino for c in changes if c.found.nlink > 1]
    assert len(inodes) == len(set(inodes)), "a file has one owner, however many names"
    for path, found in names.items():
        now, entry = after[path], known.get(path)
        if found.kind == "file":
            assert not now.mode & SET_ID & ~found.mode, "nobody gains a set-id bit"
            assert not now.mode & SET_ID or (now.uid, now.gid) == (found.uid, found.gid)
        if entry is not None and entry.kind == found.kind and found.nlink < 2:
            assert (now.uid, now.gid) == (entry.uid, entry.gid)
            if found.kind != "symlink":
                assert now.mode | SET_ID == entry.mode | SET_ID or found.kind == "file"
                assert now.mode & 0o1777 == entry.mode & 0o1777
        elif found.nlink < 2 and user is None:
            assert now == found
        elif found.nlink < 2:
            assert (now.uid, now.gid) == user
            needed = {"dir": 0o700, "file": 0o600}.get(found.kind, 0)
            assert now.mode & needed == needed, "its owner is not locked out"
            assert now.mode & 0o1777 == (found.mode | needed) & 0o1777, "and nobody else gains anything"


@given(trees(), st.lists(ENTRIES))
def test_the_image_is_asked_only_for_what_no_backup_knows(names, entries):
    known = {entry.path: entry for entry in entries}
    if not unknown_names(names, known):
        assert plan_owners(names, known, None) == plan_owners(names, known, (1, 1))


def entry(path: bytes, kind: str = "file", **more) -> Entry:
    return Entry(path, kind, **{"mode": 0o640, "uid": 70, "gid": 71, **more})


def applied(root: Path, known: dict[bytes, Entry], user=(5, 6), between=lambda: None) -> tuple[bytes, ...]:
    changes = plan_owners(tree_scan.walk(root).names, known, user)
    between()
    with Folders(root) as folders:
        return tuple(apply_owners(folders, changes))


root_only = pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")


@root_only
def test_a_real_tree(tmp_path):
    root = tmp_path / "v"
    (root / "sub").mkdir(parents=True)
    (root / "sub" / "known").touch(0o600)
    (root / "new").touch(0o440)
    (root / "link").symlink_to("/etc/passwd")
    os.mkfifo(root / "pipe")
    (root / "root-s-own").touch()
    (root / "root-s-own").chmod(0o6755)
    before = Path("/etc/passwd").stat()
    known = {b"": entry(b"", "dir", mode=0o750), b"sub": entry(b"sub", "dir", mode=0o2770), b"sub/known": entry(b"")}
    assert applied(root, known) == ()
    looks = {name: (found.uid, found.gid, found.mode) for name, found in tree_scan.walk(root).names.items()}
    assert looks[b""] == (70, 71, 0o750)
    assert looks[b"sub"] == (70, 71, 0o2770)
    assert looks[b"sub/known"] == (70, 71, 0o640)
    assert looks[b"new"] == (5, 6, 0o640)
    assert looks[b"link"][:2] == looks[b"pipe"][:2] == (5, 6)
    assert looks[b"root-s-own"] == (5, 6, 0o755), "a file that changes hands is no set-id program"
    after = Path("/etc/passwd").stat()
    assert (before.st_uid, before.st_mode, before.st_ctime_ns) == (after.st_uid, after.st_mode, after.st_ctime_ns)


@root_only
@pytest.mark.parametrize("what", ["file", "folder"])
def test_what_is_swapped_in_meanwhile_is_left_alone(tmp_path, what):
    root, outside = tmp_path / "v", tmp_path / "outside"
    (root / "sub").mkdir(parents=True)
    (root / "sub" / "file").touch()
    outside.mkdir()
    (outside / "file").touch(0o600)

    def swap() -> None:
        place = root / "sub" / "file" if what == "file" else root / "sub"
        place.rename(root / "away")
        place.symlink_to(outside / "file" if what == "file" else outside)

    left = applied(root, {}, between=swap)
    assert b"sub/file" in left
    status = (outside / "file").stat()
    assert (status.st_uid, stat.S_IMODE(status.st_mode)) == (0, 0o600)
    assert outside.stat().st_uid == 0


@root_only
def test_a_backup_that_knows_another_kind_of_name_does_not_count(tmp_path):
    root = tmp_path / "v"
    root.mkdir()
    (root / "x").mkdir(0o500)
    known = {b"": replace(entry(b"", "dir"), mode=0o755), b"x": entry(b"x", mode=0o000)}
    applied(root, known)
    assert stat.S_IMODE((root / "x").stat().st_mode) == 0o700
    assert (root / "x").stat().st_uid == 5
