"""No stack at all: a settings file that names folders is enough for backup, repository and restore."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from support.program import cosmos
from support.sqlite_storm import filling, steps_in
from support.trees import looks, odd_tree


@pytest.fixture
def project(tmp_path: Path) -> Path:
    folder = tmp_path / "papers"
    folder.mkdir()
    odd_tree(tmp_path / "srv")
    (folder / "cosmos.toml").write_text(f'[[source]]\nkind = "files"\nname = "srv"\npath = "{tmp_path / "srv"}"\n')
    return folder


def told(folder: Path, *arguments: str, status: int = 0):
    ended = cosmos("-C", str(folder), *arguments, "--json", DOCKER_HOST="unix:///nowhere/docker.sock")
    assert ended.returncode == status, ended.stdout + ended.stderr
    return json.loads(ended.stdout)


@pytest.mark.parametrize("kind", ["archive", "repository"])
def test_folders_alone_are_backed_up_and_restored(project: Path, kind: str) -> None:
    if kind == "repository":
        told(project, "init")
    tree = project.parent / "srv"
    before = looks(tree)
    saved = told(project, "backup")
    assert {part["name"] for part in saved["parts"]} == {"files/srv", "config"}
    for path in sorted(tree.iterdir()):
        if path.is_file() and not path.is_symlink():
            path.unlink()
    (tree / "new").write_text("made later")
    assert looks(tree) != before
    told(project, "restore", "latest", "--yes")
    assert looks(tree) == before
    assert told(project, "status")["stack"]["services"] == []


def test_a_folder_that_nobody_names_is_not_written_to(project: Path) -> None:
    saved = told(project, "backup")
    (project / "cosmos.toml").write_text(f'[[source]]\nkind = "files"\nname = "x"\npath = "{project.parent / "x"}"\n')
    (project.parent / "x").mkdir()
    refused = told(project, "restore", saved["backup"], "--yes", status=6)
    assert refused["failure"]["code"] == "hostile"


@pytest.mark.parametrize("kind", ["archive", "repository"])
def test_a_sqlite_database_whose_writer_nobody_holds(project: Path, tmp_path: Path, kind: str) -> None:
    if kind == "repository":
        told(project, "init")
    tree = tmp_path / "srv"
    with filling(tree / "app.db", tmp_path / "word", "wal", "gently") as writer:
        for _ in range(2):
            writer.wait(writer.committed + 100)
            before = writer.committed
            saved = told(project, "backup")
            after = writer.committed
    assert saved["missing"] == []
    assert next(part["details"]["sqlite"] for part in saved["parts"] if part["name"] == "files/srv") == "app.db"
    told(project, "restore", "latest", "--yes")
    assert [path.name for path in tree.glob("app.db*")] == ["app.db"]
    assert before <= steps_in(tree / "app.db") <= after + 1


def test_a_damaged_sqlite_database_makes_a_backup_incomplete(project: Path, tmp_path: Path) -> None:
    (tmp_path / "srv" / "app.db").write_bytes(b"SQLite format 3\0" + b"\7" * 9000)
    saved = told(project, "backup", status=3)
    [gap] = [gap for gap in saved["missing"] if "app.db" in gap["what"]]
    assert gap["why"].startswith("SQLite finds it damaged; it is kept as it is")
    told(project, "restore", saved["backup"], "--yes", status=0)
    assert (tmp_path / "srv" / "app.db").read_bytes() == b"SQLite format 3\0" + b"\7" * 9000


@pytest.mark.parametrize(
    ("place", "kept"), [("backups", "backups"), ("backups/below", "backups"), ("backups", "backups/below")]
)
def test_a_part_is_never_written_over_the_backups_themselves(
    project: Path, tmp_path: Path, place: str, kept: str
) -> None:
    """Backups of old hold such parts: the agent saw the folder of its backups under another path."""
    over = (project / place).resolve()
    (project / "backups" / "below").mkdir(parents=True)
    (over / "old").write_text("of then")
    more = f'[[source]]\nkind = "files"\nname = "backups"\npath = "{over}"\n'
    settings = (project / "cosmos.toml").read_text() + more
    (project / "cosmos.toml").write_text(f'[backup]\ndirectory = "{tmp_path / "first"}"\n{settings}')
    saved = told(project, "backup")
    assert {part["name"] for part in saved["parts"]} == {"files/srv", "files/backups", "config"}
    (project / "cosmos.toml").write_text(f'[backup]\ndirectory = "{kept}"\n{settings}')
    archive = project / kept / Path(saved["path"]).name
    archive.write_bytes(Path(saved["path"]).read_bytes())
    (over / "old").write_text("of now")
    (tmp_path / "srv" / "new").write_text("made later")

    refused = told(project, "restore", str(archive), "--only", "files/backups", "--yes", status=7)
    assert f"files/backups would be written over {over}, where the backups themselves lie" in str(refused["failure"])
    done = told(project, "restore", str(archive), "--yes")
    assert [note for note in done["notes"] if note.startswith("files/backups") and note.endswith("it is left out")]
    assert {part["name"] for part in done["parts"]} == {"files/srv", "config"}
    assert (over / "old").read_text() == "of now"
    assert not (tmp_path / "srv" / "new").exists()
