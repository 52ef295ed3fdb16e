"""Threads for the long part of a run, which step back behind the stack's own work."""

from __future__ import annotations

import concurrent.futures
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from cosmos_coherence.drivers import priority
from cosmos_coherence.settings import Settings

T = TypeVar("T")


def gentle_pool(settings: Settings) -> ThreadPoolExecutor:
    """``backup.workers`` threads at the niceness of the settings. Never used inside the hold, where speed matters."""
    return ThreadPoolExecutor(
        max_workers=settings.backup.workers,
        initializer=priority.step_back,
        initargs=(settings.backup.nice, settings.backup.idle_io),
    )


def results(futures: Sequence[Future[T]]) -> list[T]:
    """All results in order; the first error stops what has not begun and is raised when the others have ended."""
    concurrent.futures.wait(futures, return_when=concurrent.futures.FIRST_EXCEPTION)
    for future in futures:
        future.cancel()
    concurrent.futures.wait(futures)
    for future in futures:
        if not future.cancelled() and (error := future.exception()):
            raise error
    return [future.result() for future in futures]
