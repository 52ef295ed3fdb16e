"""What can be told of an RDB file from its first and last bytes."""

from __future__ import annotations

import re
from typing import Final

from cosmos_coherence import errors

_HEAD: Final = 512
_FOOT: Final = 9
_MAGIC: Final = re.compile(rb"(?:REDIS(\d{4})|VALKEY(\d{3}))")
_MADE: Final = re.compile(rb"\xfa\x05ctime\xc2(.{4})", re.DOTALL)
_END: Final = 0xFF

_READS: Final = {
    ("redis", 6, 0): 9, ("redis", 6, 2): 9, ("redis", 7, 0): 10, ("redis", 7, 2): 11, ("redis", 7, 4): 12,
    ("redis", 8, 0): 12, ("valkey", 7, 2): 11, ("valkey", 8, 0): 11, ("valkey", 8, 1): 11,
}  # fmt: skip
"""The newest format that a release reads, where that is known."""


class DumpCheck:
    """Watches a dump go by: it is whole when it begins with the magic and ends with the end mark and a checksum."""

    def __init__(self) -> None:
        self._head, self._foot = b"", b""

    def feed(self, piece: bytes) -> None:
        """The next bytes."""
        self._head += piece[: max(0, _HEAD - len(self._head))]
        self._foot = (self._foot + piece[-_FOOT:])[-_FOOT:]

    def finish(self) -> int:
        """The version of its format. ``Damaged`` when it is no dump, or cut short."""
        magic = _MAGIC.match(self._head)
        if magic is None:
            raise errors.Damaged("this is no Redis dump")
        if len(self._foot) < _FOOT or self._foot[0] != _END:
            raise errors.Damaged("the Redis dump is cut short")
        return int(magic[1] or magic[2])

    @property
    def made_at(self) -> int | None:
        """When the save began, in seconds since the epoch by the server's clock; None when the dump does not say."""
        found = _MADE.search(self._head)
        return int.from_bytes(found[1], "little") if found else None


def require_readable(version: int, program: str, release: tuple[int, int]) -> None:
    """``Unsupported`` when this release is known to be too old for a dump of that version."""
    newest = _READS.get((program, *release))
    if newest is not None and version > newest:
        raise errors.Unsupported(
            f"the dump has format {version}, and {program} {release[0]}.{release[1]} reads {newest} at most",
            remedy="Run at least the version that the backup was made with.",
        )
