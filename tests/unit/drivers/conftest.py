from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """An empty folder that every user can enter, unlike ``tmp_path``, whose parent is private."""
    with tempfile.TemporaryDirectory(prefix="cosmos-test-") as name:
        Path(name).chmod(0o711)
        yield Path(name)
