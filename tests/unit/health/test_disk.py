"""Real file systems, small enough to be filled."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from cosmos_coherence import errors
from cosmos_coherence.health import disk
from cosmos_coherence.health.disk import Limits
from cosmos_coherence.model import Volume
from cosmos_coherence.volumes.usage import measure_tree
from support.small_disk import small_disk

LIMITS = Limits(warn=0.8, fail=0.95)


def volume(path: Path | None, **labels: str) -> Volume:
    return Volume("p_a", "a", path=path, labels={name.replace("_", "."): value for name, value in labels.items()})


def check(found: Volume, *, size=lambda path: measure_tree(path).bytes, where: Path | None = None, limit_s=30.0):
    return disk.check_volume(found, LIMITS, disk=where, size=size, limit_s=limit_s)


def take(disk_: Path, share: float) -> None:
    room = os.statvfs(disk_)
    with (disk_ / "ballast").open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, int(room.f_blocks * room.f_frsize * share))


@pytest.mark.parametrize(("share", "outcome"), [(0.5, "ok"), (0.85, "warn"), (0.97, "fail")])
def test_a_disk_that_fills_up(tmp_path, share, outcome):
    with small_disk(tmp_path / "disk", "16m") as place:
        take(place, share)
        found = disk.check_fullness(place / "not" / "yet", LIMITS)
        assert found.outcome == outcome
        assert f"{share:.0%} full" in found.detail
        numbers = {n.name: (n.subject, n.value) for n in found.numbers}
        assert numbers["free_bytes"] == (f"disk:{place / 'not' / 'yet'}", disk.fullness(place).free_bytes)
        held = check(volume(place))
        assert (held.outcome, held.detail) == (outcome, f"disk {found.detail}")
        assert {n.subject for n in held.numbers} == {"volume:p_a"}


def test_a_disk_without_inodes_left(tmp_path):
    with small_disk(tmp_path / "disk", "16m,nr_inodes=100") as place:
        for number in range(92):
            (place / str(number)).touch()
        found = disk.check_fullness(place, LIMITS)
        assert found.outcome == "warn"
        assert "% used, " in found.detail
        for number in range(92, 98):
            (place / str(number)).touch()
        found = check(volume(place))
        assert found.outcome == "fail"
        assert "inodes 9" in found.detail
        assert {n.name: n.value for n in found.numbers}["free_inodes"] == os.statvfs(place).f_favail


def test_what_must_stay_free(tmp_path):
    assert disk.check_disk(tmp_path / "not" / "yet", 1).outcome == "ok"
    assert disk.check_disk(tmp_path, 2**62).outcome == "fail"
    found = disk.check_fullness(tmp_path, Limits(1.0, 1.0), min_free=2**62)
    assert found.outcome == "fail"
    assert "needed" in found.detail


@pytest.mark.parametrize(
    ("limit", "outcome"), [("1GiB", "ok"), ("1200kB", "warn"), ("1 MB", "fail"), ("1024", "fail"), ("", "ok")]
)
def test_a_volume_against_its_own_limit(tmp_path, limit, outcome):
    with small_disk(tmp_path / "disk", "64m") as place:
        (place / "file").write_bytes(bytes(1024 * 1024))
        found = check(volume(place, cosmos_limit=limit))
        assert found.outcome == outcome
        assert ("holds" in found.detail) == bool(limit)


@pytest.mark.parametrize("limit", ["much", "-1GiB", "10 QiB", "0", "9" * 400, "1e9", "1\u0661GB"])
def test_a_limit_that_is_no_size_is_refused(tmp_path, limit):
    with pytest.raises(errors.ConfigurationError):
        check(volume(tmp_path, cosmos_limit=limit))


def test_a_volume_that_takes_too_long_to_measure_is_said_to(tmp_path):
    never = threading.Event()
    try:
        found = check(volume(tmp_path, cosmos_limit="1GiB"), size=lambda _: int(never.wait(60)), limit_s=0.1)
        assert found.outcome in ("warn", "fail")
        assert "takes too long to measure" in found.detail
    finally:
        never.set()


def test_volumes_that_cannot_be_seen(tmp_path):
    assert check(Volume("p_c", "c", exists=False)).outcome == "fail"
    assert check(volume(None)).outcome == "ok"
    assert "cannot be seen from here" in check(volume(None)).detail
    assert check(volume(tmp_path / "gone")).outcome == "warn"
    assert "free" in check(volume(None), where=tmp_path).detail
