"""`cosmos backup` and `cosmos restore` beside restic 0.19, borg and tar, on the same data.

``python -m benchmarks.repository [A] [B] [C] [D] [E] [--rounds N] [--same-key]``. A: 2 GiB of large files. B: 60,000
small ones. C: A and B again after 1 % has changed. D: nothing changed, 200,000 files. E: restores of A and of B.

A restore of ours ends when everything is on the disk; beside restic's own stands one that is followed by a sync.

Each run is the whole program, with its start, opening the repository and its lock; the programs take turns, and before
each the machine may become quiet for some seconds. A and B begin with a new repository in every round, C with the same
one. Data and repositories lie on a disk in memory; all of it is removed at the end. Our repository has a key for a
generated password (scrypt p=1), restic's the one that ``restic init`` makes; with ``--same-key`` both are opened with
one key file, made by restic. borg and tar run once.
"""

import shutil
import statistics
import subprocess
import sys
from pathlib import Path

from benchmarks import repository_data
from benchmarks.disk import disk
from benchmarks.sides import RESTIC, Borg, Ours, Restic, ResticSynced, Side, Tar, TarZstd

TARGETS = {"A": 2.2, "B": 1.7, "C": 1.7, "D": 2.0, "E restore A": 1.4, "E restore B": 1.3}
FEW = 1
"""Rounds of those that only have to be beaten."""


def measure(wanted: list[str] | None = None, rounds: int = 5, *, same_key: bool = False) -> list[dict[str, object]]:
    if not RESTIC.exists():
        return [{"not measured": f"no {RESTIC}"}]
    with disk(14) as folder:
        return _Bench(folder, wanted or list("ABCDE"), rounds, same_key).run()


class _Bench:
    def __init__(self, folder: Path, wanted: list[str], rounds: int, same_key: bool) -> None:
        self.folder, self.wanted, self.rounds = folder, wanted, rounds
        self.rows: list[dict[str, object]] = []
        self.a, self.b, self.d = folder / "data/a", folder / "data/b", folder / "d"
        self.key = None
        self.borg = [] if same_key or not shutil.which("borg") else [Borg]
        self.tar = [] if same_key or not shutil.which("zstd") else [Tar, TarZstd]
        if same_key:
            restic = Restic(folder / "key")
            restic.init(folder)
            self.key = restic.repository

    def run(self) -> list[dict[str, object]]:
        wanted = set(self.wanted)
        if wanted & set("BCE"):
            repository_data.make_b(self.b)
        if "B" in wanted:
            self.from_nothing("B", self.b)
        if "E" in wanted:
            self.restores("E restore B", self.b)
        if wanted & set("ACE"):
            repository_data.make_a(self.a)
        if "A" in wanted:
            self.from_nothing("A", self.a)
        if "E" in wanted:
            self.restores("E restore A", self.a)
        if "C" in wanted:
            self.changed()
        shutil.rmtree(self.folder / "data", ignore_errors=True)
        if "D" in wanted:
            repository_data.make_d(self.d)
            self.unchanged()
        return self.rows

    def sides(self, data: Path, *others: type[Side], tar: bool = False) -> list[Side]:
        kinds = [Ours, Restic, *others, *self.borg, *(self.tar if tar else ())]
        sides: list[Side] = [kind(self.folder / kind.__name__, kind.__name__) for kind in kinds]
        for side in sides:
            side.init(data, key=self.key)
        return sides

    def turns(self, sides: list[Side]) -> list[Side]:
        """Who runs when: ours and restic in every round."""
        always = [side for side in sides if isinstance(side, Ours | Restic)]
        return [side for number in range(self.rounds) for side in (sides if number < FEW else always)]

    def from_nothing(self, title: str, data: Path) -> None:
        sides = self.sides(data, tar=True)
        for side in self.turns(sides):
            side.init(data, key=self.key)
            side.run(side.save(data))
        sizes = [side.size() for side in sides]
        peaks = []
        for side in sides[:2]:
            side.init(data, key=self.key)
            peaks.append(side.peak(side.save(data)))
        self.row(title, sides, sizes, peaks)

    def restores(self, title: str, data: Path) -> None:
        sides = self.sides(data, ResticSynced, tar=True)
        target = self.folder / "restored"
        checked: set[str] = set()
        for side in sides:
            side.call(side.save(data))
        for side in self.turns(sides):
            side.run(side.restore(target))
            if side.name not in checked:
                checked.add(side.name)
                (found,) = [path for path in target.rglob(data.name) if path.is_dir()] or [next(target.rglob("data"))]
                subprocess.run(["diff", "-r", data, found], check=True)
            shutil.rmtree(target)
        peaks = []
        for side in sides[:2]:
            peaks.append(side.peak(side.restore(target)))
            shutil.rmtree(target)
        self.row(title, sides, [], peaks)

    def changed(self) -> None:
        data, kept = self.folder / "data", self.folder / "kept"
        sides = self.sides(data)
        for side in sides:
            side.call(side.save(data))
            side.keep(kept / side.name)
        before = [side.size() for side in sides]
        repository_data.change(self.a, self.b)
        for side in self.turns(sides):
            side.go_back(kept / side.name)
            side.run(side.save(data))
        added = [side.size() - size for side, size in zip(sides, before, strict=True)]
        peaks = []
        for side in sides[:2]:
            side.go_back(kept / side.name)
            peaks.append(side.peak(side.save(data)))
        shutil.rmtree(kept)
        self.row("C", sides, added, peaks)

    def unchanged(self) -> None:
        sides = self.sides(self.d)
        for side in sides:
            side.call(side.save(self.d))
        for side in self.turns(sides):
            side.run(side.save(self.d))
        self.row("D", sides, [], [side.peak(side.save(self.d)) for side in sides[:2]])

    def row(self, title: str, sides: list[Side], sizes: list[int], peaks: list[int]) -> None:
        ours = sides[0]
        row: dict[str, object] = {"set": title, "target": TARGETS[title]}
        for number, side in enumerate(sides):
            at: dict[str, object] = {}
            if side is not ours:
                at["ratio"] = round(min(side.walls) / min(ours.walls), 2)
                at["of_medians"] = round(statistics.median(side.walls) / statistics.median(ours.walls), 2)
                at["of_cpu"] = round(min(side.cpus) / min(ours.cpus), 2)
            at |= {
                "best_s": round(min(side.walls), 2),
                "median_s": round(statistics.median(side.walls), 2),
                "cpu_s": round(min(side.cpus), 2),
            }
            if sizes:
                at["MB"] = round(sizes[number] / 1e6, 1)
            if number < len(peaks):
                at["peak_MiB"] = peaks[number]
            row[side.name] = at
            shutil.rmtree(side.folder, ignore_errors=True)
        self.rows.append(row)
        print("\n    ".join(f"{key} {value}" for key, value in row.items()), flush=True)


if __name__ == "__main__":
    arguments = sys.argv[1:]
    count = int(arguments[arguments.index("--rounds") + 1]) if "--rounds" in arguments else 5
    measure([each for each in arguments if each in "ABCDE"], count, same_key="--same-key" in arguments)
