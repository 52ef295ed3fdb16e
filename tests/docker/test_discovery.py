"""What the docker runtime finds of a stack, in all the states a stack can be in."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from cosmos_coherence import errors
from cosmos_coherence.drivers.docker import DockerRuntime, project_of
from cosmos_coherence.model import VolumeRecord
from support.docker_stack import HOST, ComposeStack, docker

pytestmark = pytest.mark.docker

STACK = """
services:
  web:
    image: busybox:1
    command: ["sleep", "1000"]
    init: true
    scale: 2
    volumes: ["shared:/shared", "/scratch", "./settings:/settings:ro"]
    tmpfs: ["/memory"]
    labels: {cosmos.hold: never}
    depends_on: {store: {condition: service_started}}
    environment: {PASSWORD: do-not-show}
    secrets: [token]
  store:
    image: busybox:1
    command: ["sleep", "1000"]
    init: true
    volumes: ["data:/data", "readonly:/readonly:ro"]
  job:
    image: busybox:1
    command: ["true"]
volumes: {data: {labels: {cosmos.exclude: "*.tmp"}}, shared: {}, readonly: {}}
secrets: {token: {file: ./token}}
"""
FILES = {"settings/app.conf": "x", "token": "t"}


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ComposeStack]:
    with ComposeStack(tmp_path_factory.mktemp("discovery"), STACK, files=FILES, start=False) as stack:
        stack.compose("up", "--detach")
        yield stack


@pytest.fixture
def own(tmp_path: Path) -> Iterator[ComposeStack]:
    """A stack that the test may change, created and not started."""
    with ComposeStack(tmp_path, STACK, files=FILES, start=False) as stack:
        stack.compose("create")
        yield stack


def test_every_copy_of_a_service_is_there(stack: ComposeStack) -> None:
    found = stack.runtime().stack()
    assert [(s.name, s.container) for s in found.services] == [
        ("job", stack.container("job")),
        ("store", stack.container("store")),
        ("web", stack.container("web", 1)),
        ("web", stack.container("web", 2)),
    ]
    job = found.service("job")
    assert job and job.state == "exited"
    web = found.service("web")
    assert web and (web.state, web.health, web.image, web.project) == ("running", None, "busybox:1", stack.project)
    assert web.labels["cosmos.hold"] == "never"
    assert web.depends_on == ("store",)
    assert web.command[-2:] == ("sleep", "1000")
    assert re.fullmatch(r"(.+@)?sha256:[0-9a-f]{64}", web.digest)
    assert web.addresses and all(re.fullmatch(r"\d+(\.\d+){3}", a) for a in web.addresses)


def test_all_kinds_of_mounts(stack: ComposeStack) -> None:
    web = stack.runtime().stack().service("web")
    assert web
    mounts = {m.target: m for m in web.mounts}
    assert set(mounts) == {"/shared", "/scratch", "/settings", "/memory", "/run/secrets/token"}
    assert (mounts["/shared"].kind, mounts["/shared"].source) == ("volume", stack.volume("shared"))
    assert mounts["/shared"].writable and not mounts["/shared"].anonymous
    assert mounts["/scratch"].anonymous
    assert (mounts["/settings"].source, mounts["/settings"].writable) == (str(stack.folder / "settings"), False)
    assert (mounts["/memory"].kind, mounts["/memory"].source) == ("tmpfs", "")


def test_an_anonymous_volume_can_be_found_by_the_mount_s_source(stack: ComposeStack) -> None:
    found = stack.runtime().stack()
    web = found.service("web")
    assert web
    anonymous = next(m for m in web.mounts if m.anonymous)
    volume = found.volume(anonymous.source)
    assert volume and volume.path and volume.path.is_dir()


def test_folder_files_and_networks(stack: ComposeStack) -> None:
    found = DockerRuntime(stack.project, directory=Path("/"), docker_host=HOST).stack()
    assert found.directory == stack.folder, "the containers know better than the folder one stands in"
    assert found.config_files == (stack.folder / "compose.yaml",)
    assert found.networks == (f"{stack.project}_default",)


def test_labels_and_names_of_volumes(stack: ComposeStack) -> None:
    data = stack.runtime().stack().volume("data")
    assert data and (data.name, data.driver, data.exists) == (stack.volume("data"), "local", True)
    assert data.labels["cosmos.exclude"] == "*.tmp"


def test_no_secret_is_part_of_a_stack(stack: ComposeStack) -> None:
    assert "do-not-show" not in repr(stack.runtime().stack())


def test_the_files_that_the_definition_refers_to(stack: ComposeStack) -> None:
    assert set(stack.runtime().referenced_files()) == {stack.folder / "settings", stack.folder / "token"}


def test_a_volume_made_by_hand_belongs_to_the_project_whose_name_it_carries(stack: ComposeStack) -> None:
    by_hand, others = stack.volume("by-hand"), f"{stack.project}_test_data"
    other_project = f"{stack.project}_test"
    try:
        docker("volume", "create", by_hand)
        docker("volume", "create", "--label", f"com.docker.compose.project={other_project}", others)
        found = stack.runtime().stack()
        made = found.volume("by-hand")
        assert made and made.name == by_hand
        assert found.volume(others) is None
    finally:
        docker("volume", "rm", by_hand, others)


def test_who_else_uses_a_volume_is_a_neighbour(stack: ComposeStack) -> None:
    name = f"{stack.project}-neighbour"
    docker("create", "--name", name, "--network", "none", "-v", f"{stack.volume('data')}:/x:ro", "busybox:1")
    try:
        (neighbour,) = stack.runtime().stack().neighbours
        assert (neighbour.container, neighbour.project, neighbour.state) == (name, "", "created")
        assert neighbour.mounts[0].source == stack.volume("data") and not neighbour.mounts[0].writable
    finally:
        docker("rm", "--force", "--volumes", name)


def test_what_compose_run_started_is_a_neighbour_and_no_service(stack: ComposeStack) -> None:
    name = f"{stack.project}-one-off"
    stack.compose("run", "--detach", "--name", name, "store", "sleep", "1000")
    try:
        found = stack.runtime().stack()
        assert [n.container for n in found.neighbours] == [name]
        assert len([s for s in found.services if s.name == "store"]) == 1
    finally:
        docker("rm", "--force", name)


def test_what_was_written_outside_of_every_mount(stack: ComposeStack) -> None:
    assert stack.runtime().layer_changes() == {}
    stack.execute(
        "store", "sh", "-c", "mkdir -p /srv/app && echo lost >/srv/app/upload; echo x >/tmp/scratch; echo x >/data/y"
    )
    try:
        assert stack.runtime().layer_changes() == {stack.container("store"): ("/srv/app/upload",)}
    finally:
        stack.execute("store", "rm", "-r", "/srv", "/tmp/scratch", "/data/y")


def test_after_down_the_files_and_the_volumes_are_left(own: ComposeStack) -> None:
    own.compose("down")
    found = own.runtime().stack()
    assert {(s.name, s.state) for s in found.services} == {("web", "missing"), ("store", "missing"), ("job", "missing")}
    assert {(v.short, v.exists) for v in found.volumes} == {("data", True), ("shared", True), ("readonly", True)}


def test_after_down_with_volumes_the_files_are_left(own: ComposeStack) -> None:
    own.compose("down", "--volumes")
    found = own.runtime().stack()
    assert {s.state for s in found.services} == {"missing"}
    assert {(v.name, v.exists) for v in found.volumes} == {
        (own.volume(n), False) for n in ("data", "shared", "readonly")
    }
    data = found.volume("data")
    assert data and data.labels["cosmos.exclude"] == "*.tmp"
    web = found.service("web")
    assert web and web.depends_on == ("store",)
    assert {m.target: (m.kind, m.source, m.writable, m.anonymous) for m in web.mounts} == {
        "/shared": ("volume", own.volume("shared"), True, False),
        "/scratch": ("volume", "", True, True),
        "/settings": ("bind", str(own.folder / "settings"), False, False),
        "/memory": ("tmpfs", "", True, False),
    }
    assert "do-not-show" not in repr(found)


def test_one_lost_container_is_a_missing_service(own: ComposeStack) -> None:
    docker("rm", own.container("store"))
    store = own.runtime().stack().service("store")
    assert store and store.state == "missing"
    with pytest.raises(errors.ServiceDown, match="store"):
        own.runtime().start(["store"])


def test_without_files_the_containers_say_everything(own: ComposeStack) -> None:
    for name in ("compose.yaml", "token"):
        (own.folder / name).unlink()
    found = own.runtime().stack()
    assert {s.name for s in found.services} == {"web", "store", "job"}
    assert found.config_files == (own.folder / "compose.yaml",)


def test_without_files_and_containers_the_volumes_are_found(own: ComposeStack, tmp_path: Path) -> None:
    own.compose("down")
    runtime = DockerRuntime(own.project, directory=tmp_path, docker_host=HOST)
    assert {v.short for v in runtime.stack().volumes} == {"data", "shared", "readonly"}
    assert runtime.stack().services == ()


def test_create_after_down_with_volumes_makes_everything_and_starts_nothing(own: ComposeStack) -> None:
    own.compose("down", "--volumes")
    own.runtime().create()
    found = own.runtime().stack()
    assert {s.state for s in found.services} == {"created"}
    assert all(v.exists for v in found.volumes)


def test_a_lost_volume_comes_back_with_options_and_labels(own: ComposeStack, tmp_path: Path) -> None:
    name = own.volume("sized")
    options = {"type": "tmpfs", "device": "tmpfs", "o": "size=1m"}
    labels = {"com.docker.compose.project": own.project, "com.docker.compose.volume": "sized"}
    record = VolumeRecord(name, "sized", options=options, labels=labels)
    with pytest.raises(errors.Refused, match="no Compose file"):
        own.runtime().create_volume(record)
    compose = own.folder / "compose.yaml"
    declared = f"volumes: {{sized: {{driver_opts: {json.dumps(options)}}}, "
    text = compose.read_text().replace("volumes: {", declared, 1)
    compose.write_text(text.replace('["data:/data", ', '["data:/data", "sized:/sized", '))
    made = own.runtime().create_volume(record)
    assert (made.short, made.options, made.labels) == ("sized", options, labels)
    assert made.path is None, "its files are there only while a container uses it"


def test_a_volume_record_cannot_reach_into_the_host(own: ComposeStack) -> None:
    hostile = {"type": "none", "o": "bind", "device": "/etc"}
    with pytest.raises(errors.Refused, match="/etc"):
        own.runtime().create_volume(VolumeRecord(own.volume("evil"), "evil", options=hostile))
    assert own.volume("evil") not in own.volumes()
    with pytest.raises(errors.ConfigurationError):
        own.runtime().create_volume(VolumeRecord("../evil", "evil"))


def test_an_unknown_stack_names_those_that_are_there(stack: ComposeStack, tmp_path: Path) -> None:
    runtime = DockerRuntime("no-such-stack", directory=tmp_path, docker_host=HOST)
    with pytest.raises(errors.NotFound, match="no-such-stack") as caught:
        runtime.stack()
    assert stack.project in caught.value.remedy


def test_the_files_of_another_project_do_not_make_an_unknown_one(stack: ComposeStack) -> None:
    with pytest.raises(errors.NotFound, match="no-such-stack"):
        DockerRuntime("no-such-stack", directory=stack.folder, docker_host=HOST).stack()


@pytest.mark.parametrize(
    ("files", "name"),
    [
        ({"compose.yaml": "name: from-file\nservices: {}\n"}, "from-file"),
        ({"compose.yaml": "name: 'a'\n", "compose.override.yaml": 'name: "b" # later wins\n'}, "b"),
        ({"compose.yaml": "name: a\n", "prod.yaml": "name: p\n", ".env": "COMPOSE_FILE=compose.yaml:prod.yaml\n"}, "p"),
        ({"compose.yaml": "name: a\n", ".env": "COMPOSE_PROJECT_NAME=from-env\n"}, "from-env"),
        ({"compose.yaml": "services: {}\n"}, "my_shop-2"),
        ({}, "my_shop-2"),
    ],
)
def test_the_project_s_name_is_the_one_that_compose_gives(tmp_path: Path, files: dict[str, str], name: str) -> None:
    folder = tmp_path / "My_Shop-2"
    folder.mkdir()
    for file, text in files.items():
        (folder / file).write_text(text)
    assert project_of(folder) == name
