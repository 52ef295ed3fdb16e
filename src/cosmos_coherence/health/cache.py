"""Does a Redis or Valkey server answer, does it save, and has it memory left."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from cosmos_coherence.health.checks import CheckResult, Number, Outcome, graded, gravest

WARN, FAIL = 0.80, 0.95
"""Shares of ``maxmemory``."""

_KEPT = {
    "rdb_last_bgsave_status": "the last save failed",
    "aof_last_bgrewrite_status": "the last rewrite of the append-only file failed",
    "aof_last_write_status": "the append-only file cannot be written",
}


def check_cache(service: str, ping: Callable[[], str], info: Callable[[str], Mapping[str, str]]) -> CheckResult:
    """It answers PING, its last save and its append-only file are well, and its memory is not used up.

    ``info`` gives a section of ``INFO``. Both raise when the server does not answer.
    """
    said = ping()
    stopped = said.startswith("MISCONF ")  # also PING is answered so while a failed save stops all writes
    if said != "PONG" and not stopped:
        return CheckResult(f"cache {service}", "fail", "answers PING with something else")
    memory, kept = info("memory"), info("persistence")
    findings = [*_persistence(kept), *_memory(memory)]
    if stopped:
        findings.append(("fail", "refuses writes"))
    used = _whole(memory, "used_memory")
    numbers = [Number(f"service:{service}", "memory_bytes", used)]
    if most := _whole(memory, "maxmemory"):
        numbers.append(Number(f"service:{service}", "memory_most_bytes", most))
    told = ", ".join(["answers", *(text for _, text in findings)])
    return CheckResult(f"cache {service}", gravest(o for o, _ in findings), told, numbers=tuple(numbers))


def _persistence(kept: Mapping[str, str]) -> Iterator[tuple[Outcome, str]]:
    for name, sentence in _KEPT.items():
        if kept.get(name, "ok") != "ok":
            yield "fail", sentence
    if kept.get("loading", "0") == "1":
        yield "warn", "still loads its data"


def _memory(memory: Mapping[str, str]) -> Iterator[tuple[Outcome, str]]:
    used, most = _whole(memory, "used_memory"), _whole(memory, "maxmemory")
    if not most:
        yield "ok", f"{used / 2**20:.1f} MiB used"
        return
    outcome = graded(used / most, warn=WARN, fail=FAIL)
    said = f"{used / 2**20:.1f} of {most / 2**20:.1f} MiB used"
    if memory.get("maxmemory_policy", "noeviction") != "noeviction":
        yield "ok", f"{said}, the oldest keys make room"  # a full cache that evicts does what it is for
    else:
        yield outcome, f"{said}, then writes are refused" if outcome != "ok" else said


def _whole(found: Mapping[str, str], name: str) -> int:
    text = found.get(name, "")
    return int(text) if text.isdecimal() else 0
