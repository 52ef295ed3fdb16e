"""What an index of many blobs takes in memory: ``python -m benchmarks.index_memory [BLOBS]``, 10 million without."""

import os
import sys
import time
from pathlib import Path

from cosmos_coherence.repository.blob import Blob
from cosmos_coherence.repository.index import Index

IN_A_PACK = 2_000


def measure(blobs: int = 10_000_000) -> list[dict[str, object]]:
    index = Index()
    before, began = _resident(), time.perf_counter()
    for _ in range(blobs // IN_A_PACK):
        ids = os.urandom(32 * IN_A_PACK)
        index.add(
            os.urandom(32),
            [Blob("data", ids[32 * n : 32 * n + 32], 1000 * n, 1000, 2000) for n in range(IN_A_PACK)],
        )
    filled = time.perf_counter() - began
    asked = [os.urandom(32) for _ in range(200_000)]
    began = time.perf_counter()
    assert not any(index.has("data", each) for each in asked)
    looked = time.perf_counter() - began
    return [
        {
            "blobs": len(index),
            "bytes_a_blob": round((_resident() - before) / len(index), 1),
            "filled_s": round(filled, 1),
            "lookup_us": round(looked / len(asked) * 1e6, 2),
        }
    ]


def _resident() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmRSS:"))


if __name__ == "__main__":
    print(measure(*map(int, sys.argv[1:])))
