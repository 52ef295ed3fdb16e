"""A thread that comes first or steps back does so alone, and only as far as it may."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable

import pytest

from cosmos_coherence.drivers import priority


def niceness_after(act: Callable[[], None]) -> int:
    found: list[int] = []

    def run() -> None:
        act()
        found.append(os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return found[0]


def test_one_thread_alone() -> None:
    before = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
    assert niceness_after(lambda: priority.step_back(before + 3, idle_io=True)) == before + 3
    if os.geteuid() == 0:
        assert niceness_after(priority.come_first) == -10
    assert os.getpriority(os.PRIO_PROCESS, threading.get_native_id()) == before


def test_where_it_is_forbidden_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: int) -> None:
        raise PermissionError(13, "Permission denied")

    before = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
    monkeypatch.setattr(os, "setpriority", refuse)
    assert niceness_after(priority.come_first) == before
