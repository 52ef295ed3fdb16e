"""The repository beside restic 0.19, on the same data.

``python -m benchmarks.repository [A] [B] [C] [D] [E] [--rounds N]``. A: 2 GiB of large files. B: 60,000 small ones.
C: A and B again after 1 % has changed. D: nothing changed, 200,000 files. E: restores of A and of B.

Each run is a program of its own, with its start, opening the repository and its lock; ours and restic's take turns, and
before each the machine may become quiet for some seconds. A and B begin with a new repository in every round, C with
the same one. Data and repositories lie in memory (``/dev/shm``); all of it is removed at the end. Our repository has a
key for a generated password (scrypt p=1), restic's the one that ``restic init`` makes; in the rows called "same key"
both are opened with one key file, made by restic.
"""

import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks import repository_data
from cosmos_coherence.repository.repository import Repository
from cosmos_coherence.storage.folder import FolderBackend

ROOT = Path(__file__).resolve().parents[1]
RESTIC = ROOT / ".tools/restic-0.19/restic"
PASSWORD = "right-Horse-9-of-the-bench"
TARGETS = {"A": 2.2, "B": 1.7, "C": 1.7, "D": 2.0, "E restore A": 1.4, "E restore B": 1.3}
PATIENCE_S = 3.0
IDLE = 0.8


@dataclass
class Side:
    """One program and its repository."""

    name: str
    repository: Path
    cache: Path
    walls: list[float] = field(default_factory=list)
    cpus: list[float] = field(default_factory=list)

    def save(self, folder: Path) -> list[str]:
        if self.name == "restic":
            return [*self.restic(), "backup", str(folder)]
        return [sys.executable, "-m", "benchmarks.repository_run", "save", str(self.repository), str(folder)]

    def restore(self, folder: Path) -> list[str]:
        if self.name == "restic":
            return [*self.restic(), "restore", "latest", "--target", str(folder)]
        return [sys.executable, "-m", "benchmarks.repository_run", "restore", str(self.repository), str(folder)]

    def restic(self) -> list[str]:
        return [str(RESTIC), "--quiet", "--repo", str(self.repository)]

    def environment(self) -> dict[str, str]:
        return {**os.environ, "RESTIC_PASSWORD": PASSWORD, "RESTIC_CACHE_DIR": str(self.cache)}

    def init(self, key: str) -> None:
        self.clear()
        if self.name == "ours" and key == "own key":
            Repository.init(FolderBackend(self.repository), PASSWORD, generated=True)
            return
        made = self.repository.with_name("made-by-restic")  # once: it measures how costly a key may be
        if not made.exists():
            command = [str(RESTIC), "--quiet", "--repo", str(made), "init"]
            subprocess.run(command, env=self.environment(), check=True)
        shutil.copytree(made, self.repository)

    def clear(self) -> None:
        shutil.rmtree(self.repository, ignore_errors=True)
        shutil.rmtree(self.cache, ignore_errors=True)

    def keep(self, there: Path) -> None:
        """Remember the repository as it is; its files are never changed, so further names are enough."""
        for each in (self.repository, self.cache):
            if each.exists():
                shutil.copytree(each, there / each.name, copy_function=os.link)

    def go_back(self, there: Path) -> None:
        self.clear()
        for each in (self.repository, self.cache):
            if (there / each.name).exists():
                shutil.copytree(there / each.name, each, copy_function=os.link)

    def size(self) -> int:
        return sum(path.stat().st_size for path in self.repository.rglob("*") if path.is_file())

    def run(self, command: list[str]) -> None:
        _become_quiet()
        before = os.times()
        began = time.perf_counter()
        subprocess.run(command, env=self.environment(), cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
        self.walls.append(time.perf_counter() - began)
        after = os.times()
        self.cpus.append(sum(after[2:4]) - sum(before[2:4]))

    def peak(self, command: list[str]) -> int:
        """MiB of all its processes together, what they share counted once (PSS); not timed."""
        process = subprocess.Popen(command, env=self.environment(), cwd=ROOT, stdout=subprocess.DEVNULL)
        most = 0
        over = threading.Event()
        while not over.is_set():
            most = max(most, sum(map(_pss, _family(process.pid))))
            if process.poll() is not None:
                over.set()
            time.sleep(0.02)
        assert process.returncode == 0, command
        return most >> 10


def measure(wanted: list[str] | None = None, rounds: int = 5) -> list[dict[str, object]]:
    if not RESTIC.exists():
        return [{"not measured": f"no {RESTIC}"}]
    memory = Path("/dev/shm")
    place = memory if memory.is_dir() and shutil.disk_usage(memory).free > 8 << 30 else Path("/var/tmp")
    folder = Path(tempfile.mkdtemp(prefix="cosmos-bench-", dir=place))
    try:
        return _Bench(folder, wanted or list("ABCDE"), rounds).run()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


class _Bench:
    def __init__(self, folder: Path, wanted: list[str], rounds: int) -> None:
        self.folder, self.wanted, self.rounds = folder, wanted, rounds
        self.rows: list[dict[str, object]] = []
        self.a, self.b, self.d = folder / "data/a", folder / "data/b", folder / "d"

    def run(self) -> list[dict[str, object]]:
        wanted = set(self.wanted)
        if wanted & set("BCE"):
            repository_data.make_b(self.b)
        if "B" in wanted:
            self.from_nothing("B", self.b)
            self.from_nothing("B same key", self.b, key="same key", peak=False)
        if "E" in wanted:
            self.restores("E restore B", self.b)
        if wanted & set("ACE"):
            repository_data.make_a(self.a)
        if "A" in wanted:
            self.from_nothing("A", self.a)
            self.from_nothing("A same key", self.a, key="same key", peak=False)
        if "E" in wanted:
            self.restores("E restore A", self.a)
        if "C" in wanted:
            self.changed("own key")
            self.changed("same key")
        shutil.rmtree(self.folder / "data", ignore_errors=True)
        if "D" in wanted:
            repository_data.make_d(self.d)
            self.unchanged("D", "own key")
            self.unchanged("D same key", "same key")
        return self.rows

    def sides(self, key: str) -> list[Side]:
        names = ("ours", "restic")
        sides = [Side(name, self.folder / f"{name}-repository", self.folder / f"{name}-cache") for name in names]
        for side in sides:
            side.init(key)
        return sides

    def from_nothing(self, title: str, data: Path, key: str = "own key", peak: bool = True) -> None:
        sides = self.sides(key)
        for _ in range(self.rounds):
            for side in sides:
                side.init(key)
                side.run(side.save(data))
        sizes = [side.size() for side in sides]
        peaks = []
        for side in sides if peak else ():
            side.init(key)
            peaks.append(side.peak(side.save(data)))
        self.row(title, sides, sizes, peaks)

    def restores(self, title: str, data: Path) -> None:
        sides = self.sides("own key")
        target = self.folder / "restored"
        for side in sides:
            subprocess.run(side.save(data), env=side.environment(), cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
        for number in range(self.rounds):
            for side in sides:
                side.run(side.restore(target))
                if not number and side.name == "ours":
                    subprocess.run(["diff", "-r", data, target / data.relative_to("/")], check=True)
                shutil.rmtree(target)
        peaks = []
        for side in sides:
            peaks.append(side.peak(side.restore(target)))
            shutil.rmtree(target)
        for side in sides:
            side.clear()
        self.row(title, sides, [], peaks)

    def changed(self, key: str) -> None:
        sides = self.sides(key)
        data, kept = self.folder / "data", self.folder / "kept"
        if key != "own key":  # as it was before
            shutil.rmtree(self.a)
            shutil.rmtree(self.b)
            repository_data.make_b(self.b)
            repository_data.make_a(self.a)
        for side in sides:
            subprocess.run(side.save(data), env=side.environment(), cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
            side.keep(kept)
        before = [side.size() for side in sides]
        repository_data.change(self.a, self.b)
        for _ in range(self.rounds):
            for side in sides:
                side.go_back(kept)
                side.run(side.save(data))
        added = [side.size() - size for side, size in zip(sides, before, strict=True)]
        peaks = []
        for side in sides if key == "own key" else ():
            side.go_back(kept)
            peaks.append(side.peak(side.save(data)))
        shutil.rmtree(kept)
        for side in sides:
            side.clear()
        self.row("C" if key == "own key" else "C same key", sides, added, peaks)

    def unchanged(self, title: str, key: str) -> None:
        sides = self.sides(key)
        for side in sides:
            subprocess.run(side.save(self.d), env=side.environment(), cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
        for _ in range(self.rounds):
            for side in sides:
                side.run(side.save(self.d))
        peaks = [side.peak(side.save(self.d)) for side in sides] if key == "own key" else []
        for side in sides:
            side.clear()
        self.row(title, sides, [], peaks)

    def row(self, title: str, sides: list[Side], sizes: list[int], peaks: list[int]) -> None:
        ours, restic = sides

        def ratio(of: Callable[[Side], float]) -> float:
            return round(of(restic) / of(ours), 2)

        row: dict[str, object] = {
            "set": title,
            "ratio": ratio(lambda side: min(side.walls)),
            "target": TARGETS.get(title, ""),
            "ratio_of_medians": ratio(lambda side: statistics.median(side.walls)),
            "ratio_of_cpu": ratio(lambda side: min(side.cpus)),
        }
        for side in sides:
            row |= {
                f"{side.name}_s": round(min(side.walls), 2),
                f"{side.name}_median_s": round(statistics.median(side.walls), 2),
                f"{side.name}_cpu_s": round(min(side.cpus), 2),
            }
        if sizes:
            row |= {"ours_MB": round(sizes[0] / 1e6, 1), "restic_MB": round(sizes[1] / 1e6, 1)}
        if peaks:
            row |= {"ours_peak_MiB": peaks[0], "restic_peak_MiB": peaks[1]}
        row["load"] = round(os.getloadavg()[0], 1)
        self.rows.append(row)
        print("  " + "  ".join(f"{key} {value}" for key, value in row.items()), flush=True)


def _become_quiet() -> None:
    end = time.monotonic() + PATIENCE_S
    while time.monotonic() < end:
        before = _idle()
        time.sleep(0.5)
        if (_idle() - before) / (0.5 * (os.cpu_count() or 1)) >= IDLE:
            return


def _idle() -> float:
    fields = Path("/proc/stat").read_text().splitlines()[0].split()
    return (int(fields[4]) + int(fields[5])) / os.sysconf("SC_CLK_TCK")


def _family(pid: int) -> list[int]:
    found = [pid]
    for each in found:
        for children in Path(f"/proc/{each}/task").glob("*/children"):
            try:
                found += map(int, children.read_text().split())
            except OSError:
                continue
    return found


def _pss(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        return next((int(line.split()[1]) for line in lines if line.startswith("Pss:")), 0)
    except OSError:
        return 0


if __name__ == "__main__":
    arguments = sys.argv[1:]
    count = int(arguments[arguments.index("--rounds") + 1]) if "--rounds" in arguments else 5
    measure([each for each in arguments if each in "ABCDE"], count)
