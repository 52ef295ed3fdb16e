"""Is the stack well, and is its backup young enough.

A check looks at one thing and says what it found. ``run`` asks several at once, each with a time limit, so that one
that hangs is a finding and not a hang.
"""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from cosmos_coherence import errors
from cosmos_coherence.model import Service, Stack, Volume

Outcome = Literal["ok", "warn", "fail"]

_ORDER: tuple[Outcome, ...] = ("ok", "warn", "fail")
LIMIT_S = 5.0
WARN_FULL, FAIL_FULL = 0.80, 0.95
MIN_FREE = 256 * 1024 * 1024
YOUNG_S = 26 * 3600.0
"""A daily backup may be this old before it is a warning."""


@dataclass(frozen=True, slots=True)
class CheckResult:
    """What one check found, in a few words, and how long it took."""

    name: str
    outcome: Outcome
    detail: str = ""
    ms: float = 0.0


Check = Callable[[], CheckResult]


@dataclass(frozen=True, slots=True)
class Health:
    """All findings; the worst of them is the whole."""

    outcome: Outcome
    checks: tuple[CheckResult, ...] = ()


def worst(results: Iterable[CheckResult]) -> Outcome:
    """The outcome of them together; nothing asked is nothing amiss."""
    return max((result.outcome for result in results), key=_ORDER.index, default="ok")


def run(checks: Mapping[str, Check], *, limit_s: float = LIMIT_S) -> Health:
    """Ask every check at once. One that raises, or does not answer within ``limit_s`` seconds, has failed."""
    deadline = time.monotonic() + limit_s
    asked = {name: _ask(name, check) for name, check in checks.items()}
    results = []
    for name, future in asked.items():
        try:
            results.append(future.result(timeout=max(0.0, deadline - time.monotonic())))
        except TimeoutError:
            results.append(CheckResult(name, "fail", f"no answer within {limit_s:g} s", limit_s * 1000))
    return Health(worst(results), tuple(results))


def check_services(stack: Stack) -> tuple[CheckResult, ...]:
    """Every service runs and none is unhealthy; one that is still starting is a warning."""
    if not stack.services:
        return (CheckResult("services", "fail", "no service is there"),)
    return tuple(CheckResult(f"service {service.name}", *_of_service(service)) for service in stack.services)


def check_volumes(stack: Stack) -> tuple[CheckResult, ...]:
    """Every volume exists and its disk has room, as far as it can be seen from here."""
    return tuple(CheckResult(f"volume {volume.short}", *_of_volume(volume)) for volume in stack.volumes)


def check_disk(folder: Path, min_free: int = MIN_FREE) -> CheckResult:
    """The disk that ``folder`` is on, or will be, has at least ``min_free`` bytes left."""
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(there).free
    said = f"{_gib(free)} free"
    if free < min_free:
        return CheckResult("disk", "fail", f"{said}, {_gib(min_free)} needed")
    return CheckResult("disk", "ok", said)


def check_backup_age(newest_s: float | None, *, now_s: float, young_s: float = YOUNG_S) -> CheckResult:
    """The newest complete backup (its instant in seconds since the epoch, None when there is none) is younger than
    ``young_s`` seconds; at twice that age, or with none, it is a failure.
    """
    if newest_s is None:
        return CheckResult("backup age", "fail", "there is no complete backup")
    age = now_s - newest_s
    if age < 0:
        return CheckResult("backup age", "warn", "the newest backup is dated in the future")
    outcome: Outcome = "ok" if age <= young_s else "warn" if age <= 2 * young_s else "fail"
    return CheckResult("backup age", outcome, f"{age / 3600:.1f} h")


def _of_service(service: Service) -> tuple[Outcome, str]:
    if service.state != "running":
        return "fail", service.state
    if service.health == "unhealthy":
        return "fail", "running, unhealthy"
    return ("warn" if service.health == "starting" else "ok"), service.health or "running"


def _of_volume(volume: Volume) -> tuple[Outcome, str]:
    if not volume.exists:
        return "fail", "missing"
    if volume.path is None:
        return "ok", "there; its disk cannot be seen from here"
    try:
        usage = shutil.disk_usage(volume.path)
    except OSError as error:
        return "warn", f"there; its disk cannot be measured: {error.strerror}"
    full = usage.used / max(1, usage.used + usage.free)
    outcome: Outcome = "fail" if full > FAIL_FULL else "warn" if full > WARN_FULL else "ok"
    return outcome, f"disk {full:.0%} full, {_gib(usage.free)} free"


def _gib(count: int) -> str:
    return f"{count / 2**30:.1f} GiB"


def _ask(name: str, check: Check) -> Future[CheckResult]:
    future: Future[CheckResult] = Future()

    def work() -> None:
        began = time.monotonic()
        try:
            result = check()
        except errors.CosmosError as error:
            result = CheckResult(name, "fail", error.message)
        except Exception as error:  # noqa: BLE001  whatever breaks a check is its finding
            result = CheckResult(name, "fail", f"the check itself broke: {type(error).__name__}")
        future.set_result(replace(result, name=name, ms=round((time.monotonic() - began) * 1000, 1)))

    threading.Thread(target=work, daemon=True, name=f"check {name}").start()
    return future
