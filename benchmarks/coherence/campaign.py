"""Backups at full write load, each restored and judged; resumable, since every result is a line of a file."""

from __future__ import annotations

import json
import random
import shutil
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from benchmarks.coherence import baselines, stores
from benchmarks.coherence.checker import State, Verdict, judge
from benchmarks.coherence.record import STORES
from benchmarks.coherence.stacks import WRITERS, CountingStack, docker_stack, process_stack

WARM = 100 * WRITERS
"""Operations before the first backup of a session."""
_WARM_S = 60
PER_SESSION = 2
"""Backups of one run of the writers; the first is restored in full, the other beside the stack."""


@dataclass(frozen=True)
class Saved:
    """One backup that was made while the writers wrote."""

    identity: str
    instant_ns: int
    pause_ms: float
    meanwhile: int
    """Operations that were acknowledged while the program ran."""


def opened(runtime: str, store: tuple[str, ...] = STORES) -> AbstractContextManager[CountingStack]:
    """A stack on this runtime."""
    return process_stack(store) if runtime == "process" else docker_stack(store)


def warmed(stack: CountingStack, session: int, operations: int = WARM) -> None:
    """Let the writers begin, and return when they have written so much."""
    stack.begin(session)
    deadline = time.monotonic() + _WARM_S
    while stack.acknowledged() < operations:
        if time.monotonic() > deadline:
            raise RuntimeError(f"the writers do not write: {stack.acknowledged()} operations in {_WARM_S} s")
        time.sleep(0.02)


def save(stack: CountingStack, environment: dict[str, str], *, good: Sequence[int] = (0,)) -> Saved:
    """One backup; the writers have to have written while it ran."""
    before = stack.acknowledged()
    report = stack.cosmos("backup", good=good, **environment)
    after = stack.acknowledged()
    if after == before:
        raise RuntimeError(f"nobody wrote while {report['backup']} was made")
    shown = stack.cosmos("show", report["backup"], **environment)
    return Saved(report["backup"], _nanoseconds(shown["instant"]), shown["pause_ms"], after - before)


def restored(stack: CountingStack, saved: Saved, environment: dict[str, str], *, full: bool) -> State:
    """What the backup brings back: into the stack, or into throw-away stores beside it."""
    if full:
        stack.cosmos("restore", saved.identity, "--yes", **environment)
        return stores.live(stack)
    with baselines.scratch() as folder:
        stack.cosmos("restore", saved.identity, "--to", str(folder / "to"), **environment)
        files = next((folder / "to/volumes").glob("*_files"))
        return stores.beside(stack, sql=folder / "to/database.sql", redis=folder / "to/redis", files=files)


def session(
    stack: CountingStack, number: int, chance: random.Random, *, backups: int, repository: bool
) -> Iterator[dict[str, Any]]:
    """One run of the writers from empty stores, so many backups of it, each judged."""
    environment = {} if repository else {"COSMOS_REPOSITORY__URL": ""}
    warmed(stack, number)
    made = []
    for _ in range(backups):
        time.sleep(chance.uniform(0, 0.3))
        made.append(save(stack, environment))
    stack.stop()
    ledger = stack.ledger()
    for place, saved in enumerate(made):
        full = place == 0
        found = restored(stack, saved, environment, full=full)
        verdict = judge(found, stack.stores, ledger=ledger, instant_ns=saved.instant_ns)
        yield {
            "backup": saved.identity,
            "into": "repository" if repository else "archive",
            "restored": "in full" if full else "beside",
            "pause_ms": saved.pause_ms,
            "meanwhile": saved.meanwhile,
            "per_second": round(_rate(ledger)),
            **verdict.as_dict(),
        }
    for path in (stack.folder / "backups").glob("*.tar.gz"):
        path.unlink()
        path.with_name(path.name.removesuffix(".tar.gz") + ".json").unlink(missing_ok=True)


def baseline(stack: CountingStack, number: int, name: str) -> Verdict:
    """What the judge says of a backup that was made without a hold."""
    warmed(stack, number)
    with baselines.scratch() as folder:
        bring_back = baselines.BASELINES[name](stack, folder)
        stack.stop()
        return judge(bring_back(), stack.stores, ledger=stack.ledger())


def prepare(stack: CountingStack) -> None:
    """Make the repository that half of the backups go to."""
    stack.cosmos("init")


def campaign(runtime: str, rounds: int, results: Path, *, seed: int = 4) -> list[dict[str, Any]]:
    """Go on until ``results`` holds so many rounds of this runtime; all of them. Says each on standard output."""
    done = read(results, runtime)
    if len(done) >= rounds:
        return done
    results.parent.mkdir(parents=True, exist_ok=True)
    with opened(runtime) as stack, results.open("a", encoding="utf-8") as file:
        if results.read_bytes()[-1:] not in (b"", b"\n"):
            file.write("\n")  # a line that a kill has cut short
        prepare(stack)
        number = 0
        while len(done) < rounds:
            number += 1
            chance = random.Random(f"{seed} {len(done)}")
            repository = len(done) // PER_SESSION % 2 == 1
            wanted = min(PER_SESSION, rounds - len(done))
            for result in session(stack, number, chance, backups=wanted, repository=repository):
                row = {"runtime": runtime, "round": len(done) + 1, **result}
                done.append(row)
                file.write(json.dumps(row) + "\n")
                file.flush()
                print(_said(row), flush=True)
            _require_room(stack.folder)
    return done


def read(results: Path, runtime: str) -> list[dict[str, Any]]:
    """The rounds of this runtime so far. A line that a kill has cut short does not count."""
    if not results.exists():
        return []
    rows = []
    for text in results.read_text("utf-8").splitlines():
        try:
            rows.append(json.loads(text))
        except ValueError:
            continue
    return [row for row in rows if row.get("runtime") == runtime]


def figures(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What a campaign showed."""
    pauses = sorted(row["pause_ms"] for row in rows)
    return {
        "backups": len(rows),
        "violations": sum(not row["one_instant"] for row in rows),
        "restored in full": sum(row["restored"] == "in full" for row in rows),
        "from a repository": sum(row["into"] == "repository" for row in rows),
        "operations compared": sum(row["operations"] for row in rows),
        "torn records": sum(row["torn"] for row in rows),
        "operations a second, median": round(statistics.median(row["per_second"] for row in rows)),
        "pause median ms": round(statistics.median(pauses), 1),
        "pause worst ms": round(pauses[-1], 1),
    }


def _said(row: dict[str, Any]) -> str:
    verdict = "one instant" if row["one_instant"] else f"VIOLATED: {row['violations']}"
    return (
        f"{row['runtime']} {row['round']}: {row['operations']} operations, {row['per_second']}/s, pause"
        f" {row['pause_ms']:.1f} ms, {row['into']}, {row['restored']}: {verdict}"
    )


def _rate(ledger: dict[int, tuple[int, ...]]) -> float:
    """Operations a second, of all writers, from the first to the last."""
    first, last = min(times[0] for times in ledger.values()), max(times[-1] for times in ledger.values())
    return sum(map(len, ledger.values())) / ((last - first) / 1e9)


def _nanoseconds(instant: str) -> int:
    moment = datetime.fromisoformat(instant.replace("Z", "+00:00"))
    return int(moment.replace(microsecond=0).timestamp()) * 1_000_000_000 + moment.microsecond * 1000


def _require_room(folder: Path) -> None:
    if shutil.disk_usage(folder).free < 2 << 30:
        raise RuntimeError(f"less than 2 GiB are left for {folder}")
