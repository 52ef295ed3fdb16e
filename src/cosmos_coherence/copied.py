"""A name of a file tree as it was seen on a disk, and as it was copied: one light record for each of very many.

Apart from ``model``, whose values also programs load that must start in no time.
"""

from __future__ import annotations

import os

import msgspec

from cosmos_coherence.model import Entry, EntryKind


class Found(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One name as the disk has it. Two that are equal have the same metadata; content is a matter of the times."""

    path: bytes
    kind: EntryKind
    mode: int = 0o644
    """Permission bits only."""
    uid: int = 0
    gid: int = 0
    size: int = 0
    mtime_ns: int = 0
    ctime_ns: int = 0
    dev: int = 0
    """0 for the device of the root, whose number may be another one after the next start of the machine."""
    ino: int = 0
    nlink: int = 0
    """Of what is no folder or pipe."""
    rdev: int = 0
    target: bytes = b""
    """Where a symlink points; for a hard link the first name of its file."""

    @property
    def device(self) -> tuple[int, int]:
        """Major and minor number of a device."""
        return (os.major(self.rdev), os.minor(self.rdev)) if self.kind in ("char", "block") else (0, 0)


class Copied(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One name as it was read: what the disk said of it then, and what is beyond that."""

    found: Found
    xattrs: tuple[tuple[str, bytes], ...] = ()
    data: tuple[tuple[int, int], ...] | None = None
    digest: str = ""
    """Of a regular file's content, as ``content_digest`` has it."""

    def entry(self) -> Entry:
        """What of it can be restored."""
        found = self.found
        return Entry(
            found.path, found.kind, found.mode, found.uid, found.gid, found.mtime_ns,
            found.size if found.kind == "file" else 0, found.target, self.xattrs, found.device, self.data,
        )  # fmt: skip

    def runs(self) -> tuple[tuple[int, int], ...]:
        """The (offset, length) runs of data of a file."""
        return ((0, self.found.size),) if self.data is None else self.data

    @classmethod
    def of(cls, entry: Entry, digest: str = "") -> Copied:
        """What nobody has seen on a disk here."""
        found = Found(
            entry.path, entry.kind, entry.mode, entry.uid, entry.gid, entry.size, entry.mtime_ns,
            rdev=os.makedev(*entry.device), target=entry.target,
        )  # fmt: skip
        return cls(found, entry.xattrs, entry.data, digest)
