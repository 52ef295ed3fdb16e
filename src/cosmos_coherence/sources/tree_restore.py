"""The way back of a file tree: written beside, then swapped in name by name, since the root cannot be renamed."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final, Literal

import msgspec
from msgspec.structs import replace

from cosmos_coherence import errors
from cosmos_coherence.copied import Copied
from cosmos_coherence.drivers.folders import SYSTEM_XATTRS, from_stat, xattrs
from cosmos_coherence.model import Entry, Part, TreePrint
from cosmos_coherence.parts import PartReader
from cosmos_coherence.sources import staging, tree_print, tree_scan, tree_write
from cosmos_coherence.sources.staging import Staging

Phase = Literal["staging", "staged", "out", "in", "swapped", "clear", "back", "undone", "finishing"]

_OWN: Final = os.fsdecode(tree_scan.WORK_PREFIX)


class _Journal(msgspec.Struct, frozen=True):
    """What is being done to the root, written before it is done.

    ``out`` old names move out · ``in`` new names move in · ``swapped`` · ``clear`` the new ones are removed again ·
    ``back`` the old ones move back · ``undone`` · ``finishing`` the old ones are removed. In ``out`` and ``back`` what
    lies in the root is old, from ``in`` to ``clear`` it is new: the phase alone tells what each name is.
    """

    phase: Phase
    created: tuple[bytes, ...] = ()
    """Folders that were made for the root, deepest first."""
    made: TreePrint | None = None
    root: Entry | None = None
    """Metadata of the root as it shall be."""
    before: Entry | None = None
    """Metadata of the root as it was."""
    unset: int = 0


class TreeRestorer:
    """Brings a tree back into ``root``.

    ``tree`` is its name in the reader, ``run`` names the run. All state lies in ``root/.cosmos-restore-<run>``, so that
    a restorer made with the same arguments goes on after a crash. A missing root is made (and removed by ``undo``) for
    a part of kind ``files``; a volume has to be created first. ``only``: of what the root holds nothing but these names
    is touched, not even the root itself. ``checkpoint`` is told each step after it was taken.
    """

    stops = False

    def __init__(
        self,
        part: Part,
        tree: str,
        root: Path,
        run: str,
        *,
        devices: bool = False,
        only: frozenset[bytes] = frozenset(),
        checkpoint: Callable[[str], None] = lambda step: None,
    ) -> None:
        self._part, self._tree, self._root, self._devices = part, tree, root, devices
        self._only = only
        self._staging = Staging(root, run)
        self._lines = self._staging.path / "lines"
        self._checkpoint = checkpoint

    @property
    def part(self) -> Part:
        """What it brings back."""
        return self._part

    @property
    def unset(self) -> int:
        """How many staged names could not be given their owner or attributes (an ordinary user restores)."""
        journal = self._staging.load(_Journal)
        return journal.unset if journal else 0

    def stage(self, reader: PartReader) -> None:
        """Write the tree beside the live one. May be repeated until ``swap``.

        Raises ``Unsupported`` for a mount inside of the root, ``NotFound`` for a missing volume, ``NotEqual`` when the
        tree is not the one of the fingerprint, and what ``write_tree`` raises.
        """
        expected = self._part.fingerprint.tree
        if expected is None:
            raise errors.Damaged(f"the manifest has no fingerprint of {self._part.name}")
        journal = self._staging.load(_Journal) or _Journal("staging", created=self._create_root())
        if journal.phase not in ("staging", "staged"):
            raise errors.RestoreFailed(f"a restore of {self._root} is under way", remedy="Run `cosmos recover`.")
        self._refuse_mounts()
        self._staging.remove()
        self._staging.create()
        journal = _Journal("staging", journal.created)
        self._save(journal)
        with staging.translated(self._staging.path):
            self._staging.new.mkdir(0o700)
            self._staging.old.mkdir(0o700)
        written = tree_write.write_part(
            reader, self._tree, self._staging.new, size=expected.size, devices=self._devices
        )
        if written.given != expected:
            raise errors.NotEqual(f"{self._part.name} is not what its fingerprint says: {_contrast(expected, written)}")
        if self._only and (others := written.lines.keys() - self._only - {b""}):
            raise errors.Hostile(f"{self._part.name} also holds {tree_scan.show(min(others))}, which is no part of it")
        with staging.translated(self._lines), self._lines.open("wb") as file:
            file.write(msgspec.json.encode(list(written.lines.items())))
        self._save(replace(journal, phase="staged", made=written.made, root=written.root, unset=written.unset))

    def swap(self) -> None:
        """Move the live entries aside and the staged ones in; the root's own metadata come last. May be repeated."""
        with staging.translated(self._root):
            journal = self._staging.load(_Journal)
            if journal is not None and journal.phase == "staged":
                self._refuse_mounts()
                journal = self._save(replace(journal, phase="out", before=metadata(self._root)))
            if journal is not None and journal.phase == "out":
                self._move_all(self._root, self._staging.old)
                journal = self._save(replace(journal, phase="in"))
            if journal is not None and journal.phase == "in":
                self._move_all(self._staging.new, self._root)
                self._dress(journal.root)
                journal = self._save(replace(journal, phase="swapped"))
        if journal is None or journal.phase != "swapped":
            raise errors.RestoreFailed(f"nothing is staged for {self._root}")

    def verify(self) -> None:
        """Read everything from the disk and compare. Raises ``NotEqual`` naming what differs, or ``CaptureFailed``."""
        journal = self._staging.load(_Journal)
        expected = journal.made if journal is not None and journal.made is not None else self._part.fingerprint.tree
        if not self._only and tree_print.print_of_tree(self._root) == expected:
            return
        names = ""
        if self._lines.exists():
            lines = dict(msgspec.json.decode(self._lines.read_bytes(), type=list[tuple[bytes, str]]))
            different = tree_print.differences(lines, self._root, self._only)
            if self._only and not different:
                return
            names = ": " + ", ".join(different)
        raise errors.NotEqual(f"{self._part.name} in {self._root} is not what was backed up{names}")

    def undo(self) -> None:
        """Back to the old entries and the root's old metadata, from whatever point. May be repeated."""
        with staging.translated(self._root):
            journal = self._staging.load(_Journal)
            if journal is not None and journal.phase == "finishing":
                raise errors.RestoreFailed(f"the restore of {self._root} is finished, its old files are gone")
            if journal is not None and journal.phase in ("in", "swapped"):
                journal = self._save(replace(journal, phase="clear"))
            if journal is not None and journal.phase == "clear":
                self._clear_root()
                journal = self._save(replace(journal, phase="back"))
            if journal is not None and journal.phase in ("out", "back"):
                journal = self._save(replace(journal, phase="back"))
                self._move_all(self._staging.old, self._root)
                self._dress(journal.before)
                journal = self._save(replace(journal, phase="undone"))
            self._staging.remove()
            self._checkpoint("removed")
            for folder in journal.created if journal is not None else ():
                with suppress(OSError):
                    Path(os.fsdecode(folder)).rmdir()

    def finish(self) -> None:
        """Remove the old entries and the work folder. May be repeated. ``RestoreFailed`` when half swapped."""
        with staging.translated(self._root):
            journal = self._staging.load(_Journal)
            if journal is not None and journal.phase in ("out", "in", "clear", "back"):
                raise errors.RestoreFailed(
                    f"the restore of {self._root} stopped half way", remedy="Run `cosmos recover`."
                )
            if journal is not None:
                self._save(replace(journal, phase="finishing" if journal.phase == "swapped" else journal.phase))
            self._staging.remove()
            self._checkpoint("removed")

    def _save(self, journal: _Journal) -> _Journal:
        self._staging.save(journal)
        self._checkpoint(journal.phase)
        return journal

    def _create_root(self) -> tuple[bytes, ...]:
        if self._root.is_dir():
            return ()
        if self._part.kind == "volume":
            raise errors.NotFound(f"the folder {self._root} of {self._part.name} does not exist")
        missing = [self._root, *(folder for folder in self._root.parents if not folder.exists())]
        with staging.translated(self._root):
            self._root.mkdir(parents=True)
        return tuple(os.fsencode(folder) for folder in missing)

    def _move_all(self, source: Path, target: Path) -> None:
        with staging.unnoticed(self._root), staging.opened(source) as here, staging.opened(target) as there:
            for name in self._ours(staging.names(here)):
                staging.move(name, here, there)
                self._checkpoint(f"moved {name!r}")
            # The next phase reads the names by the journal alone, so they are on the disk before it is.
            os.fsync(there)
            os.fsync(here)

    def _clear_root(self) -> None:
        self._refuse_mounts()
        with staging.unnoticed(self._root), staging.opened(self._root) as folder:
            for name in self._ours(staging.names(folder)):
                staging.remove_tree(folder, name)
                self._checkpoint(f"removed {name!r}")
            os.fsync(folder)

    def _ours(self, names: list[str]) -> list[str]:
        mine = [name for name in names if not name.startswith(_OWN)]
        return [name for name in mine if os.fsencode(name) in self._only] if self._only else mine

    def _refuse_mounts(self) -> None:
        if not self._only:
            staging.refuse_mounts(self._root)

    def _dress(self, entry: Entry | None) -> None:
        if not self._only:
            dress(self._root, entry)
        self._checkpoint("root")


def metadata(root: Path) -> Entry:
    """What a folder itself looks like. ``OSError``."""
    with staging.opened(root) as folder:
        status = os.fstat(folder)
        found = from_stat(b"", status, status.st_dev)
        assert found is not None
        return Copied(found, xattrs(folder)).entry()


def dress(root: Path, entry: Entry | None) -> None:
    """Give a folder these metadata, and no attribute beyond them; on the disk when this returns. ``OSError``."""
    assert entry is not None
    with staging.opened(root) as folder:
        for name in os.listxattr(folder):
            if name not in SYSTEM_XATTRS and name not in dict(entry.xattrs):
                os.removexattr(folder, name)
        tree_write.apply(folder, entry)
        os.fsync(folder)


def _contrast(expected: TreePrint, written: tree_write.Written) -> str:
    pairs = [
        f"{getattr(written.given, what)} {what} instead of {getattr(expected, what)}"
        for what in ("files", "directories", "others", "size")
        if getattr(written.given, what) != getattr(expected, what)
    ]
    return ", ".join(pairs) or "content or metadata of some name differ"
