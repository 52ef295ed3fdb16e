"""1 GiB in a volume: our backup against the guide's own way (``docker run ... tar czf``), on one engine, interleaved.

Data: 64 files of 16 MiB, half random, half repetitive text. Each way three times, best of them; page cache warm. The
guide's way is timed as written there; ours is the whole verb, start of the program, hold, publish and reading the
archive back included.
"""

import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
import uuid
from pathlib import Path

COMPOSE = """
name: {project}
services:
  app:
    image: busybox:1
    command: sh -c "trap exit TERM; while :; do sleep 0.1; done"
    volumes: [data:/data]
volumes: {{data: {{}}}}
"""


def measure():
    host = os.environ.get("COSMOS_TEST_DOCKER_HOST") or os.environ.get("DOCKER_HOST", "")
    environment = {**os.environ, **({"DOCKER_HOST": host} if host else {})}
    if subprocess.run(["docker", "version"], env=environment, capture_output=True).returncode:
        return [{"not measured": "no Docker engine"}]
    project = f"bench-{uuid.uuid4().hex[:8]}"
    folder = Path(tempfile.mkdtemp(prefix="cosmos-bench-", dir="/var/tmp"))
    (folder / "compose.yaml").write_text(COMPOSE.format(project=project))
    try:
        _run(["docker", "compose", "up", "--detach", "--wait"], folder, environment)
        volume = f"{project}_data"
        found = subprocess.check_output(
            ["docker", "volume", "inspect", "-f", "{{.Mountpoint}}", volume], env=environment, text=True
        )
        _fill(Path(found.strip()))
        guide = ["docker", "run", "--rm", "-v", f"{volume}:/source:ro", "-v", f"{folder}/by-hand:/backup",
                 "alpine", "tar", "czf", "/backup/data.tar.gz", "-C", "/source", "."]  # fmt: skip
        ours = [str(Path(sys.executable).with_name("cosmos")), "-C", str(folder), "backup", "--only", "volumes/data"]
        times: dict[str, list[float]] = {"guide": [], "ours": []}
        for _ in range(3):
            times["guide"].append(_timed(guide, folder, environment))
            times["ours"].append(_timed(ours, folder, environment, good=(0, 3)))
        best = {name: min(values) for name, values in times.items()}
        size = (folder / "by-hand/data.tar.gz").stat().st_size
        return [
            {
                "guide_s": round(best["guide"], 2),
                "ours_s": round(best["ours"], 2),
                "ratio": round(best["guide"] / best["ours"], 1),
                "guide_MiB": size >> 20,
                "ours_MiB": (folder / "backups/latest.tar.gz").stat().st_size >> 20,
            }
        ]
    finally:
        subprocess.run(["docker", "compose", "down", "-v"], cwd=folder, env=environment, capture_output=True)
        shutil.rmtree(folder, ignore_errors=True)


def _fill(root: Path) -> None:
    chance = random.Random(1)
    text = b"".join(b"%d,some text that repeats,%d\n" % (i, i % 97) for i in range(40_000))
    for number in range(64):
        content = chance.randbytes(16 << 20) if number % 2 else (text * 20)[: 16 << 20]
        (root / f"{number:02}.bin").write_bytes(content)


def _run(argv, folder, environment):
    subprocess.run(argv, cwd=folder, env=environment, check=True, capture_output=True)


def _timed(argv, folder, environment, good=(0,)):
    began = time.perf_counter()
    ended = subprocess.run(argv, cwd=folder, env=environment, capture_output=True, text=True)
    assert ended.returncode in good, ended.stderr
    return time.perf_counter() - began
