"""``python -m benchmarks.growth [GiB ...]``: what a first backup and a restore cost as the data grow (1 to 16 GiB).

One file for each 256 MiB, half dumped rows and half random, no two alike; on the disk of ``/var/tmp``, which needs two
and a half times as much room. Seconds and CPU per GiB, and the peak of all processes together (PSS).
"""

import os
import random
import shutil
import sys
import tempfile
import time
from pathlib import Path

from benchmarks import repository_data
from benchmarks.sides import Ours

MIB = repository_data.MIB
SIZES = (1, 2, 4, 8, 16)


def measure(sizes: tuple[int, ...] = SIZES) -> list[dict[str, object]]:
    """A row for each size."""
    folder = Path(tempfile.mkdtemp(prefix="cosmos-bench-", dir="/var/tmp"))
    try:
        return [_row(folder, gib) for gib in sizes]
    finally:
        shutil.rmtree(folder)


def _row(folder: Path, gib: int) -> dict[str, object]:
    data, target = folder / "data", folder / "restored"
    _grow(data, gib)
    side = Ours(folder / "ours", "Ours")
    side.init(data)
    row: dict[str, object] = {"GiB": gib}
    for name, command in (("backup", side.save(data)), ("restore", side.restore(target))):
        before, began = os.times(), time.perf_counter()
        peak = side.peak(command)
        seconds, after = time.perf_counter() - began, os.times()
        cpu = sum(after[2:4]) - sum(before[2:4])
        row[name] = f"{seconds / gib:.2f} s and {cpu / gib:.2f} CPU s per GiB, peak {peak} MiB"
    shutil.rmtree(side.folder)
    shutil.rmtree(target)
    print(row, flush=True)
    return row


def _grow(data: Path, gib: int) -> None:
    """Have so much there; what is there already stays."""
    data.mkdir(exist_ok=True)
    dumped = b"".join(repository_data.rows(random.Random(8), 64 * MIB))[: 64 * MIB]
    for number in range(4 * gib):
        path = data / f"{number:03}"
        if path.exists():
            continue
        chance = random.Random(number)
        with path.open("wb") as file:
            for _ in range(2):
                letters = bytes(range(97, 123))
                file.write(dumped.translate(bytes.maketrans(letters, bytes(chance.sample(letters, 26)))))
                for _ in range(64):
                    file.write(os.urandom(MIB))


if __name__ == "__main__":
    measure(tuple(map(int, sys.argv[1:])) or SIZES)
