"""A disk of its own, small enough to be filled."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

_PIECE = 1 << 16


@contextlib.contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Path]:
    """Mount it on ``folder``, which is made; every user may enter it."""
    if os.geteuid() != 0:
        pytest.skip("only root can mount a small disk")
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size},mode=711", "tmpfs", folder], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


def fill(disk: Path, ballast: Path) -> None:
    """Leave nothing, whoever else writes to it meanwhile."""
    with ballast.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        room = os.statvfs(disk)
        os.posix_fallocate(file.fileno(), 0, room.f_bavail * room.f_frsize * 15 // 16)
        file.seek(0, os.SEEK_END)
        while True:
            file.write(bytes(_PIECE))
    room = os.statvfs(disk)
    assert room.f_bavail * room.f_frsize < _PIECE, "the disk is not full"
