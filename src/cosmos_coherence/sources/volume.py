"""File trees as sources: volumes and folders, copied while the stack runs and brought up to date at the instant."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO, Final

from msgspec import structs

from cosmos_coherence import errors
from cosmos_coherence.copied import Copied, Found
from cosmos_coherence.drivers import disk, open_files, reflink
from cosmos_coherence.drivers.folders import Folders, from_stat
from cosmos_coherence.model import Fingerprint, Gap, Part, SourceRef
from cosmos_coherence.parts import Sink, TreeWriter
from cosmos_coherence.sources import sqlite, sqlite_live, tree_clone, tree_print, tree_scan
from cosmos_coherence.sources.config_restore import ConfigRestorer
from cosmos_coherence.sources.scout import Scout, Walking
from cosmos_coherence.sources.tree_held import Held
from cosmos_coherence.sources.tree_live import ONE_READ, LiveTree
from cosmos_coherence.sources.tree_restore import TreeRestorer
from cosmos_coherence.sources.tree_scan import Scan
from cosmos_coherence.sources.tree_watch import Watch

__all__ = ["ConfigRestorer", "TreeRestorer", "TreeSource"]

_MIB: Final = 1 << 20
_TICK_NS: Final = 20_000_000
"""The clock of file times may lag this far behind the clock of programs."""
_FILE_COST: Final = 4096
"""Opening a file takes about as long as reading this many bytes; without it a million empty files would look small."""
_MANY: Final = 5_000
"""From so many names on a walk takes longer than the kernel's word."""


class TreeSource:
    """Captures one file tree: a volume, a folder of the host.

    ``prepare`` copies in up to ``rounds``, each of which reads what changed since the one before, until what had to be
    read is below ``settle_bytes``; ``anchor`` walks once more and reads that rest into memory, or into a temporary file
    below ``spool`` when it is much.
    """

    def __init__(  # noqa: PLR0913 - what one tree needs
        self, ref: SourceRef, root: Path, *, spool: Path, settle_bytes: int = 8 * _MIB, rounds: int = 5,
        many: int = _MANY, still: bool = True, idle: bool = False, only: frozenset[bytes] = frozenset(),
        scout: Scout | None = None,
    ) -> None:  # fmt: skip
        """Where there are ``many`` names, what has changed is not found by walking again but told by the kernel.

        ``still``: writers stand still at the anchor. Otherwise SQLite copies its databases, each whole for itself.
        ``idle``: no database server works on it, whatever its files look like. ``only``: these names of the root and no
        others, where there are any. With a ``scout`` the first walk begins now.
        """
        self._ref, self._root, self._spool, self._only = ref, root, spool, only
        self._settle_bytes, self._rounds, self._many, self._still = settle_bytes, rounds, many, still
        self._idle = idle
        self._live = LiveTree(root)
        self._tree: TreeWriter | None = None
        self._taken: dict[bytes, Copied] = {}
        """What was read of each name. A later walk that finds it as it was then need not read it again..."""
        self._doubtful: set[bytes] = set()
        """... but for these: their change time is not older than the round.

        Such a time proves nothing: another change may have come within the same tick of the clock, or through a mapped
        page that was dirty already, which moves no time. The round's sync left no page dirty, so a change time from
        before it says that nothing was written since. (The modification time moves together with the change time, but
        can be set to anything.)
        """
        self._added: set[bytes] = set()
        self._scan: Scan | None = None
        self._watch: Watch | None = None
        """Knows what has changed since ``_scan``; None where that takes a walk."""
        self._suspects: set[bytes] = set()
        """Names that may have changed though nothing may have told."""
        self._renewed: set[bytes] = set()
        """Folders with all below them, likewise."""
        self._timeless = False
        """No time tells whether a file was written: it is so when it was told, or when somebody may write unseen."""
        self._clones = False
        """A large file need not be read in the pause."""
        self._links: dict[bytes, bytes] = {}
        self._flush = tree_clone.Flush(root)
        self._held: Held | None = None
        self._databases = sqlite.Databases()
        self._restless: list[bytes] = []
        self._anchored_at = ""
        self._started_ns = 0
        self._ahead = self._begun(scout) if scout is not None and rounds else None
        """The first walk."""

    @property
    def ref(self) -> SourceRef:
        """What it captures."""
        return self._ref

    @property
    def gaps(self) -> tuple[Gap, ...]:
        """What the part does not hold, or not as of the instant; known after ``anchor``."""
        if self._scan is None:
            return ()
        of = f"of {self._ref.part}"
        gaps = [
            Gap(f"{tree_scan.show(path)} {of}", "it lies on another file system") for path in sorted(self._scan.mounts)
        ]
        why = "it changed while the writers were held: something outside the stack writes to it"
        gaps += [Gap(f"{tree_scan.show(path)} {of}", why) for path in self._restless]
        gaps += self._databases.gaps(of, self._held.paths() if self._held is not None else ())
        if excluded := sorted(self._scan.excluded):
            size = tree_scan.size_of(self._root, excluded)
            gaps.append(Gap(f"{len(excluded)} names {of}", "left out by a pattern", size, chosen=True))
        return tuple(gaps)

    def prepare(self, sink: Sink) -> None:
        """Copy what is there, while it changes. Raises ``CaptureFailed``, and ``Unsupported`` for a live PostgreSQL."""
        self._forget_anchor()
        if self._tree is None:
            self._tree = sink.tree(f"volumes/{self._ref.volume}" if self._ref.kind == "volume" else self._ref.part)
            with self._live.reading(b""), Folders(self._root) as folders:
                self._timeless, self._clones = disk.is_memory(folders.root), reflink.is_offered(folders.root)
            if not self._timeless:
                self._taken = dict(self._tree.known())
        expected = 0
        for _ in range(self._rounds):
            if self._ahead is None:
                with self._live.reading(b""), Folders(self._root) as folders:
                    self._sync(folders)
            started_ns, early = self._started_ns, 0
            if self._scan is None and not self._taken and not self._timeless:
                early = self._walk_and_copy(started_ns, self._tree)
                assert self._scan is not None
                changed = list(self._unsettled(self._scan, self._scan.names))
            else:
                changed = self._look_around(watch=True)
            assert self._scan is not None
            if not self._idle:
                tree_scan.refuse_live_postgres(self._scan)
            expected = early + self._copy(changed, started_ns, self._tree)
            if expected < self._settle_bytes:
                break
        if not self._still:
            self._copy_databases(self._tree)
        self._held = Held(self._spool, expected + self._suspect())
        if self._clones and self._scan is not None:
            hot = [f for f in tree_clone.large(self._scan) if f.path in self._suspects or self._is_unsure(f)]
            self._flush = tree_clone.Flush(self._root, hot)

    def _sync(self, folders: Folders) -> None:
        self._started_ns = time.time_ns()
        disk.sync(folders.root)

    def _begun(self, scout: Scout) -> Walking | None:
        """The first walk, begun beside us; none where ``prepare`` will say what is wrong."""
        with contextlib.suppress(OSError), Folders(self._root) as folders:
            self._sync(folders)
            return scout.begin(self._root, self._ref.exclude, self._only, Watch(folders.root))
        return None

    def anchor(self) -> None:
        """Fix the tree as it is now: look at what may have changed, and read whatever is not surely as it was copied.

        Raises ``CaptureFailed``, or ``NoRoom`` when the spool is full.
        """
        started_ns = time.time_ns()
        self._anchored_at = datetime.fromtimestamp(started_ns / 1e9, UTC).isoformat(timespec="microseconds")
        self._flush.enough()
        changed = self._look_around(watch=False)
        self._suspects |= {found.path for found in changed}  # nothing tells of them again, should this fail
        assert self._held is not None
        with Folders(self._root) as folders:
            for found in changed:
                if found.kind == "file":
                    self._hold(folders, found, started_ns, self._held)
                elif not self._look(folders, found, started_ns):
                    raise self._replaced(found)

    def capture(self, sink: Sink) -> Part:
        """Hand over what the anchor read, and the final list of names. Raises ``CaptureFailed``."""
        assert self._tree is not None
        assert self._scan is not None
        assert self._held is not None
        names, beside = self._scan.names, self._databases.beside()
        sqlite.prove(self._root, names, self._held, self._spool, self._added, self._databases)
        for path in self._held.paths():
            taken = self._taken[path]
            with self._held.content(path, taken.found.size) as content:
                self._taken[path] = structs.replace(taken, digest=self._tree.add(taken.entry(), content))
            self._added.add(path)
        links, taken_of, apart = self._links, self._taken, self._databases.apart
        final = [
            tree_scan.link(found, links[path]) if path in links else apart.get(path) or taken_of[path]
            for path, found in sorted(names.items())
            if path not in beside
        ]
        if self._added:
            for path in self._added - {each.found.path for each in final if each.found.kind == "file"}:
                self._tree.drop(path)
        taken_of.clear()  # the list has it all, and a tree may have many names
        self._scan.names.clear()
        file = self._tree.finish(final)
        return Part(
            name=self._ref.part,
            kind=self._ref.kind,
            files=(file,),
            volume=self._ref.volume,
            anchored_at=self._anchored_at.replace("+00:00", "Z"),
            details=self._databases.details()
            | ({"sockets": str(len(self._scan.sockets))} if self._scan.sockets else {}),
            fingerprint=Fingerprint(tree=self._tree.same_print() or tree_print.print_of(final)),
        )

    def clients(self) -> tuple[tuple[str, str], ...]:
        """Nobody connects to files."""
        return ()

    def close(self) -> None:
        """Forget what was read."""
        self._forget_anchor()
        self._stop_watching()
        if self._ahead is not None:
            self._ahead.close()
        self._scan = self._ahead = None
        self._taken.clear()
        self._doubtful.clear()

    def _forget_anchor(self) -> None:
        """What only the anchor read never reached the sink: it counts as not read."""
        self._flush.close()
        if self._held is not None:
            for path in self._held.paths():
                self._taken.pop(path, None)
            self._suspects.update(self._held.paths())
            self._held.close()
        self._held = None
        self._restless = []
        self._databases = sqlite.Databases()

    def _walk_and_copy(self, started_ns: int, tree: TreeWriter) -> int:
        """The first walk of all, with small files copied while it goes on; returns what they cost.

        It is a watched one: should there be many names, there is no second.
        """
        self._scan, steps, watch = self._walking({})
        watch.follow()  # it may take long
        cost, names = 0, self._scan.names
        for copied in tree.add_small(self._root, _small(names, steps)):
            cost += _FILE_COST + self._take_small(copied, names[copied.found.path], started_ns)
        for _ in steps:  # the store may read no small files, and then has not asked for any
            pass
        self._links = self._scan.links()
        if len(names) < self._many:
            self._stop_watching()
        return cost

    def _take_small(self, copied: Copied, found: Found, started_ns: int) -> int:
        """What the store has read by itself; bytes, none when it is not the file that was found."""
        self._added.add(found.path)
        if (copied.found.dev, copied.found.ino) != (found.dev, found.ino):
            return 0
        self._take(copied, started_ns)
        return copied.found.size

    def _look_around(self, *, watch: bool) -> list[Found]:
        """Bring the scan up to date; what of it is not surely as it was copied.

        By what the kernel has told where that is all, else by a walk, with ``watch`` one after which it tells.
        """
        changes = self._watch.changes() if self._watch is not None else None
        if changes is None or self._scan is None:
            self._stop_watching()
            many = max(len(self._taken), len(self._scan.names) if self._scan is not None else 0)
            if watch and (self._ahead is not None or many >= self._many or self._timeless):
                self._scan, steps, _ = self._walking(self._taken)
                for _ in steps:
                    pass
                if len(self._scan.names) < self._many and not self._timeless:
                    self._stop_watching()
            else:
                self._scan = tree_scan.walk(self._root, self._ref.exclude, known=self._taken, only=self._only)
            looked: Iterable[bytes] = self._scan.names
        else:
            assert self._watch is not None
            told = changes.names | self._suspects
            if not watch:  # what was opened before, and may be written unseen, is among the suspects
                told |= changes.opened
            looked = self._scan.refresh(told, changes.folders | self._renewed, self._watch.entered)
            self._renewed.clear()
        self._links = self._scan.links()
        return list(self._unsettled(self._scan, looked))

    def _walking(self, known: Mapping[bytes, Copied]) -> tuple[Scan, Iterator[list[bytes]], Watch]:
        """A watched walk: the one that was begun beside us, or one of our own."""
        ahead, self._ahead = self._ahead, None
        if ahead is not None:
            self._watch = ahead.watch
            return *ahead.walking(known), ahead.watch
        with self._live.reading(b""), Folders(self._root) as folders:
            self._watch = watch = Watch(folders.root)
        return *tree_scan.walking(self._root, self._ref.exclude, watch.entered, known, self._only), watch

    def _suspect(self) -> int:
        """Before the hold: who has a file open may have mapped it, and writes untold. The size of all such files."""
        changes = self._watch.changes() if self._watch is not None else None
        if changes is not None and self._watch is not None:
            with self._live.reading(b""), Folders(self._root) as folders:
                self._watch.notice_openings(folders)
        inodes = open_files.writable_inodes() if changes is not None else None
        if changes is None or inodes is None or self._scan is None or self._watch is None:
            self._stop_watching()
            return 0
        self._suspects |= changes.names
        self._renewed |= changes.folders
        self._suspects |= {path for path, found in self._scan.names.items() if found.ino in inodes}
        self._watch.follow()
        return sum(found.size for path in self._suspects if (found := self._scan.names.get(path)))

    def _stop_watching(self) -> None:
        if self._watch is not None:
            self._watch.close()
        self._watch = None
        self._suspects.clear()
        self._renewed.clear()

    def _unsettled(self, scan: Scan, looked: Iterable[bytes]) -> Iterator[Found]:
        names, known, doubtful, links = scan.names, self._taken, self._doubtful, self._links
        timeless = self._timeless
        copied = self._databases.apart.keys() | self._databases.beside()
        for path in looked:
            found, taken = names.get(path), known.get(path)
            same = taken is not None and (taken.found is found or taken.found == found)
            if same and not timeless and path not in doubtful:
                continue
            if found is not None and path not in links and path not in copied:
                yield found

    def _take(self, copied: Copied, started_ns: int) -> None:
        path = copied.found.path
        self._taken[path] = copied
        if self._scan is not None and self._scan.names.get(path) == copied.found:
            self._scan.names[path] = copied.found  # one record is enough
        if copied.found.ctime_ns < started_ns - _TICK_NS:
            self._doubtful.discard(path)
        else:
            self._doubtful.add(path)

    def _copy(self, unsettled: list[Found], started_ns: int, tree: TreeWriter) -> int:
        """One round of the pre-copy; returns what it cost, in bytes."""
        assert self._scan is not None
        cost = _FILE_COST * len(unsettled)
        later = tree_clone.left_to_clone(unsettled, self._added) if self._clones else set()
        files = {found.path: found for found in unsettled if found.kind == "file" and found.path not in later}
        for copied in tree.add_small(self._root, [path for path, found in files.items() if found.size <= ONE_READ]):
            cost += self._take_small(copied, files.pop(copied.found.path), started_ns)
        for copied in self._live.read([found for found in unsettled if found.path in files], tree):
            self._take(copied, started_ns)
            self._added.add(copied.found.path)
            cost += copied.found.size
        with Folders(self._root) as folders:
            for found in unsettled:
                if found.kind != "file":
                    self._look(folders, found, started_ns)
        for path in self._taken.keys() - (self._scan.names.keys() - self._links.keys()):
            del self._taken[path]
        # One that was not read, or was written while it was, may not be told of again.
        self._suspects = {found.path for found in unsettled if self._is_unsure(found)}
        return cost

    def _copy_databases(self, tree: TreeWriter) -> None:
        """Where nobody stands still: what is in use of them, by SQLite itself."""
        assert self._scan is not None
        with self._live.reading(b""), Folders(self._root) as folders:
            for found in sqlite.databases(folders, self._scan.names):
                with sqlite_live.copy_of(self._root, folders, found, self._spool, self._databases) as content:
                    if content is not None:
                        self._add_database(folders, found, content, tree)

    def _add_database(self, folders: Folders, found: Found, content: BinaryIO, tree: TreeWriter) -> None:
        with self._live.opened(folders, found) as (_, copied):
            if copied is not None:
                clean = sqlite_live.cleaned(copied, content)
                self._databases.apart[found.path] = structs.replace(clean, digest=tree.add(clean.entry(), content))
                self._added.add(found.path)

    def _is_unsure(self, found: Found) -> bool:
        taken = self._taken.get(found.path)
        return taken is None or taken.found != found or found.path in self._doubtful

    def _hold(self, folders: Folders, found: Found, started_ns: int, held: Held) -> None:
        with self._live.opened(folders, found) as (file, copied):
            if copied is None:
                raise self._replaced(found)
            held.take(found.path, file, copied.runs(), self._root, clones=folders.root if self._clones else None)
            self._take(copied, started_ns)
            if from_stat(found.path, os.fstat(file), folders.device) != copied.found:
                self._restless.append(found.path)

    def _look(self, folders: Folders, found: Found, started_ns: int) -> bool:
        """Note what is to be noted of a name that is no file; False when it is not there any more."""
        if (copied := self._live.look(folders, found)) is None:
            return False
        self._take(copied, started_ns)
        return True

    def _replaced(self, found: Found) -> errors.CaptureFailed:
        return errors.CaptureFailed(
            f"{tree_scan.show(found.path)} in {self._root} was replaced while the writers were held",
            remedy="Stop what writes there from outside the stack, then run the backup again.",
        )


def _small(names: Mapping[bytes, Found], steps: Iterator[list[bytes]]) -> Iterator[bytes]:
    """Those that one call reads and that have no other name, while they are found."""
    for noted in steps:
        for path in noted:
            found = names.get(path)
            if found is not None and found.kind == "file" and found.nlink == 1 and found.size <= ONE_READ:
                yield path
