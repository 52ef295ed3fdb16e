"""``stack.json``: everything that is wrong is named, and nobody else may have written it."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any

import pytest

from cosmos_coherence import errors
from cosmos_coherence.drivers import stackfile
from cosmos_coherence.drivers.stackfile import MountSpec, ServiceSpec, StackSpec, VolumeSpec


def put(folder: Path, content: Any, mode: int = 0o600) -> Path:
    path = folder / stackfile.FILE_NAME
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    path.chmod(mode)
    return path


def faults(folder: Path, content: Any) -> str:
    put(folder, content)
    with pytest.raises(errors.ConfigurationError) as caught:
        stackfile.read(folder)
    return caught.value.message


def test_comes_back_as_it_was_written(tmp_path: Path) -> None:
    spec = StackSpec(
        project="p",
        services=(
            ServiceSpec(
                name="db",
                argv=("serve", "--now"),
                image="postgres",
                cwd=tmp_path,
                environment={"PGPASSWORD": "secret"},
                volumes=(MountSpec(volume="data", target="/data"), MountSpec(path=tmp_path)),
                ready=("probe",),
                stop_signal="SIGINT",
                labels={"cosmos.kind": "postgres"},
                user="nobody",
            ),
            ServiceSpec(name="app", argv=("run",), depends_on=("db",)),
        ),
        volumes={"data": VolumeSpec(labels={"a": "b"})},
    )
    for _ in range(2):
        stackfile.write(tmp_path, spec)
        assert stackfile.read(tmp_path) == spec
    assert stat.S_IMODE((tmp_path / stackfile.FILE_NAME).stat().st_mode) == 0o600
    assert [p.name for p in tmp_path.iterdir()] == [stackfile.FILE_NAME]


def test_names_every_fault_with_its_place(tmp_path: Path) -> None:
    said = faults(
        tmp_path,
        {
            "project": "../up",
            "services": [
                {"name": "a", "argv": [], "stop_signal": "SIGNOTHING"},
                {"name": "b", "argv": ["x"], "colour": "red", "volumes": [{"volume": "v", "target": "not/absolute"}]},
            ],
        },
    )
    for place in ("project", "services.0.argv", "services.0.stop_signal", "services.1.colour", "volumes.0.target"):
        assert place in said


def test_names_every_contradiction(tmp_path: Path) -> None:
    said = faults(
        tmp_path,
        {
            "project": "p",
            "services": [
                {"name": "a", "argv": ["x"], "depends_on": ["b", "nobody"]},
                {"name": "b", "argv": ["x"], "depends_on": ["a"]},
                {"name": "c", "argv": ["x"], "volumes": [{"volume": "lost"}, {}, {"path": "relative"}]},
                {"name": "c", "argv": ["x"]},
            ],
        },
    )
    for fault in ("c is there twice", "no service nobody", "no volume lost", "either a volume or a path", "relative"):
        assert fault in said
    assert "wait for each other" in said


@pytest.mark.parametrize("content", ["", "{", "[]", '{"project": "p"}', '{"project": "p", "services": 3}', "\0"])
def test_what_is_no_stack_at_all(tmp_path: Path, content: str) -> None:
    assert "is wrong" in faults(tmp_path, content)


def test_never_repeats_a_value(tmp_path: Path) -> None:
    said = faults(
        tmp_path,
        {"project": "p", "services": [{"name": "a", "argv": ["x"], "environment": {"PGPASSWORD": ["hunter2"]}}]},
    )
    assert "hunter2" not in said


@pytest.mark.parametrize("mode", [0o620, 0o602, 0o666])
def test_one_that_others_can_write_is_not_believed(tmp_path: Path, mode: int) -> None:
    put(tmp_path, {"project": "p", "services": []}, mode)
    with pytest.raises(errors.ConfigurationError, match="can be written by others"):
        stackfile.read(tmp_path)


def test_none_at_all(tmp_path: Path) -> None:
    with pytest.raises(errors.NotFound):
        stackfile.read(tmp_path)


def test_order(tmp_path: Path) -> None:
    services = [
        ServiceSpec(name="web", argv=("x",), depends_on=("api", "absent")),
        ServiceSpec(name="api", argv=("x",), depends_on=("db", "cache")),
        ServiceSpec(name="cache", argv=("x",)),
        ServiceSpec(name="db", argv=("x",), depends_on=("cache",)),
    ]
    assert [s.name for s in stackfile.in_order(services)] == ["cache", "db", "api", "web"]
