"""Backups of local processes at full write load are of one instant; those made without a hold are found out."""

from __future__ import annotations

import contextlib
import os
import sqlite3
from pathlib import Path

import pytest
from benchmarks.coherence import baselines, campaign, stores
from benchmarks.coherence.checker import Violation, judge
from benchmarks.coherence.stacks import SERVICES, process_stack
from benchmarks.coherence.writer import key
from msgspec import structs

from cosmos_coherence.drivers import stackfile

pytestmark = [pytest.mark.postgres, pytest.mark.redis, pytest.mark.timeout(900)]

RESULTS = Path(os.environ.get("COSMOS_SOAK_RESULTS", "data/results")) / "coherence.ndjson"
_TURNS = 4
_ALL_DIRTY = 12_000
"""Operations after which every page of the first mapped file has been written to."""


@pytest.fixture(scope="module")
def stack():
    with process_stack() as made:
        campaign.prepare(made)
        yield made


@pytest.fixture
def number(request) -> int:
    """A session that no other test of this module has."""
    return 100 + request.session.items.index(request.node)


@pytest.mark.parametrize(("backups", "repository"), [(1, False), (2, True)], ids=["archive", "repository"])
def test_of_one_instant(stack, number, rng, backups, repository):
    results = list(campaign.session(stack, number, rng, backups=backups, repository=repository))
    assert [result["violations"] for result in results] == [[]] * backups
    assert all(result["operations"] >= campaign.WARM for result in results)


@pytest.mark.parametrize("name", baselines.BASELINES)
def test_the_skew_of_a_backup_without_a_hold_is_found(stack, number, name):
    verdict = campaign.baseline(stack, number, name)
    assert {"prefix", "across"} <= {violation.kind for violation in verdict.violations}
    assert verdict.skew_operations > 1
    assert verdict.skew_ms > 0


def test_a_writer_that_nobody_holds_is_found(stack, number):
    """Our own backup, with the hold switched off for half of the writers: the same checks have to fail for these."""
    spec = stackfile.read(stack.folder)
    free = [
        structs.replace(service, labels={"cosmos.hold": "never"}) if service.name == "writer-b" else service
        for service in spec.services
    ]
    stackfile.write(stack.folder, structs.replace(spec, services=tuple(free)))
    found: list[Violation] = []
    archive = {"COSMOS_REPOSITORY__URL": ""}
    try:
        for turn in range(_TURNS):
            if not found:  # a free writer is caught nearly always, not always
                campaign.warmed(stack, number * _TURNS + turn)
                saved = campaign.save(stack, archive, good=(0, 3))
                stack.stop()
                state = campaign.restored(stack, saved, archive, full=False)
                found += judge(state, ledger=stack.ledger(), instant_ns=saved.instant_ns).violations
    finally:
        stackfile.write(stack.folder, spec)
    assert found
    assert {violation.writer for violation in found if violation.kind != "across"} <= {*SERVICES["writer-b"]}


@pytest.mark.skipif(not os.access("/dev/shm", os.W_OK), reason="no memory disk")
def test_of_one_instant_on_a_memory_disk():
    """Nothing is written back there, so ``syncfs`` moves no time and file times tell nothing: docs/coherence.md."""
    archive = {"COSMOS_REPOSITORY__URL": ""}
    with process_stack(below=Path("/dev/shm")) as stack:
        campaign.warmed(stack, 1, operations=_ALL_DIRTY)
        saved = campaign.save(stack, archive)
        stack.stop()
        found = campaign.restored(stack, saved, archive, full=False)
        assert judge(found, ledger=stack.ledger(), instant_ns=saved.instant_ns).violations == ()


def test_what_is_taken_from_real_stores_is_found(stack, number):
    """Each store in turn loses something that it held of one writer."""
    campaign.warmed(stack, number)
    stack.stop()
    ledger = stack.ledger()
    assert judge(stores.live(stack), ledger=ledger).one_instant
    second = stack.files / "2-00000.slots"
    content = second.read_bytes()
    spoil = {
        "postgres": lambda: stack.sql("DELETE FROM coherence WHERE writer = 0 AND k = 2"),
        "redis": lambda: stack.redis("LTRIM", key(1), "1", "-1"),
        "file": lambda: second.write_bytes(bytes(len(content) // 2) + content[len(content) // 2 :]),
        "sqlite": lambda: forget_in_sqlite(stack.files / "3.sqlite"),
    }
    for writer, (store, act) in enumerate(spoil.items()):
        act()
        verdict = judge(stores.live(stack), ledger=ledger)
        assert writer in {violation.writer for violation in verdict.violations if violation.kind == "prefix"}, store


def forget_in_sqlite(path):
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as door:
        door.execute("DELETE FROM coherence WHERE k = 2")


@pytest.mark.soak
@pytest.mark.timeout(7200)
def test_a_hundred(capsys):
    with capsys.disabled():
        rows = campaign.campaign("process", 100, RESULTS)
        print(f"\n{campaign.figures(rows)}")
    assert [row for row in rows if not row["one_instant"]] == []
