"""Count a large tree in several processes at once.

Each has folders of its own to enter; one that has none left is given half of another's. They share nothing but pipes
and one byte, which says that somebody waits.
"""

from __future__ import annotations

import contextlib
import gc
import mmap
import os
import pickle
import select
import signal
import threading
import time
from pathlib import Path
from typing import Any, BinaryIO, Final

import msgspec

from cosmos_coherence import errors
from cosmos_coherence.volumes.tally import Tally
from cosmos_coherence.volumes.walk import Counter, Walk

PROCESSES: Final = 2
LARGE: Final = 4000
"""Names from which on it is worth while to start them."""


def count_tree(root: Path, *, processes: int = PROCESSES, large: int = LARGE) -> Tally:
    """Count all that lies below ``root``. ``OSError`` when the root cannot be opened. What vanishes meanwhile counts
    nothing."""
    tally = Tally(time.time())
    tell_all(root, tally, processes=processes, large=large)
    tally.settle()
    return tally


def tell_all(root: Path | int, counter: Counter, *, processes: int = PROCESSES, large: int = LARGE) -> None:
    """Tell ``counter`` of the whole tree below ``root`` (a folder, or an open one). ``OSError`` as ``count_tree``.

    Where threads run, it stays in this process: a fork copies no other thread.
    """
    walk = Walk(root, counter)
    try:
        walk.begin()
        may_fork = processes > 1 and threading.active_count() == 1
        while walk.todo and not (may_fork and walk.names > large and len(walk.todo) > 1):
            walk.step()
        if walk.todo:
            with contextlib.closing(_Crew(walk, processes)) as crew:
                for told in crew.told(walk.todo):
                    counter.merge(told)
    finally:
        walk.close()


class _Walker(msgspec.Struct, frozen=True):
    """Our end of one process. It says one thing at a time, and waits for the answer."""

    pid: int
    says: BinaryIO
    hears: BinaryIO

    def tell(self, answer: list[bytes] | None) -> None:
        pickle.dump(answer, self.hears)
        self.hears.flush()


class _Crew:
    def __init__(self, walk: Walk, count: int) -> None:
        self._hungry = mmap.mmap(-1, 1)
        self._walkers: dict[int, _Walker] = {}
        gc.freeze()  # so that no collection touches, and thereby copies, what the processes share
        try:
            for _number in range(count):
                walker = self._fork(walk)
                self._walkers[walker.says.fileno()] = walker
        except OSError as error:
            self.close()
            raise errors.CosmosError(f"no process can be started: {error.strerror}") from error
        finally:
            gc.unfreeze()

    def told(self, todo: list[bytes]) -> list[Counter]:
        """What they were told of these folders and all below them. Raises ``CosmosError`` when a process fails."""
        poll = select.poll()
        for descriptor in self._walkers:
            poll.register(descriptor, select.POLLIN)
        waiting: list[_Walker] = []
        found: list[Counter] = []
        while len(found) < len(self._walkers):
            for descriptor, _ in poll.poll():
                walker = self._walkers[descriptor]
                match self._said(walker):
                    case list() as spare:
                        todo += spare
                        walker.tell(None)
                    case None:
                        waiting.append(walker)
                    case counter:
                        found.append(counter)
                        poll.unregister(descriptor)
            while waiting and todo:
                share = -(-len(todo) // len(waiting))
                waiting.pop().tell(todo[:share])
                del todo[:share]
            self._hungry[0] = bool(waiting)
            if len(waiting) == len(self._walkers):
                for walker in waiting:
                    walker.tell(None)
                waiting = []
        return found

    def close(self) -> None:
        """End them, whatever they do."""
        for walker in self._walkers.values():
            with contextlib.suppress(ProcessLookupError):
                os.kill(walker.pid, signal.SIGKILL)
            walker.says.close()
            with contextlib.suppress(OSError):
                walker.hears.close()
        for walker in self._walkers.values():
            with contextlib.suppress(ChildProcessError):
                os.waitpid(walker.pid, 0)
        self._walkers = {}
        self._hungry.close()

    @staticmethod
    def _said(walker: _Walker) -> Any:
        try:
            return pickle.load(walker.says)  # noqa: S301 - from our own child, which has our memory anyway
        except (EOFError, pickle.UnpicklingError) as error:
            raise errors.CosmosError("a process that measured files has died") from error

    def _fork(self, walk: Walk) -> _Walker:
        said, says = os.pipe()
        hears, heard = os.pipe()
        pid = os.fork()
        if pid:
            os.close(says)
            os.close(hears)
            return _Walker(pid, os.fdopen(said, "rb"), os.fdopen(heard, "wb"))
        try:
            gc.disable()
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # it goes to all of us; we are ended by the one who forked
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            others = [each.fileno() for w in self._walkers.values() for each in (w.says, w.hears)]
            for descriptor in (said, heard, *others):
                os.close(descriptor)  # else a pipe would not break when it should
            _work(Walk(walk.root, walk.counter.fresh(), alone=True), self._hungry, hears, says)
        finally:
            os._exit(0)  # nothing of the parent's is cleared up twice; an answer that is missing says enough
        raise AssertionError


def _work(walk: Walk, hungry: mmap.mmap, hears: int, says: int) -> None:
    orders, answers = os.fdopen(hears, "rb"), os.fdopen(says, "wb")

    def ask(question: list[bytes] | None) -> list[bytes] | None:
        pickle.dump(question, answers)
        answers.flush()
        return pickle.load(orders)  # type: ignore[no-any-return]  # noqa: S301 - from the one who forked us

    while order := ask(None):
        walk.todo = order
        while walk.todo:
            walk.step()
            if hungry[0] and len(walk.todo) > 1:
                half = len(walk.todo) // 2
                spare, walk.todo = walk.todo[:half], walk.todo[half:]
                ask(spare)
    pickle.dump(walk.counter, answers)
    answers.flush()
