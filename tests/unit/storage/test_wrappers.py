"""Backends around backends: further tries, limits, counts, and planned faults."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from cosmos_coherence import errors
from cosmos_coherence.storage.backend import Backend
from cosmos_coherence.storage.retrying import RetryingBackend
from cosmos_coherence.storage.throttled import ThrottledBackend
from support.faulty_backend import Fault, FaultyBackend, faulty
from support.memory_backend import MemoryBackend

NAMES = [f"{number:064x}" for number in range(5)]


class Clock:
    """Time that passes only while somebody sleeps."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def filled() -> MemoryBackend:
    backend = MemoryBackend()
    for name in NAMES:
        backend.save("keys", name, [b"12345"])
    return backend


def everything(backend: Backend) -> list[object]:
    """Each call once, and what it answers."""
    backend.create()
    backend.save("data", NAMES[0], [b"0123", b"456789"])
    answers = [backend.load("data", NAMES[0], 2, 3), backend.load("data", NAMES[0]), backend.size("data", NAMES[0])]
    listed = {*backend.list("keys")}
    backend.remove("data", NAMES[0])
    backend.remove("data", NAMES[0])
    backend.close()
    return [*answers, listed, [*backend.list("data")], backend.location, backend.properties]


@pytest.mark.parametrize(
    "wrapped",
    [
        RetryingBackend,
        ThrottledBackend,
        lambda inner: ThrottledBackend(inner, up=10**9, down=10**9),
        FaultyBackend,
    ],
)
def test_a_wrapper_changes_no_answer(wrapped: Callable[[Backend], Backend]) -> None:
    assert everything(wrapped(filled())) == everything(filled())
    with pytest.raises(errors.NotFound):
        wrapped(filled()).load("data", NAMES[0])


def test_every_call_is_tried_again() -> None:
    waits: list[float] = []
    calls = ("create", "save", "load", "size", "list", "remove")
    before = [Fault(call) for call in calls]
    after = [Fault(call, nth=2, when="after") for call in calls]
    with faulty(filled(), *before, *after) as inner:
        answers = everything(RetryingBackend(inner, sleep=waits.append, chance=lambda: 0.5))
    assert answers == everything(filled())
    assert len(waits) == len(before) + len(after)
    assert set(waits) <= {0.5, 1.0}


def test_waits_grow_up_to_a_limit_and_the_last_failure_is_told() -> None:
    waits: list[float] = []
    faults = [Fault("load", nth=nth) for nth in range(1, 7)]
    with faulty(filled(), *faults) as inner:
        backend = RetryingBackend(inner, attempts=6, longest_wait=5, sleep=waits.append, chance=lambda: 1.0)
        with pytest.raises(errors.BackendUnavailable, match="planned"):
            backend.load("keys", NAMES[0])
        assert waits == [1, 2, 4, 5, 5]
        assert backend.load("keys", NAMES[0]) == b"12345"


@pytest.mark.parametrize("kind", [errors.NotFound, errors.Refused, errors.NoRoom, errors.AccessDenied, errors.Damaged])
def test_what_another_try_cannot_help_is_told_at_once(kind: type[errors.CosmosError]) -> None:
    def sleep(_: float) -> None:
        raise AssertionError("it waited")

    for call in ("save", "list"):
        with faulty(filled(), Fault(call, error=lambda: kind("planned"))) as inner:
            backend = RetryingBackend(inner, sleep=sleep)
            with pytest.raises(kind, match="planned"):
                backend.save("data", NAMES[0], [b"x"]) if call == "save" else next(backend.list("keys"))


def test_nobody_waits_long_for_a_server_that_never_answered() -> None:
    waits: list[float] = []
    with faulty(filled(), *(Fault("size", nth=nth) for nth in (1, 2, 3, 5, 6, 7, 8))) as inner:
        backend = RetryingBackend(inner, attempts=8, first_attempts=3, sleep=waits.append)
        with pytest.raises(errors.BackendUnavailable):
            backend.size("keys", NAMES[0])
        assert len(waits) == 2
        backend.size("keys", NAMES[0])
        assert backend.size("keys", NAMES[0]) > 0, "one that has answered is worth more patience"
    assert len(waits) == 2 + 4


def test_a_listing_that_breaks_tells_each_name_once() -> None:
    faults = [Fault("list", nth=1, when="after"), Fault("list", nth=2), Fault("list", nth=3, when="after")]
    with faulty(filled(), *faults) as inner:
        listed = [*RetryingBackend(inner, sleep=lambda _: None).list("keys")]
    assert sorted(stored.name for stored in listed) == NAMES


def test_a_listing_that_always_breaks_at_the_same_place_ends() -> None:
    faults = [Fault("list", nth=nth, when="after") for nth in range(1, 5)]
    with faulty(filled(), *faults) as inner:
        backend = RetryingBackend(inner, attempts=3, sleep=lambda _: None)
        with pytest.raises(errors.BackendUnavailable):
            list(backend.list("keys"))


def test_bytes_take_their_time_each_way() -> None:
    clock = Clock()
    backend = ThrottledBackend(MemoryBackend(), up=1000, down=100, clock=clock, sleep=clock.sleep)
    for name in NAMES:
        backend.save("data", name, [bytes(600), bytes(400)])
    assert clock.now == 1000 + 3  # one second was saved up, and the last file is paid off by whoever comes next
    clock.now += 3600
    began = clock.now
    for name in NAMES[:3]:
        assert len(backend.load("data", name, 0, 50)) == 50
    assert clock.now == began
    for name in NAMES[:3]:
        assert len(backend.load("data", name)) == 1000
    assert clock.now - began == pytest.approx(20.5)
    backend.load("data", NAMES[0], 0, 1)
    assert clock.now - began == pytest.approx(30.5)
    assert [*backend.list("keys")] == []


def test_without_a_limit_nobody_waits() -> None:
    def sleep(_: float) -> None:
        raise AssertionError("it waited")

    backend = ThrottledBackend(MemoryBackend(), up=1, sleep=sleep)
    backend.save("keys", NAMES[0], [b""])
    assert [backend.load("keys", NAMES[0]) for _ in range(100)] == [b""] * 100


def test_a_planned_fault_that_never_fires_fails_the_test() -> None:
    with pytest.raises(AssertionError, match="never fired"), faulty(filled(), Fault("save", kind="data")) as backend:
        backend.save("keys", "f" * 64, [b"x"])
