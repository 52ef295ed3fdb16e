"""Processes that walk trees beside us: they look while we open the repository and compare what they have seen.

One is forked before any thread runs, since a fork copies no other, and forks another for each tree. All that they share
with us is a socket for each, over which they are also given the descriptor of a watch.
"""

from __future__ import annotations

import contextlib
import gc
import os
import pickle
import signal
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import msgspec

from cosmos_coherence import errors
from cosmos_coherence.copied import Copied, Found
from cosmos_coherence.drivers import messages
from cosmos_coherence.sources import tree_scan
from cosmos_coherence.sources.tree_scan import Scan
from cosmos_coherence.sources.tree_watch import Watch
from cosmos_coherence.storage import local

_TOGETHER: Final = 1000
_AHEAD: Final = 8 << 20
"""Bytes of names that may wait for us."""
_SNDBUFFORCE: Final = 32
"""Linux: beyond what an administrator allows to others."""


class _Walk(msgspec.Struct):
    root: bytes
    exclude: tuple[str, ...]
    only: frozenset[bytes]


class _Seen(msgspec.Struct, tag=True):
    names: list[Found]
    entered: list[tuple[int, bytes]]
    """Folders, each with the number of its watch."""


class _Passed(msgspec.Struct, tag=True):
    """The last word: what is not captured."""

    sockets: set[bytes]
    mounts: set[bytes]
    excluded: set[bytes]


class _Failed(msgspec.Struct, tag=True):
    error: bytes


_order: Final = msgspec.msgpack.Decoder(_Walk).decode
_said: Final = msgspec.msgpack.Decoder(_Seen | _Passed | _Failed).decode


class Walking:
    """A walk that has begun."""

    def __init__(self, order: _Walk, line: socket.socket, watch: Watch) -> None:
        self.watch = watch
        """Every folder is entered into it."""
        self._order, self._line = order, line

    def walking(self, known: Mapping[bytes, Copied]) -> tuple[Scan, Iterator[list[bytes]]]:
        """As ``tree_scan.walking``. Also raises ``CosmosError`` when its process has died."""
        root = Path(os.fsdecode(self._order.root))
        scan = Scan(root, tree_scan.matcher(self._order.exclude), known=known, only=self._order.only)
        return scan, self._steps(scan)

    def _steps(self, scan: Scan) -> Iterator[list[bytes]]:
        with self._line:
            while (message := messages.read(self._line.fileno())) is not None:
                match _said(message):
                    case _Seen(names, entered):
                        self.watch.take(entered)
                        for found in names:
                            scan.note(found.path, found)
                        yield [found.path for found in names]
                    case _Passed(sockets, mounts, excluded):
                        scan.sockets, scan.mounts, scan.excluded = sockets, mounts, excluded
                        self.watch.complete()
                        return
                    case _Failed(error):
                        raise pickle.loads(error)  # noqa: S301 - from our own child, which has our memory anyway
        raise errors.CosmosError(f"the process that walked {scan.root} has died")

    def close(self) -> None:
        """It need not go on, and nothing is noticed any more."""
        self._line.close()
        self.watch.close()


class Scout:
    """Our end of the process that forks the others."""

    def __init__(self, pid: int, line: socket.socket) -> None:
        self.pid, self._line = pid, line

    def begin(self, root: Path, exclude: tuple[str, ...], only: frozenset[bytes], watch: Watch) -> Walking | None:
        """Have a tree walked; None when nobody does."""
        order = _Walk(os.fsencode(root.absolute()), exclude, only)
        ours, its = socket.socketpair()
        with its, contextlib.suppress(OSError):
            _make_room(its)
            data = messages.framed(msgspec.msgpack.encode(order))
            sent = socket.send_fds(self._line, [data], [its.fileno(), *watch.descriptors()])
            self._line.sendall(data[sent:])
            return Walking(order, ours, watch)
        ours.close()
        watch.close()
        return None

    def close(self) -> None:
        """End it; a walk ends when nobody takes it any more."""
        self._line.close()
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)  # another process that we have forked may still hold the line
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self.pid, 0)


@contextmanager
def scout(prepare: Callable[[], None] = lambda: None) -> Iterator[Scout | None]:
    """A scout for as long as the block lasts; none where threads run or there is one core only. ``prepare`` is called
    first in its process."""
    if threading.active_count() > 1 or len(os.sched_getaffinity(0)) == 1:
        yield None
        return
    ours, its = socket.socketpair()
    try:
        pid = os.fork()
    except OSError:  # the walks are ours, then
        ours.close()
        its.close()
        yield None
        return
    if not pid:
        _live(ours, its, prepare)
    its.close()
    made = Scout(pid, ours)
    try:
        yield made
    finally:
        made.close()


def _make_room(line: socket.socket) -> None:
    """Let so much wait as we are allowed to."""
    with contextlib.suppress(OSError):
        line.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _AHEAD)
        line.setsockopt(socket.SOL_SOCKET, _SNDBUFFORCE, _AHEAD)


def _live(ours: socket.socket, its: socket.socket, prepare: Callable[[], None]) -> None:
    """All that the process does; never returns."""
    try:
        gc.disable()  # a collection would touch, and thereby copy, what is shared
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # it goes to all of us; we end with the one who forked
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for those who walk
        ours.close()
        prepare()
        _serve(its)
    finally:
        os._exit(0)  # nothing of the parent's is cleared up twice


def _serve(line: socket.socket) -> None:
    while True:
        head, descriptors, _, _ = socket.recv_fds(line, messages.LENGTH_BYTES, 2)
        rest = messages.exactly(line.fileno(), messages.LENGTH_BYTES - len(head)) if head else None
        order = None if rest is None else messages.exactly(line.fileno(), messages.length(head + rest))
        if order is None:
            return
        if not os.fork():
            line.close()
            for said in _walked(_order(order), Watch.given(descriptors[1:])):
                local.write_all(descriptors[0], messages.framed(msgspec.msgpack.encode(said)))
            return
        for each in descriptors:
            os.close(each)


def _walked(order: _Walk, watch: Watch) -> Iterator[_Seen | _Passed | _Failed]:
    try:
        root = Path(os.fsdecode(order.root))
        scan, steps = tree_scan.walking(root, order.exclude, watch.entered, only=order.only)
        for _ in steps:
            if len(scan.names) >= _TOGETHER:
                yield _Seen(list(scan.names.values()), watch.taken())
                scan.names.clear()
                scan.linked.clear()
        yield _Seen(list(scan.names.values()), watch.taken())
        yield _Passed(scan.sockets, scan.mounts, scan.excluded)
    except errors.CosmosError as error:
        error.__cause__ = error.__context__ = None
        yield _Failed(pickle.dumps(error))
