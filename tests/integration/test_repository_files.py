"""A repository of folders alone: where its password comes from, an ordinary user, and a copy past what is damaged."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from cosmos_coherence.repository.repository import Repository
from cosmos_coherence.storage.folder import FolderBackend
from support.ordinary_user import ordinary_user
from support.program import cosmos
from support.trees import looks, odd_tree, public_folder

NOWHERE = "unix:///nowhere/docker.sock"
SECRET = "right-Horse-9 with a space"


@pytest.fixture
def project() -> Iterator[Path]:
    with public_folder() as place:
        yield papers(place)


def papers(place: Path) -> Path:
    """A project whose only part is the folder ``srv`` beside it."""
    folder = place / "papers"
    folder.mkdir()
    odd_tree(place / "srv")
    (folder / "cosmos.toml").write_text(f'[[source]]\nkind = "files"\nname = "srv"\npath = "{place / "srv"}"\n')
    return folder


def call(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return cosmos("-C", str(folder), *arguments, DOCKER_HOST=NOWHERE, **environment)


def told(folder: Path, *arguments: str, status: int = 0, **environment: str):
    ended = call(folder, *arguments, "--json", **environment)
    assert ended.returncode == status, ended.stdout + ended.stderr
    return json.loads(ended.stdout)


def empty(tree: Path) -> None:
    for path in sorted(tree.iterdir()):
        if path.is_file() and not path.is_symlink():
            path.unlink()
    (tree / "new").write_text("made later")


# ------------------------------------------------------------------------------------------- a password by a command
def password_command(project: Path, script: str) -> None:
    """Have the password printed by this, a program below the project's folder."""
    (project / "secrets").mkdir(mode=0o700, exist_ok=True)
    program = project / "secrets" / "print password"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o700)
    text = (project / "cosmos.toml").read_text().split("\n[repository]")[0]
    block = '\n[repository]\nurl = "backups/repository"\npassword_command = ["./secrets/print password", "stacks"]\n'
    (project / "cosmos.toml").write_text(text + block)


def test_a_command_prints_the_password(project: Path, tmp_path: Path) -> None:
    """Called from anywhere; a line's end is none of it, nor is what comes after."""
    password_command(project, f"test \"$1\" = stacks && printf '%s\\r\\nand more\\n' '{SECRET}'")
    made = call(project, "init", "--kit", str(tmp_path / "kit"))
    assert made.returncode == 0, made.stderr
    assert SECRET not in made.stdout + made.stderr
    assert SECRET in (tmp_path / "kit").read_text()
    Repository.open(FolderBackend(project / "backups" / "repository"), SECRET)
    tree = project.parent / "srv"
    before = looks(tree)
    password_command(project, f"printf '%s' '{SECRET}'")
    assert SECRET not in json.dumps(told(project, "backup"))
    empty(tree)
    assert looks(tree) != before
    password_command(project, f"echo '{SECRET}'")
    told(project, "restore", "latest", "--yes")
    assert looks(tree) == before
    told(project, "restore", "latest", "--to", str(tmp_path / "all"))
    held = [p for p in (tmp_path / "all").rglob("*") if p.is_file() and SECRET.encode() in p.read_bytes()]
    assert held == [], "no backup holds what opens it"

    wrong = told(project, "list", COSMOS_REPOSITORY__PASSWORD_COMMAND=f"echo '{SECRET} not'", status=6)
    assert wrong["failure"]["code"] == "wrong-password"
    assert SECRET not in json.dumps(wrong)
    line = {"COSMOS_REPOSITORY__PASSWORD_COMMAND": f"echo '{SECRET}'"}
    assert len(told(project, "list", **line)) == 2, "the environment's line is words as a shell makes them"


@pytest.mark.parametrize(
    ("script", "status", "code", "says"),
    [
        (f"echo '{SECRET}'; echo 'no such entry' >&2; exit 3", 1, "command-failed", "no such entry"),
        (":", 2, "configuration", "empty"),
        (f"echo; echo '{SECRET}'", 2, "configuration", "empty"),
        (f"yes '{SECRET}'", 1, "command-failed", "more than"),
        ("", 1, "command-failed", "print password"),
    ],
    ids=["fails", "prints nothing", "an empty line", "does not end", "is not there"],
)
def test_a_command_that_does_not_give_it(project: Path, script: str, status: int, code: str, says: str) -> None:
    """What it printed is never said, only what it complained of; and no repository gets an empty password."""
    password_command(project, script)
    if not script:
        (project / "secrets" / "print password").unlink()
    for verb in ("init", "backup"):
        ended = call(project, verb, "--json")
        failure = json.loads(ended.stdout)["failure"]
        assert (ended.returncode, failure["code"]) == (status, code), ended.stdout
        assert says in failure["message"]
        plain = call(project, verb)
        assert (plain.returncode, says in plain.stderr) == (status, True)
        assert SECRET not in ended.stdout + ended.stderr + plain.stdout + plain.stderr
    assert not (project / "backups" / "repository" / "config").exists()


def test_no_key_gets_an_empty_password(project: Path, tmp_path: Path) -> None:
    told(project, "init", "--kit", str(tmp_path / "kit"))
    (tmp_path / "empty").write_text("\n")
    for what in ("add", "change"):
        told(project, "key", what, "--new-password-file", str(tmp_path / "empty"), status=7)
    assert len(told(project, "key")["keys"]) == 1


# ------------------------------------------------------------------------------------------------- an ordinary user
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can call as somebody else")
def test_an_ordinary_user_backs_up_and_restores() -> None:
    """What the user may read is all there again; of what nobody but others may read, no backup is made in silence."""
    with public_folder() as place:
        folder = papers(place)
        tree = place / "srv"
        for path in (tree / "closed", tree / "set-id"):
            path.chmod(0o700)
        os.removexattr(tree / "dangling", "trusted.link", follow_symlinks=False)  # root's alone, also to read
        with ordinary_user(place, engine=NOWHERE, image="none") as user:
            for path in (tree, *tree.rglob("*")):
                os.chown(path, 65534, 65534, follow_symlinks=False)

            def asked(*arguments: str, status: int = 0):
                ended = user.cosmos("-C", str(folder), *arguments, "--json", DOCKER_HOST=NOWHERE)
                assert ended.returncode == status, ended.stdout + ended.stderr
                return json.loads(ended.stdout)

            asked("init")
            before = looks(tree)
            first = asked("backup")
            empty(tree)
            assert looks(tree) != before
            second = asked("backup")
            asked("restore", first["backup"], "--yes")
            assert looks(tree) == before
            assert asked("check", "--read-data", "all")["checked"] is True
            assert {entry.stat().st_uid for entry in (folder / "backups" / "repository").rglob("*")} == {65534}

            foreign = tree / "foreign"
            foreign.write_text("of root")
            foreign.chmod(0o600)
            assert "foreign" in asked("backup", status=1)["failure"]["message"]
            foreign.unlink()
            assert len(asked("list")) == 3, "two backups, and the one that the restore made first"
            asked("restore", second["backup"], "--yes")
            assert (tree / "new").read_text() == "made later"


# -------------------------------------------------------------------------------------------------------------- copy
def test_a_copy_goes_on_past_what_is_damaged(project: Path, tmp_path: Path) -> None:
    (project / "secrets").mkdir(mode=0o700)
    (project / "secrets" / "copy-password").write_text("another one\n")
    other = str(tmp_path / "second")
    second = {"COSMOS_REPOSITORY__URL": other, "COSMOS_REPOSITORY__PASSWORD_FILE": "secrets/copy-password"}
    told(project, "init", "--kit", str(tmp_path / "kit"))
    told(project, "init", "--kit", str(tmp_path / "kit2"), **second)
    tree, repository = project.parent / "srv", project / "backups" / "repository"
    saved, states, files = [], [], []
    for number in range(4):
        (tree / "changing").write_bytes(os.urandom(50_000))
        before = set(repository.rglob("*"))
        saved.append(told(project, "backup")["backup"])
        states.append(looks(tree))
        files.append({path for path in set(repository.rglob("*")) - before if path.is_file()})
        assert number == len(saved) - 1
    pack = max((path for path in files[1] if path.parent.parent.name == "data"), key=lambda path: path.stat().st_size)
    pack.unlink()
    (snapshot,) = (path for path in files[2] if path.parent.name == "snapshots")
    snapshot.chmod(0o600)
    snapshot.write_bytes(snapshot.read_bytes()[:-5])

    copied = told(project, "copy", other, status=6)
    assert (copied["status"], copied["copied"], copied["there_already"]) == ("failed", 2, 0)
    assert len(copied["damaged"]) == 2
    assert any(saved[1] in sentence for sentence in copied["damaged"])
    assert any(snapshot.name[:8] in sentence for sentence in copied["damaged"])
    again = call(project, "copy", other)
    assert (again.returncode, saved[1] in again.stderr, snapshot.name[:8] in again.stderr) == (6, True, True)
    assert "0 backups copied, 2 were there already, 2 DAMAGED" in again.stdout
    assert told(project, "copy", other, saved[0], saved[3])["damaged"] == [], "the others were not asked for"
    assert told(project, "copy", other, saved[1], status=6)["copied"] == 0

    assert told(project, "check", "--read-data", "all", **second)["checked"] is True
    assert [one["id"] for one in told(project, "list", **second)] == [saved[0], saved[3]]
    for number in (3, 0):
        told(project, "restore", saved[number], "--yes", **second)
        assert looks(tree) == states[number]
