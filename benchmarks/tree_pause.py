"""What a tree of 100,000 files costs inside the pause: told by the kernel what changed, and by a walk.

``python -m benchmarks.tree_pause``. A process writes to random files of it at full speed; it is stopped, the tree is
anchored as in a backup, and it goes on. Both ways take turns.
"""

import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from benchmarks.disk import disk
from cosmos_coherence.copied import Copied
from cosmos_coherence.model import Entry, PartFile, SourceRef
from cosmos_coherence.sources.volume import TreeSource

FILES, FOLDERS = 100_000, 1_000
ROUNDS = 20
_WRITER = f"""
import random, sys
print("ready", flush=True)
while True:
    number = random.randrange({FILES})
    with open(f"{{sys.argv[1]}}/{{number % {FOLDERS}:04}}/{{number}}", "ab") as file:
        file.write(b"one line more\\n")
"""


class _Nowhere:
    """A sink whose trees are forgotten: only the source is measured."""

    def tree(self, name: str) -> "_Nowhere":
        return self

    def known(self) -> Iterable[Copied]:
        return ()

    def add(self, entry: Entry, content: BinaryIO) -> str:
        content.read()
        return "00"

    def add_small(self, root: Path, paths: Sequence[bytes]) -> Iterator[Copied]:
        return iter(())

    def drop(self, path: bytes) -> None: ...

    def finish(self, names: Iterable[Copied]) -> PartFile:
        raise AssertionError("nothing is captured here")


def measure() -> list[dict[str, object]]:
    with disk(2) as folder:
        root = folder / "tree"
        for number in range(FOLDERS):
            (root / f"{number:04}").mkdir(parents=True)
        for number in range(FILES):
            (root / f"{number % FOLDERS:04}" / str(number)).write_bytes(b"x" * 200)
        writer = subprocess.Popen([sys.executable, "-c", _WRITER, str(root)], stdout=subprocess.PIPE)
        try:
            assert writer.stdout is not None
            writer.stdout.readline()
            ways = {"told": _source(root, 0), "walked": _source(root, 1 << 60)}
            taken: dict[str, list[float]] = {way: [] for way in ways}
            for _ in range(ROUNDS):
                for way, source in ways.items():
                    source.prepare(_Nowhere())  # type: ignore[arg-type]
                    time.sleep(0.05)
                    taken[way].append(_anchor(source, writer.pid))
            for source in ways.values():
                source.close()
        finally:
            writer.kill()
            writer.wait()
    return [
        {
            "way": way,
            "median_ms": round(statistics.median(times), 1),
            "worst_ms": round(max(times), 1),
            "rounds": len(times),
        }
        for way, times in taken.items()
    ]


def _source(root: Path, many: int) -> TreeSource:
    return TreeSource(SourceRef("files", "files/x", path=root), root, spool=root.parent, many=many)


def _anchor(source: TreeSource, pid: int) -> float:
    os.kill(pid, signal.SIGSTOP)
    os.waitid(os.P_PID, pid, os.WSTOPPED | os.WNOWAIT)
    began = time.perf_counter()
    try:
        source.anchor()
        return (time.perf_counter() - began) * 1000
    finally:
        os.kill(pid, signal.SIGCONT)


if __name__ == "__main__":
    for row in measure():
        print(row)
