"""What is written down for systemd and cron; systemd itself reads it."""

from __future__ import annotations

import re
import shutil
import subprocess
import time
from datetime import UTC, datetime
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest

from cosmos_coherence import errors
from cosmos_coherence.agent import handover
from cosmos_coherence.flow.schedule import Rhythm, next_due

NOW = datetime(2026, 2, 1, tzinfo=UTC)
COMMAND = ("/opt/my stack/python", "-m", "x", "--directory", '/srv/100% "$HOME"', "run")


def rhythm(expression: str, name: str = "backup", zone: str = "UTC") -> Rhythm:
    return Rhythm(name, expression, ZoneInfo(zone))


@pytest.mark.parametrize(
    ("expression", "times"),
    [
        ("0 2 * * *", ("*-*-* 02:00:00",)),
        ("*/15 * * * *", ("*-*-* *:00,15,30,45:00",)),
        ("30 4 1,15 1-3 *", ("*-01,02,03-01,15 04:30:00",)),
        ("0 3 * * 1-5", ("Mon,Tue,Wed,Thu,Fri *-*-* 03:00:00",)),
        ("0 3 * * 7", ("Sun *-*-* 03:00:00",)),
        ("0 0 13 * 5", ("*-*-13 00:00:00", "Fri *-*-* 00:00:00")),
        ("0 0 */2 * 5", ("Fri *-*-01,03,05,07,09,11,13,15,17,19,21,23,25,27,29,31 00:00:00",)),
    ],
)
def test_an_expression_in_systemd_s_words(expression: str, times: tuple[str, ...]) -> None:
    assert handover.calendar(rhythm(expression)) == times
    if not shutil.which("systemd-analyze"):
        return
    found: set[str] = set()
    for each in times:
        call = [
            "systemd-analyze",
            "calendar",
            "--iterations=9",
            f"--base-time={NOW:%Y-%m-%d %H:%M:%S} UTC",
            f"{each} UTC",
        ]
        said = subprocess.run(call, capture_output=True, text=True, check=True, env={"PATH": "/usr/bin", "TZ": "UTC"})
        found.update(re.findall(r"(?:Next elapse|Iter\. #\d+): \w+ ([0-9-]+ [0-9:]+) UTC", said.stdout))
    ours, moment = [], NOW
    for _ in range(9):
        ours.append(f"{(moment := next_due(expression, ZoneInfo('UTC'), moment)):%Y-%m-%d %H:%M:%S}")
    assert ours == sorted(found)[:9]


@pytest.mark.parametrize("expression", ["0 0 L * *", "0 0 LW * *", "0 0 * * 5#2", "0 0 * * 5L"])
def test_what_systemd_cannot_say_is_refused(expression: str) -> None:
    with pytest.raises(errors.Unsupported, match=r"schedule\.backup"):
        handover.calendar(rhythm(expression))


def test_systemd_reads_the_units(tmp_path: Path) -> None:
    jobs = [rhythm("0 2 * * *", zone="Europe/Berlin"), rhythm("*/15 * * * *", "measure")]
    found = handover.units(jobs, project="my project", command=COMMAND, jitter_s=90)
    assert sorted(found) == [f"cosmos-my_project-{job}.{kind}" for job in ("backup", "measure")
                             for kind in ("service", "timer")]  # fmt: skip
    assert "OnCalendar=*-*-* 02:00:00 Europe/Berlin\nPersistent=true" in found["cosmos-my_project-backup.timer"]
    if not shutil.which("systemd-analyze"):
        return
    for name, text in found.items():
        (tmp_path / name).write_text(text.replace("/opt/my stack/python", shutil.which("true") or "/bin/true"))
    said = subprocess.run(["systemd-analyze", "verify", *map(str, tmp_path.iterdir())], capture_output=True, text=True)
    assert (said.returncode, said.stderr) == (0, "")


def test_no_name_gets_a_line_of_its_own() -> None:
    for project, command in (("a\n[Service]\nExecStart=/bin/sh", COMMAND), ("a", ("/x", "a\nb"))):
        with pytest.raises(errors.Refused):
            handover.units([rhythm("0 2 * * *")], project=project, command=command, jitter_s=0)
        with pytest.raises(errors.Refused):
            handover.lines([rhythm("0 2 * * *")], project=project, command=command, now=NOW)


@pytest.fixture
def berlin(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TZ", "Europe/Berlin")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


def test_the_crontab_keeps_what_is_not_ours(berlin) -> None:
    theirs = "MAILTO=me\n0 1 * * * backup --all  # not ours\n"
    jobs = [rhythm("0 2 * * *", zone="Europe/Berlin")]
    block = handover.lines(jobs, project="shop", command=COMMAND, now=NOW)
    assert "0 2 * * * '/opt/my stack/python' -m x --directory '/srv/100\\% \"$HOME\"' run backup\n" in block
    assert handover.without(theirs + block, "shop") == theirs
    assert handover.without(theirs + block, "sho") == theirs + block
    assert handover.without(block + theirs, "shop") == theirs


def test_a_zone_that_cron_does_not_go_by_is_refused(berlin) -> None:
    with pytest.raises(errors.ConfigurationError, match="zone of this machine"):
        handover.lines([rhythm("0 2 * * *", zone="America/New_York")], project="shop", command=COMMAND, now=NOW)
