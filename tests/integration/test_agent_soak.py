"""The agent at work for an hour while the stack writes and the history's database is killed over and over.

``COSMOS_SOAK_MINUTES=3`` makes it shorter. What is counted in the end: every backup and measurement that was due
is in the history, the database came and went, and the agent takes no more memory than at the beginning.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from cosmos_coherence.drivers import stackfile
from cosmos_coherence.drivers.embedded import DATABASE
from support.embedded_stack import EmbeddedStack, embedded_stack
from support.program import SOURCE
from support.waiting import eventually

MINUTES = float(os.environ.get("COSMOS_SOAK_MINUTES", "60"))
pytestmark = [pytest.mark.soak, pytest.mark.timeout(int(MINUTES * 60) + 600)]


def resident_kib(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0])


def counts(stack: EmbeddedStack) -> dict[str, dict[str, int]]:
    """Runs in the history by verb and status."""
    found: dict[str, dict[str, int]] = {}
    for line in stack.sql("SELECT verb, status, count(*) FROM run GROUP BY 1, 2").splitlines():
        verb, status, number = line.split("|")
        found.setdefault(verb, {})[status] = int(number)
    return found


def test_an_hour_under_load_with_the_database_killed_and_brought_back(rng: random.Random) -> None:
    with embedded_stack(rate=100) as stack:
        server = next(s for s in stackfile.read(stack.folder).services if s.name == "db").environment
        (stack.folder.parent / "password").write_text(server["PGPASSWORD"])
        environment = {
            **os.environ, "PYTHONPATH": str(SOURCE), "COSMOS_SCHEDULE__BACKUP": "* * * * *",
            "COSMOS_SCHEDULE__MEASURE": "* * * * *", "COSMOS_SCHEDULE__CHECK": "*/10 * * * *",
            "COSMOS_DATABASE_URL": f"postgresql+psycopg://{server['PGUSER']}@127.0.0.1:{server['PGPORT']}/{DATABASE}",
            "COSMOS_DATABASE_PASSWORD_FILE": str(stack.folder.parent / "password"),
        }  # fmt: skip
        said = stack.folder.parent / "agent.log"
        with said.open("wb") as log:
            agent = subprocess.Popen(
                [sys.executable, "-m", "cosmos_coherence.cli.main", "-C", str(stack.folder), "serve", "agent"],
                env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip
        try:
            figures = _storm(stack, agent, rng)
        finally:
            if agent.poll() is None:
                agent.send_signal(signal.SIGTERM)
            assert agent.wait(timeout=30) == 0, said.read_text()[-2000:]
        # what was spooled while the database was away goes into the history with the next job
        last = subprocess.run(
            [sys.executable, "-m", "cosmos_coherence.cli.main", "-C", str(stack.folder), "schedule", "run", "measure"],
            env=environment, capture_output=True, text=True,
        )  # fmt: skip
        assert last.returncode == 0, last.stderr
        log_text = said.read_text()
        begun = {name: log_text.count(f"{name} begins") for name in ("backup", "measure", "check")}
        passed_over = log_text.count("passed over")
        kept, spooled = counts(stack), [*(stack.folder / ".cosmos" / "spool").glob("*.json")]
        figures |= {"begun": begun, "passed over": passed_over, "history": kept, "left in the spool": len(spooled)}
        print("\n" + json.dumps(figures, indent=2))
        assert spooled == []
        rounds = int(stack.sql("SELECT count(DISTINCT taken) FROM measurement WHERE subject = 'check:engine'"))
        assert rounds == begun["measure"] + 1, "a measurement was lost"
        assert sum(kept["backup"].values()) == begun["backup"], "a backup was not told"
        assert begun["measure"] >= figures["minutes due"] - 1
        due = begun["backup"] - log_text.count("backup begins, ") + log_text.count("backup was due")
        assert due >= figures["minutes due"] - 1, "a backup was missed"
        assert kept["backup"]["done"] == len(figures.pop("published")), "what was told is what is there"
        assert figures["memory at the end, KiB"] < 1.1 * figures["memory after a minute, KiB"]
        assert stack.goes_on()


def _storm(stack: EmbeddedStack, agent: subprocess.Popen[bytes], rng: random.Random) -> dict[str, object]:
    began, end = datetime.now(UTC), time.monotonic() + MINUTES * 60
    assert eventually((stack.folder / ".cosmos" / "schedule.sqlite").exists)
    early, outages, published = 0, 0, set(stack.published())
    while time.monotonic() < end:
        time.sleep(rng.uniform(10, 25))
        assert agent.poll() is None, "the agent has ended"
        published.update(stack.published())
        if not early and datetime.now(UTC) - began > timedelta(minutes=1):
            early = resident_kib(agent.pid)
        postmaster = stack.folder / "volumes" / "postgres-data" / "postmaster.pid"
        os.kill(int(postmaster.read_text().split()[0]), signal.SIGKILL)
        outages += 1
        time.sleep(rng.uniform(1, 15))
        stack.runtime.start(["db"])
        stack.runtime.wait_ready(["db"])
    minutes = int(datetime.now(UTC).timestamp() // 60 - began.timestamp() // 60)
    figures = {"minutes due": minutes, "times the database was killed": outages,
               "memory after a minute, KiB": early, "memory at the end, KiB": resident_kib(agent.pid)}  # fmt: skip
    return {**figures, "published": sorted(published | set(stack.published()))}
