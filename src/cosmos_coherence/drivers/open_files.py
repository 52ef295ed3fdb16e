"""Which files the processes of this machine have open to write, or mapped so that writing needs no call."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import Final

_INITIAL: Final = "pid:[4026531836]"
"""The first process namespace of a Linux machine always has this number (``include/linux/proc_ns.h``)."""


def writable_inodes() -> frozenset[int] | None:
    """Their inode numbers, of whatever file system; None when not every process can be looked into.

    A process that has gone meanwhile has closed what it had. The machine's first process, which some forbid to look
    into, does not count: it starts and ends others.
    """
    found: set[int] = set()
    try:
        if str(Path("/proc/self/ns/pid").readlink()) != _INITIAL:
            return None
        for process in Path("/proc").iterdir():
            if process.name.isdigit() and process.name != "1":
                with suppress(FileNotFoundError, ProcessLookupError):
                    _add(process, found)
    except OSError:
        return None
    return frozenset(found)


def _add(process: Path, found: set[int]) -> None:
    for opened in (process / "fdinfo").iterdir():
        with suppress(FileNotFoundError):
            fields = dict(line.split(":", 1) for line in opened.read_text().splitlines()[:4])
            if int(fields["flags"], 8) & (os.O_WRONLY | os.O_RDWR):
                found.add(int(fields["ino"]))
    with (process / "maps").open(encoding="utf-8", errors="replace") as maps:
        for line in maps:
            _, rights, _, _, inode, *_ = line.split(maxsplit=5)
            if rights[1] == "w" and rights[3] == "s":
                found.add(int(inode))
