from __future__ import annotations

from pathlib import Path

import pytest
from msgspec.structs import replace

from cosmos_coherence.health import checks
from cosmos_coherence.health.services import check_services
from cosmos_coherence.model import Service, Stack

STACK = Stack(
    project="p", runtime="docker", directory=Path("/p"), services=(Service("db", "p-db"), Service("api", "p-api"))
)


def outcomes(stack):
    return {result.name: result.outcome for result in check_services(stack)}


@pytest.mark.parametrize(
    ("change", "outcome"),
    [
        ({"health": "healthy"}, "ok"), ({}, "ok"), ({"health": "starting"}, "warn"), ({"health": "unhealthy"}, "fail"),
        ({"state": "exited"}, "fail"), ({"state": "paused", "health": "healthy"}, "fail"),
        ({"state": "missing"}, "fail"),
        ({"state": "restarting"}, "fail"),
        ({"state": "created"}, "fail"),
    ],
)  # fmt: skip
def test_a_service_is_well_when_it_runs_and_nobody_says_otherwise(change, outcome):
    stack = replace(STACK, services=(STACK.services[0], replace(STACK.services[1], **change)))
    assert outcomes(stack) == {"service db": "ok", "service api": outcome}


def test_every_copy_of_a_service_counts():
    stack = replace(STACK, services=(Service("api", "p-api-1"), Service("api", "p-api-2", state="exited")))
    assert outcomes(stack) == {"service p-api-1": "ok", "service p-api-2": "fail"}


def test_a_stack_without_services_is_not_well():
    assert checks.worst(check_services(replace(STACK, services=()))) == "fail"
