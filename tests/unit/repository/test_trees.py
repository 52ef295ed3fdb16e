"""The JSON of folders."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cosmos_coherence import errors
from cosmos_coherence.repository import trees
from cosmos_coherence.repository.trees import Node

NAMES = st.binary(min_size=1, max_size=20).filter(lambda n: not set(n) & {0, 47} and n not in (b".", b".."))
IDS = st.binary(min_size=32, max_size=32).map(bytes.hex)
NUMBERS = st.integers(0, 2**64 - 1)
SMALL = st.integers(0, 2**32 - 1)


@st.composite
def nodes(draw: Any) -> Node:
    kind = draw(st.sampled_from(["file", "dir", "symlink", "dev", "chardev", "fifo"]))
    return trees.node(
        draw(NAMES),
        kind,
        target=draw(st.binary(min_size=1, max_size=30).filter(lambda t: 0 not in t)) if kind == "symlink" else None,
        xattrs=draw(st.dictionaries(st.text("abc.é<", min_size=1), st.binary(max_size=9), max_size=3)),
        mode=draw(SMALL),
        mtime=draw(st.integers(-(10**18), 10**19)),
        uid=draw(SMALL),
        gid=draw(SMALL),
        user=draw(st.text(max_size=5)),
        inode=draw(NUMBERS),
        device_id=draw(NUMBERS),
        size=draw(NUMBERS),
        links=draw(NUMBERS),
        device=draw(NUMBERS),
        content=draw(st.lists(IDS, max_size=3)) if kind == "file" else None,
        subtree=draw(IDS) if kind == "dir" else None,
    )


TREES = st.lists(nodes(), max_size=5, unique_by=lambda node: node.file_name).map(
    lambda found: sorted(found, key=lambda node: node.file_name)
)


@given(TREES)
def test_a_tree_comes_back_and_is_json(tree: list[Node]) -> None:
    written = trees.encode(tree)
    assert trees.encode(trees.decode(written)) == written
    assert written.endswith(b"]}\n")
    json.loads(written)
    for before, after in zip(tree, trees.decode(written), strict=True):
        assert (after.file_name, after.target, after.blobs) == (before.file_name, before.target, before.blobs)


def test_the_bytes_are_those_of_the_real_one() -> None:
    made = trees.node(
        b"a&b",
        "file",
        xattrs={"user.note": b"\x00\xff"},
        mode=0o644,
        mtime=10**9,
        atime=10**9,
        ctime=0,
        uid=1,
        size=6,
        content=["0" * 64],
    )
    assert trees.encode([made]).decode() == (
        r'{"nodes":[{"name":"a\u0026b","type":"file","mode":420,"mtime":"1970-01-01T00:00:01Z",'
        r'"atime":"1970-01-01T00:00:01Z","ctime":"1970-01-01T00:00:00Z","uid":1,"gid":0,"size":6,'
        r'"extended_attributes":[{"name":"user.note","value":"AP8="}],"content":["' + "0" * 64 + '"]}]}\n'
    )
    bad = trees.node(b"l", "symlink", target=b"\xff/x")
    assert r'"linktarget":"\ufffd/x","linktarget_raw":"/y94","content":null' in trees.encode([bad]).decode()


def tree_of(*names: str, more: str = "") -> bytes:
    return (
        '{"nodes":[' + ",".join(f'{{"name":{json.dumps(n)},"type":"file","content":[]{more}}}' for n in names) + "]}"
    ).encode()


@pytest.mark.parametrize(
    "names",
    [("..",), (".",), ("",), ("a/b",), ("/",), (r"\x00",), (r"a\x2fb",), ("b", "a"), ("a", "a"), (r"\xff", "z")],
)
def test_names_that_reach_out_or_are_in_disorder_are_hostile(names: tuple[str, ...]) -> None:
    with pytest.raises(errors.Hostile):
        trees.decode(tree_of(*names))


@pytest.mark.parametrize(
    "more",
    [
        ',"uid":4294967296',
        ',"uid":-1',
        ',"inode":18446744073709551616',
        ',"size":-5',
        ',"mtime":"yesterday"',
        ',"subtree":"00"',
        ',"content":["zz"]',
        ',"linktarget_raw":"*"',
        ',"extended_attributes":[{"name":"a\\u0000b","value":""}]',
        ',"mode":"x"',
    ],
)
def test_what_cannot_be_is_damage(more: str) -> None:
    with pytest.raises(errors.Damaged):
        trees.decode(tree_of("a", more=more))


def test_a_tree_that_another_system_wrote_keeps_what_we_do_not_know() -> None:
    plain = (
        b'{"nodes":[{"name":"f","type":"file","mode":438,"mtime":"2020-01-01T00:00:00+02:00","atime":"2020-01-01T00:00:00Z",'
        b'"ctime":"2020-01-01T00:00:00Z","uid":0,"gid":0,"generic_attributes":{"windows.file_attributes":32},"content":[]}]}\n'
    )
    assert trees.encode(trees.decode(plain)) == plain
    assert trees.decode(b'{"nodes":null}') == []


@given(TREES, st.data())
def test_flipped_and_cut_bytes_end_in_our_errors(tree: list[Node], data: st.DataObject) -> None:
    written = bytearray(trees.encode(tree))
    for _ in range(5):
        written[data.draw(st.integers(0, len(written) - 1))] = data.draw(st.integers(0, 255))
    del written[data.draw(st.integers(0, len(written))) :]
    with contextlib.suppress(errors.Damaged):
        trees.decode(written)


@given(st.binary(max_size=80))
def test_anything_else_ends_in_our_errors(junk: bytes) -> None:
    with pytest.raises(errors.Damaged):
        trees.decode(junk + b"x")
