"""Whom the names of a volume should belong to, and giving them there."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from typing import Final, Literal

import msgspec

from cosmos_coherence import errors
from cosmos_coherence.copied import Found
from cosmos_coherence.drivers.folders import GONE, Folders, from_stat
from cosmos_coherence.model import Entry

_SET_ID: Final = stat.S_ISUID | stat.S_ISGID
_PATH_FLAGS: Final = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC


class Access(msgspec.Struct, frozen=True):
    """Owner, group and permission bits."""

    uid: int
    gid: int
    mode: int


class Change(msgspec.Struct, frozen=True):
    """One name that is to belong to another owner, or to get another mode."""

    path: bytes
    found: Found
    """What was there when it was planned."""
    after: Access
    why: Literal["backup", "image"]
    """Who says so: the backup that knows the name, or the user of the image."""

    @property
    def before(self) -> Access:
        """What it has now."""
        return Access(self.found.uid, self.found.gid, self.found.mode)


def plan_owners(
    names: Mapping[bytes, Found], known: Mapping[bytes, Entry], user: tuple[int, int] | None
) -> tuple[Change, ...]:
    """What has to change, in byte order of the paths. What is right already is not in it.

    A name that the backup knows as what it is (a file as a file) gets the backup's owner and mode. Any other gets
    ``user`` and keeps its mode, with as much added as its owner needs to work with it; without a ``user`` it stays.
    A file never gains a set-id bit here, and loses them with its owner: whoever could write to it would else have
    a program of somebody else. Of the names of one file the first that the backup knows counts for all.
    """
    by_file: dict[tuple[int, int], Entry] = {}
    for _, found in sorted(names.items()):
        entry = _fitting(found, known)
        if found.nlink > 1 and entry is not None:
            by_file.setdefault((found.dev, found.ino), entry)
    seen: set[tuple[int, int]] = set()
    changes = []
    for path, found in sorted(names.items()):
        if found.nlink > 1:
            if (found.dev, found.ino) in seen:
                continue
            seen.add((found.dev, found.ino))
        entry = by_file.get((found.dev, found.ino)) if found.nlink > 1 else _fitting(found, known)
        if entry is None and user is None:
            continue
        after = _of_backup(found, entry) if entry is not None else _of_user(found, user or (0, 0))
        change = Change(path, found, after, "backup" if entry is not None else "image")
        if change.before != after:
            changes.append(change)
    return tuple(changes)


def unknown_names(names: Mapping[bytes, Found], known: Mapping[bytes, Entry]) -> tuple[bytes, ...]:
    """The names whose owner only the image can tell."""
    return tuple(path for path, found in sorted(names.items()) if _fitting(found, known) is None)


def apply_owners(root: Folders, changes: Sequence[Change]) -> Iterator[bytes]:
    """Carry the plan out; the paths that were replaced or removed meanwhile, which stay as they are.

    No link is followed: each name is opened by itself, and is only changed while it is what was planned for. Raises
    ``Refused`` when this user may not, or the file system cannot.
    """
    for change in changes:
        try:
            place = _opened(root, change.path)
        except OSError as error:
            if error.errno not in GONE:
                raise _refused(change.path, error) from error
            yield change.path
            continue
        try:
            if _is_as_planned(place, change.found, root.device):
                _give(place, change)
            else:
                yield change.path
        except OSError as error:
            raise _refused(change.path, error) from error
        finally:
            os.close(place)


def _opened(root: Folders, path: bytes) -> int:
    if not path:
        return os.open(b".", _PATH_FLAGS, dir_fd=root.root)
    folder, name = root.parent(path)
    return os.open(name, _PATH_FLAGS, dir_fd=folder)


def _is_as_planned(place: int, found: Found, device: int) -> bool:
    now = from_stat(found.path, os.fstat(place), device)
    return now is not None and (now.kind, now.dev, now.ino) == (found.kind, found.dev, found.ino)


def _give(place: int, change: Change) -> None:
    itself = b"/proc/self/fd/%d" % place  # a name that leads to this very thing, be it a link
    before, after = change.before, change.after
    if (before.uid, before.gid) != (after.uid, after.gid):
        os.chown(itself, after.uid, after.gid)
    if change.found.kind != "symlink":
        os.chmod(itself, after.mode)  # noqa: PTH101 - the owner comes first, since changing it takes bits away


def _fitting(found: Found, known: Mapping[bytes, Entry]) -> Entry | None:
    entry = known.get(found.path)
    while entry is not None and entry.kind == "hardlink":
        target = known.get(entry.target)
        entry = target if target is not None and target.kind != "hardlink" else None
    return entry if entry is not None and entry.kind == found.kind else None


def _of_backup(found: Found, entry: Entry) -> Access:
    mode = found.mode if found.kind == "symlink" else entry.mode
    return Access(entry.uid, entry.gid, _without_gain(found, entry.uid, entry.gid, mode))


def _of_user(found: Found, user: tuple[int, int]) -> Access:
    mode = found.mode
    if found.kind == "dir":
        mode |= stat.S_IRWXU
    elif found.kind == "file":
        mode |= stat.S_IRUSR | stat.S_IWUSR
    return Access(*user, _without_gain(found, *user, mode))


def _without_gain(found: Found, uid: int, gid: int, mode: int) -> int:
    if found.kind != "file":
        return mode
    kept = found.mode & _SET_ID if (uid, gid) == (found.uid, found.gid) else 0
    return mode & ~(_SET_ID & ~kept)


def _refused(path: bytes, error: OSError) -> errors.Refused:
    shown = path.decode("utf-8", "backslashreplace") or "."
    return errors.Refused(
        f"{ascii(shown)[1:-1]} cannot be given to another owner: {error.strerror}",
        remedy="Run as root, or look whether the volume is mounted read-only; the same command goes on from there.",
    )
