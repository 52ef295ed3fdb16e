"""Where the writers see each other: memory that they share and that no backup holds.

``python -m benchmarks.coherence.board FOLDER begin N | stop | show | ledger`` steers them, beside them.
"""

from __future__ import annotations

import json
import mmap
import os
import struct
import sys
import time
from pathlib import Path

_WORDS = 64
_COMMAND, _ACKNOWLEDGED, _SESSION = 0, 8, 32
MOST = 16
"""Writers at most."""


class Board:
    """The shared page: the session that is wanted, and of each writer how far it is and in which session.

    Each word is eight bytes at a multiple of eight: written and read whole.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(folder / "board", os.O_RDWR | os.O_CREAT, 0o666)
        os.ftruncate(handle, _WORDS * 8)
        self._words = memoryview(mmap.mmap(handle, _WORDS * 8)).cast("q")
        os.close(handle)

    @property
    def wanted(self) -> int:
        """The session that the writers are to write in; 0: none."""
        return self._words[_COMMAND]

    def want(self, session: int) -> None:
        """Let the writers begin this session anew, or stop them with 0."""
        self._words[_COMMAND] = session

    def acknowledge(self, writer: int, operations: int) -> None:
        """So many operations of this writer are acknowledged."""
        self._words[_ACKNOWLEDGED + writer] = operations

    def acknowledged(self, writers: int) -> tuple[int, ...]:
        """How many of each writer are."""
        return tuple(self._words[_ACKNOWLEDGED : _ACKNOWLEDGED + writers])

    def enter(self, writer: int, session: int) -> None:
        """This writer is ready for that session; 0: it stands still."""
        self._words[_SESSION + writer] = session

    def sessions(self, writers: int) -> tuple[int, ...]:
        """The session of each writer."""
        return tuple(self._words[_SESSION : _SESSION + writers])

    def ledger(self, writer: int) -> Path:
        """The file with the time at which each operation of a writer began, eight bytes each."""
        return self.folder / f"{writer}.times"


def main(folder: str, verb: str, *rest: str) -> None:
    """Carry out one order; answers on standard output."""
    board = Board(Path(folder))
    match verb:
        case "begin" | "stop":
            session = int(rest[0]) if verb == "begin" else 0
            board.want(session)
            deadline = time.monotonic() + 60
            while set(board.sessions(int(rest[-1]))) != {session}:
                if time.monotonic() > deadline:
                    sys.exit(f"the writers do not follow: wanted {session}, are in {board.sessions(int(rest[-1]))}")
                time.sleep(0.005)
        case "show":
            print(json.dumps(board.acknowledged(int(rest[0]))))
        case "ledger":
            for writer in range(int(rest[0])):
                times = board.ledger(writer).read_bytes()
                sys.stdout.buffer.write(struct.pack("<q", len(times) // 8) + times[: len(times) // 8 * 8])


if __name__ == "__main__":
    main(*sys.argv[1:])
