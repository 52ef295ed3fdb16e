"""What lies below a file system on this machine: which disks, whether encryption is between, whether they rotate.

Read from ``/proc/self/mountinfo`` and ``/sys``, which everybody may read, also in a container. Whatever cannot be told
from here is None, never a guess.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

import msgspec

_ENCRYPTED = frozenset({"ecryptfs", "fuse.gocryptfs", "fuse.encfs", "fuse.cryfs", "fuse.securefs"})
_ELSEWHERE = re.compile(r"nbd\d|rbd\d|zram\d|ram\d")
"""What they keep lies on another machine or in memory."""
_VIRTUAL = re.compile(r"xvd|vd[a-z]")
_DEEPEST = 10


class Disk(msgspec.Struct, frozen=True):
    """What a folder lies on."""

    name: str
    """``ext4 on vda``, for people."""
    encrypted: bool | None = None
    """All of it is encrypted, by dm-crypt or by the file system itself; None when that cannot be seen."""
    rotational: bool | None = None


class _Mount(msgspec.Struct, frozen=True):
    point: str
    device: str
    kind: str
    source: str


def below(path: Path, *, system: Path = Path("/sys"), mounts: Path = Path("/proc/self/mountinfo")) -> Disk:
    """What ``path`` lies on. Nothing is raised: what cannot be read cannot be seen."""
    return _below(path, system, _mounts(mounts), _DEEPEST)


def _below(path: Path, system: Path, mounts: list[_Mount], depth: int) -> Disk:
    mount = _mount_of(str(path), mounts)
    if mount is None:
        return Disk("an unknown file system")
    devices = _devices(mount, system)
    name = f"{mount.kind} on {', '.join(d.name for d in devices)}" if devices else mount.kind
    found = [_look(device, system, mounts, depth) for device in devices]
    encrypted = True if mount.kind in _ENCRYPTED else _all(e for e, _ in found)
    return Disk(name, encrypted, _any(r for _, r in found))


def _look(device: Path, system: Path, mounts: list[_Mount], depth: int) -> tuple[bool | None, bool | None]:
    """Whether one block device is encrypted, and whether it rotates."""
    if not depth:
        return None, None
    slaves = _folders(device / "slaves")
    if slaves:
        under = [_look((device / "slaves" / name).resolve(), system, mounts, depth - 1) for name in slaves]
        crypt = _text(device / "dm" / "uuid").startswith("CRYPT-")
        return True if crypt else _all(e for e, _ in under), _any(r for _, r in under)
    if file := _text(device / "loop" / "backing_file"):
        disk = _below(Path(file.removesuffix(" (deleted)")), system, mounts, depth - 1)
        return disk.encrypted, disk.rotational
    if (device / "partition").exists():
        return _look(device.parent, system, mounts, depth - 1)
    if _ELSEWHERE.match(device.name):
        return None, None
    turns = {"0": False, "1": True}.get(_text(device / "queue" / "rotational"))
    if turns and _VIRTUAL.match(device.name):
        turns = None  # what a virtual disk says of itself by default; only its host knows
    return False, turns


def _devices(mount: _Mount, system: Path) -> list[Path]:
    """The block devices of a mount: one, or all that a file system itself spreads over."""
    device = system / "dev" / "block" / mount.device
    if device.exists():
        return [device.resolve()]
    name = mount.source.removeprefix("/dev/") if mount.source.startswith("/dev/") else ""
    blocks = system / "class" / "block"
    if name.startswith("mapper/"):
        wanted = name.removeprefix("mapper/")
        name = next((n for n in _folders(blocks) if _text(blocks / n / "dm" / "name") == wanted), "")
    if not name or "/" in name or not (blocks / name).exists():
        return []
    for uuid in _folders(system / "fs" / "btrfs") if mount.kind == "btrfs" else ():
        members = _folders(system / "fs" / "btrfs" / uuid / "devices")
        if name in members:
            return [(blocks / member).resolve() for member in members]
    return [(blocks / name).resolve()]


def _mounts(file: Path) -> list[_Mount]:
    found = []
    for line in _text(file).splitlines():
        words = line.split(" ")
        if "-" in words[6:] and len(words) > words.index("-", 6) + 2:
            after = words.index("-", 6)
            found.append(_Mount(_plain(words[4]), words[2], words[after + 1], _plain(words[after + 2])))
    return found


def _mount_of(path: str, mounts: list[_Mount]) -> _Mount | None:
    """The one that shows what lies at ``path``: the deepest, and of several at one place the last."""
    over = [m for m in mounts if m.point == "/" or path == m.point or path.startswith(f"{m.point}/")]
    return max(reversed(over), key=lambda m: len(m.point), default=None)


def _plain(text: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda code: chr(int(code[1], 8)), text)


def _text(file: Path) -> str:
    try:
        return file.read_text("utf-8", "replace").strip()
    except OSError:
        return ""


def _folders(folder: Path) -> list[str]:
    try:
        return sorted(entry.name for entry in folder.iterdir())
    except OSError:
        return []


def _all(found: Iterable[bool | None]) -> bool | None:
    """True when all are, False when one is not, None when that cannot be told."""
    known = list(found)
    return False if False in known else None if None in known or not known else True


def _any(found: Iterable[bool | None]) -> bool | None:
    known = list(found)
    return True if True in known else None if None in known or not known else False
