"""The judge of coherence on made-up runs: it passes every instant, and it finds everything that is none."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass, field

import pytest
from benchmarks.coherence import campaign
from benchmarks.coherence.checker import Verdict, judge
from benchmarks.coherence.record import (
    PER_FILE,
    STORES,
    WIDTH,
    Record,
    in_order,
    line,
    lines,
    operation,
    parse,
    place,
    text,
)

WRITERS = 3
MS = 1_000_000


@dataclass
class Run:
    """Writers that took turns by chance, one operation each millisecond."""

    operations: list[tuple[int, int, Record]] = field(default_factory=list)
    ledger: dict[int, list[int]] = field(default_factory=lambda: {w: [] for w in range(WRITERS)})

    @classmethod
    def by(cls, chance: random.Random, length: int) -> Run:
        run, done = cls(), [0] * WRITERS
        for moment in range(1, length + 1):
            writer = chance.randrange(WRITERS)
            k, store = divmod(done[writer], len(STORES))
            record = Record(k + 1, moment * MS, tuple(done))
            done[writer] += 1
            run.ledger[writer].append(record.at_ns)
            run.operations.append((writer, store, record))
        return run

    def state(self, *until: int, without: int | None = None) -> dict[int, dict[str, list[Record | None]]]:
        """What the stores hold when each was looked at after so many operations of all; one number: all at once."""
        moments = until * len(STORES) if len(until) == 1 else until
        found: dict[int, dict[str, list[Record | None]]] = {w: {s: [] for s in STORES} for w in range(WRITERS)}
        for moment, (writer, store, record) in enumerate(self.operations):
            if moment < moments[store] and moment != without:
                found[writer][STORES[store]].append(record)
        return found

    def verdict(self, found, instant: int | None = None) -> Verdict:
        return judge(found, ledger=self.ledger, instant_ns=None if instant is None else instant * MS + MS // 2)


@pytest.fixture
def run(rng: random.Random) -> Run:
    return Run.by(rng, 300)


def kinds(verdict: Verdict) -> set[str]:
    return {violation.kind for violation in verdict.violations}


def test_every_instant_passes(run):
    for moment in range(len(run.operations) + 1):
        verdict = run.verdict(run.state(moment), moment)
        assert verdict.violations == ()
        assert (verdict.operations, verdict.skew_operations, verdict.skew_ms) == (moment, 0, 0.0)


def test_an_operation_under_way_may_be_in_or_not(run):
    """Acknowledged nowhere: the writer had begun it when everything stood still."""
    for moment in range(1, len(run.operations)):
        writer = run.operations[moment - 1][0]
        if run.operations[moment][0] != writer:
            assert run.verdict(run.state(moment, without=moment - 1), moment).one_instant


def test_any_one_that_is_missing_is_found(run):
    last = {writer: moment for moment, (writer, _, _) in enumerate(run.operations)}
    for moment, (writer, _, _) in enumerate(run.operations):
        verdict = run.verdict(run.state(300, without=moment))
        if moment != last[writer]:
            assert "prefix" in kinds(verdict)
            assert verdict.missing == 1
        else:  # only another writer can know of it
            later = any(r.seen[writer] == len(run.ledger[writer]) for w, _, r in run.operations if w != writer)
            assert kinds(verdict) == ({"across"} if later else set())


def test_a_store_that_is_later_is_found_with_its_size(run):
    early, late = 100, 200
    for store in range(1, len(STORES)):
        moments = [early] * len(STORES)
        moments[store] = late
        verdict = run.verdict(run.state(*moments))
        assert {"prefix", "across"} == kinds(verdict)
        longest = max(v.ms for v in verdict.violations if v.kind == "prefix")
        assert (late - early) * 0.8 < longest < (late - early) * 1.3
        assert 30 < verdict.missing < 100


def test_one_writer_that_is_later_than_the_others_is_found_though_each_is_whole(run):
    found, later = run.state(100), run.state(200)
    verdict = run.verdict({**found, 1: later[1]})
    assert kinds(verdict) == {"across"}
    assert {violation.writer for violation in verdict.violations} == {1}
    assert 20 < verdict.skew_operations < 60


@pytest.mark.parametrize("off", [-3, 3])
def test_one_instant_but_not_the_one_that_is_named_is_found(run, off):
    verdict = run.verdict(run.state(150 + off * WRITERS), 150)
    assert kinds(verdict) == {"instant"}


def test_nothing_at_all_is_found(run):
    assert run.verdict(run.state(0)).one_instant, "without an instant there is nothing to compare with"
    verdict = run.verdict(run.state(0), 150)
    assert kinds(verdict) == {"instant"}
    assert verdict.skew_ms == pytest.approx(150, abs=10)


def test_records_of_another_run_are_found(run, rng):
    assert "foreign" in kinds(run.verdict(Run.by(rng, 300).state(100)))


def test_what_is_twice_or_out_of_order_is_found(run):
    for spoil in (lambda rows: rows.append(rows[-1]), lambda rows: rows.reverse()):
        found = run.state(200)
        spoil(found[0]["redis"])
        assert "order" in kinds(run.verdict(found))


def test_without_sqlite(run):
    stores = STORES[:3]
    found = {0: {store: [Record(k, k, (0,)) for k in range(1, 6)] for store in stores}}
    assert judge(found, stores).one_instant
    found[0]["postgres"].pop()
    assert judge(found, stores).skew_operations == 1
    assert operation(2, 0, 3) == 4


# ------------------------------------------------------------------------------------------------- records in files
def test_records_read_back():
    records = [Record(k, k * MS + 7, (k, 0, 10**9)) for k in range(1, 5)]
    assert [parse(text(record)) for record in records] == records
    content = b"".join(map(line, records))
    assert list(lines(content)) == records
    assert list(lines(content.ljust(PER_FILE * WIDTH, b"\0"))) == records


def test_a_mapped_file_is_read_in_the_order_of_writing():
    records = [Record(k, k, (k,)) for k in range(1, PER_FILE + 1)]
    content = bytearray(PER_FILE * WIDTH)
    for slot, record in enumerate(records):
        content[place(slot) * WIDTH : (place(slot) + 1) * WIDTH] = line(record)
    assert list(lines(in_order(bytes(content)))) == records


def test_a_torn_record_counts_as_none_and_only_at_the_end_it_passes():
    records = [Record(k, k, (k - 1,)) for k in range(1, 4)]
    torn = b"".join(map(line, records))[:-20]
    assert list(lines(torn)) == list(lines(torn.ljust(len(torn) + 20 + WIDTH, b"\0"))) == [*records[:2], None]
    whole = {"postgres": records, "redis": records}
    verdict = judge({0: {**whole, "file": [*records[:2], None]}}, STORES[:3])
    assert (verdict.one_instant, verdict.torn) == (True, 1)
    verdict = judge({0: {**whole, "file": [records[0], None, records[2]]}}, STORES[:3])
    assert kinds(verdict) == {"order", "prefix"}


# ------------------------------------------------------------------------------------------------------ a campaign
def test_a_campaign_goes_on_after_what_is_whole(tmp_path):
    results = tmp_path / "coherence.ndjson"
    assert campaign.read(results, "process") == []
    rows = [json.dumps({"runtime": runtime, "round": 1}) for runtime in ("process", "docker", "process")]
    results.write_text("\n".join(rows) + "\n" + rows[0][:-5])
    assert len(campaign.read(results, "process")) == 2
    assert campaign.campaign("docker", 1, results) == [{"runtime": "docker", "round": 1}], "there is nothing left to do"
