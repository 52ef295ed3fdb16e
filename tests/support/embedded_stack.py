"""The demo's stack for tests: real PostgreSQL and Redis as local processes, with ballast and perhaps a writer."""

from __future__ import annotations

import hashlib
import random
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from msgspec import structs

from cosmos_coherence.drivers.embedded import DATABASE, lay_out_demo
from cosmos_coherence.flow import demo_data, demo_proof, demo_writer
from support.faulty import FaultyStack
from support.small_disk import formatted_disk, small_disk
from support.waiting import eventually

WRITERS = 2
PROJECT = "cosmos-demo"
SERVICES = {"db", "redis", "writer"}


class EmbeddedStack(FaultyStack):
    """Its stores, seen with other means than those under test."""

    @property
    def files(self) -> Path:
        return self.folder / "volumes" / "files"

    def sql(self, statement: str) -> str:
        argv = ["psql", "-qXAt", "-v", "ON_ERROR_STOP=1", "-d", DATABASE, "-c", statement]
        with self.runtime.run("db", argv) as child:
            return child.stdout.read().decode().strip()

    def redis(self, *words: str) -> str:
        with self.runtime.run("redis", ["redis-cli", *words]) as child:
            return child.stdout.read().decode().strip()

    def change(self) -> None:
        """Make every store differ from what was backed up."""
        mark = f"{random.getrandbits(40):x}"
        self.sql(f"UPDATE ballast.items SET name = '{mark}' WHERE id = 1")
        self.redis("SET", "newer", mark)
        (self.files / "ballast" / "newer").write_text(mark)

    def state(self) -> demo_proof.Ballast:
        """All that the writer does not write, so that it may go on meanwhile."""
        found = demo_proof.ballast(self.runtime)
        last = [int(self.redis("GET", demo_writer.counter_key(w)) or 0) for w in range(WRITERS)]
        names = [demo_writer.counter_key(w) for w in range(WRITERS)]
        names += [demo_writer.entry_key(w, k) for w in range(WRITERS) for k in range(1, last[w] + 2)]
        own = {hashlib.sha1(name.encode()).hexdigest() for name in names}
        return structs.replace(found, keys={k: v for k, v in found.keys.items() if k not in own})

    def lines(self) -> int:
        """How far the first writer has come in its file."""
        path = self.files / demo_writer.log_name(0)
        return path.read_bytes().count(b"\n") if path.exists() else 0

    def goes_on(self) -> bool:
        """All services run, nothing is held, and the writer writes."""
        lines = self.lines()
        return eventually(lambda: self.running() == SERVICES and self.lines() > lines)

    def leftovers(self) -> list[str]:
        """Everything that a run leaves behind only when it was killed and nobody healed it."""
        return (
            self.files_left() + self.sql("SELECT datname FROM pg_database WHERE datname ~ '^cosmos_(new|old)_'").split()
        )


@contextmanager
def embedded_stack(
    *, writer: bool = True, rate: int = 50, disk: str = "", kind: str = "tmpfs"
) -> Iterator[EmbeddedStack]:
    """``disk``: the size of a disk of its own, for it and its backups; a ``kind`` that is no ``tmpfs`` has 1 GiB."""
    # not tmp_path: the servers run as another user, who has to be able to enter it
    parent = Path(tempfile.mkdtemp(prefix="cosmos-test-", dir="/var/tmp"))
    parent.chmod(0o711)
    runtime, mounted = None, ExitStack()
    try:
        place = parent
        if disk:
            disk_of = small_disk(parent / "disk", disk) if kind == "tmpfs" else formatted_disk(parent / "disk", kind)
            place = mounted.enter_context(disk_of)
        runtime = lay_out_demo(place / "stack", writers=WRITERS, rate=rate)
        servers = [s.name for s in runtime.stack().services if s.name != "writer"]
        runtime.start(servers)
        runtime.wait_ready(servers)
        demo_data.seed(runtime)
        if writer:
            runtime.start(["writer"])
        yield EmbeddedStack(runtime.folder, PROJECT)
    finally:
        if runtime is not None:
            runtime.destroy()
        mounted.close()
        shutil.rmtree(parent, ignore_errors=True)
