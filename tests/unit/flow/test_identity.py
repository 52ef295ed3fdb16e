"""The name of an archive is its second, and no two archives share one."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from cosmos_coherence.flow import store


@pytest.mark.parametrize("taken", ["safety-{}.tar.gz", "{}.tar.gz", ".spool-{}", ".{}.tar.gz.tmp", "{}.json"])
def test_a_second_that_is_taken_is_not_taken_again(tmp_path: Path, taken: str) -> None:
    now = datetime.now(UTC)
    for second in range(2):
        (tmp_path / taken.format(f"{now + timedelta(seconds=second):%Y%m%d_%H%M%S}")).touch()
    name = store.new_identity(tmp_path, tmp_path)
    assert list(tmp_path.glob(f"*{name}*")) == []


def test_two_backups_in_one_second_have_two_names(tmp_path: Path) -> None:
    """In a repository no file bears the name; the last one is kept."""
    first = store.new_identity(tmp_path / "backups", tmp_path)
    assert store.new_identity(tmp_path / "backups", tmp_path) > first
