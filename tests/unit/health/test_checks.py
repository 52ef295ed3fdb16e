from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path

import pytest

from cosmos_coherence import errors
from cosmos_coherence.health import checks
from cosmos_coherence.health.checks import CheckResult
from cosmos_coherence.model import Service, Stack, Volume

STACK = Stack(
    project="p", runtime="docker", directory=Path("/p"), services=(Service("db", "p-db"), Service("api", "p-api"))
)


def outcomes(results):
    return {result.name: result.outcome for result in results}


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
    assert outcomes(checks.check_services(stack)) == {"service db": "ok", "service api": outcome}


def test_a_stack_without_services_is_not_well():
    assert checks.worst(checks.check_services(replace(STACK, services=()))) == "fail"


def test_volumes(tmp_path):
    volumes = (
        Volume("p_a", "a", path=tmp_path), Volume("p_b", "b"), Volume("p_c", "c", exists=False),
        Volume("p_d", "d", path=tmp_path / "gone"),
    )  # fmt: skip
    found = outcomes(checks.check_volumes(replace(STACK, volumes=volumes)))
    assert found["volume b"] == "ok"
    assert found["volume c"] == "fail"
    assert found["volume d"] == "warn"
    assert found["volume a"] in ("ok", "warn", "fail")


def test_the_disk_of_a_folder_that_is_not_there_yet(tmp_path):
    assert checks.check_disk(tmp_path / "not" / "yet", 1).outcome == "ok"
    assert checks.check_disk(tmp_path, 2**62).outcome == "fail"


@pytest.mark.parametrize(
    ("newest", "outcome"), [(None, "fail"), (1000.0, "ok"), (899.0, "warn"), (799.0, "fail"), (1001.0, "warn")]
)
def test_the_age_of_the_backup(newest, outcome):
    assert checks.check_backup_age(newest, now_s=1000.0, young_s=100.0).outcome == outcome


def test_checks_run_at_once_and_one_that_hangs_is_a_finding():
    together, never = threading.Barrier(2, timeout=20), threading.Event()

    def meets() -> CheckResult:
        together.wait()
        return CheckResult("", "ok")

    try:
        health = checks.run({"one": meets, "other": meets}, limit_s=30)
        assert [(c.name, c.outcome) for c in health.checks] == [("one", "ok"), ("other", "ok")]
        hung = checks.run({"hung": lambda: CheckResult("", "ok" if never.wait(60) else "fail")}, limit_s=0.1)
        assert (hung.outcome, hung.checks[0].detail) == ("fail", "no answer within 0.1 s")
    finally:
        never.set()


def test_what_a_check_raises_is_its_finding():
    def down() -> CheckResult:
        raise errors.ServiceDown("the shop is shut")

    def broken() -> CheckResult:
        raise RuntimeError("password=hunter2")

    health = checks.run({"down": down, "broken": broken, "well": lambda: CheckResult("", "ok", "answers")})
    assert health.outcome == "fail"
    assert [c.detail for c in health.checks] == ["the shop is shut", "the check itself broke: RuntimeError", "answers"]


def test_the_worst_is_the_whole():
    assert checks.worst([]) == "ok"
    assert checks.worst([CheckResult("", "ok"), CheckResult("", "warn")]) == "warn"
    assert checks.worst([CheckResult("", "fail"), CheckResult("", "warn")]) == "fail"
