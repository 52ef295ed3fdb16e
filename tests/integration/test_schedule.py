"""``cosmos schedule`` and the agent as a person calls them, on a stack of one process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from cosmos_coherence.cli import context, install
from cosmos_coherence.history.ledger import look
from support.program import SOURCE, cosmos
from support.waiting import eventually

SPEC = {
    "project": "small",
    "volumes": {"files": {}},
    "services": [{"name": "none", "argv": ["sleep", "60"], "volumes": [{"volume": "files"}]}],
}
_CRONTAB = """#!/bin/sh
# keeps the crontab of the tests' user
case $1 in
  -l) [ -f "$HOME/crontab" ] && exec cat "$HOME/crontab"; echo "no crontab for tests" >&2; exit 1 ;;
  -) exec cat > "$HOME/crontab" ;;
esac
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    stack = tmp_path / "stack"
    (stack / "volumes" / "files").mkdir(parents=True)
    (stack / "volumes" / "files" / "a").write_text("a")
    (stack / "stack.json").write_text(json.dumps(SPEC))
    return stack


def call(folder: Path, *words: str, status: int = 0, **environment: str):
    done = cosmos("-C", str(folder), "schedule", *words, "--json", **environment)
    assert done.returncode == status, done.stdout + done.stderr
    return json.loads(done.stdout)


def test_what_comes_when_and_how_it_went(folder: Path) -> None:
    settings = {"COSMOS_SCHEDULE__TIMEZONE": "Europe/Berlin", "COSMOS_SCHEDULE__PRUNE": "0 3 * * 0"}
    found = {each["job"]: each for each in call(folder, "next", "-n", "5", **settings)}
    assert sorted(found) == ["backup", "check", "measure", "prune"]
    times = found["backup"]["next"]
    assert len(times) == 5 and all("T02:00:00+0" in each["local"] for each in times)
    assert found["backup"]["last"] is None
    assert call(folder, "run", "backup")["status"] == "done"
    assert call(folder, "run", "check")["backup"]
    assert call(folder, "run", "forget")["removed"] == []
    assert call(folder, "run", "prune")["status"] == "done"
    found = {each["job"]: each for each in call(folder, "next")}
    assert (found["backup"]["last"]["outcome"], found["check"]["last"]["outcome"]) == ("done", "done")
    status = json.loads(cosmos("-C", str(folder), "status", "--json").stdout)
    assert status["jobs"]["backup"]["outcome"] == "done" and status["run"] is None
    told = cosmos("-C", str(folder), "status").stdout
    assert "schedule: backup done 20" in told


def test_a_job_that_fails_is_a_report_and_is_remembered(folder: Path) -> None:
    call(folder, "run", "backup")
    (archive,) = (folder / "backups").glob("2*.tar.gz")
    archive.write_bytes(archive.read_bytes()[:-20])
    assert call(folder, "run", "check", status=6)["failure"]["code"] == "damaged"
    assert look(folder / ".cosmos")["check"].outcome == "failed"
    assert call(folder, "run", "nothing", status=2)["failure"]["code"] == "usage"


def test_a_wrong_setting_ends_the_agent_before_it_begins(folder: Path) -> None:
    for name in ("BACKUP", "CHECK", "TIMEZONE"):
        done = cosmos("-C", str(folder), "serve", "agent", **{f"COSMOS_SCHEDULE__{name}": "61 x"})
        assert (done.returncode, f"schedule.{name.lower()}" in done.stderr) == (2, True), done.stderr


def test_the_agent_runs_what_is_due_and_is_alone(folder: Path) -> None:
    agent = subprocess.Popen(
        [sys.executable, "-m", "cosmos_coherence.cli.main", "-C", str(folder), "schedule", "run"],
        env={**os.environ, "PYTHONPATH": str(SOURCE), "COSMOS_SCHEDULE__BACKUP": "* * * * *"},
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        state = folder / ".cosmos"
        assert eventually(lambda: "backup" in look(state)), "it does not begin"
        second = cosmos("-C", str(folder), "serve", "agent")
        assert second.returncode == 5
        assert "(agent 2" in second.stderr and f"pid {agent.pid} on" in second.stderr
        assert eventually(lambda: look(state)["backup"].outcome == "done", within_s=120)
        assert eventually((state / "history.sqlite").exists)
    finally:
        agent.terminate()
        said, told = agent.communicate(timeout=60)
    assert agent.returncode == 0, told
    assert '"verb": "backup"' in said and "backup begins" in told


def test_timers_of_systemd_are_written_once_and_taken_away(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Into a folder of the test's, where no systemd looks; ``systemd-analyze`` reads them first where there is one."""
    units = tmp_path / "units"
    monkeypatch.setattr(install, "_SYSTEM", units)
    monkeypatch.setattr(install, "_USERS", units)
    monkeypatch.setattr(install, "_RUNS", tmp_path / "none")
    monkeypatch.setattr(context, "given", context.Given(directory=folder))
    names = [f"cosmos-small-{job}.{kind}" for job in ("backup", "check", "measure") for kind in ("service", "timer")]

    def done(*, remove: bool = False, dry_run: bool = False) -> list[str]:
        assert install.install(systemd=True, cron=False, remove=remove, dry_run=dry_run, as_json=True) == 0
        return sorted(json.loads(capsys.readouterr().out)["changed"])

    assert done(dry_run=True) == names and not units.exists()
    assert done() == names
    assert sorted(path.name for path in units.iterdir()) == names
    (units / "other.timer").write_text("somebody else's")
    assert done() == []
    monkeypatch.setenv("COSMOS_SCHEDULE__CHECK", "off")
    assert done() == ["cosmos-small-check.service", "cosmos-small-check.timer"]
    assert done(remove=True, dry_run=True) == done(remove=True)
    assert [path.name for path in units.iterdir()] == ["other.timer"]


def test_lines_of_cron_are_written_once_and_taken_away(folder: Path, tmp_path: Path) -> None:
    program, home = tmp_path / "bin", tmp_path / "home"
    program.mkdir(), home.mkdir()
    (program / "crontab").write_text(_CRONTAB)
    (program / "crontab").chmod(0o755)
    theirs = "0 1 * * * somebody else's\n"
    (home / "crontab").write_text(theirs)
    where = {"PATH": f"{program}:{os.environ['PATH']}", "HOME": str(home), "TZ": "UTC"}
    assert call(folder, "install", "--cron", "--dry-run", **where)["changed"] == ["crontab"]
    assert (home / "crontab").read_text() == theirs
    assert call(folder, "install", "--cron", **where)["changed"] == ["crontab"]
    written = (home / "crontab").read_text()
    assert written.startswith(theirs) and f"0 2 * * * {sys.executable} -m" in written
    line = next(line for line in written.splitlines() if line.endswith("run measure"))
    environment = {**os.environ, "PYTHONPATH": str(SOURCE)}
    subprocess.run(["sh", "-c", line.split(" ", 5)[5]], check=True, env=environment, stdout=subprocess.DEVNULL)
    assert look(folder / ".cosmos")["measure"].outcome == "done"
    assert call(folder, "install", "--cron", **where)["changed"] == []
    assert call(folder, "install", "--cron", "--remove", **where)["changed"] == ["crontab"]
    assert (home / "crontab").read_text() == theirs
    assert call(folder, "install", status=2)["failure"]["code"] == "usage"
