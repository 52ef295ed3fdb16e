"""Large files that go on changing where files can be cloned: which are left to the pause, and readied for it."""

from __future__ import annotations

import ctypes
import itertools
import os
import threading
import time
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

from cosmos_coherence import interruption
from cosmos_coherence.copied import Found
from cosmos_coherence.drivers.folders import Folders, open_file
from cosmos_coherence.sources.tree_scan import Scan

SIZE: Final = 4 << 20
"""From this size on a clone, which has to wait for the disk, is sooner done than reading."""
MOST: Final = 256
"""Each is an open file, and a process may have only so many."""
_BETWEEN_S: Final = 0.02
_WRITE_AND_WAIT: Final = 7
"""All three flags of ``sync_file_range``: data only, which is what a clone waits for."""


def left_to_clone(unsettled: Iterable[Found], added: Collection[bytes]) -> set[bytes]:
    """Of these those that were added before and have changed again: the pause they cost does not grow with them."""
    again = (found.path for found in unsettled if found.size >= SIZE and found.path in added)
    return set(itertools.islice(again, MOST))


def large(scan: Scan) -> Iterator[Found]:
    """The files of this size."""
    return (found for found in scan.names.values() if found.size >= SIZE)


class Flush:
    """Has what is written to these files below ``root`` written to the disk soon, in a thread, until ``enough``.

    A clone waits for all of it that is still to be written, and in the pause that has to be little.
    """

    def __init__(self, root: Path, files: Sequence[Found] = ()) -> None:
        self._files: list[int] = []
        self._enough = threading.Event()
        self._thread: interruption.Thread | None = None
        if not files:
            return
        with suppress(OSError), Folders(root) as folders:
            for path in sorted(found.path for found in files[:MOST]):
                if opened := open_file(folders, path):
                    self._files.append(opened[0])
        if self._files:
            self._thread = interruption.Thread(target=self._run, name="flush", daemon=True)
            self._thread.start()

    def enough(self) -> None:
        """The pause begins; a write that is under way is not waited for."""
        self._enough.set()

    def close(self) -> None:
        """Return when nothing of it is left. May be called again."""
        self._enough.set()
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        write = ctypes.CDLL(None).sync_file_range
        write.argtypes = [ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint]
        took = 0.0
        while not self._enough.wait(max(_BETWEEN_S, took)):
            began = time.monotonic()
            for file in self._files:
                write(file, 0, 0, _WRITE_AND_WAIT)
            took = time.monotonic() - began
        for file in self._files:
            os.close(file)
