"""A million files: ``cosmos volume usage`` beside ``du -s`` and the engine's own disk report, and the agent's watch.

They lie in a volume of the engine, on its own disk, 100 in each of 10,000 folders, every tenth with content, changed at
random times within two years; inodes warm. The verb is timed whole, start of the program included; the programs take
turns, the best of their rounds counts. The watch is asked after so many random changes, and compared with ``du`` to the
byte. ``python -m benchmarks.volume_usage`` takes about three minutes, most of which make and remove the files.
"""

import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
import uuid
from pathlib import Path

from benchmarks.volume import COMPOSE
from cosmos_coherence.volumes.walkers import count_tree
from cosmos_coherence.volumes.watch import TreeWatch

FILES = 1_000_000
IN_A_FOLDER = 100


def measure(rounds=5):
    host = os.environ.get("COSMOS_TEST_DOCKER_HOST") or os.environ.get("DOCKER_HOST", "")
    environment = {**os.environ, **({"DOCKER_HOST": host} if host else {})}
    if subprocess.run(["docker", "version"], env=environment, capture_output=True).returncode:
        return [{"not measured": "no Docker engine"}]
    project = f"bench-{uuid.uuid4().hex[:8]}"
    folder = Path(tempfile.mkdtemp(prefix="cosmos-bench-", dir="/var/tmp"))
    (folder / "compose.yaml").write_text(COMPOSE.format(project=project))

    def docker(*call):
        done = subprocess.run(
            ["docker", *call], cwd=folder, env=environment, capture_output=True, text=True, check=True
        )
        return done.stdout.strip()

    try:
        docker("compose", "up", "--detach")
        tree = Path(docker("volume", "inspect", "-f", "{{.Mountpoint}}", f"{project}_data"))
        fill(tree)
        rows = beside_du(folder, tree, environment, rounds)
        print(*rows, sep="\n", flush=True)
        return [*rows, *watched(tree, rounds)]
    finally:
        subprocess.run(["docker", "compose", "down", "-v"], cwd=folder, env=environment, capture_output=True)
        shutil.rmtree(folder, ignore_errors=True)


def fill(tree: Path, files: int = FILES) -> None:
    chance, now = random.Random(1), time.time()
    tree.mkdir(exist_ok=True)
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
    cosmos = [str(Path(sys.executable).with_name("cosmos")), "-C", str(folder), "volume", "usage", "data", "--json"]
    calls = {
        "cosmos volume usage": cosmos,
        "du -s": ["du", "-s", "--block-size=1", str(tree)],
        "docker system df -v": ["docker", "system", "df", "-v"],
    }
    # an installed program has its bytecode; whoever works on it may have forbidden to write it
    environment = {**environment, "PYTHONPYCACHEPREFIX": str(folder / "bytecode"), "PYTHONDONTWRITEBYTECODE": ""}
    subprocess.run(cosmos, env=environment, check=True, capture_output=True)
    taken: dict[str, list[float]] = {name: [] for name in (*calls, "of it the walk")}
    said: dict[str, str] = {}
    for number in range(rounds):
        for name, call in calls.items():
            if number < 2 or "docker" not in name:
                began = time.perf_counter()
                said[name] = subprocess.run(call, env=environment, check=True, capture_output=True, text=True).stdout
                taken[name].append(time.perf_counter() - began)
        began = time.perf_counter()
        count_tree(tree)
        taken["of it the walk"].append(time.perf_counter() - began)
    ours, theirs = json.loads(said["cosmos volume usage"])["usage"]["bytes"], int(said["du -s"].split()[0])
    assert ours == theirs, (ours, theirs)
    mine = min(taken["cosmos volume usage"])
    return [
        {"what": name, "best_s": round(min(times), 3), "all_s": [round(t, 3) for t in times],
         "theirs_by_ours": round(min(times) / mine, 2)}
        for name, times in taken.items()
    ]  # fmt: skip


def watched(tree, rounds):
    chance = random.Random(2)
    before = resident()
    rows = []
    with TreeWatch(tree) as watch:
        began = time.perf_counter()
        watch.measure()
        first = time.perf_counter() - began
        rows.append(
            {"what": "the watch, first time", "s": round(first, 3), "MiB": round((resident() - before) / 2**20)}
        )
        for changes in (10, 100, 1000):
            ours, theirs = [], []
            for _ in range(rounds):
                storm(tree, chance, changes)
                os.sync()
                time.sleep(0.5)
                began = time.perf_counter()
                found = watch.measure()
                ours.append(time.perf_counter() - began)
                began = time.perf_counter()
                counted = du(tree)
                theirs.append(time.perf_counter() - began)
                assert (found.how, found.usage.bytes) == ("by notification", counted), (found, counted)
            rows.append(
                {"what": f"the watch, after {changes} changes", "best_s": round(min(ours), 4),
                 "worst_s": round(max(ours), 4), "du_s": round(min(theirs), 3),
                 "du_by_ours": round(min(theirs) / min(ours), 1), "du_by_our_worst": round(min(theirs) / max(ours), 1)}
            )  # fmt: skip
        overflow(tree, watch)
        found = watch.measure()
        assert found.walked == "the queue of notifications ran over", found.how
        assert found.usage.bytes == du(tree)
        storm(tree, chance, 1000)
        os.sync()
        found = watch.measure()
        assert (found.how, found.usage.bytes) == ("by notification", du(tree)), found
    return rows


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
