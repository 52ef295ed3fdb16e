"""Where the kernel lets a container be frozen, and which container this program itself runs in."""

from __future__ import annotations

import os
import re
from pathlib import Path

from cosmos_coherence.model import HoldTarget

_ROOT = Path("/sys/fs/cgroup")
_ID = re.compile(r"/([0-9a-f]{64})(?:/|$)")


def freezer_of(container: str, pid: int, name: str) -> HoldTarget | None:
    """The freezer of the container with this id, whose main process is ``pid`` where its engine lives.

    None where it cannot be written from here. The id must be part of the path: a process id of another machine, or
    one that was given away since, never freezes something else.
    """
    try:
        lines = Path(f"/proc/{pid}/cgroup").read_text("ascii").splitlines()
    except (OSError, UnicodeDecodeError):
        return None
    groups = dict(line.split(":", 2)[1:] for line in lines)
    if "freezer" in groups:
        place = HoldTarget("cgroup1", name, where=f"{_ROOT}/freezer{groups['freezer']}", id=container)
    else:
        place = HoldTarget("cgroup2", name, where=f"{_ROOT}{groups.get('', '')}", id=container)
    folder = Path(place.where)
    file = "freezer.state" if place.means == "cgroup1" else "cgroup.freeze"
    if container not in folder.name or ".." in folder.parts or not os.access(folder / file, os.W_OK):
        return None
    return place


def own_container() -> str:
    """The id of the container that this program runs in; empty outside of one."""
    try:
        mounts = Path("/proc/self/mountinfo").read_text("utf-8", "replace").splitlines()
    except OSError:
        return ""
    for line in mounts:
        fields = line.split()
        # An engine mounts these files from a folder named after the container.
        if len(fields) > 4 and fields[4] in ("/etc/hostname", "/etc/hosts") and (found := _ID.search(fields[3])):
            return found[1]
    return ""
