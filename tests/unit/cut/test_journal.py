"""What is written down is there after a crash, as it was; what is damaged is never taken for granted."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cosmos_coherence import errors
from cosmos_coherence.cut.journal import (
    HoldRecord,
    Journal,
    QuietRecord,
    Record,
    RestoreRecord,
    SettingsRecord,
    SpoolRecord,
)
from cosmos_coherence.model import HoldTarget

TEXT = st.text(max_size=30)
NAMES = st.lists(TEXT, max_size=3).map(tuple)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)
TARGET = st.builds(
    HoldTarget, st.sampled_from(["cgroup1", "cgroup2", "engine", "signal"]), TEXT, TEXT, TEXT, st.integers(0, 2**63)
)
RECORD: st.SearchStrategy[Record] = st.one_of(
    st.builds(HoldRecord, run=TEXT, targets=st.lists(TARGET, max_size=3).map(tuple), since=TEXT),
    st.builds(
        QuietRecord,
        run=TEXT,
        after=st.dictionaries(TEXT, TEXT, max_size=3),
        stopped=st.dictionaries(TEXT, NAMES, max_size=3),
    ),
    st.builds(SettingsRecord, run=TEXT, service=TEXT, values=st.dictionaries(TEXT, TEXT, max_size=3)),
    st.builds(
        RestoreRecord, run=TEXT, phase=TEXT, parts=JSON, roots=st.dictionaries(TEXT, TEXT), stop=NAMES, start=NAMES
    ),
    st.builds(SpoolRecord, run=TEXT, path=TEXT),
)
HOLD = HoldRecord(
    "20260101_020000", (HoldTarget("engine", "web", "/run/docker.sock", "0" * 64),), "2026-01-01T02:00:00Z"
)
SPOOL = SpoolRecord("20260101_020000", "/backups/.spool")


@given(first=RECORD, second=RECORD)
def test_any_record_comes_back_as_it_was(first: Record, second: Record) -> None:
    with TemporaryDirectory() as folder:
        handle = Journal(Path(folder)).open(first)
        assert [found.record for found in Journal(Path(folder)).pending()] == [first]
        handle.update(second)
        assert handle.record == second
        assert [found.record for found in Journal(Path(folder)).pending()] == [second]
        handle.close()
        assert Journal(Path(folder)).pending() == ()


def test_obligations_are_listed_in_order_and_by_kind_and_only_their_owner_can_read_them(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    records: list[Record] = [SPOOL, HOLD, SpoolRecord("other", "/x")]
    handles = [journal.open(record) for record in records]
    assert [found.record for found in journal.pending()] == records
    assert [found.record for found in journal.pending(SpoolRecord)] == [SPOOL, records[2]]
    assert journal.pending(SettingsRecord) == ()
    assert {stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "journal").iterdir()} == {0o600}
    assert stat.S_IMODE((tmp_path / "journal").stat().st_mode) == 0o700
    for handle in handles:
        handle.close()
        handle.close()  # twice is fine
    assert list((tmp_path / "journal").iterdir()) == []


def test_a_record_is_synced_before_it_gets_its_name_and_the_name_before_open_returns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    fsync, replace = os.fsync, Path.replace

    def seen_fsync(handle: int) -> None:
        order.append("sync folder" if stat.S_ISDIR(os.fstat(handle).st_mode) else "sync file")
        fsync(handle)

    def seen_replace(self: Path, target: Any) -> Path:
        order.append("rename")
        return replace(self, target)

    journal = Journal(tmp_path)
    monkeypatch.setattr(os, "fsync", seen_fsync)
    monkeypatch.setattr(Path, "replace", seen_replace)
    handle = journal.open(HOLD)
    assert order == ["sync file", "rename", "sync folder"]
    handle.update(HOLD)
    assert order[3:] == ["sync file", "rename", "sync folder"]
    handle.close()
    assert order[6:] == ["sync folder"]


def test_a_flipped_byte_anywhere_is_found_set_aside_and_named(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.open(SPOOL)
    journal.open(HOLD)
    path = sorted((tmp_path / "journal").iterdir())[1]
    good = path.read_bytes()
    for place in range(len(good)):
        path.write_bytes(good[:place] + bytes([good[place] ^ 1]) + good[place + 1 :])
        assert [found.record for found in journal.pending()] == [SPOOL]
        assert journal.broken() == (path.with_suffix(".broken"),)
    path.write_bytes(good[: len(good) // 2])
    assert [found.record for found in Journal(tmp_path).pending()] == [SPOOL]


def test_a_record_that_a_crash_left_half_written_is_none(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    handle = journal.open(HOLD)
    name = next((tmp_path / "journal").iterdir())
    name.with_suffix(".draft").write_bytes(b'{"record":')
    assert [found.record for found in journal.pending()] == [HOLD]
    assert journal.broken() == ()
    journal.discard_drafts()
    assert list((tmp_path / "journal").iterdir()) == [name]
    handle.close()


def test_a_full_disk_is_no_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = Journal(tmp_path)

    def full(handle: int) -> None:
        os.write(os.open("/dev/full", os.O_WRONLY), b"x")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(errors.NoRoom):
        journal.open(HOLD)
    assert list((tmp_path / "journal").iterdir()) == []


def test_a_folder_that_cannot_be_used_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(errors.ConfigurationError, match="cannot be used"):
        Journal(tmp_path / "file")
