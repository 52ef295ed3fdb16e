"""Writing a tree that nobody has to trust: whatever an entry says, nothing outside of the root is touched."""

from __future__ import annotations

import io
import os
import stat
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest

from cosmos_coherence import errors
from cosmos_coherence.model import Entry
from cosmos_coherence.sources import tree_print, tree_write
from support import trees
from support.memory_parts import read

ROOT = Entry(b"", "dir", 0o755)


@pytest.fixture
def target(tmp_path: Path) -> Path:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "victim").write_text("untouched")
    (tmp_path / "target").mkdir()
    return tmp_path / "target"


def file(path: bytes, content: bytes = b"x", **fields: object) -> tuple[Entry, bytes]:
    return Entry(path, "file", size=len(content), **fields), content  # type: ignore[arg-type]


def named(path: bytes, kind: str, **fields: object) -> tuple[Entry, bytes]:
    return Entry(path, kind, **fields), b""  # type: ignore[arg-type]


def write(target: Path, *entries: tuple[Entry, bytes], size: int = 1 << 20, devices: bool = False) -> object:
    """Just in this order, which is not the one that a reader keeps to."""
    pairs = ((e, io.BytesIO(content) if e.kind == "file" else None) for e, content in [(ROOT, b""), *entries])
    return tree_write.write_tree(pairs, target, size=size, devices=devices)


@pytest.mark.parametrize(
    "entries",
    [
        [file(b"../outside/new")],
        [file(b"/tmp/outside-of-everything")],
        [file(b"a/../../outside/new")],
        [file(b"./a")],
        [file(b"a//b")],
        [file(b"a/")],
        [file(b"..")],
        [named(b"link", "symlink", target=b"../outside"), file(b"link/victim")],
        [named(b"link", "symlink", target=b"../outside"), file(b"link/new")],
        [named(b"link", "symlink", target=b"../outside"), named(b"link/new", "dir")],
        [named(b"link", "symlink", target=b"../outside/victim"), file(b"link")],
        [named(b"link", "symlink", target=b"../outside"), named(b"link", "dir")],
        [named(b"link", "symlink", target=b"../outside"), named(b"link/l", "symlink", target=b"x")],
        [named(b"link", "symlink", target=b"../outside"), named(b"h", "hardlink", target=b"link/victim")],
        [named(b"link", "symlink", target=b"../outside/victim"), named(b"h", "hardlink", target=b"link")],
        [named(b"h", "hardlink", target=b"../outside/victim")],
        [named(b"h", "hardlink", target=b"/etc/passwd")],
        [named(b"h", "hardlink", target=b"missing")],
        [named(b"d", "dir"), named(b"h", "hardlink", target=b"d")],
        [file(b"a"), file(b"a/b")],
        [file(b"a"), file(b"a")],
        [named(b"d", "dir"), named(b"d", "dir")],
        [file(b"missing/a")],
        [named(b"null", "char", device=(1, 3))],
        [named(b"disk", "block", device=(8, 0))],
        [named(b"", "dir")],
    ],
)  # fmt: skip
def test_an_entry_that_reaches_out_is_refused(target: Path, entries: list[tuple[Entry, bytes]]) -> None:
    with pytest.raises(errors.Hostile):
        write(target, *entries)
    assert [p.name for p in target.parent.joinpath("outside").iterdir()] == ["victim"]
    victim = target.parent / "outside" / "victim"
    assert (victim.read_text(), victim.stat().st_nlink) == ("untouched", 1)
    assert not Path("/tmp/outside-of-everything").exists()


@pytest.mark.parametrize(
    ("entry", "content"),
    [
        (Entry(b"short", "file", size=5), b"four"),
        (Entry(b"long", "file", size=3), b"four"),
        (Entry(b"runs", "file", size=9, data=((4, 2), (0, 2))), b"four"),
        (Entry(b"runs", "file", size=9, data=((8, 4),)), b"four"),
        (Entry(b"runs", "file", size=9, data=((0, -4),)), b"four"),
        (Entry(b"runs", "file", size=9, data=((0, 4),)), b"fou"),
        (Entry(b"owner", "file", uid=2**32 - 1, size=4), b"four"),
        (Entry(b"owner", "file", gid=-1, size=4), b"four"),
        (Entry(b"mode", "file", mode=0o10644, size=4), b"four"),
        (Entry(b"time", "file", mtime_ns=2**70, size=4), b"four"),
        (Entry(b"bomb", "file", size=2**62, data=()), b""),
    ],
)
def test_an_entry_that_contradicts_itself_is_damaged(target: Path, entry: Entry, content: bytes) -> None:
    with pytest.raises(errors.Damaged, match=entry.path.decode()):
        write(target, (entry, content))


def test_a_tree_without_a_root_is_damaged(target: Path) -> None:
    with pytest.raises(errors.Damaged, match="no root"):
        tree_write.write_tree([(Entry(b"a", "dir"), None)], target, size=0)


def test_absolute_symlinks_are_ordinary(target: Path) -> None:
    write(target, named(b"link", "symlink", target=b"/etc/passwd"))
    assert (target / "link").readlink() == Path("/etc/passwd")


def test_devices_when_asked_for(target: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root makes devices")
    write(target, named(b"null", "char", device=(1, 3), mode=0o666), devices=True)
    made = (target / "null").lstat()
    assert (stat.S_ISCHR(made.st_mode), made.st_rdev, made.st_mode & 0o777) == (True, os.makedev(1, 3), 0o666)


def test_what_was_made_is_what_lies_there(target: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    trees.odd_tree(source)
    given = [(e, stored(source, e)) for e, _ in tree_print.hashed_tree(source)]
    written = tree_write.write_tree(read(given), target, size=1 << 30)
    found = {e.path: tree_print.line_digest(e, h) for e, h in tree_print.hashed_tree(target) if e.path}
    assert {path: line for path, line in written.lines.items() if path} == found
    assert (written.unset, written.given, written.root.mode) == (0, written.made, 0o751)
    assert trees.looks(target) == trees.looks(source)


def stored(root: Path, entry: Entry) -> bytes:
    return (root / os.fsdecode(entry.path)).read_bytes() if entry.kind == "file" else b""


def in_child(lines: Iterable[str]) -> str:
    script = f"import sys; sys.path[:0] = {sys.path!r}\n" + "\n".join(lines)
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout


def test_an_ordinary_user_keeps_what_it_may_not_give_away() -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root to become somebody else")
    with trees.public_folder() as target:
        out = in_child(
            [
                "import io, os, pathlib",
                "from cosmos_coherence.model import Entry",
                "from cosmos_coherence.sources import tree_print, tree_write",
                "os.setgroups([]); os.setgid(65534); os.setuid(65534)",
                f"root = pathlib.Path({str(target)!r}, 'root'); root.mkdir()",
                "entries = [(Entry(b'', 'dir', 0o700, uid=65534, gid=65534), None),",
                "    (Entry(b'ro', 'dir', 0o555, uid=65534, gid=65534), None),",
                "    (Entry(b'ro/mine', 'file', 0o444, uid=65534, gid=65534, size=1,",
                "        xattrs=(('user.u', b'1'),)), io.BytesIO(b'x')),",
                "    (Entry(b'theirs', 'file', 0o6755, size=1, xattrs=(('trusted.t', b'1'),)), io.BytesIO(b'x'))]",
                "done = tree_write.write_tree(entries, root, size=9)",
                "print(done.unset, done.given == done.made, oct((root / 'theirs').stat().st_mode))",
                "print(tree_print.print_of_tree(root) == done.made)",
            ]
        )
    assert out == "1 False 0o100755\nTrue\n"


def test_a_full_disk_is_no_room(target: Path) -> None:
    if subprocess.run(["unshare", "-m", "true"], capture_output=True, check=False).returncode != 0:
        pytest.skip("needs the right to mount")
    script = f"""
import io, pathlib, sys
sys.path[:0] = {sys.path!r}
from cosmos_coherence import errors
from cosmos_coherence.model import Entry
from cosmos_coherence.sources import tree_write
big = Entry(b"big", "file", size=4 << 20)
try:
    tree_write.write_tree([(Entry(b"", "dir"), None), (big, io.BytesIO(bytes(4 << 20)))], pathlib.Path({str(target)!r}),
        size=4 << 20)
except errors.NoRoom as error:
    print(error)
"""
    command = f'mount -t tmpfs -o size=1m none {target} && {sys.executable} -c "$0"'
    done = subprocess.run(["unshare", "-m", "sh", "-c", command, script], capture_output=True, text=True, check=True)
    assert done.stdout == f"no room to write big in {target}: No space left on device\n"
