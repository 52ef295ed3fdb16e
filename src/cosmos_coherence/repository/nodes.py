"""From what ``lstat`` says to a node of a tree, with restic's choices of which kind of name has which fields."""

from __future__ import annotations

import errno
import grp
import os
import pwd
import stat
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Final

from cosmos_coherence.repository import gotext, trees
from cosmos_coherence.repository.gotext import go_mode
from cosmos_coherence.repository.trees import Node, NodeType

KINDS: Final[Mapping[int, NodeType]] = {
    stat.S_IFREG: "file",
    stat.S_IFDIR: "dir",
    stat.S_IFLNK: "symlink",
    stat.S_IFBLK: "dev",
    stat.S_IFCHR: "chardev",
    stat.S_IFIFO: "fifo",
}
"""What is stored. Sockets are not: the program that listens makes them anew."""

SYSTEM_XATTRS: Final = frozenset({"security.selinux", "security.ima", "security.evm", "security.SMACK64"})
"""What the machine's security module gives by itself: neither saved nor restored."""
_NO_XATTRS: Final = frozenset({errno.ENOTSUP, errno.ENODATA, errno.ENOSYS})


def from_stat(
    name: bytes, found: os.stat_result, *, target: bytes | None = None, xattrs: Mapping[str, bytes] | None = None
) -> Node:
    """The node of a name; ``content`` and ``size`` of a file, ``subtree`` of a folder are still missing."""
    kind = KINDS[stat.S_IFMT(found.st_mode)]
    counted = kind not in ("dir", "fifo")
    return trees.node(
        name,
        kind,
        target=target,
        xattrs=xattrs,
        mode=go_mode(found.st_mode),
        mtime=found.st_mtime_ns,
        atime=found.st_mtime_ns,  # as restic does: a read must not make a folder new
        ctime=found.st_ctime_ns,
        uid=found.st_uid,
        gid=found.st_gid,
        user=_user(found.st_uid),
        group=_group(found.st_gid),
        inode=found.st_ino,
        # Nothing is gained by it for a fifo, but the bytes are then restic's.
        device_id=found.st_dev if kind == "fifo" or (counted and found.st_nlink > 1) else 0,
        links=found.st_nlink if counted else 0,
        device=found.st_rdev if kind in ("dev", "chardev") else 0,
        content=[] if kind == "file" else None,
    )


def file_json(name: bytes, found: os.stat_result, size: int, content: Sequence[str]) -> str:
    """The JSON of a file's node without extended attributes, as ``trees.encode_node`` writes it, only faster."""
    mtime = gotext.format_time(found.st_mtime_ns)
    ctime = mtime if found.st_ctime_ns == found.st_mtime_ns else gotext.format_time(found.st_ctime_ns)
    mode = go_mode(found.st_mode)
    parts = [f'{{"name":{gotext.quoted_name(name)},"type":"file"']
    if mode:
        parts.append(f',"mode":{mode}')
    parts.append(f',"mtime":"{mtime}","atime":"{mtime}","ctime":"{ctime}"{_owner(found.st_uid, found.st_gid)}')
    if found.st_ino:
        parts.append(f',"inode":{found.st_ino}')
    if found.st_nlink > 1 and found.st_dev:
        parts.append(f',"device_id":{found.st_dev}')
    if size:
        parts.append(f',"size":{size}')
    if found.st_nlink:
        parts.append(f',"links":{found.st_nlink}')
    parts.append(',"content":["' + '","'.join(content) + '"]}' if content else ',"content":[]}')
    return "".join(parts)


def xattrs(place: int | bytes) -> dict[str, bytes]:
    """The extended attributes of an open file or of a name (not followed). ``OSError``."""
    follow = isinstance(place, int)
    try:
        names = os.listxattr(place, follow_symlinks=follow)
    except OSError as error:
        if error.errno in _NO_XATTRS:
            return {}
        raise
    return {name: os.getxattr(place, name, follow_symlinks=follow) for name in names if name not in SYSTEM_XATTRS}


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
