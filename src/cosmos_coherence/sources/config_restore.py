"""The way back of the configuration: files that are missing come back, others only when they may be overwritten."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Literal

import msgspec
from msgspec.structs import replace

from cosmos_coherence import errors
from cosmos_coherence.copied import Found
from cosmos_coherence.drivers.folders import GONE, Folders, from_stat
from cosmos_coherence.model import Part
from cosmos_coherence.parts import PartReader
from cosmos_coherence.sources import staging, tree_print, tree_scan, tree_write
from cosmos_coherence.sources.staging import Staging


class _Journal(msgspec.Struct, frozen=True):
    phase: Literal["staging", "staged", "swapping", "swapped", "undoing", "undone", "finishing"]
    created: bool = False
    """The project's folder itself was made."""
    moves: tuple[tuple[bytes, bool], ...] = ()
    """What moves into place: topmost names, and whether something else is there and kept under ``old/<position>``."""
    differing: tuple[bytes, ...] = ()
    unset: int = 0


class ConfigRestorer:
    """Brings configuration files back into a project's ``folder``, under the same rules as ``TreeRestorer``.

    A live file with other content is left alone, unless ``overwrite``: then it is kept aside until ``finish``. Nothing
    is written through a link. A missing folder is made, and removed by ``undo`` when that leaves it empty.
    """

    stops = False

    def __init__(
        self,
        part: Part,
        folder: Path,
        run: str,
        *,
        overwrite: bool,
        checkpoint: Callable[[str], None] = lambda step: None,
    ) -> None:
        self._part, self._folder, self._overwrite = part, folder, overwrite
        self._staging = Staging(folder, run)
        self._lines = self._staging.path / "lines"
        self._checkpoint = checkpoint

    @property
    def part(self) -> Part:
        """What it brings back."""
        return self._part

    @property
    def differing(self) -> tuple[str, ...]:
        """Names whose live content is another one than the backup's; known after ``stage``, until ``finish``."""
        journal = self._staging.load(_Journal)
        return tuple(map(tree_scan.show, journal.differing)) if journal is not None else ()

    @property
    def unset(self) -> int:
        """How many staged names could not be given their owner or attributes (an ordinary user restores)."""
        journal = self._staging.load(_Journal)
        return journal.unset if journal is not None else 0

    def stage(self, reader: PartReader) -> None:
        """Write the files beside the live ones and find out which differ. Raises as ``TreeRestorer.stage`` does."""
        expected = self._part.fingerprint.tree
        if expected is None:
            raise errors.Damaged(f"the manifest has no fingerprint of {self._part.name}")
        journal = self._staging.load(_Journal)
        if journal is not None and journal.phase not in ("staging", "staged"):
            raise errors.RestoreFailed(f"a restore of {self._folder} is under way", remedy="Run `cosmos recover`.")
        created = journal.created if journal is not None else not self._folder.exists()
        with staging.translated(self._folder):
            self._folder.mkdir(parents=True, exist_ok=True)
            self._staging.remove()
            self._staging.create()
            self._save(_Journal("staging", created))
            self._staging.new.mkdir(0o700)
            self._staging.old.mkdir(0o700)
        written = tree_write.write_tree(reader.tree("configs"), self._staging.new, size=expected.size)
        if written.given != expected:
            raise errors.NotEqual(f"{self._part.name} is not what its fingerprint says")
        with staging.translated(self._lines), self._lines.open("wb") as file:
            file.write(msgspec.json.encode(list(written.lines.items())))
        differing = tuple(path for path, other in self._compare() if other)
        self._save(_Journal("staged", created, differing=differing, unset=written.unset))

    def swap(self) -> None:
        """Move what is missing into place, and with ``overwrite`` what differs. May be repeated."""
        with staging.translated(self._folder):
            journal = self._staging.load(_Journal)
            if journal is not None and journal.phase == "staged":
                found = tuple(self._compare())
                moves = tuple(move for move in found if self._overwrite or not move[1])
                differing = tuple(path for path, other in found if other)
                journal = self._save(replace(journal, phase="swapping", moves=moves, differing=differing))
            if journal is not None and journal.phase == "swapping":
                for position, (path, other) in enumerate(journal.moves):
                    self._put(position, path, other)
                journal = self._save(replace(journal, phase="swapped"))
        if journal is None or journal.phase != "swapped":
            raise errors.RestoreFailed(f"nothing is staged for {self._folder}")

    def verify(self) -> None:
        """Read what was moved in and compare. Raises ``NotEqual`` naming what differs, or ``CaptureFailed``."""
        journal = self._staging.load(_Journal)
        if journal is None:
            return
        with staging.translated(self._folder), Folders(self._folder) as folders:
            lines = msgspec.json.decode(self._lines.read_bytes(), type=list[tuple[bytes, str]])
            moved = {path for path, _ in journal.moves}
            wrong = [path for path, line in lines if _within(path, moved) and self._line(folders, path) != line]
        if wrong:
            names = ", ".join(map(tree_scan.show, sorted(wrong)[:20]))
            raise errors.NotEqual(f"{self._part.name} in {self._folder} is not what was backed up: {names}")

    def undo(self) -> None:
        """Back to the files as they were, from whatever point. May be repeated."""
        with staging.translated(self._folder):
            journal = self._staging.load(_Journal)
            if journal is not None and journal.phase == "finishing":
                raise errors.RestoreFailed(f"the restore of {self._folder} is finished, its old files are gone")
            if journal is not None and journal.phase in ("swapping", "swapped", "undoing"):
                journal = self._save(replace(journal, phase="undoing"))
                for position, (path, _) in reversed(list(enumerate(journal.moves))):
                    self._take_back(position, path)
                journal = self._save(replace(journal, phase="undone"))
            self._staging.remove()
            if journal is not None and journal.created:
                with suppress(OSError):
                    self._folder.rmdir()

    def finish(self) -> None:
        """Remove the old files and the work folder. May be repeated. ``RestoreFailed`` when half swapped."""
        with staging.translated(self._folder):
            journal = self._staging.load(_Journal)
            if journal is not None and journal.phase in ("swapping", "undoing"):
                raise errors.RestoreFailed(
                    f"the restore of {self._folder} stopped half way", remedy="Run `cosmos recover`."
                )
            if journal is not None and journal.phase == "swapped":
                self._save(replace(journal, phase="finishing"))
            self._staging.remove()
            self._checkpoint("removed")

    def _save(self, journal: _Journal) -> _Journal:
        self._staging.save(journal)
        self._checkpoint(journal.phase)
        return journal

    def _compare(self) -> Iterator[tuple[bytes, bool]]:
        """The topmost staged names that are not live as they are, and whether something else is there."""
        passed: set[bytes] = set()
        with Folders(self._staging.new) as new, Folders(self._folder) as live:
            for path, found in sorted(tree_scan.walk(self._staging.new).names.items()):
                if not path or _within(path, passed):
                    continue
                there = _find(live, path)
                if there is None or not self._same(new, found, live, there):
                    passed.add(path)
                    yield path, there is not None

    def _same(self, new: Folders, found: Found, live: Folders, there: Found) -> bool:
        if found.kind != there.kind or found.kind == "dir":
            return found.kind == there.kind
        if found.kind == "file" and found.size != there.size:
            return False
        staged, digest = tree_print.hashed(new, found, self._staging.new)
        present, other = tree_print.hashed(live, there, self._folder)
        return (staged.target, digest) == (present.target, other)

    def _line(self, folders: Folders, path: bytes) -> str:
        found = _find(folders, path)
        return tree_print.line_digest(*tree_print.hashed(folders, found, self._folder)) if found is not None else ""

    def _put(self, position: int, path: bytes, other: bool) -> None:
        with Folders(self._staging.new) as new, Folders(self._folder) as live:
            source, name = new.parent(path)
            if not staging.exists(source, name):
                return
            target, _ = live.parent(path)
            if other and staging.exists(target, name):
                with staging.opened(self._staging.old) as old:
                    staging.move(name, target, old, str(position))
                self._checkpoint(f"aside {path!r}")
            staging.move(name, source, target)
            os.fsync(target)
            self._checkpoint(f"moved {path!r}")

    def _take_back(self, position: int, path: bytes) -> None:
        with (
            Folders(self._staging.new) as new,
            Folders(self._folder) as live,
            staging.opened(self._staging.old) as old,
        ):
            source, name = new.parent(path)
            target, _ = live.parent(path)
            if not staging.exists(source, name) and staging.exists(target, name):
                staging.move(name, target, source)
                self._checkpoint(f"back {path!r}")
            if staging.exists(old, str(position)):
                staging.move(str(position), old, target, name)
                self._checkpoint(f"old {path!r}")
            os.fsync(target)


def _within(path: bytes, tops: set[bytes]) -> bool:
    steps = path.split(b"/")
    return any(b"/".join(steps[:depth]) in tops for depth in range(1, len(steps) + 1))


def _find(folders: Folders, path: bytes) -> Found | None:
    try:
        folder, name = folders.parent(path)
        found = os.stat(name, dir_fd=folder, follow_symlinks=False)
        link = os.readlink(name, dir_fd=folder) if stat.S_ISLNK(found.st_mode) else b""
    except OSError as error:
        if error.errno in GONE:
            return None
        raise
    return from_stat(path, found, folders.device, link)
