"""No stack at all: a settings file that names folders is enough for backup, repository and restore."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from support.program import cosmos
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
