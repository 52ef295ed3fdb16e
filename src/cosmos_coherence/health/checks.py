"""What a check is, and asking many of them at once.

A check looks at one thing and says what it found. ``run`` asks several at once, each with a time limit, so that one
that hangs is a finding and not a hang.
"""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future
from typing import Literal, TypeVar

import msgspec
from msgspec.structs import replace

from cosmos_coherence import errors

Outcome = Literal["ok", "warn", "fail"]
T = TypeVar("T")

_ORDER: tuple[Outcome, ...] = ("ok", "warn", "fail")
LIMIT_S = 5.0


class Number(msgspec.Struct, frozen=True):
    """One number that a check met, for whoever keeps them: as in ``model.Measurement``."""

    subject: str
    name: str
    value: float


class CheckResult(msgspec.Struct, frozen=True):
    """What one check found, in a few words, and how long it took."""

    name: str
    outcome: Outcome
    detail: str = ""
    ms: float = 0.0
    numbers: tuple[Number, ...] = ()


Check = Callable[[], CheckResult | None]
"""None: there is nothing here to be looked at."""


class Health(msgspec.Struct, frozen=True):
    """All findings; the worst of them is the whole."""

    outcome: Outcome
    checks: tuple[CheckResult, ...] = ()
    taken: float = 0.0
    """When, in seconds since the epoch."""

    def and_also(self, results: Iterable[CheckResult]) -> Health:
        """The same with further findings."""
        checks = (*self.checks, *results)
        return Health(worst(checks), checks, self.taken)


def worst(results: Iterable[CheckResult]) -> Outcome:
    """The outcome of them together; nothing asked is nothing amiss."""
    return gravest(result.outcome for result in results)


def gravest(outcomes: Iterable[Outcome]) -> Outcome:
    """The one that counts; ``ok`` of none."""
    return max(outcomes, key=_ORDER.index, default="ok")


def graded(value: float, *, warn: float, fail: float) -> Outcome:
    """``fail`` above the one limit, ``warn`` above the other."""
    return "fail" if value > fail else "warn" if value > warn else "ok"


def run(checks: Mapping[str, Check], *, limit_s: float = LIMIT_S) -> Health:
    """Ask every check at once. One that raises, or does not answer within ``limit_s`` seconds, has failed."""
    taken, deadline = time.time(), time.monotonic() + limit_s
    asked = {name: _start(functools.partial(_ask, name, check)) for name, check in checks.items()}
    results: list[CheckResult] = []
    for name, future in asked.items():
        try:
            found = future.result(timeout=max(0.0, deadline - time.monotonic()))
        except TimeoutError:
            found = CheckResult(name, "fail", f"no answer within {limit_s:g} s", limit_s * 1000)
        results += [found] if found else []
    return Health(worst(results), tuple(results), taken)


def within(limit_s: float, work: Callable[[], T]) -> T:
    """What ``work`` returns or raises; ``TimeoutError`` after ``limit_s`` seconds: it is not waited for any more."""
    return _start(work).result(timeout=limit_s)


def _start(work: Callable[[], T]) -> Future[T]:
    future: Future[T] = Future()

    def carry_out() -> None:
        try:
            future.set_result(work())
        except BaseException as error:  # noqa: BLE001  it is raised where the result is asked for
            future.set_exception(error)

    threading.Thread(target=carry_out, daemon=True, name="check").start()
    return future


def _ask(name: str, check: Check) -> CheckResult | None:
    began = time.monotonic()
    try:
        result = check()
    except errors.CosmosError as error:
        result = CheckResult(name, "fail", error.message)
    except TimeoutError:
        result = CheckResult(name, "fail", "no answer in time")
    except Exception as error:  # noqa: BLE001  whatever breaks a check is its finding
        result = CheckResult(name, "fail", f"the check itself broke: {type(error).__name__}")
    return result and replace(result, name=name, ms=round((time.monotonic() - began) * 1000, 1))
