"""The judge: whether what was restored is one instant of what the writers did.

A writer's operations are one sequence, each begun when the one before was acknowledged. So at any instant its stores
hold exactly the first m of them: with p, r, f, s the highest numbers in PostgreSQL, Redis, file and SQLite and no hole
below, p >= r >= f >= s >= p - 1. (One more may be in that was under way; it is the next of the sequence, so this does
not change the shape.) Across writers: a record that has seen n operations of another writer acknowledged was written
after all of these, so they must be in, too. And with the writers' own ledger and the instant that the backup names: all
that was acknowledged before it is in, nothing that was begun after it is.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from benchmarks.coherence.record import STORES, Record, operation

State = Mapping[int, Mapping[str, Sequence[Record | None]]]
"""Of each writer, what was found in each store, in the store's order; None for a record that is torn."""
_TORN_NEXT = 1
_ROUNDED_NS = 999
"""A manifest names the instant in whole microseconds, cut off."""


@dataclass(frozen=True, slots=True)
class Violation:
    """Something that no instant can look like."""

    kind: str
    """``prefix``, ``order``, ``across``, ``instant``, ``foreign``."""
    writer: int
    says: str
    operations: int
    """How many operations that must be in are not, or the other way round."""
    ms: float
    """How much time of the writers lies between."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What was found. No violation: one instant."""

    reached: Mapping[int, Mapping[str, int]]
    """The highest number of each writer in each store."""
    violations: tuple[Violation, ...]
    operations: int
    """How many were found, of all writers."""
    missing: int = 0
    """Operations that are missing below the last one of their writer, of all writers."""
    torn: int = 0
    """Records that were under way; never one that counts."""

    @property
    def skew_operations(self) -> int:
        """The largest of any violation; 0 when there is none."""
        return max((v.operations for v in self.violations), default=0)

    @property
    def skew_ms(self) -> float:
        """The longest of any violation; 0 when there is none."""
        return max((v.ms for v in self.violations), default=0.0)

    @property
    def one_instant(self) -> bool:
        """Whether nothing speaks against it."""
        return not self.violations

    def as_dict(self) -> dict[str, Any]:
        """For a line of JSON."""
        return {
            "one_instant": self.one_instant,
            "skew_operations": self.skew_operations,
            "skew_ms": round(self.skew_ms, 3),
            "operations": self.operations,
            "missing": self.missing,
            "torn": self.torn,
            "reached": {str(writer): dict(stores) for writer, stores in self.reached.items()},
            "violations": [asdict(violation) for violation in self.violations],
        }


def judge(
    found: State,
    stores: Sequence[str] = STORES,
    *,
    ledger: Mapping[int, Sequence[int]] | None = None,
    instant_ns: int | None = None,
) -> Verdict:
    """Judge what was restored.

    ``ledger``: of each writer when each operation began, in nanoseconds, beyond what was backed up; with it no record
    of another run passes, and together with ``instant_ns`` no backup that is consistent but too old or too new.
    """
    logs = {writer: _Log(writer, of, stores) for writer, of in sorted(found.items())}
    violations = [v for log in logs.values() for v in log.faults()]
    violations += [v for log in logs.values() for v in _across(log, logs)]
    for writer, log in logs.items():
        if ledger is not None:
            violations += _of_this_run(log, ledger[writer])
            if instant_ns is not None:
                violations += _at(log, ledger[writer], instant_ns)
    return Verdict(
        reached={writer: log.reached for writer, log in logs.items()},
        violations=tuple(violations),
        operations=sum(len(log.records) for log in logs.values()),
        missing=sum(log.missing(log.highest) for log in logs.values()),
        torn=sum(log.torn for log in logs.values()),
    )


class _Log:
    """The operations of one writer, put together again from its stores."""

    def __init__(self, writer: int, found: Mapping[str, Sequence[Record | None]], stores: Sequence[str]) -> None:
        self.writer, self._stores = writer, stores
        self.records: dict[int, Record] = {}
        self.reached: dict[str, int] = {}
        self.torn = 0
        self._disorder: list[str] = []
        for place, store in enumerate(stores):
            records = [record for record in found[store] if record is not None]
            self.torn += len(found[store]) - len(records)
            numbers = [record.k for record in records]
            if numbers != sorted(set(numbers)):
                self._disorder.append(f"{store} holds numbers twice or out of their order")
            if found[store][:-_TORN_NEXT].count(None):
                self._disorder.append(f"{store} holds torn records that are not its last")
            self.reached[store] = max(numbers, default=0)
            self.records |= {operation(record.k, place, len(stores)): record for record in records}
        self.highest = max(self.records, default=0)
        self.whole = next(n for n in range(1, self.highest + 2) if n not in self.records) - 1
        """The operations up to here are all in."""

    def missing(self, up_to: int) -> int:
        return sum(n not in self.records for n in range(self.whole + 1, up_to + 1))

    def ms_since_whole(self, at_ns: int) -> float:
        """From the last operation before the first that is missing."""
        last = self.records.get(self.whole) or min(self.records.values(), key=lambda r: r.at_ns, default=None)
        return max(0.0, (at_ns - last.at_ns) / 1e6) if last else 0.0

    def faults(self) -> Iterator[Violation]:
        for says in self._disorder:
            yield Violation("order", self.writer, says, 1, 0.0)
        if self.highest > self.whole:
            where = " ".join(f"{store} {k}" for store, k in self.reached.items())
            last = self.records[self.highest]
            count = self.missing(self.highest)
            says = f"{count} operations are missing below the last one that is in: {where}"
            yield Violation("prefix", self.writer, says, count, self.ms_since_whole(last.at_ns))


def _across(log: _Log, logs: Mapping[int, _Log]) -> Iterator[Violation]:
    """What the records of one writer have seen of the others."""
    for other in logs.values():
        if other is log or not log.records:
            continue
        record = max(log.records.values(), key=lambda r: r.seen[other.writer])
        if count := other.missing(record.seen[other.writer]):
            seen = f"{record.seen[other.writer]} operations of writer {other.writer}"
            says = f"has seen {seen}, of which {count} are missing"
            yield Violation("across", log.writer, says, count, other.ms_since_whole(record.at_ns))


def _of_this_run(log: _Log, began: Sequence[int]) -> Iterator[Violation]:
    strange = [
        n for n, record in log.records.items()
        if n > len(began) or record.at_ns != began[n - 1] or record.seen[log.writer] != n - 1
    ]  # fmt: skip
    if strange:
        yield Violation("foreign", log.writer, f"{len(strange)} records are not of this run", len(strange), 0.0)


def _at(log: _Log, began: Sequence[int], instant_ns: int) -> Iterator[Violation]:
    """All that was acknowledged by the instant is in: what is followed by one that began before it."""
    most = bisect.bisect_right(began, instant_ns + _ROUNDED_NS)
    least = bisect.bisect_right(began, instant_ns) - 1
    if log.whole < least:
        ms = (instant_ns - began[log.whole]) / 1e6
        says = f"{least - log.whole} operations that were acknowledged by the instant are missing"
        yield Violation("instant", log.writer, says, least - log.whole, ms)
    if log.highest > most:
        ms = (began[min(log.highest, len(began)) - 1] - instant_ns) / 1e6
        says = f"{log.highest - most} operations began after the instant"
        yield Violation("instant", log.writer, says, log.highest - most, ms)
