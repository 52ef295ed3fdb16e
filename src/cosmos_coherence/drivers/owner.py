"""Which process it was: what a lock or a note on disk says of the one who wrote it.

A host name and a process id mean nothing between containers. The kernel's boot, the namespace and the moment of birth
do: with them an id names one process, for ever.
"""

from __future__ import annotations

import os
import socket
from pathlib import Path

import msgspec

from cosmos_coherence.drivers import process


class Owner(msgspec.Struct, frozen=True):
    """A process. ``host`` and ``pid`` are for people."""

    host: str
    pid: int
    boot: str
    """Empty where the system does not tell; then nothing is known of it from its id."""
    namespace: str
    birth: int


def ourselves() -> Owner:
    """This process."""
    facts = process.facts(os.getpid())
    return Owner(socket.gethostname(), os.getpid(), boot(), _namespace(), facts.birth if facts else 0)


def lives(owner: Owner) -> bool | None:
    """Whether that process is still there; None where that cannot be seen from here: another machine or namespace."""
    if not owner.boot or (owner.boot, owner.namespace) != (boot(), _namespace()):
        return None
    facts = process.facts(owner.pid)
    return facts is not None and facts.birth == owner.birth


def boot() -> str:
    """The identity of this boot of this kernel, the same in all of its containers."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
    except OSError:
        return ""


def _namespace() -> str:
    try:
        return str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        return ""
