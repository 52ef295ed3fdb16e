"""The folder in which a restore works: below the root it restores, so that everything moves by rename.

``.cosmos-restore-<run>`` belongs to one run and to nobody else (mode 0700). It holds a journal, written whole and
synced before what it announces, the new state under ``new`` and the old one under ``old``.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, TypeVar

import msgspec

from cosmos_coherence import errors
from cosmos_coherence.drivers.folders import FOLDER_FLAGS
from cosmos_coherence.sources import tree_scan, tree_write

Journal = TypeVar("Journal")

_MOUNTS: Final = Path("/proc/self/mountinfo")


class Staging:
    """The work folder of one run below one root. Calls raise ``RestoreFailed`` or ``NoRoom`` for what the system says.

    Creating and removing it changes neither the modification time nor the mode of the root.
    """

    def __init__(self, root: Path, run: str) -> None:
        self.root = root
        self.path = root / (os.fsdecode(tree_scan.WORK_PREFIX) + run)
        self.new, self.old = self.path / "new", self.path / "old"
        self._journal = self.path / "journal"

    def create(self) -> None:
        """Make it, empty."""
        make_private(self.path)

    def save(self, journal: object) -> None:
        """Replace the journal; it is on the disk when this returns."""
        with translated(self._journal):
            beside = self._journal.with_suffix(".next")
            with beside.open("wb") as file:
                file.write(msgspec.json.encode(journal))
                file.flush()
                os.fsync(file.fileno())
            beside.rename(self._journal)
            sync(self.path)

    def load(self, kind: type[Journal]) -> Journal | None:
        """The journal; None when there is none. ``RestoreFailed`` when it cannot be understood."""
        try:
            return msgspec.json.decode(self._journal.read_bytes(), type=kind)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (OSError, msgspec.MsgspecError) as error:
            raise self._lost() from error

    def remove(self) -> None:
        """Remove it with all that it holds, the journal last. May be repeated."""
        with translated(self.path):
            if not self.path.is_dir():
                return
            if not self._journal.exists() and self.old.is_dir() and any(self.old.iterdir()):
                raise self._lost()
            refuse_mounts(self.path)
            with opened(self.path) as folder:
                for name in names(folder):
                    if name != self._journal.name:
                        remove_tree(folder, name)
            self._journal.unlink(missing_ok=True)
            with unnoticed(self.root):
                self.path.rmdir()

    def _lost(self) -> errors.RestoreFailed:
        return errors.RestoreFailed(
            f"the journal of the restore in {self.path} is lost", remedy=f"What was there before lies in {self.old}."
        )


def make_private(folder: Path) -> None:
    """Make a folder in the root that is worked on, with nothing that the root hands down. Raises as ``Staging``."""
    with translated(folder):
        with unnoticed(folder.parent):
            folder.mkdir(0o700)
        for name in os.listxattr(folder):
            if name.startswith("system.posix_acl"):  # inherited from the root, and inherited on
                os.removexattr(folder, name)
        folder.chmod(0o700)


@contextmanager
def translated(place: Path) -> Iterator[None]:
    """``OSError`` becomes the error of the catalogue that names ``place``."""
    try:
        yield
    except OSError as error:
        raise tree_write.failure(place, error) from error


@contextmanager
def opened(folder: Path) -> Iterator[int]:
    """A descriptor of a folder."""
    number = os.open(folder, FOLDER_FLAGS & ~os.O_NOFOLLOW)
    try:
        yield number
    finally:
        os.close(number)


def names(folder: int) -> list[str]:
    """What an open folder holds, sorted."""
    return sorted(os.listdir(folder))


def sync(folder: Path) -> None:
    """Have the names in a folder on the disk."""
    with opened(folder) as number:
        os.fsync(number)


def exists(folder: int, name: str | bytes) -> bool:
    """Whether an open folder holds this name, be it a dangling link."""
    try:
        os.stat(name, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


def move(name: str | bytes, source: int, target: int, renamed: str | bytes = "") -> None:
    """Move a name from one open folder to another, never over something. ``OSError``."""
    renamed = renamed or name
    if exists(target, renamed):
        raise FileExistsError(17, f"{tree_scan.show(os.fsencode(renamed))} is there already")
    try:
        os.rename(name, renamed, src_dir_fd=source, dst_dir_fd=target)
    except PermissionError:
        # A folder that its own owner must not write to cannot change its parent.
        mode = os.stat(name, dir_fd=source, follow_symlinks=False).st_mode
        if not stat.S_ISDIR(mode) or mode & stat.S_IWUSR:
            raise
        os.chmod(name, mode | stat.S_IWUSR, dir_fd=source)
        os.rename(name, renamed, src_dir_fd=source, dst_dir_fd=target)
        os.chmod(renamed, stat.S_IMODE(mode), dir_fd=target)


def remove_tree(folder: int, name: str | bytes) -> None:
    """Remove a name from an open folder with all below it, following no link. ``OSError``."""
    if not stat.S_ISDIR(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode):
        os.unlink(name, dir_fd=folder)
        return
    if os.geteuid() != 0:  # what its owner must not enter cannot be emptied
        os.chmod(name, 0o700, dir_fd=folder)
    inside = os.open(name, FOLDER_FLAGS, dir_fd=folder)
    try:
        for below in names(inside):
            remove_tree(inside, below)
    finally:
        os.close(inside)
    os.rmdir(name, dir_fd=folder)


def refuse_mounts(root: Path) -> None:
    """Raise ``Unsupported`` when something is mounted below ``root``: it can neither be moved nor may it be emptied."""
    top = os.fsencode(root.resolve()) + b"/"
    for line in _MOUNTS.read_bytes().splitlines() if _MOUNTS.exists() else ():
        place = line.split(b" ")[4].replace(b"\\040", b" ").replace(b"\\011", b"\t").replace(b"\\012", b"\n")
        place = place.replace(b"\\134", b"\\")
        if place.startswith(top):
            raise errors.Unsupported(
                f"{tree_scan.show(place)} is mounted inside of {root}",
                remedy="Unmount it, run the command again, then mount it again.",
            )


@contextmanager
def unnoticed(folder: Path) -> Iterator[None]:
    """Keep a folder's mode and modification time over a change in it, and make that possible where it is read-only."""
    before = folder.stat()
    locked = os.geteuid() != 0 and before.st_mode & stat.S_IRWXU != stat.S_IRWXU
    if locked:
        folder.chmod(stat.S_IMODE(before.st_mode) | stat.S_IRWXU)
    try:
        yield
    finally:
        if locked:
            folder.chmod(stat.S_IMODE(before.st_mode))
        os.utime(folder, ns=(before.st_atime_ns, before.st_mtime_ns))
