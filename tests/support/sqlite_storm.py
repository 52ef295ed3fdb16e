"""A process that fills a SQLite database as fast as it can, and says what it has committed, until it is held."""

from __future__ import annotations

import mmap
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

WORK, CHECKPOINT, IDLE = 0, 1, 2

_WRITER = r"""
import mmap, os, sqlite3, sys, time
place, word, mode, way = sys.argv[1:]
shared = mmap.mmap(os.open(word, os.O_RDWR), 16)
db = sqlite3.connect(place, isolation_level=None, timeout=60)
db.execute(f"PRAGMA journal_mode = {mode}")
db.execute("PRAGMA synchronous = OFF")
db.execute("PRAGMA cache_size = 10")
db.execute("PRAGMA wal_autocheckpoint = 60")
db.execute("CREATE TABLE log(step INTEGER PRIMARY KEY, bytes BLOB)")
db.execute("CREATE TABLE total(steps INTEGER)")
db.execute("INSERT INTO total VALUES (0)")
print("ready", flush=True)
step = 0
def transaction():
    global step
    step += 1
    db.execute("BEGIN IMMEDIATE")
    db.execute("INSERT INTO log VALUES (?, ?)", (step, os.urandom(1500)))
    db.execute("UPDATE log SET bytes = ? WHERE step = ?", (os.urandom(1500), step * 7919 % step + 1))
    db.execute("UPDATE total SET steps = ?", (step,))
    db.execute("COMMIT")
    shared[:8] = step.to_bytes(8, "little")
while True:
    if way == "spilled" and step == 300:  # the cache is small: what is not committed lies in the database already
        db.execute("BEGIN")
        db.execute("DELETE FROM log WHERE step % 3")
        db.execute("INSERT INTO log SELECT step * 1000, randomblob(1400) FROM log")
        shared[8] = 2
        time.sleep(3600)
    if way == "idle" and step == 20:
        shared[8] = 2
        time.sleep(3600)
    if way == "locked" and step == 200:
        db.execute("BEGIN EXCLUSIVE")
        shared[8] = 2
        while True: db.execute("UPDATE log SET bytes = randomblob(1500)")
    if way == "checkpoints" and step % 400 == 0:
        db.execute("PRAGMA wal_autocheckpoint = 0")
        shared[8] = 1
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        shared[8] = 0
    transaction()
    if way == "gently": time.sleep(0.002)
"""


class SqliteWriter:
    """Each transaction adds the next step, changes an older row, and counts."""

    def __init__(self, place: Path, word: Path, mode: str, way: str) -> None:
        word.write_bytes(bytes(16))
        with word.open("r+b") as file:
            self._word = mmap.mmap(file.fileno(), 16)
        command = [sys.executable, "-c", _WRITER, str(place), str(word), mode, way]
        self._child = subprocess.Popen(command, stdout=subprocess.PIPE)
        assert self._child.stdout is not None
        assert self._child.stdout.readline() == b"ready\n"

    @property
    def committed(self) -> int:
        """The last step that is surely committed."""
        return int.from_bytes(self._word[:8], "little")

    @property
    def phase(self) -> int:
        """What it says that it is doing."""
        return self._word[8]

    def wait(self, steps: int, phase: int | None = None) -> None:
        """Until it has committed so many, or is in this phase."""
        deadline = time.monotonic() + 60
        while self.committed < steps or phase not in (None, self.phase):
            assert time.monotonic() < deadline, "the writer does not get on"
            assert self._child.poll() is None, "the writer has died"
            time.sleep(0.0001)

    def hold(self) -> None:
        self._child.send_signal(signal.SIGSTOP)
        while Path(f"/proc/{self._child.pid}/stat").read_text().rpartition(")")[2].split()[0] != "T":
            time.sleep(0.0005)

    def release(self) -> None:
        self._child.send_signal(signal.SIGCONT)

    def end(self) -> None:
        self._child.kill()
        self._child.wait()
        assert self._child.stdout is not None
        self._child.stdout.close()
        self._word.close()


@contextmanager
def filling(place: Path, word: Path, mode: str, way: str = "full speed") -> Iterator[SqliteWriter]:
    """``word`` is a file of its own, outside of what is captured."""
    writer = SqliteWriter(place, word, mode, way)
    try:
        yield writer
    finally:
        writer.end()


def steps_in(place: Path) -> int:
    """How many steps the database holds, once SQLite has recovered it: all of them up to there, and whole."""
    with closing(sqlite3.connect(place)) as database:
        assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        [(count, least, most, size)] = database.execute(
            "SELECT count(*), min(step), max(step), min(length(bytes)) FROM log"
        )
        assert (count, least, size) == (most, 1, 1500)
        assert database.execute("SELECT steps FROM total").fetchall() == [(most,)]
    return int(most)
