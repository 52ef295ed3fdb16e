"""The priority of a thread for processor and disk."""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import sys
import threading

_IOPRIO_SET = {"x86_64": 251, "aarch64": 30}
_WHO_PROCESS, _CLASS_IDLE, _CLASS_SHIFT = 1, 3, 13


_FIRST = -10


def come_first() -> None:
    """Raise the calling thread's priority for the processor: for a moment in which others stand still and wait for it.

    Threads that it starts have it too, so it starts no process. Where it is forbidden, nothing happens.
    """
    if sys.platform == "linux":
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _FIRST)


def step_back(nice: int, idle_io: bool) -> None:
    """Lower the calling thread's priority: ``nice`` for the processor, and the disk only when nobody else wants it.

    On Linux both count for the thread and those it starts; elsewhere, and where it is forbidden, nothing happens.
    """
    if sys.platform != "linux":
        return
    thread = threading.get_native_id()
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, thread, max(nice, os.getpriority(os.PRIO_PROCESS, thread)))
    number = _IOPRIO_SET.get(platform.machine())
    if idle_io and number is not None:
        ctypes.CDLL(None).syscall(number, _WHO_PROCESS, thread, _CLASS_IDLE << _CLASS_SHIFT)
