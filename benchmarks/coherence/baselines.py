"""How it is done without a hold, with the stack running: what the judge has to find a skew in."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from benchmarks.coherence import stores
from benchmarks.coherence.checker import State
from benchmarks.coherence.stacks import CountingStack
from cosmos_coherence.drivers.embedded import DATABASE

_LIVE_TREE = (0, 1)
"""tar ends with 1 when a file changed as it was read; the guide's own ``docker run ... tar`` shows nobody that."""


def guide_order(stack: CountingStack, folder: Path) -> Callable[[], State]:
    """The order of the guide's script: dump the database, have Redis save and copy that, pack the volumes."""
    _dump(stack, folder / "database.sql")
    before = stack.redis("LASTSAVE")
    time.sleep(1.1)  # LASTSAVE counts seconds
    stack.redis("BGSAVE")
    while stack.redis("LASTSAVE") == before:
        time.sleep(0.05)
    (folder / "redis").mkdir()
    (folder / "redis/dump.rdb").write_bytes(stack.run("redis", "cat", str(_redis_folder(stack) / "dump.rdb")))
    _pack(stack.files, folder / "files.tar")
    return lambda: _restored(stack, folder)


def dump_then_tar(stack: CountingStack, folder: Path) -> Callable[[], State]:
    """Dump the database, then pack every other volume as it lies there, Redis' own folder among them."""
    _dump(stack, folder / "database.sql")
    (folder / "redis").mkdir()
    _pack(_redis_volume(stack), folder / "redis.tar")
    _pack(stack.files, folder / "files.tar")
    subprocess.run(["tar", "-xf", folder / "redis.tar", "-C", folder / "redis"], check=True)
    return lambda: _restored(stack, folder)


BASELINES = {"the guide's script order": guide_order, "dump, then tar": dump_then_tar}


@contextlib.contextmanager
def scratch() -> Iterator[Path]:
    """A folder that is gone afterwards."""
    folder = Path(tempfile.mkdtemp(prefix="cosmos-coherence-", dir="/var/tmp"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _dump(stack: CountingStack, path: Path) -> None:
    path.write_bytes(stack.run("db", "pg_dump", "-d", DATABASE))


def _redis_folder(stack: CountingStack) -> Path:
    return Path(stack.redis("CONFIG", "GET", "dir").splitlines()[1])


def _redis_volume(stack: CountingStack) -> Path:
    path = next(v.path for v in stack.runtime.stack().volumes if v.short == "redis-data")
    assert path is not None
    return path


def _pack(folder: Path, archive: Path) -> None:
    done = subprocess.run(["tar", "-cSf", archive, "-C", folder, "."], stderr=subprocess.DEVNULL)
    if done.returncode not in _LIVE_TREE:
        raise RuntimeError(f"tar ended with {done.returncode}")


def _restored(stack: CountingStack, folder: Path) -> State:
    files = folder / "files"
    files.mkdir()
    subprocess.run(["tar", "-xf", folder / "files.tar", "-C", files], check=True)
    return stores.beside(stack, sql=folder / "database.sql", redis=folder / "redis", files=files)
