"""Ctrl-C: how it is heard, and what must not be torn in two by it.

Python raises ``KeyboardInterrupt`` between any two steps of the main thread. One that falls into the start of a thread
leaves a thread that runs and that nobody can await; one that falls into the start of a program leaves a program that
nobody ends.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from typing import Final

_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_PATIENCE: Final = b"going back to how it was; SIGQUIT ends it at once, and `cosmos recover` heals what that leaves\n"

_shielded = False
_heard = False


def listen() -> None:
    """From now on SIGTERM and SIGHUP (a service manager, a lost terminal) mean what Ctrl-C does: ``KeyboardInterrupt``,
    once. What was ignored before stays so."""
    for number in _SIGNALS:
        if signal.getsignal(number) not in (signal.SIG_IGN, None):  # nohup stays nohup
            signal.signal(number, _interrupt)


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """What is heard in this block is raised at its end. For what takes a moment."""
    global _shielded
    if threading.current_thread() is not threading.main_thread():  # signals strike the main thread only
        yield
        return
    before = _shielded
    try:
        _shielded = True
        yield
    finally:
        _shielded = before
        if _heard:
            _interrupt()


class Thread(threading.Thread):
    """A thread that has begun when ``start`` is left, also by Ctrl-C: it can be awaited."""

    def start(self) -> None:
        """As its parent's."""
        with uninterrupted():
            super().start()

    def join(self, timeout: float | None = None) -> None:
        """As its parent's; returns at once when it was never started."""
        if self.ident is not None:
            super().join(timeout)


class Timer(Thread, threading.Timer):
    """A timer of that kind."""


def _interrupt(_number: int = 0, _frame: object = None) -> None:
    """The first request sends the run back; another one must not tear the way back in two."""
    global _heard
    if _shielded:
        _heard = True
        return
    for number in _SIGNALS:
        if signal.getsignal(number) is _interrupt:
            signal.signal(number, _wait)
    _heard = False
    raise KeyboardInterrupt


def _wait(_number: int, _frame: object) -> None:
    with contextlib.suppress(OSError):
        os.write(2, _PATIENCE)
