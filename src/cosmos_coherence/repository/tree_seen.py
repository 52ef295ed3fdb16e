"""What an earlier tree says of a name, as little of it as tells whether the name is still what it was.

Nothing of it is used for a path: a name is only looked for among those that the disk has.
"""

from __future__ import annotations

import os
import stat

import msgspec

from cosmos_coherence import errors
from cosmos_coherence.repository import gotext, nodes
from cosmos_coherence.repository.crypto import Buffer


class Seen(msgspec.Struct, gc=False):
    """A node's name as the disk has it, and what moves with its content, its owner, its mode or its attributes."""

    name: str
    type: str
    mtime: str = gotext.NO_TIME
    ctime: str = gotext.NO_TIME
    inode: int = 0
    size: int = 0
    content: list[str] | None = None
    subtree: str | None = None

    def is_same(self, found: os.stat_result) -> bool:
        """Whether what ``lstat`` has found is still that."""
        return (
            self.inode == found.st_ino
            and is_time(self.ctime, found.st_ctime_ns)
            and (
                (self.mtime == self.ctime and found.st_mtime_ns == found.st_ctime_ns)
                or is_time(self.mtime, found.st_mtime_ns)
            )
            and nodes.KINDS.get(stat.S_IFMT(found.st_mode)) == self.type
            and (self.type != "file" or self.size == found.st_size)
        )


class _Tree(msgspec.Struct, gc=False):
    nodes: list[Seen] | None = None


class _RawTree(msgspec.Struct, gc=False):
    nodes: list[msgspec.Raw] | None = None


_seen = msgspec.json.Decoder(_Tree).decode
_raw = msgspec.json.Decoder(_RawTree).decode


def decode(plain: Buffer) -> list[Seen]:
    """What a tree says of its names, in its order. Raises ``Damaged`` for what is no tree."""
    try:
        found = _seen(plain).nodes or []
        for each in found:
            if "\\" in each.name:
                each.name = os.fsdecode(gotext.unquote(each.name))
            if each.subtree is not None and (len(each.subtree) != 64 or len(bytes.fromhex(each.subtree)) != 32):
                raise ValueError("an id is not 64 hex digits")
        if len({each.name for each in found}) != len(found):
            raise errors.Hostile("a tree has a name twice")
        return found
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise errors.Damaged(f"not a tree: {error}") from error


def decode_raw(plain: Buffer) -> list[bytes]:
    """The JSON of the nodes that ``decode`` gives, to the byte. Raises ``Damaged``."""
    try:
        return [bytes(each) for each in _raw(plain).nodes or []]
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise errors.Damaged(f"not a tree: {error}") from error


def is_time(text: str, ns: int) -> bool:
    """Whether a tree's time is this one; other programs than ours may write it with a time zone."""
    if text == gotext.format_time(ns):
        return True
    try:
        return text[-1:] != "Z" and gotext.parse_time(text) == ns
    except ValueError:
        return False
