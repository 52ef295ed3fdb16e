"""Nodes of names that were copied, and the short way to the same JSON."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from cosmos_coherence.copied import Copied, Found
from cosmos_coherence.repository import nodes, trees

NAMES = st.binary(min_size=1, max_size=20).filter(lambda n: not set(n) & {0, 47} and n not in (b".", b".."))
TIMES = st.one_of(st.integers(-(10**18), 10**19), st.sampled_from([0, 10**9, 17 * 10**17, 17 * 10**17 + 1]))
IDS = st.binary(min_size=32, max_size=32).map(bytes.hex)


@given(
    name=NAMES,
    ino=st.sampled_from([0, 1, 2, 12345, 2**32 - 1, 2**64 - 1]),
    dev=st.sampled_from([0, 12345]),
    nlink=st.sampled_from([0, 1]),
    owner=st.tuples(st.sampled_from([0, 4, 99999]), st.sampled_from([0, 4, 99999])),
    mode=st.integers(0, 0o7777),
    times=st.tuples(TIMES, TIMES),
    content=st.lists(IDS, max_size=3),
    size=st.integers(0, 2**63),
)
def test_the_short_way_writes_the_same(
    name: bytes,
    ino: int,
    dev: int,
    nlink: int,
    owner: tuple[int, int],
    mode: int,
    times: tuple[int, int],
    content: list[str],
    size: int,
) -> None:
    copied = Copied(Found(name, "file", mode, *owner, size, *times, dev, ino, nlink))
    node = nodes.node(name, copied, links=nlink, inode=ino, content=content)
    assert nodes.file_json(copied, content) == trees.encode_node(node)
