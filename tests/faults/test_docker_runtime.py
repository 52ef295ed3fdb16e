"""A program that is killed at any moment leaves data and containers of a real engine whole."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from cosmos_coherence.archive.verify import verify_archive
from support.faulty import fail_at
from support.marked_stack import MarkedStack, marked_stack

pytestmark = [pytest.mark.docker, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def shop() -> Iterator[MarkedStack]:
    with marked_stack() as made:
        yield made


@pytest.fixture(scope="module")
def archive(shop: MarkedStack) -> Path:
    shop.mark("archived")
    report = shop.backup()
    assert report.status == "done", (report.failure, report.missing)
    return Path(report.path)


@pytest.fixture
def live(shop: MarkedStack, archive: Path) -> Iterator[None]:
    """The live stores say ``live``; in the end nothing may be held, stopped or left behind."""
    shop.mark("live")
    yield
    assert shop.goes_on()
    assert shop.leftovers() == []
    assert verify_archive(shop.backups / "latest.tar.gz").id == shop.published()[-1]


@pytest.mark.parametrize("verb", ["backup", "restore"])
def test_killed_at_any_moment(shop, archive, live, rng: random.Random, verb: str):
    seconds = 6.0
    while not shop.killed_within(moment := rng.uniform(0, seconds), verb, archive):
        seconds = moment
        shop.mark("live")
    print(f"killed after {moment:.3f} s")
    healed = shop.recover()
    assert healed.status == "done", healed.failure
    assert shop.leftovers() == []
    assert shop.state() in ({"live"}, {"archived"} if verb == "restore" else {"live"})


def test_two_services_that_were_stopped_stay_stopped(shop, archive, live):
    """What comes back after a failed restore is what ran before, not everything."""
    shop.runtime.stop(["writer", "redis"])
    try:
        step = fail_at("stage")
        report = shop.restore(archive, step)
        assert (report.status, step.left) == ("failed", [])
        assert shop.running() == {"db"}
    finally:
        shop.runtime.start(["redis", "writer"])
        shop.runtime.wait_ready(["redis"])
    assert shop.state() == {"live"}
