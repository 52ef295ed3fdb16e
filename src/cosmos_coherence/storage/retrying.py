"""A backend that is asked again when nobody answered."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from cosmos_coherence import errors
from cosmos_coherence.storage.backend import Backend, Kind, Properties, Stored

_Result = TypeVar("_Result")


class RetryingBackend:
    """Every call up to ``attempts`` times, and only after ``BackendUnavailable``; anything else is final.

    Between two tries it waits a random part of one second, then of two, of four, and so on, of ``longest_wait`` seconds
    at most: many clients of one server must not come back at the same moment. As long as nobody has answered at all,
    ``first_attempts`` are enough: a person who mistyped an address is waiting.
    """

    def __init__(
        self,
        inner: Backend,
        *,
        attempts: int = 8,
        first_attempts: int = 8,
        longest_wait: float = 60.0,
        sleep: Callable[[float], None] = time.sleep,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self._inner = inner
        self._attempts, self._first_attempts = attempts, min(attempts, first_attempts)
        self._answered = False
        self._longest_wait = longest_wait
        self._sleep = sleep
        self._chance = chance

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
        self._again(self._inner.create)

    def save(self, kind: Kind, name: str, content: Sequence[bytes | bytearray | memoryview]) -> None:
        """As ``Backend.save``. A try whose answer was lost counts, for the next one finds its file."""
        self._again(lambda: self._inner.save(kind, name, content))

    def load(self, kind: Kind, name: str, offset: int = 0, length: int | None = None) -> bytes:
        """As ``Backend.load``."""
        return self._again(lambda: self._inner.load(kind, name, offset, length))

    def size(self, kind: Kind, name: str) -> int:
        """As ``Backend.size``."""
        return self._again(lambda: self._inner.size(kind, name))

    def list(self, kind: Kind) -> Iterator[Stored]:
        """As ``Backend.list``. One that breaks midway begins anew, and what has been told is not told again."""
        told: set[str] = set()
        listing: Iterator[Stored] = iter(())

        def first() -> Stored | None:
            nonlocal listing
            listing = self._inner.list(kind)
            return following()

        def following() -> Stored | None:
            return next((stored for stored in listing if stored.name not in told), None)

        stored = self._again(first)
        while stored is not None:
            told.add(stored.name)
            yield stored
            try:
                stored = following()
            except errors.BackendUnavailable:
                self._wait(0)
                stored = self._again(first)

    def remove(self, kind: Kind, name: str) -> None:
        """As ``Backend.remove``."""
        self._again(lambda: self._inner.remove(kind, name))

    def close(self) -> None:
        """As ``Backend.close``; once is enough."""
        self._inner.close()

    def _again(self, do: Callable[[], _Result]) -> _Result:
        tried = 0
        while True:
            try:
                found = do()
            except errors.BackendUnavailable:
                tried += 1
                if tried >= (self._attempts if self._answered else self._first_attempts):
                    raise
                self._wait(tried - 1)
            except errors.CosmosError:
                self._answered = True
                raise
            else:
                self._answered = True
                return found

    def _wait(self, tried: int) -> None:
        self._sleep(self._chance() * min(self._longest_wait, 2.0**tried))
