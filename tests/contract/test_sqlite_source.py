"""One SQLite database as a source of its own: taken at the instant, brought back, and nothing beside it touched."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import tarfile
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from cosmos_coherence import errors, sources
from cosmos_coherence.drivers.local import LocalRuntime
from cosmos_coherence.model import Part, SourceRef
from cosmos_coherence.sources.base import Restorer, Source
from support import trees
from support.capturing import capture
from support.killing import killed_at
from support.memory_parts import MemorySink
from support.program import cosmos
from support.sqlite_storm import filling, steps_in

FILES = ("", "-wal", "-journal", "-shm")


def opened(place: Path, tmp_path: Path) -> Source:
    ref = SourceRef(kind="sqlite", part="sqlite/app", path=place)
    return sources.open_source(ref, sources.Setting(LocalRuntime(tmp_path), "r1", tmp_path))


def taken(place: Path, tmp_path: Path, **steps: Any) -> tuple[Part, MemorySink]:
    source = opened(place, tmp_path)
    try:
        return capture(source, **steps)
    finally:
        source.close()


def restorer(part: Part, place: Path, **options: Any) -> Restorer:
    told = Part(part.name, part.kind, part.files, details={"path": str(place)}, fingerprint=part.fingerprint)
    made = sources.open_restorer(told, place.parent, LocalRuntime(place.parent), "r1")
    made._checkpoint = options.get("checkpoint", lambda step: None)  # type: ignore[attr-defined]
    return made


def rows(place: Path) -> list[Any]:
    with closing(sqlite3.connect(place)) as database:
        assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        return database.execute("SELECT * FROM t ORDER BY 1").fetchall()


def fill(place: Path, *values: str) -> sqlite3.Connection:
    """What is committed lies in the ``-wal`` only, as long as the connection is open."""
    database = sqlite3.connect(place, isolation_level=None)
    database.execute("PRAGMA journal_mode = wal")
    database.execute("PRAGMA wal_autocheckpoint = 0")
    database.execute("CREATE TABLE IF NOT EXISTS t(value)")
    database.executemany("INSERT INTO t VALUES (?)", [(value,) for value in values])
    return database


def crash(place: Path, value: str) -> None:
    """Somebody who was killed has left ``-wal`` and ``-shm`` there, with what was committed last."""

    def run(checkpoint: Callable[[str], None]) -> None:
        fill(place, value)
        checkpoint("filled")

    assert killed_at(1, run)
    assert Path(f"{place}-wal").stat().st_size


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Where a database is to lie, under a name that tells nothing, among other things."""
    folder = tmp_path / "srv"
    folder.mkdir(mode=0o750)
    for name in ("state-2", "state.wal", "unrelated"):
        (folder / name).write_text(name)
    (folder / "below").mkdir()
    (folder / "below" / "state").write_text("another one")
    return folder / "state"


@pytest.fixture
def saved(place: Path, tmp_path: Path) -> tuple[Part, MemorySink]:
    with closing(fill(place, "old")):
        return taken(place, tmp_path)


@pytest.mark.parametrize("mode", ["wal", "delete"])
def test_what_was_committed_at_the_instant(place: Path, tmp_path: Path, mode: str) -> None:
    with filling(place, tmp_path / "word", mode, "fast") as writer:
        writer.wait(writer.committed + 200)
        done: list[int] = []

        def hold() -> None:
            writer.hold()
            done.append(writer.committed)

        part, sink = taken(place, tmp_path, prepared=hold, anchored=writer.release)
    assert (part.name, part.kind, part.details["sqlite"]) == ("sqlite/app", "sqlite", "state")
    restore(part, sink, place)
    assert done[0] <= steps_in(place) <= done[0] + 1


def restore(part: Part, sink: MemorySink, place: Path) -> None:
    way = restorer(part, place)
    way.stage(sink.reader())
    way.swap()
    way.verify()
    way.finish()


def others(place: Path) -> dict[bytes, Any]:
    names = {f"{place.name}{ending}".encode() for ending in FILES}
    return {path: look for path, look in trees.looks(place.parent).items() if path not in names}


def test_nothing_beside_it_is_captured_or_touched(saved: tuple[Part, MemorySink], place: Path) -> None:
    part, sink = saved
    assert part.fingerprint.tree is not None
    names = {entry.path for entry, _ in sink.reader().tree("sqlite/app")}
    assert names == {b"", b"state", b"state-wal", b"state-shm"}
    (place.parent / "unrelated").write_text("newer")
    place.parent.chmod(0o711)
    before = others(place)
    crash(place, "newer")  # its -wal and -shm would spoil the old database
    restore(part, sink, place)
    assert others(place) == before
    assert place.parent.stat().st_mode & 0o777 == 0o711
    assert rows(place) == [("old",)]


def test_a_lost_folder_is_made(saved: tuple[Part, MemorySink], tmp_path: Path) -> None:
    place = tmp_path / "lost" / "deep" / "state"
    restore(*saved, place)
    assert rows(place) == [("old",)]


@pytest.mark.parametrize("act", ["swap", "undo"])
def test_killed_at_every_point_it_goes_back(saved: tuple[Part, MemorySink], place: Path, act: str) -> None:
    part, sink = saved
    with closing(fill(place, "newer")):
        before, step, killed = trees.looks(place.parent), 1, True
        while killed:
            restorer(part, place).stage(sink.reader())
            if act == "undo":
                restorer(part, place).swap()

            def run(checkpoint: Callable[[str], None]) -> None:
                getattr(restorer(part, place, checkpoint=checkpoint), act)()

            killed = killed_at(step, run)
            restorer(part, place).undo()
            assert trees.looks(place.parent) == before
            step += 1
    assert step > 8
    assert rows(place) == [("newer",), ("old",)]


def test_what_is_no_database_is_said(place: Path, tmp_path: Path) -> None:
    for why, make in {
        "it is not there": lambda: None,
        "it does not begin like one": lambda: place.write_text("some text, and more of it"),
        "it is no file": lambda: (place.unlink(), place.symlink_to("unrelated")),
    }.items():
        make()
        with pytest.raises(errors.CaptureFailed, match=f"state is no SQLite database: {why}"):
            opened(place, tmp_path)
    place.unlink()
    place.touch()
    assert taken(place, tmp_path)[0].kind == "sqlite"


def test_a_part_that_holds_other_names_is_refused(tmp_path: Path, place: Path) -> None:
    with closing(fill(place, "old")):
        ref = SourceRef(kind="files", part="sqlite/app", path=place.parent)
        setting = sources.Setting(LocalRuntime(tmp_path), "r1", tmp_path)
        source = sources.open_source(ref, setting)
        part, sink = capture(source)
        source.close()
    hostile = Part(part.name, "sqlite", part.files, fingerprint=part.fingerprint)
    with pytest.raises(errors.Hostile, match="also holds below, which is no part of it"):
        restorer(hostile, place).stage(sink.reader())


@pytest.mark.parametrize("kind", ["archive", "repository"])
def test_by_name_in_the_settings(place: Path, tmp_path: Path, kind: str) -> None:
    project = tmp_path / "project"
    project.mkdir()
    (project / "cosmos.toml").write_text(f'[[source]]\nkind = "sqlite"\nname = "app"\npath = "{place}"\n')

    def told(*arguments: str, status: int = 0) -> Any:
        ended = cosmos("-C", str(project), *arguments, "--json", DOCKER_HOST="unix:///nowhere/docker.sock")
        assert ended.returncode == status, ended.stdout + ended.stderr
        return json.loads(ended.stdout)

    assert told("backup", status=1)["failure"]["code"] == "capture-failed"
    if kind == "repository":
        told("init")
    with closing(fill(place, "old")):
        saved = told("backup")
    assert {part["name"] for part in saved["parts"]} == {"sqlite/app", "config"}
    before = others(place)
    crash(place, "newer")
    told("restore", "latest", "--yes")
    assert rows(place) == [("old",)]
    for ending in FILES:
        Path(f"{place}{ending}").unlink(missing_ok=True)
    told("restore", "latest", "--yes")
    assert rows(place) == [("old",)]
    assert others(place) == before
    told("restore", "latest", "--to", str(tmp_path / "to"))
    assert rows(tmp_path / "to" / "sqlite" / "app" / "state") == [("old",)]
    if kind == "archive":
        by_hand(Path(saved["path"]), place, tmp_path)


def by_hand(archive: Path, place: Path, tmp_path: Path) -> None:
    """As the archive's own page says."""
    crash(place, "newer")
    with tarfile.open(archive) as file:
        file.extractall(tmp_path / "unpacked", filter="tar")
    (folder,) = (tmp_path / "unpacked").iterdir()
    page = (folder / "README.txt").read_text()
    lines = page[page.index("== SQLite") :].split("\n\n")[2].splitlines()
    mode = place.parent.stat().st_mode
    subprocess.run(["bash", "-ec", "\n".join(lines)], cwd=folder, check=True, env=os.environ)
    assert rows(place) == [("old",)]
    assert place.parent.stat().st_mode == mode
