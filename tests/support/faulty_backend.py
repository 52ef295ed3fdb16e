"""A backend that fails as planned. A fault that was planned and never met is a failure of the test."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from cosmos_coherence import errors
from cosmos_coherence.storage.backend import Backend, Kind, Properties, Stored

Call = Literal["create", "save", "load", "size", "list", "remove", "any"]


def _gone() -> Exception:
    return errors.BackendUnavailable("planned: nobody answers")


@dataclass(frozen=True)
class Fault:
    """One failure of one call."""

    call: Call
    kind: Kind | None = None
    """Only calls for that kind; any when it is ``None``."""
    nth: int = 1
    """The how manieth of the calls that match, from 1 on."""
    last: int | None = None
    """So do all that match up to this one; the ``nth`` alone when it is ``None``."""
    when: Literal["before", "after"] = "before"
    """``after``: the store has done it, and the answer is lost. A listing breaks after its first name then."""
    error: Callable[[], BaseException] = _gone


class FaultyBackend:
    def __init__(self, inner: Backend, *faults: Fault) -> None:
        self._inner = inner
        self._lock = threading.Lock()
        self._met = dict.fromkeys(faults, 0)
        assert len(self._met) == len(faults), "the same fault is planned twice"
        self.fired: list[Fault] = []

    @property
    def missed(self) -> Sequence[Fault]:
        """What was planned and has not come up."""
        return [fault for fault in self._met if fault not in self.fired]

    @property
    def location(self) -> str:
        return self._inner.location

    @property
    def properties(self) -> Properties:
        return self._inner.properties

    def create(self) -> None:
        with self._faults("create", None):
            self._inner.create()

    def save(self, kind: Kind, name: str, content: Sequence[bytes | bytearray | memoryview]) -> None:
        with self._faults("save", kind):
            self._inner.save(kind, name, content)

    def load(self, kind: Kind, name: str, offset: int = 0, length: int | None = None) -> bytes:
        with self._faults("load", kind):
            return self._inner.load(kind, name, offset, length)

    def size(self, kind: Kind, name: str) -> int:
        with self._faults("size", kind):
            return self._inner.size(kind, name)

    def list(self, kind: Kind) -> Iterator[Stored]:
        before, after = self._due("list", kind)
        if before:
            raise before.error()
        for stored in self._inner.list(kind):
            yield stored
            if after:
                raise after.error()

    def remove(self, kind: Kind, name: str) -> None:
        with self._faults("remove", kind):
            self._inner.remove(kind, name)

    def close(self) -> None:
        self._inner.close()

    @contextlib.contextmanager
    def _faults(self, call: Call, kind: Kind | None) -> Iterator[None]:
        before, after = self._due(call, kind)
        if before:
            raise before.error()
        yield
        if after:
            raise after.error()

    def _due(self, call: Call, kind: Kind | None) -> tuple[Fault | None, Fault | None]:
        due: dict[str, Fault] = {}
        with self._lock:
            for fault in self._met:
                if fault.call in (call, "any") and fault.kind in (None, kind):
                    self._met[fault] += 1
                    if fault.nth <= self._met[fault] <= (fault.last or fault.nth):
                        due[fault.when] = fault
                        self.fired.append(fault)
        return due.get("before"), due.get("after")


@contextlib.contextmanager
def faulty(inner: Backend, *faults: Fault) -> Iterator[FaultyBackend]:
    """The block has to meet every one of the faults."""
    backend = FaultyBackend(inner, *faults)
    yield backend
    assert not backend.missed, f"planned faults that never fired: {backend.missed}"
