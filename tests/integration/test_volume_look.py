"""The verbs of ``cosmos volume`` that look, called as a person does, on a stack of plain processes."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cosmos_coherence.drivers.local import LocalRuntime
from cosmos_coherence.flow.volumes import Watches, measure_volumes
from support.program import as_ordinary_user, cosmos
from support.trees import odd_tree, public_folder

STACK = {
    "project": "shop",
    "services": [
        {"name": "web", "argv": ["sleep", "1"], "volumes": [{"volume": "files"}]},
        {"name": "mail", "argv": ["sleep", "1"], "volumes": [{"volume": "files"}, {"volume": "spare"}]},
    ],
    "volumes": {"files": {}, "spare": {}, "lost": {}},
}


def du(root: Path) -> int:
    said = subprocess.run(["du", "-s", "--block-size=1", str(root)], capture_output=True, check=True).stdout
    return int(said.split()[0])


@pytest.fixture(scope="module")
def stack() -> Iterator[Path]:
    with public_folder() as folder:
        (folder / "stack.json").write_text(json.dumps(STACK))
        (folder / "volumes/files/uploads/large").mkdir(parents=True)
        odd_tree(folder / "volumes/files")
        (folder / "volumes/files/uploads/large/film").write_bytes(bytes(3 << 20))
        (folder / "volumes/spare").mkdir()
        os.sync()
        yield folder


def told(folder: Path, *arguments: str, status: int = 0) -> Any:
    done = cosmos("-C", str(folder), "volume", *arguments, "--json")
    assert done.returncode == status, done.stdout + done.stderr
    return json.loads(done.stdout)


def test_list(stack: Path) -> None:
    found = {each["volume"]["short"]: each for each in told(stack, "list")}
    assert found["files"]["usage"]["bytes"] == du(stack / "volumes/files")
    assert found["files"]["used_by"] == ["mail", "web"]
    assert found["files"]["last_proof"] == found["files"]["last_backup"] == "never"
    assert found["files"]["growth_per_day"] is None
    assert "never measured" in found["files"]["growth_unknown"]
    assert found["lost"]["usage"] is None
    assert not found["lost"]["volume"]["exists"]
    words = cosmos("-C", str(stack), "volume", "list").stdout
    headings = "VOLUME SIZE FILES USED BY GROWTH PER DAY LAST BACKUP LAST PROOF"
    assert " ".join(words.splitlines()[0].split()) == headings
    assert "shop_lost (missing)" in words


def test_inspect(stack: Path) -> None:
    found = told(stack, "inspect", "shop_files")
    assert found["volume"]["volume"]["path"] == str(stack / "volumes/files")
    assert found["disk"]["total"] > found["disk"]["free"] > 0
    assert "used by              mail, web" in cosmos("-C", str(stack), "volume", "inspect", "files").stdout


def test_usage(stack: Path, tmp_path: Path) -> None:
    picture = tmp_path / "usage.svg"
    found = told(stack, "usage", "files", "--picture", str(picture))
    assert found["usage"]["bytes"] == du(stack / "volumes/files")
    folders = {each["path"]: each["bytes"] for each in found["folders"]}
    assert folders["."] == found["usage"]["bytes"]
    assert folders["uploads"] == du(stack / "volumes/files/uploads")
    assert found["largest"][0]["path"] == "uploads/large/film"
    assert sum(age["files"] for age in found["ages"]) == found["usage"]["files"]
    assert "uploads: 3.0 MiB" in picture.read_text("utf-8")
    done = cosmos("-C", str(stack), "volume", "usage", "files")
    assert "\x1b" not in done.stdout
    assert f"{found['usage']['bytes']:,} bytes" in done.stdout


def test_usage_after_a_backup(stack: Path) -> None:
    made = cosmos("-C", str(stack), "backup", "--only", "volumes/spare", "--json")
    assert made.returncode in (0, 3), made.stdout
    instant = json.loads(cosmos("-C", str(stack), "list", "--json").stdout)[-1]["instant"]
    found = {each["volume"]["short"]: each["last_backup"] for each in told(stack, "list")}
    assert found == {"files": "never", "spare": instant, "lost": "never"}


def test_forecast_says_what_it_does_not_know(stack: Path) -> None:
    found = told(stack, "forecast", "files")
    assert [each["subject"].partition(":")[0] for each in found] == ["volume", "disk"]
    assert all("never measured" in each["forecast"]["unknown"] for each in found)
    assert found[0]["bytes"] == du(stack / "volumes/files")
    done = cosmos("-C", str(stack), "volume", "forecast")
    assert "unknown" in done.stdout


@pytest.mark.parametrize("verb", ["inspect", "usage", "forecast"])
def test_a_volume_that_is_not_there(stack: Path, verb: str) -> None:
    failure = told(stack, verb, "no/such", status=4)["failure"]
    assert "files, spare" in failure["remedy"]
    assert "it is missing" in told(stack, verb, "lost", status=4)["failure"]["message"]


def test_an_ordinary_user_is_told_that_it_is_a_lower_bound() -> None:
    if os.geteuid() != 0:
        pytest.skip("becomes another user")
    with public_folder() as folder, public_folder() as home:
        (folder / "stack.json").write_text(json.dumps(STACK))
        (folder / "volumes/files/closed").mkdir(parents=True, mode=0o700)
        (folder / "volumes/files/open").write_bytes(b"x")
        done = as_ordinary_user(home, "-C", str(folder), "volume", "usage", "files")
        assert done.returncode == 3, done.stdout + done.stderr
        assert "at least" in done.stdout
        assert "1 names may not be looked at: the figures are a lower bound" in done.stderr


def test_what_the_agent_measures(stack: Path) -> None:
    files = stack / "volumes/files"
    with Watches() as watches:
        found = measure_volumes(LocalRuntime(stack).stack(), watches=watches)
        assert found.how == {
            "shop_files": "by walk (the first time)",
            "shop_spare": "by walk (the first time)",
            "shop_lost": "it is missing",
        }
        (files / "newer").write_bytes(bytes(70_000))
        os.sync()
        found = measure_volumes(LocalRuntime(stack).stack(), watches=watches)
        assert found.how["shop_files"] == "by notification"
        values = {(m.subject, m.name): m.value for m in found.measurements}
        assert values["volume:shop_files", "bytes"] == du(files)
        assert values["volume:shop_spare", "files"] == 0
        assert values["volume:shop_files", "free_bytes"] > 0
        assert {name for subject, name in values if subject.startswith("disk:")} == {"free_bytes", "total_bytes"}
    (files / "newer").unlink()
    alone = measure_volumes(LocalRuntime(stack).stack())
    assert alone.how["shop_files"] == "by walk"
