"""A tree swapped in name by name: from any point, killed between any two steps, it goes on or goes back exactly."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from cosmos_coherence import errors
from cosmos_coherence.model import Part, SourceRef
from cosmos_coherence.sources import tree_print
from cosmos_coherence.sources.tree_restore import TreeRestorer
from cosmos_coherence.sources.volume import TreeSource
from support import trees
from support.killing import killed_at
from support.memory_parts import MemoryReader, MemorySink

VOLUME = "volumes/p_v"


@pytest.fixture(scope="module")
def backup(tmp_path_factory: pytest.TempPathFactory) -> tuple[Part, MemorySink, Path]:
    """A backup of one tree, and that tree."""
    folder = tmp_path_factory.mktemp("backup")
    root = folder / "root"
    root.mkdir()
    trees.odd_tree(root)
    source, sink = TreeSource(SourceRef("volume", "volumes/v", volume="p_v"), root, spool=folder), MemorySink()
    source.prepare(sink)
    source.anchor()
    part = source.capture(sink)
    source.close()
    return part, sink, root


@pytest.fixture
def live(tmp_path: Path) -> Path:
    """Another tree, with some of the same names."""
    root = tmp_path / "live"
    root.mkdir()
    for name in ("plain.txt", "only-here", "sub/first", "sub/mine", "empty-too/x"):
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_text(f"live {name}")
    (root / "relative").symlink_to("elsewhere")
    (root / "sparse").mkdir()
    os.setxattr(root, "user.live", b"1")
    root.chmod(0o1777)
    os.utime(root, ns=(7_000_000_001, 7_000_000_001))
    return root


@pytest.fixture
def public() -> Iterator[Path]:
    with trees.public_folder() as folder:
        yield folder


def restorer(backup: tuple[Part, MemorySink, Path], live: Path, **options: Any) -> TreeRestorer:
    return TreeRestorer(backup[0], VOLUME, live, "r1", **options)


def staged(backup: tuple[Part, MemorySink, Path], live: Path) -> None:
    restorer(backup, live).stage(backup[1].reader())


def is_new(backup: tuple[Part, MemorySink, Path], live: Path) -> None:
    assert trees.looks(live) == trees.looks(backup[2])
    assert trees.root_looks(live) == trees.root_looks(backup[2])
    assert not list(live.glob(".cosmos*"))


def test_undo_from_every_point_of_the_swap(backup: tuple[Part, MemorySink, Path], live: Path) -> None:
    before, root_before = trees.looks(live), trees.root_looks(live)
    step = 1
    while True:
        staged(backup, live)
        assert trees.looks(live) == before
        assert trees.root_looks(live) == root_before
        killed = killed_at(step, lambda checkpoint: restorer(backup, live, checkpoint=checkpoint).swap())
        restorer(backup, live).undo()
        restorer(backup, live).undo()
        assert trees.looks(live) == before
        assert trees.root_looks(live) == root_before
        assert not list(live.glob(".cosmos*"))
        if not killed:
            break
        step += 1
    assert step > 25


def test_the_swap_goes_on_from_every_point(backup: tuple[Part, MemorySink, Path], live: Path) -> None:
    for step in range(1, 28, 3):
        staged(backup, live)
        killed_at(step, lambda checkpoint: restorer(backup, live, checkpoint=checkpoint).swap())
        restorer(backup, live).swap()
        restorer(backup, live).verify()
        restorer(backup, live).finish()
        restorer(backup, live).finish()
        is_new(backup, live)


def test_undo_killed_at_every_point_goes_on(backup: tuple[Part, MemorySink, Path], live: Path) -> None:
    before, root_before = trees.looks(live), trees.root_looks(live)
    step = 1
    while True:
        staged(backup, live)
        restorer(backup, live).swap()
        (live / "written-by-a-service-since").mkdir()
        (live / "plain.txt").unlink()
        killed = killed_at(step, lambda checkpoint: restorer(backup, live, checkpoint=checkpoint).undo())
        restorer(backup, live).undo()
        assert trees.looks(live) == before
        assert trees.root_looks(live) == root_before
        if not killed:
            break
        step += 1
    assert step > 20


def test_finish_killed_goes_on_and_cannot_be_undone(backup: tuple[Part, MemorySink, Path], live: Path) -> None:
    staged(backup, live)
    restorer(backup, live).swap()
    assert killed_at(1, lambda checkpoint: restorer(backup, live, checkpoint=checkpoint).finish())
    with pytest.raises(errors.RestoreFailed, match="finished"):
        restorer(backup, live).undo()
    restorer(backup, live).finish()
    is_new(backup, live)


def test_finish_refuses_a_half_swap(backup: tuple[Part, MemorySink, Path], live: Path) -> None:
    before = trees.looks(live)
    staged(backup, live)
    assert killed_at(4, lambda checkpoint: restorer(backup, live, checkpoint=checkpoint).swap())
    with pytest.raises(errors.RestoreFailed, match="half way"):
        restorer(backup, live).finish()
    with pytest.raises(errors.RestoreFailed, match="under way"):
        staged(backup, live)
    restorer(backup, live).undo()
    assert trees.looks(live) == before


def test_a_lost_journal_never_costs_the_old_files(backup: tuple[Part, MemorySink, Path], live: Path) -> None:
    staged(backup, live)
    restorer(backup, live).swap()
    journal = next(live.glob(".cosmos*/journal"))
    for content in (None, b"{}", b"not even json"):
        journal.unlink() if content is None else journal.write_bytes(content)
        for act in (restorer(backup, live).undo, restorer(backup, live).finish):
            with pytest.raises(errors.RestoreFailed, match="journal"):
                act()
        assert (journal.parent / "old" / "only-here").exists()


def test_nothing_to_undo_or_finish(backup: tuple[Part, MemorySink, Path], live: Path) -> None:
    before = trees.looks(live)
    restorer(backup, live).undo()
    restorer(backup, live).finish()
    with pytest.raises(errors.RestoreFailed, match="nothing is staged"):
        restorer(backup, live).swap()
    assert trees.looks(live) == before


@pytest.mark.parametrize("what", ["content", "mode", "name", "link"])
def test_a_tree_that_is_not_the_fingerprinted_one_is_not_staged(
    backup: tuple[Part, MemorySink, Path], live: Path, what: str
) -> None:
    before = trees.looks(live)
    tree = dict(backup[1].trees[VOLUME])
    entry, content = tree[b"plain.txt"]
    if what == "content":
        tree[b"plain.txt"] = (entry, b"Hello\n")
    elif what == "mode":
        tree[b"plain.txt"] = (replace(entry, mode=0o777), content)
    elif what == "name":
        del tree[b"plain.txt"]
    else:
        tree[b"relative"] = (replace(tree[b"relative"][0], target=b"other"), b"")
    with pytest.raises(errors.NotEqual, match="1.* files instead of" if what == "name" else "content or metadata"):
        restorer(backup, live).stage(MemoryReader(trees={VOLUME: tree}))
    restorer(backup, live).undo()
    assert trees.looks(live) == before


def test_verify_names_what_differs(backup: tuple[Part, MemorySink, Path], live: Path) -> None:
    staged(backup, live)
    restorer(backup, live).swap()
    restorer(backup, live).verify()
    (live / "plain.txt").write_text("hellO\n")
    (live / "nothing").unlink()
    (live / "one more").touch()
    with pytest.raises(errors.NotEqual) as caught:
        restorer(backup, live).verify()
    assert str(caught.value).endswith(": nothing (missing), one more (too many), plain.txt (different)")


def test_one_flipped_byte_under_the_same_time_is_found(backup: tuple[Part, MemorySink, Path], live: Path) -> None:
    staged(backup, live)
    restorer(backup, live).swap()
    path = live / "sub" / "first"
    times = path.stat()
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    with pytest.raises(errors.NotEqual, match=r"a-second \(different\)"):
        restorer(backup, live).verify()


def test_a_name_that_a_stranger_made_meanwhile_is_not_overwritten(
    backup: tuple[Part, MemorySink, Path], live: Path
) -> None:
    staged(backup, live)

    def checkpoint(step: str) -> None:
        if step == "in":
            (live / "plain.txt").write_text("stranger")

    with pytest.raises(errors.RestoreFailed, match=r"plain\.txt is there already"):
        restorer(backup, live, checkpoint=checkpoint).swap()
    assert (live / "plain.txt").read_text() == "stranger"


def test_a_missing_folder_is_made_and_removed_again(backup: tuple[Part, MemorySink, Path], tmp_path: Path) -> None:
    part = replace(backup[0], kind="files")
    root = tmp_path / "not" / "yet"
    TreeRestorer(part, VOLUME, root, "r").stage(backup[1].reader())
    TreeRestorer(part, VOLUME, root, "r").stage(backup[1].reader())
    TreeRestorer(part, VOLUME, root, "r").swap()
    TreeRestorer(part, VOLUME, root, "r").verify()
    TreeRestorer(part, VOLUME, root, "r").undo()
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(errors.NotFound, match="does not exist"):
        TreeRestorer(backup[0], VOLUME, root, "r").stage(backup[1].reader())


def test_staged_files_do_not_take_rights_from_the_root(backup: tuple[Part, MemorySink, Path], live: Path) -> None:
    """A default ACL and the set-group bit of the live root are passed on to what is made below it."""
    default = bytes.fromhex("02000000010007000000000004000700ffffffff20000700ffffffff").replace(
        bytes.fromhex("0100070000000000"), bytes.fromhex("01000700ffffffff")
    )
    os.setxattr(live, "system.posix_acl_default", default)
    live.chmod(0o2777)
    staged(backup, live)
    restorer(backup, live).swap()
    restorer(backup, live).verify()
    restorer(backup, live).finish()
    is_new(backup, live)


def in_own_mounts(command: str, script: str) -> str:
    if subprocess.run(["unshare", "-m", "true"], capture_output=True, check=False).returncode != 0:
        pytest.skip("needs the right to mount")
    script = f"""
import pathlib, sys
sys.path[:0] = {sys.path!r}
from cosmos_coherence import errors
from cosmos_coherence.model import Fingerprint, Part, TreePrint
from cosmos_coherence.sources.tree_restore import TreeRestorer
from support.memory_parts import MemoryReader, Entry
{script}
"""
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", f'{command} && {sys.executable} -c "$0"', script],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return done.stdout


@pytest.mark.parametrize("kind", ["tmpfs", "bind"])
def test_a_mount_inside_is_refused(live: Path, tmp_path: Path, kind: str) -> None:
    place = live / "sub" / "a mount"
    place.mkdir()
    mount = "-t tmpfs none" if kind == "tmpfs" else f"--bind {tmp_path}"
    script = f"""
part = Part("v", "volume", fingerprint=Fingerprint(tree=TreePrint()))
try:
    TreeRestorer(part, "v", pathlib.Path({str(live)!r}), "r").stage(MemoryReader())
except errors.Unsupported as error:
    print(error)
"""
    out = in_own_mounts(f"mount {mount} '{place}'", script)
    assert out == f"{place} is mounted inside of {live}\n"
    assert not list(live.glob(".cosmos*"))


def test_a_full_disk_while_staging_leaves_the_live_tree_alone(tmp_path: Path) -> None:
    script = f"""
root = pathlib.Path({str(tmp_path)!r})
(root / "live").write_text("live")
before = root.stat().st_mtime_ns
tree = {{b"": (Entry(b"", "dir"), b""), b"big": (Entry(b"big", "file", size=4 << 20), bytes(4 << 20))}}
part = Part("v", "volume", fingerprint=Fingerprint(tree=TreePrint(files=1, size=4 << 20)))
try:
    TreeRestorer(part, "v", root, "r").stage(MemoryReader(trees={{"v": tree}}))
except errors.NoRoom as error:
    print(error)
TreeRestorer(part, "v", root, "r").undo()
print([p.name for p in root.iterdir()], (root / "live").read_text(), root.stat().st_mtime_ns == before)
"""
    out = in_own_mounts(f"mount -t tmpfs -o size=1m none {tmp_path}", script)
    assert out.splitlines()[0].startswith("no room to write big in ")
    assert out.splitlines()[1] == "['live'] live True"


def test_an_ordinary_user_replaces_read_only_folders(public: Path) -> None:
    """Run as nobody: folders without the right to write, on both sides and the root's own."""
    if os.geteuid() != 0:
        pytest.skip("needs root to become somebody else")
    script = f"""
import encodings.unicode_escape, os, pathlib, sys
sys.path[:0] = {sys.path!r}
from cosmos_coherence.model import Part, SourceRef
from cosmos_coherence.sources.tree_restore import TreeRestorer
from cosmos_coherence.sources.volume import TreeSource
from support import trees
from support.killing import killed_at
from support.memory_parts import MemorySink
os.setgroups([]); os.setgid(65534); os.setuid(65534)
here = pathlib.Path({str(public)!r})
root, live = here / "root", here / "live"
root.mkdir(); live.mkdir()
trees.odd_tree(root); trees.odd_tree(live)
root.chmod(0o555); live.chmod(0o500)
(live / "closed").chmod(0o000)
source, sink = TreeSource(SourceRef("files", "files/x"), root, spool=here), MemorySink()
source.prepare(sink); source.anchor()
part = source.capture(sink); source.close()
os.chmod(live / "closed", 0o500)
before = trees.looks(live), trees.root_looks(live)
os.chmod(live / "closed", 0o000)
for act in ("undo", "finish"):
    restorer = TreeRestorer(part, "files/x", live, "r")
    restorer.stage(sink.reader()); restorer.swap(); restorer.verify()
    getattr(restorer, act)()
    if act == "undo":
        os.chmod(live / "closed", 0o500)
        print(before == (trees.looks(live), trees.root_looks(live)))
print(trees.looks(root) == trees.looks(live), trees.root_looks(root) == trees.root_looks(live), restorer.unset)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.stderr == ""
    assert done.stdout == "True\nTrue True 0\n"


def test_an_ordinary_user_restores_what_belonged_to_others(public: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root to become somebody else")
    source_root = public / "source"
    source_root.mkdir()
    (source_root / "f").write_text("x")
    os.chown(source_root / "f", 1234, 1234)
    os.chown(source_root, 999, 999)
    script = f"""
import os, pathlib, sys
sys.path[:0] = {sys.path!r}
from cosmos_coherence.model import Part, SourceRef
from cosmos_coherence.sources.tree_restore import TreeRestorer
from cosmos_coherence.sources.volume import TreeSource
from support.memory_parts import MemorySink
os.setgroups([]); os.setgid(65534); os.setuid(65534)
here = pathlib.Path({str(public)!r})
source, sink = TreeSource(SourceRef("files", "files/x"), here / "source", spool=here), MemorySink()
source.prepare(sink); source.anchor()
part = source.capture(sink); source.close()
restorer = TreeRestorer(part, "files/x", here / "live", "r")
restorer.stage(sink.reader()); restorer.swap(); restorer.verify()
print(restorer.unset, (here / "live" / "f").stat().st_uid)
restorer.finish()
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.stderr == ""
    assert done.stdout == "2 65534\n"


def test_differences_are_limited(tmp_path: Path) -> None:
    for number in range(50):
        (tmp_path / f"{number:02}").touch()
    assert len(tree_print.differences({}, tmp_path)) == 20
