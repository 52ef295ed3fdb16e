"""How far a run has come: what is told is what passed, and what is left is never made up."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from cosmos_coherence.cli import render
from cosmos_coherence.copied import Copied
from cosmos_coherence.flow.events import Advanced, PartDone
from cosmos_coherence.flow.progress import Meter, MeteredReader, MeteredWriter, expected_of
from cosmos_coherence.model import Entry, Manifest, Part, PartFile
from support.memory_parts import MemoryReader, MemorySink


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 1.0
        return self.now


def manifest(*files: PartFile) -> Manifest:
    return Manifest("20260101_000000", "p", "process", "", 0.0, "", parts=(Part("x", "volume", files),))


def test_what_passes_is_counted_and_what_is_left_comes_from_the_last_backup():
    told: list[Advanced] = []
    last = manifest(PartFile("volumes/a.tar.gz", 10, "", 3000), PartFile("database.sql.gz", 10, "", 1000))
    meter = Meter(told.append, expected_of(last), Clock())
    meter.add("volumes/a", 500, 1)
    meter.add("database.sql", 1500)
    first, second = told
    assert (first.all_bytes, first.all_files, first.total_bytes) == (500, 1, 4000)
    assert (second.all_bytes, second.bytes_done, second.total_bytes) == (2000, 1500, 4500)
    assert second.seconds_left == pytest.approx(2500 / second.bytes_per_s)


def test_nothing_is_guessed_without_a_last_backup_and_not_everything_is_told():
    told: list[Advanced] = []
    now = [0.0]
    meter = Meter(told.append, expected_of(None), lambda: now[0])
    for _ in range(1000):
        meter.add("volumes/a", 1, 1)
    assert told == []
    now[0] = 1.0
    meter.add("volumes/a", 1, 1)
    (event,) = told
    assert (event.all_bytes, event.total_bytes, event.seconds_left) == (1001, None, None)


def test_it_changes_nothing_on_the_way():
    told: list[Advanced] = []
    sink = MemorySink()
    meter = Meter(told.append, {}, Clock())
    writer = MeteredWriter(sink, meter)  # type: ignore[arg-type]
    with writer.stream("database.sql") as out:
        out.write(b"rows")
    tree = writer.tree("volumes/v")
    entries = [Entry(b"", "dir", 0o755), Entry(b"a", "file", size=3)]
    tree.add(entries[1], io.BytesIO(b"abc"))
    tree.finish(map(Copied.of, entries))
    reader = MeteredReader(MemoryReader(sink.streams, sink.trees), meter)  # type: ignore[arg-type]
    with reader.open("database.sql") as content:
        assert content.read(10) == b"rows"
    assert [(e.path, c and c.read()) for e, c in reader.tree("volumes/v")] == [(b"", None), (b"a", b"abc")]
    assert told[-1].all_bytes == 2 * (4 + 3)


def test_a_terminal_is_drawn_on_and_a_file_gets_a_line_for_each_part(monkeypatch: pytest.MonkeyPatch):
    class Screen(io.StringIO):
        def isatty(self) -> bool:
            return True

    event = Advanced("volumes/a", 500, 1, 1 << 30, 12345, 3 << 30, 210 * 2**20, 11.4)
    for screen, drawn in ((Screen(), True), (io.StringIO(), False)):
        monkeypatch.setattr("sys.stderr", screen)
        progress = render.Progress()
        progress(event)
        progress(PartDone("volumes/a", 2048))
        assert ("1.0 GiB of 3.0 GiB, 12,345 files, 210.0 MiB/s, 0:11 left" in screen.getvalue()) == drawn
        assert screen.getvalue().endswith("volumes/a  2.0 KiB\n")
        assert screen.getvalue().count("\n") == 1


def test_a_line_that_was_drawn_is_cleared_before_the_next(tmp_path: Path):
    assert render.advance(Advanced("x", 1, 0, 1, 0, None, 0.0, None)) == "1 B, 0 files, 0 B/s  x"
