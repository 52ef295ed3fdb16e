"""The tree in an archive: what goes in comes out, entry by entry and byte by byte, and other programs agree."""

from __future__ import annotations

import io
import os
import stat
import subprocess
import tarfile
import tempfile
import tracemalloc
from pathlib import Path
from random import Random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from cosmos_coherence import content_digest, errors
from cosmos_coherence.archive.gzipped import MEMBER
from cosmos_coherence.copied import Copied
from cosmos_coherence.model import Entry
from unit.archive.building import ROOT, assembled, read_tree, tree_writer

_NAME = (
    st.binary(min_size=1, max_size=12)
    .map(lambda b: b.replace(b"/", b"_").replace(b"\0", b"-"))
    .filter(lambda b: b not in (b".", b".."))
)
_LONG = st.integers(90, 250).map(lambda n: b"l" * n)
_XATTRS = st.dictionaries(
    st.text(st.characters(blacklist_characters="\0", blacklist_categories=("Cs",)), min_size=1, max_size=8).map(
        lambda s: "user." + s
    ),
    st.binary(max_size=40),
    max_size=3,
).map(lambda d: tuple(d.items()))
_NUMBER = st.one_of(st.integers(0, 3000), st.integers(0, 2**32 - 2))
_TIME = st.one_of(st.integers(-(2**40), 2**62), st.integers(0, 2**33).map(lambda s: s * 10**9))
_SIZE = st.one_of(
    st.integers(0, 2000), st.sampled_from([0, 511, 512, 513, MEMBER - 1, MEMBER, MEMBER + 1, 2 * MEMBER + 77])
)


@st.composite
def _files(draw: st.DrawFn) -> tuple[Entry, bytes]:
    """A file and its whole content, holes included."""
    content = Random(draw(st.integers(0, 5))).randbytes(draw(_SIZE))
    data = None
    if draw(st.booleans()) and len(content) < 5000:
        cuts = sorted(draw(st.sets(st.integers(0, len(content)), max_size=8)))
        data = tuple((a, b - a) for a, b in zip(cuts[::2], cuts[1::2], strict=False))
        holed = bytearray(len(content))
        for offset, length in data:
            holed[offset : offset + length] = content[offset : offset + length]
        content = bytes(holed)
    entry = Entry(
        path=b"", kind="file", mode=draw(st.integers(0, 0o7777)), uid=draw(_NUMBER), gid=draw(_NUMBER),
        mtime_ns=draw(_TIME), size=len(content), xattrs=draw(_XATTRS), data=data,
    )  # fmt: skip
    return entry, content


_STEPS = st.lists(
    st.tuples(st.sampled_from(["add", "add", "add", "drop"]), st.integers(0, 9), st.integers(0, 3), _files()),
    max_size=14,
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(
    st.lists(st.one_of(_NAME, _LONG), min_size=10, max_size=10, unique=True),
    st.lists(_NAME, min_size=4, max_size=4, unique=True),
    _STEPS,
    st.sets(st.integers(0, 9)),
    st.integers(0, 2**32),
)
def test_whatever_was_added_dropped_and_replaced_comes_back(
    names: list[bytes],
    folders: list[bytes],
    steps: list[tuple[str, int, int, tuple[Entry, bytes]]],
    touched: set[int],
    when: int,
) -> None:
    parents = [b"", b"d" + folders[0], b"d" + folders[1], b"d" + folders[1] + b"/" + folders[2]]
    tree: dict[bytes, tuple[Entry, bytes]] = {}
    with tempfile.TemporaryDirectory() as folder, tree_writer(Path(folder)) as (writer, done):
        for verb, name, parent, (file, content) in steps:
            path = (parents[parent] + b"/" if parents[parent] else b"") + b"f" + names[name]
            if verb == "drop":
                writer.drop(path)
                tree.pop(path, None)
            else:
                entry = replace(file, path=path)
                announced = entry if entry.data is not None else replace(entry, size=entry.size // 2)
                assert writer.add(announced, io.BytesIO(content)) == content_digest.of(content)
                tree[path] = (entry, content)
        for number, path in enumerate(sorted(tree)):
            if number in touched:  # changed its owner and time after it was copied
                tree[path] = (replace(tree[path][0], uid=when, mtime_ns=when), tree[path][1])
        entries = [entry for entry, _ in tree.values()]
        entries += [Entry(parent, "dir", 0o2755, 5, 6, 7) for parent in parents]
        entries += [Entry(b"z-link", "symlink", 0o777, mtime_ns=3, target=b"/abs/" + names[0])]
        entries += [Entry(b"z-null", "char", device=(1, 3)), Entry(b"z-pipe", "fifo", 0o600)]
        entries += [Entry(b"z" + names[1] + b"%d" % n, "hardlink", target=path) for n, path in enumerate(tree)]
        entries.sort(key=lambda entry: entry.path)
        assert writer.finish(map(Copied.of, entries)) == done[0].file
        packed = assembled(done[0])
    found = read_tree(packed)
    assert {entry.path: entry for entry, _ in found} == {entry.path: entry for entry in entries}
    assert len(found) == len(entries)
    kinds = [{"dir": 0, "file": 1}.get(entry.kind, 2) for entry, _ in found]
    assert kinds == sorted(kinds)
    for entry, content in found:
        if entry.kind == "file":
            whole = tree[entry.path][1]
            runs = [(0, entry.size)] if entry.data is None else entry.data
            assert content == b"".join(whole[offset : offset + length] for offset, length in runs)


def _finish(writer: object, done: list[object], entries: list[Entry]) -> bytes:
    writer.finish(map(Copied.of, sorted(entries, key=lambda entry: entry.path)))  # type: ignore[attr-defined]
    return assembled(done[0])  # type: ignore[arg-type]


def test_gnu_tar_gunzip_and_python_read_the_same(tmp_path: Path) -> None:
    value = b"\x00\xff\n=binary\x00"
    big = os.urandom(MEMBER) * 3 + b"end"
    holed = b"\0" * 300_000 + b"data" * 1000 + b"\0" * 500_000
    long = b"deep/" + b"x" * 200
    files = {
        b"big": (Entry(b"big", "file", 0o4755, mtime_ns=1_700_000_000_123_456_789), big),
        b"empty": (Entry(b"empty", "file", 0o600), b""),
        b"holed": (Entry(b"holed", "file", size=len(holed), data=((300_000, 4000),), mtime_ns=5_000_000_001), holed),
        b"n\xffon-utf8\n": (Entry(b"n\xffon-utf8\n", "file"), b"1"),
        "ümlaut".encode(): (Entry("ümlaut".encode(), "file", xattrs=(("user.a=b%", value), ("user.c", b""))), b"2"),
        long: (Entry(long, "file", uid=3_000_000, gid=4_000_000), b"3"),
    }
    others = [ROOT, Entry(b"deep", "dir", 0o2750), Entry(b"void", "dir", 0o700, mtime_ns=1_600_000_000_000_000_009)]
    others += [
        Entry(b"same", "hardlink", target=long),
        Entry(b"abs", "symlink", 0o777, target=b"/nowhere/" + b"y" * 150),
    ]
    others += [Entry(b"pipe", "fifo", 0o640)]
    with tree_writer(tmp_path) as (writer, done):
        for entry, content in files.values():
            writer.add(entry, io.BytesIO(content))
        packed = _finish(writer, done, [e for e, _ in files.values()] + others)
    archive, target = tmp_path / "x.tar.gz", tmp_path / "out"
    archive.write_bytes(packed)
    target.mkdir()
    subprocess.run(["gunzip", "-t", archive], check=True)
    flags = ["--xattrs", "--xattrs-include=*", "--numeric-owner", "-p"]
    told = subprocess.run(["tar", *flags, "-xzf", archive, "-C", target], check=True, capture_output=True)
    assert told.stderr == b""
    for path, (entry, content) in files.items():
        found = Path(os.fsdecode(os.fsencode(target) + b"/" + path))
        status = found.stat()
        assert found.read_bytes() == content
        if os.geteuid() == 0:
            assert (status.st_uid, status.st_gid) == (entry.uid, entry.gid)
            assert stat.S_IMODE(status.st_mode) == entry.mode
        assert status.st_mtime_ns == entry.mtime_ns
        assert {k: os.getxattr(found, k) for k in os.listxattr(found)} == dict(entry.xattrs)
    assert (target / "holed").stat().st_blocks * 512 < len(holed)
    assert (target / "void").stat().st_mtime_ns == 1_600_000_000_000_000_009
    assert (target / "same").samefile(os.fsdecode(os.fsencode(target) + b"/" + long))
    assert (target / "abs").readlink() == Path("/nowhere/" + "y" * 150)
    assert (target / "pipe").is_fifo()
    with tarfile.open(archive, "r:gz") as tar:
        assert {m.name for m in tar} == {os.fsdecode(e.path) or "." for e in [*others, *(e for e, _ in files.values())]}
        assert tar.extractfile("holed").read() == holed  # type: ignore[union-attr]
        assert os.fsencode(tar.getmember("ümlaut").pax_headers["SCHILY.xattr.user.c"]) == b""


@pytest.mark.parametrize("announced", [0, 10, 5_000_000])
def test_a_file_that_changes_while_it_is_read_is_what_was_read(tmp_path: Path, announced: int) -> None:
    content = os.urandom(MEMBER + 100)
    with tree_writer(tmp_path) as (writer, done):
        for name in (b"large", b"small"):
            writer.add(Entry(name, "file", size=announced), io.BytesIO(content if name == b"large" else b"abc"))
        packed = _finish(writer, done, [ROOT, Entry(b"large", "file", size=1), Entry(b"small", "file", size=2)])
    assert [(e.path, e.size, c) for e, c in read_tree(packed)[1:]] == [
        (b"large", len(content), content),
        (b"small", 3, b"abc"),
    ]


def test_a_sparse_file_that_was_cut_meanwhile_ends_where_it_ended(tmp_path: Path) -> None:
    entry = Entry(b"f", "file", size=10_000, data=((0, 10), (500, 100), (9000, 5)))
    content = b"a" * 10 + b"\0" * 490 + b"b" * 40
    with tree_writer(tmp_path) as (writer, done):
        assert writer.add(entry, io.BytesIO(content)) == content_digest.of(content)
        packed = _finish(writer, done, [ROOT, entry])
    (_, (found, data)) = read_tree(packed)
    assert (found.size, found.data, data) == (540, ((0, 10), (500, 40)), b"a" * 10 + b"b" * 40)


class _Broken(io.BytesIO):
    def read(self, size: int | None = -1, /) -> bytes:
        if self.tell() >= MEMBER:
            raise OSError(5, "Input/output error")
        return super().read(min(size or 0, MEMBER))


def test_content_that_cannot_be_read_fails_and_leaves_the_rest_whole(tmp_path: Path) -> None:
    with tree_writer(tmp_path) as (writer, done):
        writer.add(Entry(b"a", "file"), io.BytesIO(b"1"))
        with pytest.raises(errors.CaptureFailed, match=r"bad .*Input/output"):
            writer.add(Entry(b"bad", "file"), _Broken(bytes(3 * MEMBER)))
        writer.add(Entry(b"c", "file"), io.BytesIO(b"3"))
        packed = _finish(writer, done, [ROOT, Entry(b"a", "file"), Entry(b"c", "file")])
    assert [(e.path, c) for e, c in read_tree(packed)] == [(b"", b""), (b"a", b"1"), (b"c", b"3")]


@pytest.mark.parametrize(
    "entries",
    [
        [],
        [Entry(b"a", "file")],
        [ROOT],
        [ROOT, Entry(b"a", "file"), Entry(b"b", "file")],
        [ROOT, Entry(b"b", "hardlink", target=b"c"), Entry(b"a", "file")],
        [ROOT, Entry(b"a", "file"), Entry(b"b", "hardlink", target=b"c")],
        [ROOT, Entry(b"a", "file"), Entry(b"a", "file")],
    ],
)
def test_a_tree_that_does_not_fit_what_was_added_is_a_fault(tmp_path: Path, entries: list[Entry]) -> None:
    with tree_writer(tmp_path) as (writer, _):
        writer.add(Entry(b"a", "file"), io.BytesIO(b"1"))
        with pytest.raises(AssertionError):
            writer.finish(map(Copied.of, entries))


class _Endless(io.RawIOBase):
    """Bytes that come from nowhere."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self._left, self._piece = size, os.urandom(MEMBER)

    def read(self, size: int | None = -1, /) -> bytes:
        taken = min(self._left, len(self._piece), MEMBER if size is None or size < 0 else size)
        self._left -= taken
        return self._piece[:taken]


def test_memory_does_not_grow_with_the_data(tmp_path: Path) -> None:
    def peak(size: int) -> int:
        folder = tmp_path / str(size)
        folder.mkdir()
        tracemalloc.start()
        with tree_writer(folder) as (writer, _):
            writer.add(Entry(b"f", "file"), _Endless(size))  # type: ignore[arg-type]
            writer.finish(map(Copied.of, [ROOT, Entry(b"f", "file")]))
        used = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return used

    assert peak(64 * MEMBER) < peak(16 * MEMBER) + 4 * MEMBER < 40 * MEMBER
