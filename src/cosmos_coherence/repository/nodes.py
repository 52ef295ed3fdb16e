"""Nodes of a tree from what was copied, with restic's choices of which kind of name has which fields."""

from __future__ import annotations

import grp
import pwd
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Final

from cosmos_coherence.copied import Copied
from cosmos_coherence.repository import gotext, trees
from cosmos_coherence.repository.gotext import go_mode
from cosmos_coherence.repository.trees import Node, NodeType

TYPES: Final[Mapping[str, NodeType]] = {
    "dir": "dir", "file": "file", "symlink": "symlink", "fifo": "fifo", "char": "chardev", "block": "dev"
}  # fmt: skip
_BITS: Final = {
    "dir": 0o040000, "file": 0o100000, "symlink": 0o120000, "fifo": 0o010000, "char": 0o020000, "block": 0o060000
}  # fmt: skip


def node(
    name: bytes, copied: Copied, *, links: int, inode: int, content: Sequence[str] = (), subtree: str | None = None
) -> Node:
    """The node of a name, which is no hard link. Of one that nobody has seen on a disk only what is known is in it."""
    found = copied.found
    kind = TYPES[found.kind]
    counted = kind not in ("dir", "fifo")
    ctime_ns = found.ctime_ns or found.mtime_ns
    return trees.node(
        name,
        kind,
        target=found.target if kind == "symlink" else None,
        xattrs=dict(copied.xattrs),
        mode=go_mode(_BITS[found.kind] | found.mode),
        mtime=found.mtime_ns,
        atime=found.mtime_ns,  # as restic does: a read must not make a folder new
        ctime=ctime_ns,
        uid=found.uid,
        gid=found.gid,
        user=_user(found.uid),
        group=_group(found.gid),
        inode=inode,
        device_id=found.dev if counted and links > 1 else 0,
        size=found.size if kind == "file" else 0,
        links=links if counted else 0,
        device=found.rdev if kind in ("dev", "chardev") else 0,
        content=list(content) if kind == "file" else None,
        subtree=subtree,
    )


def is_plain(copied: Copied) -> bool:
    """Whether it is a file with one name and no attributes."""
    return copied.found.kind == "file" and copied.found.nlink <= 1 and not copied.xattrs


def plain_json(copied: Copied) -> str:
    """The JSON of a plain file of at most one blob."""
    return file_json(copied, (copied.digest,) if copied.found.size else ())


def file_json(copied: Copied, content: Sequence[str]) -> str:
    """The JSON of a plain file, as ``trees.encode_node`` writes its node, only faster."""
    found = copied.found
    name = gotext.quoted_name(found.path.rpartition(b"/")[2])
    mtime = gotext.format_time(found.mtime_ns)
    ctime_ns = found.ctime_ns or found.mtime_ns
    ctime = mtime if ctime_ns == found.mtime_ns else gotext.format_time(ctime_ns)
    owner, size = _owner(found.uid, found.gid), found.size
    if size and found.ino and found.nlink and len(content) == 1:  # as nearly all are
        return (
            f'{{"name":{name},"type":"file"{_mode(found.mode)},"mtime":"{mtime}","atime":"{mtime}"'
            f',"ctime":"{ctime}"{owner},"inode":{found.ino},"size":{size},"links":{found.nlink}'
            f',"content":["{content[0]}"]}}'
        )
    return "".join((
        f'{{"name":{name},"type":"file"{_mode(found.mode)}',
        f',"mtime":"{mtime}","atime":"{mtime}","ctime":"{ctime}"{owner}',
        f',"inode":{found.ino}' if found.ino else "",
        f',"size":{size}' if size else "",
        f',"links":{found.nlink}' if found.nlink else "",
        ',"content":["' + '","'.join(content) + '"]}' if content else ',"content":[]}',
    ))  # fmt: skip


@lru_cache(maxsize=4096)
def _mode(permissions: int) -> str:
    mode = go_mode(0o100000 | permissions)
    return f',"mode":{mode}' if mode else ""


@lru_cache(maxsize=1024)
def _user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except (KeyError, OverflowError):
        return ""


@lru_cache(maxsize=1024)
def _group(gid: int) -> str:
    try:
        return grp.getgrgid(gid).gr_name
    except (KeyError, OverflowError):
        return ""


@lru_cache(maxsize=1024)
def _owner(uid: int, gid: int) -> str:
    user, group = _user(uid), _group(gid)
    text = f',"uid":{uid},"gid":{gid}'
    if user:
        text += f',"user":{gotext.json_string(user)}'
    if group:
        text += f',"group":{gotext.json_string(group)}'
    return text
