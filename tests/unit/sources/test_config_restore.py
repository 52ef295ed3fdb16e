"""Configuration comes back where it is missing; what differs is left alone or kept aside, and always undone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from cosmos_coherence import errors
from cosmos_coherence.model import Part, SourceRef
from cosmos_coherence.sources.config import ConfigSource
from cosmos_coherence.sources.config_restore import ConfigRestorer
from support import trees
from support.killing import killed_at
from support.memory_parts import MemoryReader, MemorySink

NAMES = ("compose.yaml", ".env", "configs", "link")


@pytest.fixture
def backup(tmp_path: Path) -> tuple[Part, MemoryReader]:
    root = tmp_path / "saved"
    (root / "configs" / "deep").mkdir(parents=True)
    (root / "configs" / "a").write_text("a")
    (root / "configs" / "deep" / "b").write_text("b")
    (root / "compose.yaml").write_text("services: {}\n")
    (root / ".env").write_text("SECRET=1\n")
    (root / ".env").chmod(0o600)
    (root / "link").symlink_to("configs/a")
    source, sink = ConfigSource(SourceRef("config", "config", path=root), root, NAMES), MemorySink()
    source.prepare(sink)
    source.anchor()
    part = source.capture(sink)
    source.close()
    return part, sink.reader()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A project with one equal file, two that differ, one that is not in the backup, and some that are missing."""
    project = tmp_path / "project"
    (project / "configs").mkdir(parents=True)
    (project / "compose.yaml").write_text("services: {}\n")
    (project / ".env").write_text("SECRET=2\n")
    (project / "link").mkdir()
    (project / "link" / "inside").write_text("kept")
    (project / "configs" / "mine").write_text("mine")
    return project


def restorer(part: Part, folder: Path, *, overwrite: bool, **options: Any) -> ConfigRestorer:
    return ConfigRestorer(part, folder, "r", overwrite=overwrite, **options)


def names(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_only_what_is_missing_comes_back(backup: tuple[Part, MemoryReader], folder: Path) -> None:
    part, reader = backup
    one = restorer(part, folder, overwrite=False)
    one.stage(reader)
    assert one.differing == (".env", "link")
    one.swap()
    one.verify()
    one.finish()
    one.finish()
    assert names(folder) == [
        ".env", "compose.yaml", "configs", "configs/a", "configs/deep", "configs/deep/b", "configs/mine",
        "link", "link/inside",
    ]  # fmt: skip
    assert (folder / ".env").read_text() == "SECRET=2\n"


def test_overwriting_replaces_what_differs(backup: tuple[Part, MemoryReader], folder: Path) -> None:
    part, reader = backup
    one = restorer(part, folder, overwrite=True)
    one.stage(reader)
    one.swap()
    one.verify()
    one.finish()
    assert ((folder / ".env").read_text(), (folder / ".env").stat().st_mode & 0o777) == ("SECRET=1\n", 0o600)
    assert (folder / "link").readlink() == Path("configs/a")
    assert (folder / "configs" / "mine").read_text() == "mine"
    assert not list(folder.glob(".cosmos*"))


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("act", ["swap", "undo"])
def test_undo_whenever_it_was_killed(
    backup: tuple[Part, MemoryReader], folder: Path, overwrite: bool, act: str
) -> None:
    part, reader = backup
    before = contents(folder)
    step = 1
    while True:
        one = restorer(part, folder, overwrite=overwrite)
        one.stage(reader)
        assert contents(folder) == before
        if act == "undo":
            one.swap()

        def run(checkpoint: Callable[[str], None]) -> None:
            getattr(restorer(part, folder, overwrite=overwrite, checkpoint=checkpoint), act)()

        killed = killed_at(step, run)
        restorer(part, folder, overwrite=overwrite).undo()
        restorer(part, folder, overwrite=overwrite).undo()
        assert contents(folder) == before
        assert not list(folder.glob(".cosmos*"))
        if not killed:
            break
        step += 1
    assert step > 4


def contents(folder: Path) -> dict[bytes, tuple[Any, ...]]:
    """Without the times of folders: files come and go in them."""
    return {
        path: look[:3] + look[4:] if look[7] is None else look
        for path, look in trees.looks(folder).items()
    }  # fmt: skip


def test_a_killed_swap_goes_on(backup: tuple[Part, MemoryReader], folder: Path) -> None:
    part, reader = backup
    for step in range(1, 8):
        restorer(part, folder, overwrite=True).stage(reader)
        killed_at(step, lambda checkpoint: restorer(part, folder, overwrite=True, checkpoint=checkpoint).swap())
        restorer(part, folder, overwrite=True).swap()
        restorer(part, folder, overwrite=True).verify()
        restorer(part, folder, overwrite=True).undo()


def test_a_missing_project_is_made_and_removed(backup: tuple[Part, MemoryReader], tmp_path: Path) -> None:
    part, reader = backup
    one = restorer(part, tmp_path / "new", overwrite=False)
    one.stage(reader)
    one.swap()
    one.verify()
    assert (tmp_path / "new" / "configs" / "deep" / "b").read_text() == "b"
    one.undo()
    assert not (tmp_path / "new").exists()


def test_nothing_is_written_through_a_link(backup: tuple[Part, MemoryReader], folder: Path, tmp_path: Path) -> None:
    part, reader = backup
    (tmp_path / "elsewhere").mkdir()
    (folder / "configs" / "mine").unlink()
    (folder / "configs").rmdir()
    (folder / "configs").symlink_to(tmp_path / "elsewhere")
    one = restorer(part, folder, overwrite=False)
    one.stage(reader)
    one.swap()
    one.finish()
    assert "configs" in [path.name for path in folder.iterdir() if path.is_symlink()]
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_verify_reads_what_was_moved_in(backup: tuple[Part, MemoryReader], folder: Path) -> None:
    part, reader = backup
    one = restorer(part, folder, overwrite=True)
    one.stage(reader)
    one.swap()
    (folder / "configs" / "deep" / "b").write_text("B")
    (folder / ".env").unlink()
    with pytest.raises(errors.NotEqual, match=r"\.env, configs/deep/b$"):
        one.verify()


def test_a_changed_backup_is_not_staged(backup: tuple[Part, MemoryReader], folder: Path) -> None:
    part, reader = backup
    entry, _ = reader.trees["configs"][b".env"]
    reader.trees["configs"][b".env"] = (replace(entry, mode=0o644), b"SECRET=1\n")
    with pytest.raises(errors.NotEqual):
        restorer(part, folder, overwrite=True).stage(reader)
    assert (folder / ".env").read_text() == "SECRET=2\n"
