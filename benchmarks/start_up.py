"""How long a person waits for ``cosmos --help`` and ``cosmos status``: best and median of ten, interleaved."""

import statistics
import subprocess
import sys
import time
from pathlib import Path

from support.embedded_stack import embedded_stack


def measure():
    with embedded_stack(writer=False) as stack:
        commands = {"cosmos --help": ["--help"], "cosmos status": ["-C", str(stack.folder), "status"]}
        taken = {name: [] for name in commands}
        for _ in range(10):
            for name, arguments in commands.items():
                began = time.perf_counter()
                subprocess.run(
                    [str(Path(sys.executable).with_name("cosmos")), *arguments],
                    check=True, stdout=subprocess.DEVNULL,
                )  # fmt: skip
                taken[name].append(time.perf_counter() - began)
    limits = {"cosmos --help": 0.2, "cosmos status": 1.0}
    return [
        {
            "command": name,
            "best_ms": round(min(times) * 1000),
            "median_ms": round(statistics.median(times) * 1000),
            "share_of_limit": round(statistics.median(times) / limits[name], 2),
        }
        for name, times in taken.items()
    ]
