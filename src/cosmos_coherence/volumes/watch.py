"""How much a tree holds, at any time, without walking it again: the kernel tells what has changed.

It tells of everything that goes through a system call. Of writes through a mapped file it does not; they matter only
where they fill a hole, and are seen when the file is closed. Of a file with a name outside of the tree, or with one
that came and went between two measurements, it does not tell what was done through that name. Some file systems (ext4,
XFS, btrfs) settle what a file takes only when they write it to the disk: what was written to is therefore looked at
again, up to once after ten minutes. That opening a file is not told of is on purpose: whoever reads a million files
would make the queue run over.
"""

from __future__ import annotations

import contextlib
import os
import select
import threading
import time
from collections.abc import Collection
from pathlib import Path
from typing import Final

import inotify_simple
import msgspec
from inotify_simple import flags

from cosmos_coherence import interruption
from cosmos_coherence.drivers import disk
from cosmos_coherence.drivers.folders import FOLDER_FLAGS, GONE, link_place, names_in
from cosmos_coherence.volumes.ledger import Ledger
from cosmos_coherence.volumes.usage import Usage, measure_tree
from cosmos_coherence.volumes.walk import Walk
from cosmos_coherence.volumes.walkers import tell_all

_RENEWED: Final = int(flags.CREATE | flags.DELETE | flags.MOVED_FROM | flags.MOVED_TO)
_MASK: Final = int(flags.MODIFY | flags.ATTRIB | flags.CLOSE_WRITE | _RENEWED | flags.ONLYDIR)
_WRITTEN: Final = int(flags.MODIFY | flags.CLOSE_WRITE)
_LOST: Final = int(flags.Q_OVERFLOW | flags.UNMOUNT)
_PAUSE_MS: Final = 200
"""Between two looks at the queue: the kernel puts equal messages together meanwhile."""
_SETTLED_S: Final = 600.0
_FEW: Final = 64
"""Of more names of one folder it is cheaper to list the folder again."""
_MOST: Final = 200_000
"""Names that are remembered as changed."""

Name = tuple[bytes, bytes]
"""The path of a folder, and a name in it."""


class Measured(msgspec.Struct, frozen=True):
    """A usage, and how it is known."""

    usage: Usage
    walked: str = ""
    """Why the tree was walked; empty when it was not, as the kernel had told all."""

    @property
    def how(self) -> str:
        """For people."""
        return f"by walk ({self.walked})" if self.walked else "by notification"


class _Noticing(Ledger):
    """A ledger whose folders are watched from before they are listed. Forked walkers add to the same watch."""

    def __init__(self, notify: inotify_simple.INotify) -> None:
        super().__init__()
        self.notify = notify
        self.refused = ""
        self.paths: dict[int, bytes] = {}

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "notify": None}  # whoever gets it has the watch already

    def fresh(self) -> _Noticing:
        return _Noticing(self.notify)

    def merge(self, other: Ledger) -> None:
        super().merge(other)
        assert isinstance(other, _Noticing)
        self.paths |= other.paths
        self.refused = self.refused or other.refused

    def enter(self, folder: int, path: bytes) -> None:
        super().enter(folder, path)
        try:
            self.paths[self.notify.add_watch(link_place(folder, b"."), _MASK)] = path
        except OSError as error:
            self.refused = self.refused or f"the system watches no more folders: {error.strerror}"
        # Once more: nobody tells of what was done in it before it was watched.
        self.folder(path, os.fstat(folder).st_blocks)


class TreeWatch:
    """Measures the tree below ``root`` as often as it is asked; the first time, and whenever the kernel's word does not
    do, with a walk. For one thread at a time; a thread of its own empties the kernel's queue. A context manager."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._ledger: _Noticing | None = None
        self._lock = threading.Lock()
        self._lost = ""
        self._told: dict[Name, bool] = {}
        """What has changed, and whether it was written to."""
        self._renewed: set[bytes] = set()
        self._young: dict[Name, float] = {}
        self._identity = (0, 0)
        self._reader: interruption.Thread | None = None
        self._ended = -1

    def __enter__(self) -> TreeWatch:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def measure(self) -> Measured:
        """What the tree holds now, with everything that was done before this call. ``OSError`` when the root has gone
        or may not be read."""
        if self._ledger is None:
            return self._begin("the first time")
        with self._lock:
            self._listen(self._ledger)
            why, told, renewed = self._lost, self._told, self._renewed
            self._told, self._renewed = {}, set()
        try:
            why = why or self._look_again(self._ledger, told, renewed)
        except OSError:
            self.close()  # what we were told has been spent
            raise
        return self._begin(why) if why else Measured(self._ledger.usage)

    def close(self) -> None:
        """Nothing is noticed any more. May be called again."""
        if self._reader is not None:
            os.eventfd_write(self._ended, 1)
            self._reader.join()
            os.close(self._ended)
        if self._ledger is not None:
            self._ledger.notify.close()
        self._ledger = self._reader = None

    # ------------------------------------------------------------------------------------------------- the beginning
    def _begin(self, why: str) -> Measured:
        """Walk; and notice from now on what changes, where that can be."""
        self.close()
        self._lost, self._told, self._renewed, self._young = "", {}, set(), {}
        root = os.open(self._root, FOLDER_FLAGS & ~os.O_NOFOLLOW)
        try:
            if not disk.is_local(root):
                return Measured(measure_tree(self._root), "others may change this file system unseen")
            self._identity = _identity(root)
            try:
                notify = inotify_simple.INotify(nonblocking=True)
            except OSError as error:
                return Measured(measure_tree(self._root), f"the system watches no more trees: {error.strerror}")
            ledger = _Noticing(notify)
            try:
                tell_all(root, ledger)
                with contextlib.closing(Walk(root, ledger)) as walk:
                    _resolve(ledger, walk)
            except BaseException:
                ledger.notify.close()
                raise
        finally:
            os.close(root)
        if refused := _refused(ledger):
            ledger.notify.close()
            return Measured(ledger.usage, refused)
        self._ledger, self._ended = ledger, os.eventfd(0)
        self._reader = interruption.Thread(
            target=self._read, args=(ledger, self._ended), daemon=True, name="volume watch"
        )
        self._reader.start()
        return Measured(ledger.usage, why)

    # ---------------------------------------------------------------------------------------------- what we are told
    def _read(self, ledger: _Noticing, ended: int) -> None:
        poll = select.poll()
        poll.register(ledger.notify.fileno(), select.POLLIN)
        poll.register(ended, select.POLLIN)
        pause = select.poll()
        pause.register(ended, select.POLLIN)
        while ended not in dict(poll.poll()) and not pause.poll(_PAUSE_MS):
            with self._lock:
                self._listen(ledger)
                if self._lost:
                    return

    def _listen(self, ledger: _Noticing) -> None:
        while not self._lost and (events := ledger.notify.read(timeout=0)):
            for event in events:
                path = ledger.paths.get(event.wd)
                if event.mask & _LOST:
                    self._lost = "the queue of notifications ran over"
                    return
                if path is None:
                    continue
                if event.mask & flags.IGNORED:  # the folder has gone, as the one that held it tells
                    del ledger.paths[event.wd]
                    if not path:
                        self._lost = "the folder was replaced"
                    continue
                name = os.fsencode(event.name)
                written = bool(event.mask & _WRITTEN)
                self._told[path, name] = self._told.get((path, name), False) or written
                if event.mask & _RENEWED and event.mask & flags.ISDIR:
                    self._renewed.add(path + b"/" + name if path else name)
            if len(self._told) > _MOST:
                self._lost = "more has changed than is remembered"

    # ------------------------------------------------------------------------------------------------- and look again
    def _look_again(self, ledger: _Noticing, told: dict[Name, bool], renewed: set[bytes]) -> str:
        """Bring the ledger up to date; why that was not possible, empty when it was."""
        now = time.monotonic()
        wanted = self._young.keys() | told.keys()
        if len(wanted) > _MOST:
            return "more has changed than is remembered"
        young = {name: since for name, since in self._young.items() if since > now - _SETTLED_S}
        self._young = young | {name: now for name, written in told.items() if written}
        with contextlib.closing(Walk(self._root, ledger)) as walk:
            if _identity(walk.root) != self._identity:
                return "the folder was replaced"
            gone = ledger.drop(renewed)
            with self._lock:
                stale = {watch for watch, path in ledger.paths.items() if path in gone} if gone else set()
                for watch in stale:
                    del ledger.paths[watch]
            by_folder: dict[bytes, set[bytes]] = {}
            for path, name in wanted:
                by_folder.setdefault(path, set()).add(name)
            for path in sorted(by_folder):
                _look(ledger, walk, path, by_folder[path])
            while walk.todo:
                walk.step()
            _resolve(ledger, walk)
        for watch in stale - ledger.paths.keys():  # those that were moved out of the tree would be told of for ever
            with contextlib.suppress(OSError):
                ledger.notify.rm_watch(watch)
        return _refused(ledger)


def _look(ledger: Ledger, walk: Walk, path: bytes, names: Collection[bytes]) -> None:
    """Look again at these names of a folder. Where it has gone meanwhile, we shall be told."""
    if path not in ledger.records:
        return
    try:
        folder = walk.opened(path)
        if len(names) > _FEW:
            names = names_in(folder)
            ledger.empty(path)
    except OSError as error:
        if error.errno not in GONE:
            ledger.unreadable += 1
        return
    ledger.forget(path, names)
    ledger.folder(path, os.fstat(folder).st_blocks)
    walk.look(folder, path, sorted(name for name in names if name))


def _resolve(ledger: Ledger, walk: Walk) -> None:
    """A file that has got further names counts once, and as it is now: it is looked at wherever it stands."""
    done: set[int] = set()
    while unsure := {i for i in ledger.unsure - done if (f := ledger.shared.get(i)) and f.here < f.names}:
        done |= unsure
        ledger.unsure = set()
        for path in ledger.holding(unsure):
            names, hashes = ledger.standing(path, unsure)
            if hashes:
                with contextlib.suppress(OSError):  # of a folder that has gone we shall be told
                    names |= {name for name in names_in(walk.opened(path)) if hash(name) in hashes}
            _look(ledger, walk, path, names)
        while walk.todo:
            walk.step()


def _refused(ledger: _Noticing) -> str:
    return ledger.refused or (f"{ledger.unreadable} names may not be looked at" if ledger.unreadable else "")


def _identity(folder: int) -> tuple[int, int]:
    found = os.fstat(folder)
    return found.st_dev, found.st_ino
