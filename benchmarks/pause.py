"""``python -m benchmarks.pause``: how long the writers of a large stack stand still, source by source.

PostgreSQL, Redis, many files and four writers at full speed on a Docker engine (``benchmarks.coherence``), with ballast
in all three. Cuts are taken as a backup takes them, without the capture: files copied, sessions opened, writers held,
every source anchored, released. Then the same without copying beforehand, a few whole backups, and the writers'
standstill when the stack is stopped, copied and started. Every figure is a line of ``data/results/pause.ndjson``; a run
that was ended goes on from there.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from benchmarks.coherence import campaign
from benchmarks.coherence.latency import share
from benchmarks.coherence.stacks import CountingStack, docker_stack
from cosmos_coherence import sources
from cosmos_coherence.copied import Copied
from cosmos_coherence.cut.journal import Journal
from cosmos_coherence.cut.lock import run_lock
from cosmos_coherence.flow import backup, events
from cosmos_coherence.flow.instant import one_instant
from cosmos_coherence.settings import Settings, load
from cosmos_coherence.sources.base import Source
from cosmos_coherence.sources.volume import TreeSource

BEFOREHAND, COLD, WHOLE, STOPPED = "copied beforehand", "not copied beforehand", "whole backup", "stop, copy, start"
_MIB = 1 << 20
_SESSION = 20
"""Cuts of one run of the writers, who begin with empty stores each time."""
_ROW, _VALUE = 1000, 1000


@dataclass(frozen=True)
class Ballast:
    """What lies in the stores beside what the writers write."""

    postgres_mib: int = 5 * 1024
    redis_mib: int = 500
    files: int = 100_000


SMALL = Ballast(64, 16, 2_000)


class Nowhere:
    """A sink that reads everything and keeps nothing."""

    at_once = 1

    def tree(self, name: str) -> Nowhere:
        return self

    def known(self) -> Mapping[bytes, Copied]:
        return {}

    def add_small(self, root: Path, paths: Sequence[bytes]) -> Iterator[Copied]:
        return iter(())

    def add(self, entry: object, content: BinaryIO) -> str:
        while content.read(_MIB):
            pass
        return ""

    def drop(self, path: bytes) -> None:
        pass


# ---------------------------------------------------------------------------------------------------- the stack
def fill(stack: CountingStack, ballast: Ballast) -> None:
    """Put the ballast in. What it costs is no part of any figure, so nothing waits for the disk meanwhile."""
    stack.sql("ALTER SYSTEM SET fsync = off; SELECT pg_reload_conf()")
    stack.sql("DROP TABLE IF EXISTS pause_ballast; CREATE TABLE pause_ballast (id bigint PRIMARY KEY, content text)")
    rows = ballast.postgres_mib * _MIB // (_ROW + 60)
    for start in range(0, rows, 500_000):
        end = min(rows, start + 500_000)
        stack.sql(
            f"INSERT INTO pause_ballast SELECT n, substr(repeat(md5(n::text), {_ROW // 32 + 1}), 1, {_ROW})"
            f" FROM generate_series({start + 1}, {end}) n"
        )
    stack.sql("ALTER SYSTEM RESET fsync; SELECT pg_reload_conf(); CHECKPOINT")
    keys = ballast.redis_mib * _MIB // (_VALUE + 80)
    script = (
        "for n = tonumber(ARGV[1]), tonumber(ARGV[2]) do redis.call('SET', 'pause:' .. n,"
        f" string.rep(redis.sha1hex(n), {_VALUE // 40})) end"
    )
    for start in range(0, keys, 20_000):
        stack.redis("EVAL", script, "0", str(start), str(min(keys, start + 20_000) - 1))
    files = stack.files
    for number in range(ballast.files):
        folder = files / "ballast" / f"{number // 1000:03}"
        if number % 1000 == 0:
            folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number:06}").write_bytes(b"%06d" % number * 100)
    subprocess.run(["sync", "-f", files], check=True)


def measured(stack: CountingStack) -> str:
    """What the stores hold, for the record."""
    postgres = int(stack.sql("SELECT sum(pg_database_size(datname)) FROM pg_database"))
    redis = stack.redis("INFO", "memory").partition("used_memory_human:")[2].split()[0]
    files = sum(len(names) for _, _, names in os.walk(stack.files))
    return f"PostgreSQL {postgres / 2**30:.1f} GiB, Redis {redis}, {files:,} files"


# --------------------------------------------------------------------------------------------------------- cuts
@contextlib.contextmanager
def opened(stack: CountingStack, settings: Settings, *, cold: bool) -> Iterator[tuple[Any, list[Source]]]:
    """The plan of a backup and its sources. ``cold``: nothing of the files is copied beforehand."""
    plan = backup.plan_backup(stack.runtime, settings, archive=True)
    with tempfile.TemporaryDirectory(prefix="pause-", dir=stack.folder) as spool:
        setting = sources.Setting(stack.runtime, backup.new_run(), Path(spool))
        made: list[Source] = []
        try:
            for ref in plan.parts:
                if cold and ref.kind == "volume" and ref.path is not None:
                    made.append(TreeSource(ref, ref.path, spool=Path(spool), rounds=0))
                else:
                    made.append(sources.open_source(ref, setting))
            yield plan, made
        finally:
            for source in made:
                source.close()


def cuts(stack: CountingStack, settings: Settings, wanted: int, *, cold: bool) -> Iterator[dict[str, Any]]:
    """So many cuts at full write load, one after another with the same sources, as after a blown budget."""
    state = stack.runtime.state_directory()
    story = events.Story(verb="backup", run=backup.new_run(), project=stack.runtime.stack().project)
    with run_lock(state, run=story.run, what="pause"), opened(stack, settings, cold=cold) as (plan, made):
        for number in range(wanted):
            before, began = stack.acknowledged(), time.monotonic()
            instant = one_instant(
                stack.runtime, settings, story, Journal(state), made, Nowhere(),  # type: ignore[arg-type]
                engines=plan.coverage.engines,
            )  # fmt: skip
            seconds = time.monotonic() - began
            anchored = {part: round(ms, 2) for part, ms in instant.cut.anchored_ms.items()}
            yield {
                "pause_ms": round(instant.cut.pause_ms, 2), "anchored_ms": anchored, "number": number,
                "per_second": round((stack.acknowledged() - before) / seconds), "seconds": round(seconds, 2),
            }  # fmt: skip


def whole(stack: CountingStack) -> dict[str, Any]:
    """One backup as a person makes it, into an archive."""
    began = time.monotonic()
    saved = campaign.save(stack, {"COSMOS_REPOSITORY__URL": ""})
    seconds = time.monotonic() - began
    for path in (stack.folder / "backups").iterdir():
        path.unlink()
    return {
        "pause_ms": round(saved.pause_ms, 2), "seconds": round(seconds, 1),
        "per_second": round(saved.meanwhile / seconds),
    }  # fmt: skip


def stop_copy_start(stack: CountingStack, host: str) -> dict[str, Any]:
    """Stop the stack, pack each volume with tar, start it, until everything is healthy.

    Uncompressed and by the host's own tar: it cannot be shorter.
    """
    target = stack.folder / "stopped"
    target.mkdir()
    paths = [volume.path for volume in stack.runtime.stack().volumes if volume.path and volume.short != "cosmos-state"]
    compose = ["docker", "compose"]
    environment = {**os.environ, "DOCKER_HOST": host} if host else {**os.environ}

    def run(*argv: str) -> None:
        subprocess.run(argv, cwd=stack.folder, env=environment, check=True, capture_output=True)

    began = time.monotonic()
    run(*compose, "stop")
    for path in paths:
        run("tar", "-cf", str(target / f"{path.parent.name}.tar"), "-C", str(path), ".")
    run(*compose, "up", "--detach", "--wait")
    seconds = time.monotonic() - began
    size = sum(path.stat().st_size for path in target.iterdir())
    for path in target.iterdir():
        path.unlink()
    target.rmdir()
    return {"pause_ms": round(seconds * 1000), "bytes": size}


# ------------------------------------------------------------------------------------------------------- results
class Results:
    """The lines so far, and until when there may be more."""

    def __init__(self, path: Path, seconds: float) -> None:
        self._path, self._until = path, time.monotonic() + seconds
        self.rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()] if path.exists() else []

    def left(self, way: str, wanted: int) -> int:
        """How many of this way are still to be measured; none when the time is over."""
        return max(0, wanted - len(self.of(way))) if time.monotonic() < self._until else 0

    def of(self, way: str) -> list[dict[str, Any]]:
        """What was measured in this way."""
        return [row for row in self.rows if row["way"] == way]

    def add(self, way: str, row: dict[str, Any]) -> None:
        """One more figure."""
        self.rows.append({"way": way, **row})
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(self.rows[-1]) + "\n")
        print(json.dumps(self.rows[-1]), flush=True)


def table(results: Results) -> Iterator[str]:
    """Median and p99 of each source and of the whole pause, in each way; how many times shorter than a stop."""
    for way in (BEFOREHAND, COLD):
        rows = results.of(way)
        if not rows:
            continue
        yield f"{way}: {len(rows)} cuts, {statistics.median(row['per_second'] for row in rows):.0f} writes a second"
        for part in sorted(rows[0]["anchored_ms"]):
            yield _line(part, [row["anchored_ms"][part] for row in rows])
        yield _line("freeze and release", [row["pause_ms"] - max(row["anchored_ms"].values()) for row in rows])
        yield _line("the pause", [row["pause_ms"] for row in rows])
    for way in (WHOLE, STOPPED):
        if rows := results.of(way):
            yield _line(way, [row["pause_ms"] for row in rows])
    if results.of(BEFOREHAND) and results.of(STOPPED):
        ours = statistics.median(row["pause_ms"] for row in results.of(BEFOREHAND))
        theirs = statistics.median(row["pause_ms"] for row in results.of(STOPPED))
        yield f"{theirs / ours:,.0f} times shorter than a stop"


def _line(what: str, ms: Sequence[float]) -> str:
    return f"  {what:22} median {statistics.median(ms):,.1f} ms, p99 {share(ms, 0.99):,.1f} ms, worst {max(ms):,.1f} ms"


def measure(results: Results, ballast: Ballast, wanted: int, host: str, kept: Path | None) -> None:
    """What is still missing of it."""
    with docker_stack(host=host, kept=kept) as stack:
        filled = stack.folder / "filled"
        if not filled.exists():
            fill(stack, ballast)
            filled.touch()
        print(measured(stack), flush=True)
        settings = load(stack.folder, environ={"DOCKER_HOST": host} if host else {}, cut__max_pause="60s")
        try:
            take(stack, settings, results, wanted, host)
        finally:
            stack.stop()


def take(stack: CountingStack, settings: Settings, results: Results, wanted: int, host: str) -> None:
    """What is still missing, of a stack that is filled."""
    session = 0
    for way, count in ((BEFOREHAND, wanted), (COLD, min(3, wanted))):
        while left := min(_SESSION, results.left(way, count)):
            session += 1
            campaign.warmed(stack, session)
            for row in cuts(stack, settings, left, cold=way == COLD):
                results.add(way, row)
            stack.stop()
    while results.left(STOPPED, 1):
        results.add(STOPPED, stop_copy_start(stack, host))
    while results.left(WHOLE, 3):
        session += 1
        campaign.warmed(stack, session)
        results.add(WHOLE, whole(stack))
        stack.stop()


def main() -> None:
    parser = argparse.ArgumentParser(description="How long the writers of a large stack stand still.")
    parser.add_argument("--cuts", type=int, default=200)
    parser.add_argument("--small", action="store_true", help="a stack of 100 MB, to see that it works")
    parser.add_argument("--keep", type=Path, help="a folder for the stack, which stays there for the next call")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="begin nothing new after so long")
    parser.add_argument("--results", type=Path, default=Path("data/results/pause.ndjson"))
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the stack goes, too
    host = os.environ.get("COSMOS_TEST_DOCKER_HOST") or os.environ.get("DOCKER_HOST", "")
    results = Results(options.results, options.seconds)
    measure(results, SMALL if options.small else Ballast(), options.cuts, host, options.keep)
    print(*table(results), sep="\n")


if __name__ == "__main__":
    main()
