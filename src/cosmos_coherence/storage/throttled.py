"""A backend that leaves some of the line to others."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence

from cosmos_coherence.storage.backend import Backend, Kind, Properties, Stored


class _Bucket:
    """So many bytes per second, for all threads together; a second's worth may be saved up."""

    def __init__(self, rate: int, clock: Callable[[], float], sleep: Callable[[float], None]) -> None:
        self._rate = rate
        self._clock = clock
        self._sleep = sleep
        self._lock = threading.Lock()
        self._paid_until = clock() - 1.0

    def take(self, size: int) -> None:
        """Wait until what was taken before is paid off, then owe ``size`` bytes: a file may be more than a second's."""
        begins, now = self._owe(size)
        if begins > now:
            self._sleep(begins - now)

    def owe(self, size: int) -> None:
        """Owe ``size`` bytes more, which whoever comes next waits for."""
        self._owe(size)

    def _owe(self, size: int) -> tuple[float, float]:
        with self._lock:
            now = self._clock()
            begins = max(self._paid_until, now - 1.0)
            self._paid_until = begins + size / self._rate
        return begins, now


class ThrottledBackend:
    """At most ``up`` and ``down`` bytes per second on average, of contents only; ``None`` is no limit.

    A file goes at the line's full speed once it is its turn, for what lies inside of a request is the inner backend's.
    """

    def __init__(
        self,
        inner: Backend,
        *,
        up: int | None = None,
        down: int | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._inner = inner
        self._up = _Bucket(up, clock, sleep) if up else None
        self._down = _Bucket(down, clock, sleep) if down else None

    @property
    def location(self) -> str:
        """As the inner one's."""
        return self._inner.location

    @property
    def properties(self) -> Properties:
        """As the inner one's."""
        return self._inner.properties

    def create(self) -> None:
        """As ``Backend.create``."""
        self._inner.create()

    def save(self, kind: Kind, name: str, content: Sequence[bytes | bytearray | memoryview]) -> None:
        """As ``Backend.save``, when it is its turn."""
        if self._up:
            self._up.take(sum(map(len, content)))
        self._inner.save(kind, name, content)

    def load(self, kind: Kind, name: str, offset: int = 0, length: int | None = None) -> bytes:
        """As ``Backend.load``, when it is its turn."""
        if not self._down:
            return self._inner.load(kind, name, offset, length)
        if length is not None:
            self._down.take(length)
            return self._inner.load(kind, name, offset, length)
        self._down.take(0)
        data = self._inner.load(kind, name, offset)
        self._down.owe(len(data))
        return data

    def size(self, kind: Kind, name: str) -> int:
        """As ``Backend.size``."""
        return self._inner.size(kind, name)

    def list(self, kind: Kind) -> Iterator[Stored]:
        """As ``Backend.list``."""
        return self._inner.list(kind)

    def remove(self, kind: Kind, name: str) -> None:
        """As ``Backend.remove``."""
        self._inner.remove(kind, name)

    def close(self) -> None:
        """As ``Backend.close``."""
        self._inner.close()
