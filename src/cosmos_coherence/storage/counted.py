"""A backend that counts what is asked of it."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from cosmos_coherence.storage.backend import Backend, Kind, Properties, Stored


@dataclass(frozen=True, slots=True)
class Counts:
    """What has gone over the line so far. A call that failed counts as a request and has no bytes."""

    requests: int
    saves: int
    loads: int
    lists: int
    removes: int
    bytes_up: int
    bytes_down: int


class CountedBackend:
    """The inner backend, and ``counts``."""

    def __init__(self, inner: Backend) -> None:
        self._inner = inner
        self._lock = threading.Lock()
        self._requests: Counter[str] = Counter()
        self._bytes: Counter[str] = Counter()

    @property
    def counts(self) -> Counts:
        """All of it as of one moment."""
        with self._lock:
            asked, bytes_ = self._requests, self._bytes
            return Counts(
                requests=asked.total(),
                saves=asked["save"],
                loads=asked["load"],
                lists=asked["list"],
                removes=asked["remove"],
                bytes_up=bytes_["up"],
                bytes_down=bytes_["down"],
            )

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
        self._count("create")
        self._inner.create()

    def save(self, kind: Kind, name: str, content: Sequence[bytes | bytearray | memoryview]) -> None:
        """As ``Backend.save``."""
        self._count("save")
        self._inner.save(kind, name, content)
        self._add("up", sum(map(len, content)))

    def load(self, kind: Kind, name: str, offset: int = 0, length: int | None = None) -> bytes:
        """As ``Backend.load``."""
        self._count("load")
        data = self._inner.load(kind, name, offset, length)
        self._add("down", len(data))
        return data

    def size(self, kind: Kind, name: str) -> int:
        """As ``Backend.size``."""
        self._count("size")
        return self._inner.size(kind, name)

    def list(self, kind: Kind) -> Iterator[Stored]:
        """As ``Backend.list``."""
        self._count("list")
        return self._inner.list(kind)

    def remove(self, kind: Kind, name: str) -> None:
        """As ``Backend.remove``."""
        self._count("remove")
        self._inner.remove(kind, name)

    def close(self) -> None:
        """As ``Backend.close``."""
        self._inner.close()

    def _count(self, call: str) -> None:
        with self._lock:
            self._requests[call] += 1

    def _add(self, way: str, size: int) -> None:
        with self._lock:
            self._bytes[way] += size
