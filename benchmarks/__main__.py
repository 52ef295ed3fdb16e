"""``make bench``: every figure in one run, as ratios, with the method. Writes ``data/results/bench.json``."""

import json
import os
import platform
import time
from datetime import UTC, datetime
from pathlib import Path

from benchmarks import index_memory, repository, start_up, volume, volume_usage

RESULTS = Path("data/results")


def main() -> None:
    began = time.monotonic()
    tables = {
        "start-up": start_up.measure(),
        "volume of 1 GiB": volume.measure(),
        "a million files in a volume": volume_usage.measure(),
        "repository, beside restic, borg and tar": repository.measure(),
        "index of 10 million blobs": index_memory.measure(),
    }
    machine = {"cores": os.cpu_count(), "python": platform.python_version(), "system": platform.platform()}
    taken = datetime.now(UTC).isoformat(timespec="seconds")
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / "bench.json").write_text(json.dumps({"taken": taken, "machine": machine, "tables": tables}, indent=2))
    for title, rows in tables.items():
        print(f"\n{title}")
        for row in rows:
            print("  " + "  ".join(f"{key} {value}" for key, value in row.items()))
    print(f"\n{time.monotonic() - began:.0f} s; also in {RESULTS / 'bench.json'}")


if __name__ == "__main__":
    main()
