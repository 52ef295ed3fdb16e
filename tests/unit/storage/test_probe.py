"""What the probe finds about a store that does not keep the promises."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pytest

from cosmos_coherence import errors
from cosmos_coherence.storage.backend import KINDS, Backend, Kind, Stored
from cosmos_coherence.storage.probe import probe
from support.faulty_backend import Fault, faulty
from support.memory_backend import MemoryBackend


class Forgetful(MemoryBackend):
    """Lists what was there when it was made."""

    def list(self, kind: Kind) -> Iterator[Stored]:
        return iter(())


class Undead(MemoryBackend):
    """Removes nothing, and says it did."""

    def remove(self, kind: Kind, name: str) -> None:
        pass


class Overwriting(MemoryBackend):
    def save(self, kind: Kind, name: str, content: Sequence[bytes | bytearray | memoryview]) -> None:
        super().remove(kind, name)
        super().save(kind, name, content)


class Ignoring(MemoryBackend):
    """Keeps the first, and does not say that it passed over the second: that is fine."""

    def save(self, kind: Kind, name: str, content: Sequence[bytes | bytearray | memoryview]) -> None:
        if (kind, name) not in [(kind, stored.name) for stored in self.list(kind)]:
            super().save(kind, name, content)


class Mangling(MemoryBackend):
    def load(self, kind: Kind, name: str, offset: int = 0, length: int | None = None) -> bytes:
        return super().load(kind, name, offset, length)[::-1]


class Whole(MemoryBackend):
    """Answers every ranged read with all of it."""

    def load(self, kind: Kind, name: str, offset: int = 0, length: int | None = None) -> bytes:
        return super().load(kind, name)


class OffByOne(MemoryBackend):
    """Leaves the last byte out, as one does who takes the end of a range for exclusive."""

    def load(self, kind: Kind, name: str, offset: int = 0, length: int | None = None) -> bytes:
        data = super().load(kind, name, offset, length)
        return data if length is None and not offset else data[:-1]


class Vague(MemoryBackend):
    def size(self, kind: Kind, name: str) -> int:
        return super().size(kind, name) + 1


@pytest.mark.parametrize(
    ("store", "wrong"),
    [
        (Forgetful, "not listed"),
        (Undead, "still listed"),
        (Overwriting, "overwrites"),
        (Mangling, "other bytes than were written"),
        (Whole, "ranged read of the middle"),
        (OffByOne, "ranged read of the middle"),
        (Vague, "wrong size"),
    ],
)
def test_what_is_wrong_is_named(store: type[MemoryBackend], wrong: str) -> None:
    backend = store()
    with pytest.raises(errors.Refused, match=wrong) as caught:
        probe(backend)
    assert "another store" in caught.value.remedy
    assert backend.files == {} or store is Undead


@pytest.mark.parametrize("backend", [MemoryBackend(), MemoryBackend(append_only=True), Ignoring()])
def test_what_keeps_the_promises_passes_and_nothing_is_left(backend: MemoryBackend) -> None:
    probe(backend)
    assert backend.files == {}


def test_a_store_that_keeps_even_locks_is_refused() -> None:
    inner = MemoryBackend()
    no = [Fault("remove", nth=nth, error=lambda: errors.Refused("planned: append-only")) for nth in (1, 2)]
    with faulty(inner, *no) as backend, pytest.raises(errors.Refused, match="append-only"):
        probe(backend)


def test_a_probe_that_breaks_leaves_nothing_where_it_can() -> None:
    inner = MemoryBackend()
    with faulty(inner, Fault("load", nth=2)) as broken, pytest.raises(errors.BackendUnavailable):
        probe(broken)
    left: Backend = inner
    assert [stored for kind in KINDS for stored in left.list(kind)] == []
