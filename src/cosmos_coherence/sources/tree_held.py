"""The contents that an anchor read, one after another in one file that has no name."""

from __future__ import annotations

import errno
import tempfile
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import BinaryIO, Final

from cosmos_coherence import errors
from cosmos_coherence.sources import tree_read

_MIB: Final = 1 << 20
_IN_MEMORY: Final = 32 * _MIB
"""They are kept in memory up to here, then in a temporary file."""


class Held:
    """What was read so far, by path."""

    def __init__(self, spool: Path) -> None:
        self._file = tempfile.SpooledTemporaryFile(max_size=_IN_MEMORY, dir=str(spool))  # noqa: SIM115 - closed by close
        self._place = spool
        self._runs: dict[bytes, list[tuple[int, int, int]]] = {}
        self._room = memoryview(bytearray(_MIB))

    def take(self, path: bytes, source: tree_read.Store, runs: Iterable[tuple[int, int]]) -> None:
        """Read these (offset, length) runs of a file. Raises ``CaptureFailed``, or ``NoRoom``."""
        kept = self._runs[path] = []
        try:
            for offset, length in runs:
                position, done = self._file.tell(), 0
                while done < length:
                    got = source.read_at(offset + done, self._room[: length - done])
                    if got == 0:
                        break
                    self._file.write(self._room[:got])
                    done += got
                kept.append((offset, done, position))
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise errors.NoRoom(f"no room in {self._place} for what changed last: {error.strerror}") from error
            raise errors.CaptureFailed(f"{self._place} cannot be written: {error.strerror}") from error

    def paths(self) -> Collection[bytes]:
        """What was taken, in that order."""
        return self._runs.keys()

    def content(self, path: bytes, size: int) -> BinaryIO:
        """The content of a file of this size."""
        return tree_read.content(self, size, self._runs[path])

    def read_at(self, position: int, room: memoryview) -> int:
        """As ``tree_read.Store`` says."""
        self._file.seek(position)
        return int(self._file.readinto(room))

    def close(self) -> None:
        """Forget it all."""
        self._file.close()
