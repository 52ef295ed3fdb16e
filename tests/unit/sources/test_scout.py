"""A tree walked by a process beside us is the tree as we would have walked it."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from cosmos_coherence import errors
from cosmos_coherence.copied import Copied
from cosmos_coherence.drivers.folders import Folders
from cosmos_coherence.sources import tree_scan
from cosmos_coherence.sources.scout import Scout, Walking, scout
from cosmos_coherence.sources.tree_scan import Scan
from cosmos_coherence.sources.tree_watch import Watch
from support.trees import odd_tree


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "root"
    root.mkdir()
    odd_tree(root)
    for number in range(3000):
        folder = root / f"{number % 40}"
        folder.mkdir(exist_ok=True)
        (folder / f"file-{number}").write_text(f"{number}")
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(root / "sub" / "socket"))
    return root


@pytest.fixture
def beside(monkeypatch: pytest.MonkeyPatch) -> Iterator[Scout]:
    monkeypatch.setattr("threading.active_count", lambda: 1)  # those of the tests hold no lock that it needs
    monkeypatch.setattr("os.sched_getaffinity", lambda process: {0, 1})
    with scout() as found:
        assert found is not None
        yield found


def begin(
    beside: Scout, root: Path, exclude: tuple[str, ...] = (), only: tuple[bytes, ...] = (), watch: Watch | None = None
) -> Walking:
    begun = beside.begin(root, exclude, frozenset(only), watch or Watch(-1))
    assert begun is not None
    return begun


def finished(begun: Walking, known: Mapping[bytes, Copied] | None = None) -> Scan:
    scan, steps = begun.walking(known or {})
    assert {path for noted in steps for path in noted} == scan.names.keys()
    return scan


def assert_same(scan: Scan, other: Scan) -> None:
    for each in ("names", "sockets", "mounts", "excluded", "linked"):
        assert getattr(scan, each) == getattr(other, each), each
    assert scan.links() == other.links()


@pytest.mark.parametrize(("exclude", "only"), [((), ()), (("3*", "sub/first"), ()), ((), (b"sub", b"7", b"plain.txt"))])
def test_it_finds_the_same(root: Path, beside: Scout, exclude: tuple[str, ...], only: tuple[bytes, ...]) -> None:
    wanted = tree_scan.walk(root, exclude, only=frozenset(only))
    assert_same(finished(begin(beside, root, exclude, only)), wanted)


def test_several_trees_in_any_order(root: Path, beside: Scout) -> None:
    places = (root, root / "sub", root / "7")
    begun = [begin(beside, place) for place in places]
    for each, place in reversed(list(zip(begun, places, strict=True))):
        assert_same(finished(each), tree_scan.walk(place))


def test_what_is_known_is_that_very_record(root: Path, beside: Scout) -> None:
    known = {path: Copied(found) for path, found in tree_scan.walk(root).names.items()}
    (root / "7" / "file-7").write_text("other")
    scan = finished(begin(beside, root), known)
    assert {path for path, found in scan.names.items() if found is not known[path].found} == {b"7/file-7"}


@pytest.mark.parametrize("followed", [False, True])
def test_what_changes_after_its_walk_is_told(root: Path, beside: Scout, *, followed: bool) -> None:
    with Folders(root) as folders:
        watch = Watch(folders.root)
    begun = begin(beside, root, watch=watch)
    if followed:
        watch.follow()
    scan, steps = begun.walking({})
    next(steps)
    time.sleep(0.5)  # everything is entered in the other process, and little is taken yet
    (root / "7" / "file-7").write_text("other")
    (root / "sub" / "new").mkdir()
    (root / "sub" / "new" / "deep").touch()
    time.sleep(0.1)
    for _ in steps:
        pass
    changes = watch.changes()
    assert changes is not None
    assert {b"7/file-7"} <= changes.names <= {b"7/file-7", b"sub"}
    scan.refresh(changes.names, changes.folders, watch.entered)
    assert_same(scan, tree_scan.walk(root))
    watch.changes()
    (root / "sub" / "new" / "deep").write_text("seen")
    changes = watch.changes()
    assert changes is not None
    assert b"sub/new/deep" in changes.names
    watch.close()


def test_what_it_cannot_read_is_said_and_it_goes_on(root: Path, beside: Scout) -> None:
    with pytest.raises(errors.CaptureFailed, match="missing"):
        finished(begin(beside, root / "missing"))
    assert_same(finished(begin(beside, root)), tree_scan.walk(root))


def test_one_that_dies_is_an_error(root: Path, beside: Scout) -> None:
    ours, its = socket.socketpair()
    its.close()
    begun = begin(beside, root)
    begun.close()
    with pytest.raises(errors.CosmosError, match="has died"):
        finished(Walking(begun._order, ours, Watch(-1)))


def test_without_it_nobody_walks(root: Path, beside: Scout) -> None:
    os.kill(beside.pid, signal.SIGKILL)
    os.waitid(os.P_PID, beside.pid, os.WEXITED | os.WNOWAIT)
    assert beside.begin(root, (), frozenset(), Watch(-1)) is None


def test_it_ends_with_us(beside: Scout) -> None:
    beside._line.close()  # as the system does it when we die
    assert os.waitid(os.P_PID, beside.pid, os.WEXITED | os.WNOWAIT) is not None
