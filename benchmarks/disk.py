"""A disk for benchmarks that no other work slows down: ext4 on an image in memory, or what there is."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

MEMORY = Path("/dev/shm")
_NOW = "lazy_itable_init=0,lazy_journal_init=0,nodiscard"
"""Else the kernel goes on with it while something is measured."""


@contextmanager
def disk(gib: int) -> Iterator[Path]:
    """A folder that goes with all that is in it.

    Not on tmpfs itself: there no time tells whether a file was written, and nothing can be known from the last backup.
    """
    folder = Path(tempfile.mkdtemp(prefix="cosmos-bench-", dir="/var/tmp"))
    image = MEMORY / f"{folder.name}.img"
    mounted = False
    try:
        if os.geteuid() == 0 and MEMORY.is_dir() and shutil.disk_usage(MEMORY).free > gib << 30:
            with image.open("wb") as file:
                # all at once: nobody who is timed shall have the machine find memory for it
                os.posix_fallocate(file.fileno(), 0, gib << 30)
            made = subprocess.run(["mkfs.ext4", "-q", "-F", "-E", _NOW, image], capture_output=True, check=False)
            mounted = (
                not made.returncode
                and not subprocess.run(
                    ["mount", "-o", "loop,noatime", image, folder], capture_output=True, check=False
                ).returncode
            )
        yield folder
    finally:
        if mounted:
            subprocess.run(["umount", folder], check=True)
        shutil.rmtree(folder)
        image.unlink(missing_ok=True)
