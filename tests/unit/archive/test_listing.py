"""What is listed, found, kept and removed."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cosmos_coherence import errors
from cosmos_coherence.archive import listing, retention
from cosmos_coherence.archive.listing import ArchiveInfo
from unit.archive.building import ID, make_archive, manifest

_DAY = 86400.0


def test_only_archives_of_ours_are_listed_oldest_first(tmp_path: Path) -> None:
    assert listing.list_archives(tmp_path / "none") == listing.leftovers(tmp_path / "none") == ()
    make_archive(tmp_path, backup_id="20240103_000000", complete=False)
    make_archive(tmp_path, backup_id="20240102_000000", safety=True)
    make_archive(tmp_path)
    for name in (
        "postgres-data.tar.gz",
        "20240101_120000_2.tar.gz",
        "x20240101_120000.tar.gz",
        "20241341_990000.tar.gz",
    ):
        (tmp_path / name).write_bytes(b"mine")
    (tmp_path / "20240104_000000.tar.gz").mkdir()
    (tmp_path / "20240105_000000.tar.gz").symlink_to(f"{ID}.tar.gz")
    found = listing.list_archives(tmp_path)
    assert [(a.id, a.safety, a.manifest.complete) for a in found] == [
        (ID, False, True),
        ("safety-20240102_000000", True, True),
        ("20240103_000000", False, False),
    ]
    assert found[0].size == found[0].path.stat().st_size > 0
    assert found[0].made_s == datetime(2024, 1, 1, 12, tzinfo=UTC).timestamp()
    assert listing.leftovers(tmp_path) == listing.unreadable(tmp_path) == ()


@pytest.mark.parametrize("beside", [None, b"", b"{}", b"[", b'{"format": 99}'])
def test_the_manifest_inside_stands_in_for_the_one_beside(tmp_path: Path, beside: bytes | None) -> None:
    make_archive(tmp_path)
    whole = listing.list_archives(tmp_path)
    path = tmp_path / f"{ID}.json"
    path.unlink()
    if beside is not None:
        path.write_bytes(beside)
    assert listing.list_archives(tmp_path) == whole


def test_an_archive_that_cannot_be_read_is_named_and_not_listed(tmp_path: Path) -> None:
    path = tmp_path / f"{ID}.tar.gz"
    path.write_bytes(b"broken")
    other = tmp_path / "20240102_000000.tar.gz"
    make_archive(tmp_path / "x").rename(other)  # renamed by somebody: the name would lie about its time
    assert listing.list_archives(tmp_path) == ()
    assert listing.unreadable(tmp_path) == (path, other)


def test_leftovers(tmp_path: Path) -> None:
    make_archive(tmp_path)
    left = [
        ".20240102_000000.tar.gz.tmp",
        ".latest.tar.gz.ab12.tmp",
        "20240102_000000.json",
        "safety-20240102_000000.json",
    ]
    for name in [*left, "notes.json", ".hidden"]:
        (tmp_path / name).write_bytes(b"")
    (tmp_path / ".spool-20240102_000000").mkdir()
    assert {p.name for p in listing.leftovers(tmp_path)} == {*left, ".spool-20240102_000000"}


def test_finding_an_archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here, backups = tmp_path / "here", tmp_path / "backups"
    here.mkdir()
    path = make_archive(backups)
    safety = make_archive(backups, backup_id="20240102_000000", safety=True)
    where = (here, backups)
    for name in (ID, f"{ID}.tar.gz", str(path)):
        assert listing.find_archive(name, where) == path
    assert listing.find_archive("latest", where) == listing.find_archive("latest.tar.gz", where)
    assert listing.find_archive("latest", where).samefile(path)
    assert listing.find_archive("20240102_000000", where) == safety
    assert listing.find_archive("safety-20240102_000000", where) == safety
    monkeypatch.chdir(tmp_path)
    assert listing.find_archive(f"backups/{ID}.tar.gz", (Path.cwd(), backups)) == path
    (here / "latest.tar.gz").write_bytes(b"")
    assert listing.find_archive("latest.tar.gz", where) == here / "latest.tar.gz"
    for name in ("20990101_000000", "here", "../here", ""):
        with pytest.raises(errors.NotFound) as caught:
            listing.find_archive(name, where)
        assert "cosmos list" in caught.value.remedy


# -------------------------------------------------------------------------------------------------- retention
def _at(made_s: float, *, safety: bool = False, complete: bool = True) -> ArchiveInfo:
    backup_id = f"{datetime.fromtimestamp(made_s, UTC):%Y%m%d_%H%M%S}"
    name = f"safety-{backup_id}" if safety else backup_id
    return ArchiveInfo(
        name, Path(f"/{name}.tar.gz"), 1, manifest(backup_id=backup_id, safety=safety, complete=complete)
    )


def _days_kept(archives: Iterable[ArchiveInfo], now_s: float = 100 * _DAY) -> list[int]:
    plan = retention.plan_retention(archives, now_s, 7 * _DAY)
    return [int(a.made_s / _DAY) for a in plan.keep]


def test_what_is_older_goes() -> None:
    assert _days_kept([_at(day * _DAY) for day in (80, 92, 93, 94, 99)]) == [93, 94, 99]


def test_the_newest_good_one_stays_however_old() -> None:
    incomplete = [_at(day * _DAY, complete=False) for day in (50, 98, 99)]
    assert _days_kept([_at(10 * _DAY), _at(20 * _DAY), *incomplete]) == [20, 98, 99]
    assert _days_kept([_at(10 * _DAY), _at(20 * _DAY)]) == [20]


def test_a_safety_backup_is_never_the_good_one() -> None:
    assert _days_kept([_at(10 * _DAY), _at(99 * _DAY, safety=True)]) == [10, 99]
    assert _days_kept([_at(20 * _DAY, safety=True), _at(10 * _DAY), _at(98 * _DAY)]) == [98]


def test_the_future_neither_goes_nor_counts() -> None:
    assert _days_kept([_at(10 * _DAY), _at(20 * _DAY), _at(200 * _DAY)]) == [20, 200]


@given(st.lists(st.tuples(st.integers(0, 20), st.booleans(), st.booleans()), max_size=12), st.integers(0, 20))
def test_retention_never_takes_the_last_good_one(made: list[tuple[int, bool, bool]], now: int) -> None:
    archives = {a.id: a for a in (_at(day * _DAY, safety=s, complete=c) for day, s, c in made)}.values()
    plan = retention.plan_retention(archives, now * _DAY, 5 * _DAY)
    assert sorted(a.id for a in (*plan.keep, *plan.remove)) == sorted(a.id for a in archives)
    assert all(now * _DAY - a.made_s > 5 * _DAY for a in plan.remove)
    good = [a for a in archives if a.manifest.complete and not a.safety and a.made_s <= now * _DAY]
    if good:
        assert max(good, key=lambda a: a.made_s) in plan.keep


def test_applying_removes_the_archive_and_its_manifest(tmp_path: Path) -> None:
    for backup_id in (ID, "20240102_000000", "20240103_000000"):
        make_archive(tmp_path, backup_id=backup_id)
    now_s = datetime(2024, 2, 1, tzinfo=UTC).timestamp()
    plan = retention.plan_retention(listing.list_archives(tmp_path), now_s, _DAY)
    retention.apply(plan)
    retention.apply(plan)
    names = ["20240103_000000.json", "20240103_000000.tar.gz", "latest.tar.gz"]
    assert sorted(p.name for p in tmp_path.iterdir()) == names
