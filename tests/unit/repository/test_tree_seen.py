"""What an earlier tree says of a name, and the short ways to the same JSON."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cosmos_coherence import errors
from cosmos_coherence.repository import gotext, nodes, tree_seen, trees
from cosmos_coherence.repository.folder_read import joined, with_subtree

NAMES = st.binary(min_size=1, max_size=20).filter(lambda n: not set(n) & {0, 47} and n not in (b".", b".."))
TIMES = st.one_of(st.integers(-(10**18), 10**19), st.sampled_from([0, 10**9, 17 * 10**17, 17 * 10**17 + 1]))
IDS = st.binary(min_size=32, max_size=32).map(bytes.hex)


@given(
    name=NAMES,
    numbers=st.tuples(*[st.sampled_from([0, 1, 2, 12345, 2**32 - 1, 2**64 - 1])] * 3),
    owner=st.tuples(st.sampled_from([0, 4, 99999]), st.sampled_from([0, 4, 99999])),
    mode=st.integers(0, 0o7777),
    times=st.tuples(TIMES, TIMES),
    content=st.lists(IDS, max_size=3),
    size=st.integers(0, 2**63),
)
def test_the_short_way_writes_the_same(
    name: bytes,
    numbers: tuple[int, int, int],
    owner: tuple[int, int],
    mode: int,
    times: tuple[int, int],
    content: list[str],
    size: int,
) -> None:
    found = cast(
        os.stat_result,
        SimpleNamespace(
            st_mode=stat.S_IFREG | mode, st_ino=numbers[0], st_dev=numbers[1], st_nlink=numbers[2],
            st_uid=owner[0], st_gid=owner[1], st_mtime_ns=times[0], st_ctime_ns=times[1], st_rdev=0,
        ),
    )  # fmt: skip
    node = nodes.from_stat(name, found)
    node.size, node.content = size, content
    assert nodes.file_json(name, found, size, content) == trees.encode_node(node)


@given(names=st.lists(NAMES, unique=True, max_size=6), times=TIMES)
def test_names_come_back_as_the_disk_has_them(names: list[bytes], times: int) -> None:
    made = [trees.node(name, "file", mtime=times, ctime=times, inode=7, content=[]) for name in sorted(names)]
    plain = joined([(node.file_name, trees.encode_node(node)) for node in reversed(made)])
    assert plain == trees.encode(made)
    seen = tree_seen.decode(plain)
    assert [os.fsencode(each.name) for each in seen] == sorted(names)
    assert [raw.decode() for raw in tree_seen.decode_raw(plain)] == [trees.encode_node(node) for node in made]


def test_a_folder_gets_its_tree_at_the_end() -> None:
    node = trees.node(b"folder", "dir", mode=1 << 31 | 0o755)
    without = trees.encode_node(node)
    node.subtree = "ab" * 32
    assert with_subtree(without, "ab" * 32) == trees.encode_node(node)


def test_any_change_shows(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("1")

    def seen() -> tree_seen.Seen:
        (each,) = tree_seen.decode(trees.encode([_node(path)]))
        return each

    assert seen().is_same(path.lstat())
    for change in (
        lambda: path.write_text("2"),
        lambda: path.chmod(0o640),
        lambda: os.setxattr(path, "user.a", b"b"),
        lambda: os.utime(path, ns=(0, path.lstat().st_mtime_ns + 1)),
        lambda: (path.rename(tmp_path / "away"), path.write_text("1")),
        lambda: (path.unlink(), path.symlink_to("away")),
    ):
        before = seen()
        change()
        assert not before.is_same(path.lstat())


def _node(path: Path) -> trees.Node:
    found = path.lstat()
    node = nodes.from_stat(os.fsencode(path.name), found)
    node.size = found.st_size
    return node


def test_times_with_a_zone_are_the_same_times() -> None:
    ns = 1_700_000_000_000_000_500
    assert tree_seen.is_time(gotext.format_time(ns), ns)
    assert tree_seen.is_time("2023-11-14T23:13:20.0000005+01:00", ns)
    assert not tree_seen.is_time("2023-11-14T23:13:20.0000006+01:00", ns)
    assert not tree_seen.is_time("rubbish", ns)
    assert not tree_seen.is_time("", ns)


@pytest.mark.parametrize(
    "plain",
    [
        b"",
        b"[]",
        b"\xff",
        b'{"nodes":[{}]}',
        b'{"nodes":[{"name":"\\\\q","type":"file"}]}',
        b'{"nodes":[{"name":"a","type":"file"},{"name":"a","type":"file"}]}',
        b'{"nodes":[{"name":"a","type":"dir","subtree":"abcd"}]}',
        b'{"nodes":[{"name":"a","type":"dir","subtree":"%s"}]}' % (b"x" * 64),
    ],
)
def test_what_is_no_tree_is_damaged(plain: bytes) -> None:
    with pytest.raises(errors.Damaged):
        tree_seen.decode(plain)
