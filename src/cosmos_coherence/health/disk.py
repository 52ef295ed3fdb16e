"""How full disks and volumes are, by bytes and by inodes."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

import msgspec

from cosmos_coherence import errors
from cosmos_coherence.health.checks import CheckResult, Number, Outcome, graded, gravest, within, worst
from cosmos_coherence.model import Volume

MIN_FREE = 256 * 1024 * 1024
LIMIT = "cosmos.limit"
"""Label of a volume: how much it may hold (``10GiB``)."""

_SIZE = re.compile(r"(\d{1,15}(?:\.\d{1,6})?)\s*([KMGTP]?)(i?)B?", re.IGNORECASE | re.ASCII)
_MEASURED_IN = 0.9
"""Of its time limit, after which a walk through a volume is given up, so that the check can say so itself."""


class Limits(msgspec.Struct, frozen=True):
    """Shares above which something is too full."""

    warn: float = 0.80
    fail: float = 0.95


class Fullness(msgspec.Struct, frozen=True):
    """What is left of a file system, for whoever is not root."""

    used: float
    """Share of the bytes, as ``df`` says it: what is kept for root is not free."""
    size_bytes: int
    used_bytes: int
    free_bytes: int
    inodes: float = 0.0
    """Share of the inodes; 0 where the file system makes them as it goes."""
    free_inodes: int = 0


def fullness(path: Path) -> Fullness:
    """Of the file system that ``path`` lies on. ``OSError``."""
    found = os.statvfs(path)
    used, inodes = found.f_blocks - found.f_bfree, found.f_files - found.f_ffree
    return Fullness(
        used=used / max(1, used + found.f_bavail),
        size_bytes=found.f_blocks * found.f_frsize,
        used_bytes=used * found.f_frsize,
        free_bytes=found.f_bavail * found.f_frsize,
        inodes=inodes / max(1, inodes + found.f_favail) if found.f_files else 0.0,
        free_inodes=found.f_favail,
    )


def existing(folder: Path) -> Path:
    """The folder, or the nearest above it that is there. ``OSError``."""
    return next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())


def check_disk(folder: Path, min_free: int = MIN_FREE) -> CheckResult:
    """The disk that ``folder`` is on, or will be, has at least ``min_free`` bytes left."""
    return _room(fullness(existing(folder)), min_free)


def check_fullness(folder: Path, limits: Limits, *, min_free: int = 0) -> CheckResult:
    """The same, and neither its bytes nor its inodes are used beyond the limits."""
    there = existing(folder)
    found = fullness(there)
    room = _room(found, min_free)
    numbers = _numbers(f"disk:{folder}", found)
    if room.outcome == "fail":
        return CheckResult("disk", "fail", room.detail, numbers=numbers)
    outcome, said = judged(found, limits)
    return CheckResult("disk", outcome, said, numbers=numbers)


def check_volume(
    volume: Volume, limits: Limits, *, disk: Path | None, size: Callable[[Path], int], limit_s: float
) -> CheckResult:
    """The volume exists, its disk has room, and it holds no more than its label ``cosmos.limit`` allows.

    ``disk`` is where its files lie where they themselves cannot be reached; ``size`` measures a tree. Raises
    ``ConfigurationError`` for a label that is no size.
    """
    name, allowed = f"volume {volume.short}", limit_of(volume)
    place = volume.path or disk
    if not volume.exists:
        return CheckResult(name, "fail", "missing")
    if place is None:
        return CheckResult(name, "ok", "there; its disk cannot be seen from here")
    try:
        found = fullness(place)
    except OSError as error:
        return CheckResult(name, "warn", f"there; its disk cannot be measured: {error.strerror}")
    outcome, said = judged(found, limits)
    results = [CheckResult(name, outcome, f"disk {said}", numbers=_numbers(f"volume:{volume.name}", found))]
    if allowed is not None:
        results.append(_within_limit(volume, allowed, limits, size, limit_s))
    return CheckResult(
        name,
        worst(results),
        ", ".join(result.detail for result in reversed(results)),
        numbers=tuple(number for result in results for number in result.numbers),
    )


def judged(found: Fullness, limits: Limits) -> tuple[Outcome, str]:
    """Against the limits, and in words; inodes are told when they are what runs short."""
    by_bytes = graded(found.used, warn=limits.warn, fail=limits.fail)
    by_inodes = graded(found.inodes, warn=limits.warn, fail=limits.fail)
    said = f"{found.used:.0%} full, {_gib(found.free_bytes)} free"
    if by_inodes != "ok":
        said += f", inodes {found.inodes:.0%} used, {found.free_inodes} left"
    return gravest((by_bytes, by_inodes)), said


def limit_of(volume: Volume) -> int | None:
    """The bytes that its label allows; None without one. ``ConfigurationError`` for something else than a size."""
    text = volume.labels.get(LIMIT, "").strip()
    if not text:
        return None
    found = _SIZE.fullmatch(text)
    if not found or not float(found[1]):
        raise errors.ConfigurationError(
            f"label {LIMIT}={text[:40]!a} of volume {volume.short} is no size", remedy="Write it like 500MB or 10GiB."
        )
    return int(float(found[1]) * (1024 if found[3] else 1000) ** " KMGTP".index(found[2].upper() or " "))


def _within_limit(
    volume: Volume, allowed: int, limits: Limits, size: Callable[[Path], int], limit_s: float
) -> CheckResult:
    path = volume.path
    if path is None:
        return CheckResult("", "warn", f"its size, {_gib(allowed)} at most, cannot be measured from here")
    try:
        held = within(limit_s * _MEASURED_IN, lambda: size(path))
    except TimeoutError:
        return CheckResult("", "warn", f"its size, {_gib(allowed)} at most, takes too long to measure")
    subject = f"volume:{volume.name}"
    return CheckResult(
        "",
        graded(held / allowed, warn=limits.warn, fail=1.0),
        f"holds {_gib(held)} of {_gib(allowed)}",
        numbers=(Number(subject, "bytes", held), Number(subject, "limit_bytes", allowed)),
    )


def _room(found: Fullness, min_free: int) -> CheckResult:
    said = f"{_gib(found.free_bytes)} free"
    if found.free_bytes < min_free:
        return CheckResult("disk", "fail", f"{said}, {_gib(min_free)} needed")
    return CheckResult("disk", "ok", said)


def _numbers(subject: str, found: Fullness) -> tuple[Number, ...]:
    inodes = (Number(subject, "free_inodes", found.free_inodes),) if found.inodes else ()
    return (Number(subject, "free_bytes", found.free_bytes), Number(subject, "used_ratio", found.used), *inodes)


def _gib(count: int) -> str:
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 or not count else f"{count / 2**20:.1f} MiB"
