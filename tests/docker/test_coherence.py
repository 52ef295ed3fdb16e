"""Backups of containers at full write load are of one instant, the writers in two containers."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from benchmarks.coherence import campaign
from benchmarks.coherence.stacks import docker_stack

pytestmark = [pytest.mark.docker, pytest.mark.timeout(900)]

RESULTS = Path(os.environ.get("COSMOS_SOAK_RESULTS", "data/results")) / "coherence.ndjson"


def test_of_one_instant(rng):
    with docker_stack() as stack:
        campaign.prepare(stack)
        results = [
            *campaign.session(stack, 1, rng, backups=1, repository=False),
            *campaign.session(stack, 2, rng, backups=2, repository=True),
        ]
    assert [result["violations"] for result in results] == [[]] * 3
    assert all(result["operations"] >= campaign.WARM for result in results)


@pytest.mark.soak
@pytest.mark.timeout(10_800)
def test_a_hundred(capsys):
    with capsys.disabled():
        rows = campaign.campaign("docker", 100, RESULTS)
        print(f"\n{campaign.figures(rows)}")
    assert [row for row in rows if not row["one_instant"]] == []
