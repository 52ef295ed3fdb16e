"""From what ``lstat`` says to a node of a tree, with restic's choices of which kind of name has which fields."""

from __future__ import annotations

import errno
import grp
import os
import pwd
import stat
from collections.abc import Mapping
from functools import lru_cache
from typing import Final

from cosmos_coherence.repository import trees
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

_SYSTEM_XATTRS: Final = frozenset({"security.selinux", "security.ima", "security.evm", "security.SMACK64"})
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


def is_unchanged(before: Node, found: os.stat_result) -> bool:
    """Whether a file is still the one of ``before``: its change time also moves with mode, owner and xattrs."""
    return (
        before.type == "file"
        and before.size == found.st_size
        and before.inode == found.st_ino
        and before.mtime_ns == found.st_mtime_ns
        and before.ctime_ns == found.st_ctime_ns
    )


def xattrs(place: int | bytes) -> dict[str, bytes]:
    """The extended attributes of an open file or of a name (not followed). ``OSError``."""
    follow = isinstance(place, int)
    try:
        names = os.listxattr(place, follow_symlinks=follow)
    except OSError as error:
        if error.errno in _NO_XATTRS:
            return {}
        raise
    return {name: os.getxattr(place, name, follow_symlinks=follow) for name in names if name not in _SYSTEM_XATTRS}


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
