"""A million files: ``cosmos volume usage`` beside ``du -s`` and the engine's own disk report, and the agent's watch.

The files lie on ext4 in memory, 100 in each of 10,000 folders, every tenth with content, last modified at random within
two years; page cache and inodes warm. They are a volume of a stack that runs, so that the engine counts them too. The
verb is timed whole, start of the program included; the programs take turns, the best of their rounds counts. The
watch is asked after 1,000 random changes each time, and compared with ``du`` to the byte. ``python -m
benchmarks.volume_usage`` takes about three minutes, two of which make and remove the files.
"""

import json
import os
import random
import subprocess
import sys
import time
import uuid
from pathlib import Path

from benchmarks.disk import disk
from cosmos_coherence.volumes.watch import TreeWatch

FILES = 1_000_000
IN_A_FOLDER = 100
GIB = 18
"""So that ext4 has an inode for each file; what is not written takes no memory."""
COMPOSE = """
name: {project}
services:
  app:
    image: busybox:1
    command: sh -c "trap exit TERM; while :; do sleep 0.1; done"
    volumes: [data:/data]
volumes:
  data: {{driver_opts: {{type: none, o: bind, device: "{tree}"}}}}
"""


def measure(files=FILES, rounds=5):
    host = os.environ.get("COSMOS_TEST_DOCKER_HOST") or os.environ.get("DOCKER_HOST", "")
    environment = {**os.environ, **({"DOCKER_HOST": host} if host else {})}
    with disk(GIB) as folder:
        tree = folder / "tree"
        fill(tree, files)
        rows = beside_du(folder, tree, environment, rounds)
        print(*rows, sep="\n", flush=True)
        return [*rows, *watched(tree, rounds)]


def fill(tree: Path, files: int) -> None:
    chance, now = random.Random(1), time.time()
    tree.mkdir()
    for number in range(files // IN_A_FOLDER):
        folder = tree / f"{number % 20:02}" / f"{number // 20 % 25:02}" / f"{number}"
        folder.mkdir(parents=True)
        door = os.open(folder, os.O_RDONLY)
        for each in range(IN_A_FOLDER):
            file = os.open(f"upload-{each:05}.bin", os.O_CREAT | os.O_WRONLY, 0o644, dir_fd=door)
            if each % 10 == 0:
                os.write(file, b"x" * chance.randrange(1, 4000))
            then = now - chance.randrange(2 * 365 * 86400)
            os.utime(file, (then, then))
            os.close(file)
        os.close(door)
    os.sync()


def beside_du(folder, tree, environment, rounds):
    project = f"bench-{uuid.uuid4().hex[:8]}"
    (folder / "compose.yaml").write_text(COMPOSE.format(project=project, tree=tree))
    cosmos = [str(Path(sys.executable).with_name("cosmos")), "-C", str(folder), "volume", "usage", "data", "--json"]
    calls = {"cosmos volume usage": cosmos, "du -s": ["du", "-s", "--block-size=1", str(tree)]}
    engine = not subprocess.run(["docker", "version"], env=environment, capture_output=True).returncode
    if not engine:
        return [{"not measured": "no Docker engine"}]
    report = ["docker", "system", "df", "-v"]
    taken: dict[str, list[float]] = {name: [] for name in (*calls, "docker system df -v")}
    said: dict[str, str] = {}
    try:
        subprocess.run(
            ["docker", "compose", "up", "--detach"], cwd=folder, env=environment, check=True, capture_output=True
        )
        for number in range(rounds):
            for name, call in {**calls, **({"docker system df -v": report} if number < 2 else {})}.items():
                began = time.perf_counter()
                said[name] = subprocess.run(call, env=environment, check=True, capture_output=True, text=True).stdout
                taken[name].append(time.perf_counter() - began)
    finally:
        subprocess.run(["docker", "compose", "down", "-v"], cwd=folder, env=environment, capture_output=True)
    ours, theirs = json.loads(said["cosmos volume usage"])["usage"]["bytes"], int(said["du -s"].split()[0])
    assert ours == theirs, (ours, theirs)
    assert project in said["docker system df -v"]
    mine = min(taken["cosmos volume usage"])
    return [
        {"what": name, "best_s": round(min(times), 3), "all_s": [round(t, 3) for t in times],
         "theirs_by_ours": round(min(times) / mine, 2)}
        for name, times in taken.items()
    ]  # fmt: skip


def watched(tree, rounds):
    chance = random.Random(2)
    before = resident()
    with TreeWatch(tree) as watch:
        began = time.perf_counter()
        watch.measure()
        first = time.perf_counter() - began
        grown = resident() - before
        ours, theirs = [], []
        for _ in range(rounds):
            storm(tree, chance, 1000)
            os.sync()
            time.sleep(0.5)
            began = time.perf_counter()
            found = watch.measure()
            ours.append(time.perf_counter() - began)
            began = time.perf_counter()
            counted = du(tree)
            theirs.append(time.perf_counter() - began)
            assert (found.how, found.usage.bytes) == ("by notification", counted), (found, counted)
        overflow(tree, watch)
        found = watch.measure()
        assert found.walked == "the queue of notifications ran over", found.how
        assert found.usage.bytes == du(tree)
        storm(tree, chance, 1000)
        os.sync()
        found = watch.measure()
        assert (found.how, found.usage.bytes) == ("by notification", du(tree)), found
    return [
        {"what": "the watch, first time", "best_s": round(first, 3), "MiB": round(grown / 2**20)},
        {"what": "the watch, after 1,000 changes", "best_s": round(min(ours), 4), "worst_s": round(max(ours), 4),
         "du_by_ours": round(min(theirs) / min(ours), 1), "du_by_our_worst": round(min(theirs) / max(ours), 1)},
    ]  # fmt: skip


def storm(tree: Path, chance: random.Random, changes: int) -> None:
    folders = [tree / f"{n % 20:02}" / f"{n // 20 % 25:02}" / f"{n}" for n in range(FILES // IN_A_FOLDER)]
    for number in range(changes):
        folder = chance.choice(folders)
        if not folder.is_dir():
            continue
        file = folder / f"upload-{chance.randrange(IN_A_FOLDER):05}.bin"
        match chance.randrange(6):
            case 0 | 1:
                file.write_bytes(bytes(chance.randrange(200_000)))
            case 2:
                file.unlink(missing_ok=True)
            case 3 if file.exists():
                file.rename(chance.choice(folders[:100]) / f"{time.monotonic_ns()}-{number}")
            case 4 if file.exists():
                os.link(file, chance.choice(folders[:100]) / f"{time.monotonic_ns()}-{number}")
            case 5:
                (folder / f"{time.monotonic_ns()}").mkdir()


def overflow(tree: Path, watch: TreeWatch) -> None:
    most = int(Path("/proc/sys/fs/inotify/max_queued_events").read_text())
    with watch._lock:
        for number in range(most // 2 + 100):
            (tree / f"over{number % 1000}").write_bytes(bytes(number % 5000))
            if number % 2:
                (tree / f"over{number % 1000}").unlink()
    os.sync()


def du(tree: Path) -> int:
    return int(subprocess.run(["du", "-s", "--block-size=1", tree], capture_output=True, check=True).stdout.split()[0])


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


if __name__ == "__main__":
    for row in measure():
        print(row)
