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


@contextlib.contextmanager
def formatted_disk(folder: Path, kind: str, size: int = 1 << 30) -> Iterator[Path]:
    """Mount a new file system of this kind, from an image in memory, on ``folder``, which is made."""
    if os.geteuid() != 0:
        pytest.skip("only root can mount a disk")
    folder.mkdir()
    image = Path(f"/dev/shm/{folder.parent.name}-{folder.name}.img")
    try:
        with image.open("wb") as file:
            file.truncate(size)
        subprocess.run([f"mkfs.{kind}", "-q", image], check=True)
        subprocess.run(["mount", "-o", "loop", image, folder], check=True)
        try:
            folder.chmod(0o711)
            yield folder
        finally:
            subprocess.run(["umount", folder], check=True)
    finally:
        image.unlink(missing_ok=True)
