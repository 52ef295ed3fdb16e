"""SQLite databases in volumes: what is restored is whole, and holds what was committed at the instant."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import time
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path
from typing import BinaryIO

import pytest

from cosmos_coherence.copied import Copied
from cosmos_coherence.model import Entry, Part, PartFile, SourceRef
from cosmos_coherence.sources import sqlite_live
from cosmos_coherence.sources.tree_restore import TreeRestorer
from cosmos_coherence.sources.volume import TreeSource
from support import trees
from support.memory_parts import MemorySink, MemoryTree
from support.sqlite_storm import CHECKPOINT, IDLE, filling, steps_in

PART = "files/data"
MODES = ["wal", "delete", "truncate", "persist"]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "root"
    folder.mkdir()
    return folder


def source_of(root: Path, *, still: bool = True, rounds: int = 5) -> TreeSource:
    ref = SourceRef(kind="files", part=PART, path=root)
    return TreeSource(ref, root, spool=root.parent, still=still, rounds=rounds)


def capture(root: Path, *, still: bool = True) -> tuple[Part, MemorySink, list[str]]:
    source, sink = source_of(root, still=still), MemorySink()
    source.prepare(sink)
    source.anchor()
    part = source.capture(sink)
    gaps = [f"{gap.what}: {gap.why}" for gap in source.gaps if not gap.chosen]
    source.close()
    assert not list(root.parent.glob("sqlite-*")), "copies stay behind"
    return part, sink, gaps


def restore(part: Part, sink: MemorySink, root: Path) -> None:
    restorer = TreeRestorer(part, PART, root, "run")
    restorer.stage(sink.reader())
    restorer.swap()
    restorer.verify()
    restorer.finish()


def plant(place: Path, mode: str = "delete", rows: int = 300) -> None:
    """A database that nobody has open."""
    with closing(sqlite3.connect(place)) as database:
        database.execute(f"PRAGMA journal_mode = {mode}")
        database.execute("CREATE TABLE log(step INTEGER PRIMARY KEY, bytes BLOB)")
        database.execute("CREATE TABLE total(steps INTEGER)")
        database.executemany("INSERT INTO log VALUES (?, randomblob(1500))", [(row + 1,) for row in range(rows)])
        database.execute("INSERT INTO total VALUES (?)", (rows,))
        database.commit()


def change_times(root: Path) -> dict[str, int]:
    return {str(path): path.stat().st_ctime_ns for path in [root, *root.rglob("*")]}


# ------------------------------------------------------------------------------------------ the writers stand still
@pytest.mark.parametrize("mode", MODES)
def test_what_was_committed_at_the_instant_comes_back(root: Path, tmp_path: Path, mode: str) -> None:
    for turn in range(3):
        place, back = root / f"app{turn}.db", tmp_path / f"back{turn}"
        with filling(place, tmp_path / "word", mode) as writer:
            writer.wait(200)
            source, sink = source_of(root), MemorySink()
            source.prepare(sink)
            writer.hold()
            source.anchor()
            committed = writer.committed
            subprocess.run(["cp", "-a", str(root), str(tmp_path / f"reference{turn}")], check=True)
            writer.release()
            writer.wait(committed + 50)
            part = source.capture(sink)
            assert source.gaps == ()
            source.close()
        restore(part, sink, back)
        assert trees.looks(back) == trees.looks(tmp_path / f"reference{turn}"), "byte by byte as at the instant"
        assert steps_in(back / place.name) in (committed, committed + 1)
        assert place.name in part.details["sqlite"] + part.details.get("sqlite_unchecked", "")
        place.unlink()
        for beside in root.glob(f"{place.name}-*"):
            beside.unlink()


@pytest.mark.parametrize("mode", MODES)
def test_a_transaction_that_is_half_in_the_database_is_undone(root: Path, tmp_path: Path, mode: str) -> None:
    with filling(root / "app.db", tmp_path / "word", mode, "spilled") as writer:
        writer.wait(300, IDLE)
        writer.hold()
        part, sink, gaps = capture(root)
    assert (gaps, part.details) == ([], {"sqlite": "app.db"})
    restore(part, sink, tmp_path / "back")
    assert {entry.path for entry, _ in sink.trees[PART].values()} > {b"app.db"}, "nothing beside it, this shows nothing"
    if mode != "wal":
        shutil.copy(tmp_path / "back" / "app.db", tmp_path / "alone.db")
        with closing(sqlite3.connect(tmp_path / "alone.db")) as database:
            assert database.execute("PRAGMA quick_check").fetchall() != [("ok",)], "the journal is not needed"
    assert steps_in(tmp_path / "back" / "app.db") == 300


def test_a_checkpoint_that_is_half_done(root: Path, tmp_path: Path) -> None:
    met = 0
    with filling(root / "app.db", tmp_path / "word", "wal", "checkpoints") as writer:
        for turn in range(12):
            source, sink = source_of(root), MemorySink()
            source.prepare(sink)
            writer.wait(writer.committed + 1, CHECKPOINT)
            writer.hold()
            source.anchor()
            committed, phase = writer.committed, writer.phase
            writer.release()
            part = source.capture(sink)
            assert source.gaps == ()
            source.close()
            restore(part, sink, tmp_path / f"back{turn}")
            assert steps_in(tmp_path / f"back{turn}" / "app.db") in (committed, committed + 1)
            met += phase == CHECKPOINT
            if met == 3:
                return
    pytest.fail("no checkpoint was met, this shows nothing")


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("still", [True, False])
def test_a_database_that_nobody_has_open(root: Path, tmp_path: Path, mode: str, still: bool) -> None:
    plant(root / "app.db", mode)
    plant(root / "no-telling-name", mode)
    time.sleep(0.05)
    before, times = trees.looks(root), change_times(root)
    part, sink, gaps = capture(root, still=still)
    assert trees.looks(root) == before, "the capture has changed the volume"
    assert change_times(root) == times or (not still and mode == "persist"), "SQLite gives a journal its owner"
    assert (gaps, part.details) == ([], {"sqlite": "app.db, no-telling-name"}), "of few files all are looked at"
    restore(part, sink, tmp_path / "back")
    assert steps_in(tmp_path / "back" / "app.db") == steps_in(tmp_path / "back" / "no-telling-name") == 300


def test_what_only_has_the_name_of_a_database(root: Path) -> None:
    (root / "Thumbs.db").write_bytes(b"\xd0\xcf\x11\xe0" * 500)
    (root / "empty.db").touch()
    (root / "short.db").write_bytes(b"SQLite")
    (root / "folder.db").mkdir()
    (root / "pipe.db-wal").symlink_to("nowhere")
    os.mkfifo(root / "pipe.db")
    assert capture(root)[0].details == {}


@pytest.mark.parametrize("still", [True, False])
def test_a_damaged_database_is_kept_as_it_is_and_named(root: Path, tmp_path: Path, still: bool) -> None:
    for name in ("app.db", "cut\nshort.db", "fine.db"):
        plant(root / name)
    with (root / "app.db").open("r+b") as file:
        file.seek(8 * 4096)
        file.write(os.urandom(3 * 4096))
    os.truncate(root / "cut\nshort.db", 40_000)
    for name in ("app.db", "cut\nshort.db"):
        with pytest.raises((sqlite3.Error, AssertionError)):
            steps_in(root / name)
    before = trees.looks(root)
    part, sink, gaps = capture(root, still=still)
    assert [gap.partition(": ")[0] for gap in gaps] == [f"app.db of {PART}", f"cut\\nshort.db of {PART}"]
    assert all("damaged" in gap for gap in gaps)
    assert part.details["sqlite"] == "fine.db"
    restore(part, sink, tmp_path / "back")
    for name in (b"app.db", b"cut\nshort.db"):
        assert trees.looks(tmp_path / "back")[name] == before[name]


def test_what_this_sqlite_cannot_judge_is_not_called_damaged(root: Path) -> None:
    plant(root / "newer.db")
    with closing(sqlite3.connect(root / "newer.db")) as database:
        database.execute("PRAGMA writable_schema = ON")
        database.execute("UPDATE sqlite_schema SET sql = 'CREATE TABLE log(step) OF THE FUTURE' WHERE name = 'log'")
        database.commit()
    plant(root / "several.db")
    journal = root / "several.db-journal"
    journal.write_bytes(bytes(600) + bytes.fromhex("d9d505f920a163d7"))
    part, _, gaps = capture(root)
    assert gaps == []
    assert set(part.details) == {"sqlite_unchecked"}
    assert "newer.db (SQLite" in part.details["sqlite_unchecked"]
    assert "several.db (it is in a transaction over several" in part.details["sqlite_unchecked"]


def test_a_database_that_changes_right_after_the_instant(root: Path, tmp_path: Path) -> None:
    """Nobody read it in the pause, and it is not any more what it was: then nothing is said of it."""
    plant(root / "app.db")
    time.sleep(0.1)
    source, sink = source_of(root), MemorySink()
    source.prepare(sink)
    source.anchor()
    with closing(sqlite3.connect(root / "app.db")) as database:
        database.execute("DELETE FROM log")
        database.commit()
    part = source.capture(sink)
    assert source.gaps == ()
    source.close()
    assert part.details == {"sqlite_unchecked": "app.db (it changed before it could be looked at)"}
    restore(part, sink, tmp_path / "back")
    assert steps_in(tmp_path / "back" / "app.db") == 300


# ---------------------------------------------------------------------------------------------- nobody stands still
@pytest.mark.parametrize("mode", MODES)
def test_where_writers_run_on_sqlite_makes_the_copy(root: Path, tmp_path: Path, mode: str) -> None:
    (root / "sub").mkdir()
    for turn in range(2):
        place = root / "sub" / f"what? a%20#{turn}.db"
        with filling(place, tmp_path / "word", mode) as writer:
            writer.wait(200)
            before = writer.committed
            part, sink, gaps = capture(root, still=False)
            after = writer.committed
            names = {path.name for path in place.parent.iterdir()}
            assert names <= {each for end in ("", "-wal", "-shm", "-journal") for each in (f"{place.name}{end}",)}
        assert gaps == []
        assert (part.details["sqlite"], "sqlite_unchecked" in part.details) == (f"sub/{place.name}", False)
        restore(part, sink, tmp_path / f"back{turn}")
        assert [path.name for path in (tmp_path / f"back{turn}" / "sub").iterdir()] == [place.name]
        assert before <= steps_in(tmp_path / f"back{turn}" / "sub" / place.name) <= after + 1
        for path in place.parent.iterdir():
            path.unlink()


def test_a_writer_that_holds_its_lock_all_the_time(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite_live, "_STEPS_S", 0.1)
    monkeypatch.setattr(sqlite_live, "_BUSY_S", 0.1)
    with filling(root / "app.db", tmp_path / "word", "delete", "locked") as writer:
        writer.wait(200, IDLE)
        _, _, gaps = capture(root, still=False)
    assert any(gap.startswith(f"app.db of {PART}: it was written while it was copied, and SQLite") for gap in gaps)


def test_sqlites_copy_is_never_taken_for_the_file(root: Path, tmp_path: Path) -> None:
    """The next backup finds no file that is as this one was read."""
    with filling(root / "app.db", tmp_path / "word", "wal", "idle") as writer:
        writer.wait(20, IDLE)
        source, sink = source_of(root, still=False), MemorySink()
        source.prepare(sink)
        source.anchor()
        source.capture(sink)
        assert [copied.found.ctime_ns for copied in source._databases.apart.values()] == [0]
        source.close()


# ------------------------------------------------------------------------------------------------------ how long
class ForgetfulTree(MemoryTree):
    """Keeps nothing: only the time counts."""

    def add(self, entry: Entry, content: BinaryIO) -> str:
        while content.read(1 << 20):
            pass
        return "0" * 64

    def finish(self, names: Iterable[Copied]) -> PartFile:
        return PartFile(PART, sum(each.found.size for each in names), "")


@pytest.mark.soak
@pytest.mark.parametrize("mode", ["wal", "delete"])
def test_a_large_database_at_full_speed(root: Path, tmp_path: Path, mode: str) -> None:
    with closing(sqlite3.connect(root / "app.db")) as database:
        database.execute("CREATE TABLE ballast(bytes BLOB)")
        database.executemany("INSERT INTO ballast VALUES (randomblob(4000))", [() for _ in range(75_000)])
        database.commit()
    took, captured = [], []
    with filling(root / "app.db", tmp_path / "word", mode) as writer:
        for turn in range(5):
            source, sink = source_of(root, rounds=1), MemorySink()
            sink.tree = lambda name: ForgetfulTree({}, name)  # type: ignore[method-assign]
            source.prepare(sink)
            writer.hold()
            began = time.perf_counter()
            source.anchor()
            took.append((time.perf_counter() - began) * 1000)
            writer.release()
            began = time.perf_counter()
            part = source.capture(sink)
            captured.append(time.perf_counter() - began)
            source.close()
            assert (source.gaps, part.details) == ((), {"sqlite": "app.db"}), turn
    size = (root / "app.db").stat().st_size >> 20
    print(f"\n{mode}, {size} MiB at the end: anchor {', '.join(f'{ms:.0f}' for ms in took)} ms; "
          f"capture with the proof {', '.join(f'{s:.2f}' for s in captured)} s")  # fmt: skip
