from __future__ import annotations

import threading

from cosmos_coherence import errors
from cosmos_coherence.health import checks
from cosmos_coherence.health.checks import CheckResult


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


def test_a_check_with_nothing_to_look_at_is_left_out():
    assert [c.name for c in checks.run({"none": lambda: None, "one": lambda: CheckResult("", "ok")}).checks] == ["one"]
