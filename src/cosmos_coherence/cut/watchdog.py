"""The watchdog: a process of its own that releases the writers when the program cannot.

It speaks in lines. In: ``{"targets": [...], "budget_s": 1.0}`` (answered with ``ready``), ``hold`` just before the
first freeze, ``released`` after the last thaw; any number of rounds. When the budget is over before ``released``
it releases, says ``expired``, and releases again and again what a program that has lost its way may still freeze.
When its input ends before ``released`` the program has died: it releases, and ends.

``python -m cosmos_coherence.cut.watchdog`` imports next to nothing, so that it is ready soon.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING, BinaryIO

from msgspec import structs

from cosmos_coherence import errors
from cosmos_coherence.cut import freezer
from cosmos_coherence.model import HoldTarget

if TYPE_CHECKING:
    from cosmos_coherence.drivers.runtime import Child

_AGAIN_S = 0.2
_LAST_ROUNDS = 5
"""Releases after the program's death: a freeze that it asked the engine for may still be on its way."""
_GIVE_UP_S = 600.0
"""An engine that stays away that long does not come back for us; the journal still knows."""


class Watchdog:
    """The program's end of a watchdog, over its standard input and output.

    As a context manager it dismisses the watchdog; one that was not told ``released`` does its work first.
    """

    def __init__(self, stdin: BinaryIO, stdout: BinaryIO, child: Child | None = None) -> None:
        self._stdin, self._stdout, self._child = stdin, stdout, child
        self._armed = self._holding = False

    @classmethod
    def start(cls) -> Watchdog:
        """A watchdog beside this program, in a session of its own. Raises ``CommandFailed``."""
        # Imported here, since the watchdog itself has to start without it.
        from cosmos_coherence.drivers import process

        path = os.pathsep.join(entry for entry in sys.path if entry)  # it finds the same program as we did
        argv = [sys.executable, "-P", "-m", __name__]
        child = process.start(argv, stdin=True, new_group=True, environment={"PYTHONPATH": path})
        return cls(child.stdin, child.stdout, child)

    def arm(self, targets: Sequence[HoldTarget], budget_s: float) -> None:
        """Tell it what is going to be held and for how long at most; returns when it is ready.

        Raises ``CutFailed`` when it does not answer.
        """
        order = {"targets": [structs.asdict(target) for target in targets], "budget_s": budget_s}
        self._say(json.dumps(order))
        while (line := self._stdout.readline()) != b"ready\n":
            if not line:
                raise errors.CutFailed("the watchdog has ended, and without it nothing is held")
        self._armed = True

    def hold(self) -> None:
        """Start its clock: the first freeze follows. Raises ``CutFailed`` when it has gone."""
        self._say("hold")
        self._holding = True

    def released(self) -> None:
        """Stop its clock: nothing is held any more. Never raises: one that has gone has nothing left to do."""
        with contextlib.suppress(errors.CutFailed):
            self._say("released")
        self._holding = False

    def _say(self, line: str) -> None:
        try:
            self._stdin.write(line.encode() + b"\n")
            self._stdin.flush()
        except (OSError, ValueError, errors.CommandFailed) as error:
            raise errors.CutFailed("the watchdog has ended, and without it nothing is held") from error

    def __enter__(self) -> Watchdog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.suppress(OSError, errors.CommandFailed):
            self._stdin.close()
        if self._child is None:
            return
        if self._holding or not self._armed:  # it has work to do, perhaps for minutes, or still starts: nobody waits
            threading.Thread(target=self._await, args=(self._child,), daemon=True).start()
        else:
            self._await(self._child)

    @staticmethod
    def _await(child: Child) -> None:
        with contextlib.suppress(OSError, ValueError, errors.CommandFailed):
            child.wait()


# ---------------------------------------------------------------------------------------- the process itself
def main() -> None:
    """Serve standard input until it ends."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    targets: list[HoldTarget] = []
    budget_s = 0.0
    due: float | None = None
    """When to release next; None while nothing is held."""
    expired = False
    rest = b""
    while True:
        patience = None if due is None else max(due - time.monotonic(), 0.0)
        if not select.select([0], [], [], patience)[0]:
            _release(targets)
            if not expired:
                _answer(b"expired\n")
            expired, due = True, time.monotonic() + _AGAIN_S
            continue
        piece = os.read(0, 65536)
        if not piece:
            break
        *lines, rest = (rest + piece).split(b"\n")
        for line in lines:
            if line == b"hold":
                expired, due = False, time.monotonic() + budget_s
            elif line == b"released":
                due = None
            else:
                order = json.loads(line)
                targets, budget_s = [HoldTarget(**target) for target in order["targets"]], order["budget_s"]
                _answer(b"ready\n")
    if due is not None:
        _release_for_good(targets)


def _release_for_good(targets: Sequence[HoldTarget]) -> None:
    give_up = time.monotonic() + _GIVE_UP_S
    rounds = 0
    while rounds < _LAST_ROUNDS and time.monotonic() < give_up:
        rounds += _release(targets)
        time.sleep(_AGAIN_S)


def _release(targets: Sequence[HoldTarget]) -> bool:
    try:
        freezer.thaw_all(targets)
    except errors.CutFailed:
        return False
    return True


def _answer(line: bytes) -> None:
    with contextlib.suppress(OSError):
        os.write(1, line)


if __name__ == "__main__":
    main()
