"""``python -m benchmarks.reflink``: the anchor of a large file that is written at full speed, cloned and read.

On a file system of each kind in an image on the real disk; five times in each way, taking turns.
"""

from __future__ import annotations

import argparse
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.pause import Nowhere
from cosmos_coherence.model import SourceRef
from cosmos_coherence.sources.volume import TreeSource

_TIMES = 3
_BETWEEN_S = 0.3
"""From the last copy to the hold: what the sessions of a backup and its watchdog take to come up."""
_WRITER = """
import os, random, sys, time
place, how, mib_s = sys.argv[1:]
file, page = os.open(place, os.O_RDWR), os.urandom(4096)
end = os.lseek(file, 0, os.SEEK_END)
pages, began, done = end // 4096, time.monotonic(), 0
while True:
    os.pwrite(file, page, end + done if how == "appended" else random.randrange(pages) * 4096)
    done += 4096
    if done >= (time.monotonic() - began) * float(mib_s) * 2**20:
        time.sleep(0.001)
"""
_LOADS = (("appended", 20), ("random pages", 1), ("random pages", 20))
"""How it is written, and MiB a second; on Btrfs each random page makes another piece of the file."""


@contextmanager
def disk(kind: str, mib: int) -> Iterator[Path]:
    """A new file system of this kind."""
    folder = Path(tempfile.mkdtemp(prefix="cosmos-bench-", dir="/var/tmp"))
    image = folder.with_suffix(".img")
    try:
        with image.open("wb") as file:
            file.truncate(mib << 20)
        subprocess.run([f"mkfs.{kind}", "-q", image], check=True)
        subprocess.run(["mount", "-o", "loop", image, folder], check=True)
        try:
            yield folder
        finally:
            subprocess.run(["umount", folder], check=True)
    finally:
        image.unlink(missing_ok=True)
        folder.rmdir()


def anchored_ms(root: Path, writer: subprocess.Popen[bytes], *, cloned: bool) -> float:
    """One cut of this folder alone."""
    source = TreeSource(SourceRef(kind="files", part="files/data", path=root), root, spool=Path("/var/tmp"), rounds=2)
    try:
        source.prepare(Nowhere())  # type: ignore[arg-type]
        source._clones = source._clones and cloned
        time.sleep(_BETWEEN_S)
        writer.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, writer.pid, os.WSTOPPED | os.WNOWAIT)
        began = time.perf_counter()
        source.anchor()
        ms = (time.perf_counter() - began) * 1000
        writer.send_signal(signal.SIGCONT)
        return ms
    finally:
        source.close()


def main() -> None:
    parser = argparse.ArgumentParser(description="The pause of a large file, cloned and read.")
    parser.add_argument("--mib", type=int, default=1024)
    parser.add_argument("--kinds", nargs="+", default=["btrfs", "xfs"])
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the disk goes, too
    for kind in options.kinds:
        with disk(kind, 4 * options.mib + 512) as folder:
            large = folder / "root" / "large"
            large.parent.mkdir()
            with large.open("wb") as file:
                for _ in range(options.mib):
                    file.write(os.urandom(1 << 20))
                os.fsync(file.fileno())
            for how, mib_s in _LOADS:
                writer = subprocess.Popen([sys.executable, "-c", _WRITER, large, how, str(mib_s)])
                try:
                    ms: dict[bool, list[float]] = {True: [], False: []}
                    for _ in range(_TIMES):
                        for cloned in ms:
                            ms[cloned].append(anchored_ms(large.parent, writer, cloned=cloned))
                finally:
                    writer.kill()
                    writer.wait()
                told = "; ".join(
                    f"{'cloned' if cloned else 'read'} {statistics.median(each):.1f} ms, worst {max(each):.1f}"
                    for cloned, each in ms.items()
                )
                print(f"{kind}, {options.mib} MiB, {how} at {mib_s} MiB/s: {told}", flush=True)


if __name__ == "__main__":
    main()
