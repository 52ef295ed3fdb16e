"""The programs that are measured side by side, each with a repository of its own, as a person would call them."""

import os
import shutil
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

from cosmos_coherence.repository.repository import Repository
from cosmos_coherence.storage.folder import FolderBackend

ROOT = Path(__file__).resolve().parents[1]
RESTIC = ROOT / ".tools/restic-0.19/restic"
COSMOS = Path(sys.executable).with_name("cosmos")
PASSWORD = "right-Horse-9-of-the-bench"
PATIENCE_S = 3.0
IDLE = 0.8


@dataclass
class Side:
    """One program; everything of it lies in ``folder``."""

    folder: Path
    name: str = ""
    walls: list[float] = field(default_factory=list)
    cpus: list[float] = field(default_factory=list)

    @property
    def repository(self) -> Path:
        return self.folder / "repository"

    def init(self, data: Path, *, key: Path | None = None) -> None:
        """A new repository and nothing remembered; with ``key`` one that is a copy of that repository."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        if key is None:
            self.make(data)
        else:
            shutil.copytree(key, self.repository)
            self.settle(data)

    def make(self, data: Path) -> None: ...

    def settle(self, data: Path) -> None: ...

    def save(self, data: Path) -> list[str]:
        raise NotImplementedError

    def restore(self, target: Path) -> list[str]:
        raise NotImplementedError

    def environment(self) -> dict[str, str]:
        return {**os.environ, "XDG_STATE_HOME": str(self.folder / "state"), "HOME": str(self.folder)}

    def keep(self, there: Path) -> None:
        """Remember everything as it is; files of a repository are never changed, so further names are enough."""
        shutil.copytree(self.folder, there, copy_function=os.link)

    def go_back(self, there: Path) -> None:
        shutil.rmtree(self.folder)
        shutil.copytree(there, self.folder, copy_function=os.link)

    def size(self) -> int:
        return sum(path.stat().st_size for path in self.repository.rglob("*") if path.is_file())

    def run(self, command: list[str]) -> None:
        """Run it once, timed, in a moment when the machine is quiet, if one comes."""
        become_quiet()
        before, began = _busy(), time.perf_counter()
        self.call(command)
        self.walls.append(time.perf_counter() - began)
        self.cpus.append(_busy() - before)

    def call(self, command: list[str]) -> None:
        subprocess.run(command, env=self.environment(), cwd=self.folder, check=True, stdout=subprocess.DEVNULL)

    def peak(self, command: list[str]) -> int:
        """MiB of all its processes together, what they share counted once (PSS); not timed."""
        process = subprocess.Popen(command, env=self.environment(), cwd=self.folder, stdout=subprocess.DEVNULL)
        most = 0
        over = threading.Event()
        while not over.is_set():
            most = max(most, sum(map(_pss, _family(process.pid))))
            if process.poll() is not None:
                over.set()
            time.sleep(0.02)
        assert process.returncode == 0, command
        return most >> 10


class Ours(Side):
    """The whole verb: a stack of nothing but one folder."""

    def make(self, data: Path) -> None:
        Repository.init(FolderBackend(self.repository), PASSWORD, generated=True)
        self.settle(data)

    def settle(self, data: Path) -> None:
        password = self.folder / "password"
        password.write_text(PASSWORD)
        password.chmod(0o600)
        (self.folder / "cosmos.toml").write_text(
            f'[repository]\nurl = "repository"\npassword_file = "password"\n'
            f'[[source]]\nkind = "files"\nname = "data"\npath = "{data}"\n'
        )

    def save(self, data: Path) -> list[str]:
        return [str(COSMOS), "backup", "--json"]

    def restore(self, target: Path) -> list[str]:
        return [str(COSMOS), "restore", "latest", "--only", "files/data", "--to", str(target), "--yes", "--json"]

    def environment(self) -> dict[str, str]:
        return {**super().environment(), "DOCKER_HOST": "unix:///nowhere"}


class Restic(Side):
    def make(self, data: Path) -> None:
        self.call([*self._restic(), "init"])

    def save(self, data: Path) -> list[str]:
        return [*self._restic(), "backup", str(data)]

    def restore(self, target: Path) -> list[str]:
        return [*self._restic(), "restore", "latest", "--target", str(target)]

    def environment(self) -> dict[str, str]:
        return {**super().environment(), "RESTIC_PASSWORD": PASSWORD, "RESTIC_CACHE_DIR": str(self.folder / "cache")}

    def _restic(self) -> list[str]:
        return [str(RESTIC), "--quiet", "--repo", str(self.repository)]


class ResticSynced(Restic):
    """A restore that ends, as ours does, when everything is on the disk."""

    def restore(self, target: Path) -> list[str]:
        return ["sh", "-c", '"$@" && sync -f "$0"', str(target), *super().restore(target)]


class Borg(Side):
    """Encrypted as its quick start does it, compressed with zstd."""

    def make(self, data: Path) -> None:
        self.call(["borg", "init", "--encryption", "repokey-blake2", str(self.repository)])

    def save(self, data: Path) -> list[str]:
        return ["borg", "create", "--compression", "zstd", f"{self.repository}::{{now:%Y%m%d%H%M%S%f}}", str(data)]

    def restore(self, target: Path) -> list[str]:
        target.mkdir()
        last = 'borg extract "$1::$(borg list --short --last 1 "$1")"'
        return ["sh", "-c", f'cd "$2" && {last}', "sh", str(self.repository), str(target)]

    def environment(self) -> dict[str, str]:
        return {
            **super().environment(),
            "BORG_PASSPHRASE": PASSWORD,
            "BORG_BASE_DIR": str(self.folder / "borg"),
            "BORG_RELOCATED_REPO_ACCESS_IS_OK": "yes",
        }


class Tar(Side):
    """``tar`` through a compressor: neither encryption nor deduplication."""

    compressor = "gzip"

    def make(self, data: Path) -> None:
        self.repository.mkdir()

    def save(self, data: Path) -> list[str]:
        return ["sh", "-c", f'tar c "$1" 2>/dev/null | {self.compressor} > "$2"', "sh", str(data), str(self._file)]

    def restore(self, target: Path) -> list[str]:
        target.mkdir()
        return ["sh", "-c", f'{self.compressor} -dc < "$1" | tar x -C "$2"', "sh", str(self._file), str(target)]

    @property
    def _file(self) -> Path:
        return self.repository / "archive"


class TarZstd(Tar):
    compressor = "zstd -T0 -1"


def become_quiet() -> None:
    """Have what the others wrote and removed on the disk, and wait until the machine does nothing else."""
    os.sync()
    end = time.monotonic() + PATIENCE_S
    while time.monotonic() < end:
        before = _idle()
        time.sleep(0.5)
        if (_idle() - before) / (0.5 * (os.cpu_count() or 1)) >= IDLE:
            return


def _idle() -> float:
    return sum(_spent()[3:5])


def _busy() -> float:
    """CPU seconds of the whole machine: a process that nobody waits for is in nobody else's account."""
    spent = _spent()
    return sum(spent[:3]) + sum(spent[5:7])


def _spent() -> list[float]:
    """Seconds of all cores: user, nice, system, idle, waiting, interrupts, soft interrupts, and what follows."""
    fields = Path("/proc/stat").read_text().splitlines()[0].split()
    return [int(field) / os.sysconf("SC_CLK_TCK") for field in fields[1:]]


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
