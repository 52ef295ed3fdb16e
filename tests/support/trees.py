"""Real file trees for tests: odd ones by hand, random ones by hypothesis, and what lies on the disk entry by entry."""

from __future__ import annotations

import hashlib
import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from cosmos_coherence.sources.tree_scan import WORK_PREFIX

STAMP = 1_600_000_000_123_456_789
"""A time in ns whose last digits get lost wherever somebody uses floats."""


def odd_tree(root: Path) -> None:
    """Everything a volume can hold. As root also foreign owners, set-id bits and trusted attributes."""
    top = os.fsencode(root)
    (root / "empty" / "deep" / "er").mkdir(parents=True)
    (root / "plain.txt").write_text("hello\n")
    (root / "nothing").touch()
    for name in (b"new\nline", b"\xff\xfe not utf-8", b"x" * 255, b"-rf", b" space ", b"q'uo\"te\\", b"\x1b[31m"):
        Path(os.fsdecode(top + b"/" + name)).write_bytes(name)
    (root / "relative").symlink_to("plain.txt")
    (root / "absolute").symlink_to("/etc/passwd")
    (root / "dangling").symlink_to("no/such/thing")
    (root / "up").symlink_to("../../..")
    (root / "sub").mkdir()
    (root / "sub" / "first").write_bytes(b"shared" * 1000)
    (root / "a-second").hardlink_to(root / "sub" / "first")
    (root / "sub" / "third").hardlink_to(root / "sub" / "first")
    sparse(root / "sparse", 8 << 20, {1 << 20: b"one", (5 << 20) + 17: b"two"})
    sparse(root / "only-a-hole", 3 << 20, {})
    sparse(root / "hole-at-the-end", 1 << 20, {0: b"start"})
    os.mkfifo(root / "pipe", 0o620)
    os.setxattr(root / "plain.txt", "user.note", b"\x00\xff")
    os.setxattr(root / "sub", "user.folder", b"yes")
    (root / "plain.txt").chmod(0o604)
    (root / "closed").mkdir()
    (root / "closed" / "inside").write_text("x")
    if os.geteuid() == 0:
        os.chown(root / "plain.txt", 1234, 4321)
        os.chown(root / "dangling", 12, 34, follow_symlinks=False)
        os.chown(root / "sub", 99, 98)
        (root / "set-id").write_text("#!/bin/sh\n")
        os.chown(root / "set-id", 5, 6)
        (root / "set-id").chmod(0o6755)
        (root / "sub").chmod(0o3770)
        os.setxattr(root / "dangling", "trusted.link", b"1", follow_symlinks=False)
        (root / "closed").chmod(0o000)
    else:
        (root / "closed").chmod(0o500)
    os.setxattr(root, "user.root", b"r")
    for number, path in enumerate(sorted(root.rglob("*"))):
        os.utime(path, ns=(STAMP, STAMP + number), follow_symlinks=False)
    root.chmod(0o751)
    os.utime(root, ns=(STAMP, STAMP))


@contextmanager
def public_folder() -> Iterator[Path]:
    """A folder that any user can reach; pytest's own are closed."""
    with tempfile.TemporaryDirectory(prefix="cosmos-test-") as name:
        folder = Path(name)
        folder.chmod(0o777)
        yield folder


def sparse(path: Path, size: int, pieces: dict[int, bytes]) -> None:
    """A file with holes between these pieces."""
    with path.open("wb") as file:
        file.truncate(size)
        for offset, piece in pieces.items():
            file.seek(offset)
            file.write(piece)
        file.flush()
        os.fsync(file.fileno())


def looks(root: Path) -> dict[bytes, tuple[Any, ...]]:
    """Each name below ``root`` with all that a restore must bring back, read without the code under test."""
    found: dict[bytes, tuple[Any, ...]] = {}
    inodes: dict[int, bytes] = {}
    for folder, folders, files in os.walk(os.fsencode(root)):
        folders.sort()
        if folder == os.fsencode(root):
            folders[:] = [name for name in folders if not name.startswith(WORK_PREFIX)]
        for name in sorted([*folders, *files]):
            place = folder + b"/" + name
            status = os.lstat(place)
            content: Any = None
            if stat.S_ISREG(status.st_mode):
                content = hashlib.sha256(Path(os.fsdecode(place)).read_bytes()).hexdigest()
            elif stat.S_ISLNK(status.st_mode):
                content = os.readlink(place)  # noqa: PTH115 - bytes, as it is
            path = os.path.relpath(place, os.fsencode(root))
            found[path] = (
                status.st_mode,
                status.st_uid,
                status.st_gid,
                status.st_mtime_ns,
                status.st_size if not stat.S_ISDIR(status.st_mode) else 0,
                status.st_nlink if not stat.S_ISDIR(status.st_mode) else 0,
                status.st_rdev,
                content,
                {n: os.getxattr(place, n, follow_symlinks=False) for n in os.listxattr(place, follow_symlinks=False)},
            )
            if stat.S_ISREG(status.st_mode) and status.st_nlink > 1:
                found[path] += (inodes.setdefault(status.st_ino, path),)
    return found


def root_looks(root: Path) -> tuple[Any, ...]:
    """The root's own metadata."""
    found = root.stat()
    attributes = {name: os.getxattr(root, name) for name in os.listxattr(root)}
    return (found.st_mode, found.st_uid, found.st_gid, found.st_mtime_ns, attributes)


_NAMES = st.one_of(
    st.sampled_from([b"a", b"b", b"a-b", b"a.b", b"c\n", b"\xff", b"-x", b"y" * 255]),
    st.binary(min_size=1, max_size=12).filter(lambda n: not set(n) & {0, 47} and n not in (b".", b"..")),
).filter(lambda name: not name.startswith(WORK_PREFIX))
_LEAVES = st.one_of(
    st.binary(max_size=200).map(lambda content: ("file", content)),
    st.integers(0, 5).map(lambda number: ("link-to-file", number)),
    st.binary(min_size=1, max_size=30).filter(lambda t: 0 not in t).map(lambda target: ("symlink", target)),
    st.just(("fifo", b"")),
    st.tuples(st.integers(0, 9), st.binary(min_size=1, max_size=9)).map(lambda hole: ("sparse", hole)),
)
random_trees = st.recursive(
    st.dictionaries(_NAMES, _LEAVES, max_size=6),
    lambda inner: st.dictionaries(_NAMES, st.one_of(_LEAVES, inner), max_size=6),
    max_leaves=25,
)
"""Trees as nested dicts: a dict is a folder, a pair a leaf."""


def plant(root: Path, tree: dict[bytes, Any], seed: int = 0) -> None:
    """Make a random tree real, with modes and times (and owners, as root) that depend on the seed."""
    files: list[bytes] = []
    places: list[bytes] = []
    _plant(os.fsencode(root), tree, files, places)
    for number, place in enumerate(reversed(places)):
        mark = seed + number * 7
        if os.geteuid() == 0:
            os.chown(place, 1000 + mark % 3, 1000 + mark % 5, follow_symlinks=False)
        path = Path(os.fsdecode(place))
        if not path.is_symlink():
            path.chmod(0o600 + mark % 0o200 | (0o700 if path.is_dir() else 0))
        os.utime(place, ns=(STAMP, STAMP + mark), follow_symlinks=False)


def _plant(top: bytes, tree: dict[bytes, Any], files: list[bytes], places: list[bytes]) -> None:
    for name, what in tree.items():
        place = top + b"/" + name
        path = Path(os.fsdecode(place))
        places.append(place)
        if isinstance(what, dict):
            path.mkdir()
            _plant(place, what, files, places)
            continue
        kind, value = what
        if kind == "symlink":
            os.symlink(value, place)  # noqa: PTH211 - bytes, as they are
        elif kind == "fifo":
            os.mkfifo(place)
        elif kind == "sparse":
            sparse(path, (value[0] + 1) << 16, {value[0] << 15: value[1]})
        elif kind == "link-to-file" and files:
            os.link(files[value % len(files)], place, follow_symlinks=False)
        else:
            path.write_bytes(value if kind == "file" else b"")
            files.append(place)
