"""What has changed in a tree since it was walked, without walking again: the kernel tells.

It tells of everything that goes through a system call. Of writes through a mapped file it does not; but whoever maps a
file has opened it, and keeps it open as long as it is mapped. Before the hold it begins to tell of openings, too, but
not earlier, since it would tell of every file that we read ourselves. So a file that was opened since, or that is found
open to write, counts as one that may have changed: its times are looked at.

What it cannot tell: that a file was written through a further name (a hard link) which was made after the walk and is
gone again. The next backup, which begins with a walk, sees it.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

import inotify_simple
from inotify_simple import flags

from cosmos_coherence import interruption
from cosmos_coherence.drivers import disk
from cosmos_coherence.drivers.folders import Folders, link_place

_FOLLOW_S: Final = 0.01
_MASK: Final = int(
    flags.MODIFY | flags.ATTRIB | flags.CLOSE_WRITE | flags.CREATE | flags.DELETE | flags.MOVED_FROM | flags.MOVED_TO
    | flags.ONLYDIR
)  # fmt: skip
_LOST: Final = int(flags.Q_OVERFLOW | flags.UNMOUNT)
_RENEWED: Final = int(flags.CREATE | flags.DELETE | flags.MOVED_FROM | flags.MOVED_TO)


class Changes(NamedTuple):
    """Paths that may have changed."""

    names: set[bytes]
    folders: set[bytes]
    """Those that came, went or were replaced, so that everything below them may have changed."""
    opened: set[bytes]
    """What somebody, be it ourselves, has opened since ``notice_openings``, and nothing else was told of yet."""


class Watch:
    """``entered`` is called with every open folder before it is listed. Where it cannot know, ``changes`` says so."""

    def __init__(self, root: int) -> None:
        """``root`` is the open root; -1 for none, of which nothing can be noticed."""
        self._notify = inotify_simple.INotify(nonblocking=True) if root >= 0 and disk.is_local(root) else None
        self._folders: dict[int, bytes] = {}
        self._mask = _MASK
        self._found = Changes(set(), set(), set())
        self._foreign: list[inotify_simple.Event] | None = None
        """What was told of folders that another process has entered and that are not ours yet."""
        self._enough = threading.Event()
        self._noting = threading.Lock()
        self._follower: interruption.Thread | None = None

    @classmethod
    def given(cls, descriptors: Sequence[int]) -> Watch:
        """In a process that was given the ``descriptors`` of a watch: it enters folders, and ``taken`` says which."""
        watch = cls(-1)
        if descriptors:
            watch._notify = inotify_simple.INotify(nonblocking=True)
            os.dup2(descriptors[0], watch._notify.fileno(), inheritable=False)
        return watch

    def descriptors(self) -> list[int]:
        """For ``given``; none where nothing can be noticed. From now on until ``complete`` folders are to be taken."""
        self._foreign = []
        return [self._notify.fileno()] if self._notify is not None else []

    def taken(self) -> list[tuple[int, bytes]]:
        """The folders entered since it was last asked, for the ``take`` of the watch whose descriptor it is."""
        entered, self._folders = list(self._folders.items()), {}
        return entered

    def take(self, entered: Iterable[tuple[int, bytes]]) -> None:
        """Folders that another process has entered with our descriptor."""
        with self._noting:
            self._folders.update(entered)

    def complete(self) -> None:
        """All folders were taken."""
        with self._noting:
            foreign, self._foreign = self._foreign or [], None
            for event in foreign:
                self._note(event)

    def entered(self, folder: int, path: bytes) -> None:
        """From now on what changes in this open folder is noticed, under this path."""
        with self._noting:  # what is told of it must not be read before it has its path
            self._enter(folder, path)

    def notice_openings(self, folders: Folders) -> None:
        """From now on notice who opens a file below these ``folders``, too."""
        with self._noting:
            self._mask = _MASK | flags.OPEN
            for path in sorted(set(self._folders.values())):
                with contextlib.suppress(OSError):  # it has gone, as the one that held it tells
                    self._enter(folders.parent(path + b"/." if path else b".")[0], path)

    def _enter(self, folder: int, path: bytes) -> None:
        if self._notify is not None:
            try:
                self._folders[self._notify.add_watch(link_place(folder, b"."), self._mask)] = path
            except OSError:  # more folders than may be watched
                self._give_up()

    def follow(self) -> None:
        """From now on read what the kernel tells as it comes, so that its queue does not run over, and little is left
        to read when ``changes`` is asked in the pause."""
        if self._notify is not None and self._follower is None:
            self._enough.clear()
            self._follower = interruption.Thread(target=self._follow, name="watch", daemon=True)
            self._follower.start()

    def changes(self) -> Changes | None:
        """What has changed since it was last asked; None when that is not known any more."""
        self._stop_following()
        if not self._read():
            return None
        found, self._found = self._found, Changes(set(), set(), set())
        return found

    def close(self) -> None:
        """Nothing is noticed any more. May be called again."""
        self._stop_following()
        self._give_up()

    def _follow(self) -> None:
        while not self._enough.wait(_FOLLOW_S) and self._read():
            pass

    def _stop_following(self) -> None:
        if self._follower is not None:
            self._enough.set()
            self._follower.join()
        self._follower = None

    def _give_up(self) -> None:
        if self._notify is not None:
            self._notify.close()
        self._notify = None

    def _read(self) -> bool:
        """Note what has been told so far; False when something was lost."""
        with self._noting:
            return self._noted()

    def _noted(self) -> bool:
        if self._notify is None:
            return False
        while events := self._notify.read(timeout=0):
            for event in events:
                if event.mask & _LOST:
                    self._give_up()
                    return False
                if self._foreign is not None and event.wd not in self._folders:
                    self._foreign.append(event)
                else:
                    self._note(event)
        return True

    def _note(self, event: inotify_simple.Event) -> None:
        found = self._found
        above = self._folders.get(event.wd)
        if above is None:
            return
        if event.mask & flags.IGNORED:  # the folder has gone, as the one that held it tells
            del self._folders[event.wd]
            return
        is_folder = event.mask & flags.ISDIR
        if is_folder and event.mask & flags.OPEN:
            return
        name = os.fsencode(event.name)
        path = above + b"/" + name if above and name else above or name
        if event.mask == flags.OPEN:
            found.opened.add(path)
            return
        renewed = event.mask & _RENEWED
        (found.folders if is_folder and renewed else found.names).add(path)
        if renewed:  # which gives the folder another time without a word
            found.names.add(above)
