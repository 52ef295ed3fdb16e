"""Thirty days of a disk that fills up: a real disk, its measurements, history, forecast, alarms and messages; only the
clock is not real."""

from __future__ import annotations

import os
import random
import socket
import statistics
import time
from pathlib import Path

import pytest

from cosmos_coherence import settings
from cosmos_coherence.drivers.local import LocalRuntime
from cosmos_coherence.flow import alarm, history, measure
from cosmos_coherence.settings import ServeSettings
from cosmos_coherence.volumes import forecast
from support.listening import listening
from support.small_disk import small_disk

DAY_S = 86400.0
EVERY_S = DAY_S / 4
MIB = 1 << 20
SIZE, BEGIN, A_DAY = 256, 30.0, 11.0
CLEANED = 19.5
"""Day on which somebody makes room."""


def hold(ballast: Path, size: int) -> None:
    """Let the file take so many bytes."""
    with ballast.open("ab") as file:
        file.truncate(min(size, file.tell()))
        if size > file.tell():
            os.posix_fallocate(file.fileno(), 0, size)


@pytest.mark.parametrize("seed", range(2))
def test_the_forecast_holds_and_each_alarm_is_told_once_and_in_time(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    with small_disk(tmp_path / "disk", f"{SIZE}m") as disk, listening() as server:
        stack = tmp_path / "stack"
        stack.mkdir()
        (disk / "data").mkdir()
        (stack / "backups").mkdir()
        (stack / "urls").write_text(server.url("/take") + "\n")
        (stack / "cosmos.toml").write_text(
            f'[[source]]\nkind = "files"\nname = "files"\npath = "{disk}/data"\n'
            '[stack]\nproject = "shop"\nruntime = "process"\n[notify]\nurls_file = "urls"\n'
        )
        found, runtime = settings.load(stack, environ={}), LocalRuntime(stack, alone="shop")
        state, serving = runtime.state_directory(), ServeSettings()
        begin = time.time() - 31 * DAY_S
        full_on = (SIZE - BEGIN) / A_DAY
        told: dict[float, list[str]] = {}
        within: list[bool] = []
        width: list[float] = []
        for turn in range(int(30 * DAY_S / EVERY_S)):
            at = begin + turn * EVERY_S
            day = turn * EVERY_S / DAY_S
            grown = day if day < CLEANED else day - CLEANED
            hold(disk / "data" / "uploads", int((BEGIN + A_DAY * grown + chance.gauss(0, 1.5)) * MIB))
            measured = measure.measure(
                runtime, found, serving, directory=disk / "data", now=lambda at=at: at
            )  # fmt: skip
            before = len(server.titles())
            alarm.watch(runtime, found, measured=measured, now=lambda at=at: at)
            told[day] = server.titles()[before:]
            if turn % 4 == 3:
                assert history.fill(state, serving, found.history) == ""
            said = {m.name: m.value for m in measured.measurements if m.subject == f"disk:{disk}"}
            if 4 <= day < CLEANED:
                low, high = said["days_until_full_low"], said["days_until_full_high"]
                within.append(low <= full_on - day <= high)
                width.append(high - low)
    assert sum(within) >= forecast.CONFIDENCE * len(within)
    assert statistics.median(width) < 3, "a range that holds everything tells nothing"
    head = f"shop on {socket.gethostname()}: "
    for what in ("as it grows now", "the disk of"):
        begun = [day for day, titles in told.items() for t in titles if t.startswith(f"{head}alarm: {what}")]
        assert len(begun) == 1, told
        assert begun[0] < full_on - 2, "it was told too late"
    over = [day for day, titles in told.items() for t in titles if t.startswith(f"{head}over:")]
    assert len(over) == 2
    assert all(day >= CLEANED for day in over)
