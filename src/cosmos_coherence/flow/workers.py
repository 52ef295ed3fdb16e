"""Threads for the long part of a run, which step back behind the stack's own work."""

from __future__ import annotations

import concurrent.futures
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from cosmos_coherence.drivers import priority
from cosmos_coherence.interruption import uninterrupted
from cosmos_coherence.settings import Settings

T = TypeVar("T")
R = TypeVar("R")


def gently(settings: Settings, act: Callable[[T], R], items: Iterable[T]) -> list[R]:
    """What ``act`` returns for each item, by ``backup.workers`` threads at the niceness of the settings.

    The first error stops what has not begun and is raised when the others have ended. Never used inside the hold, where
    speed matters.
    """
    with ThreadPoolExecutor(
        max_workers=settings.backup.workers,
        initializer=priority.step_back,
        initargs=(settings.backup.nice, settings.backup.idle_io),
    ) as pool:
        with uninterrupted():
            futures = [pool.submit(act, item) for item in items]
        concurrent.futures.wait(futures, return_when=concurrent.futures.FIRST_EXCEPTION)
        for future in futures:
            future.cancel()
        concurrent.futures.wait(futures)
        for future in futures:
            if not future.cancelled() and (error := future.exception()):
                raise error
        return [future.result() for future in futures]
