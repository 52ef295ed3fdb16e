"""What is asked of the engine without its SDK is answered as the SDK answers it."""

from __future__ import annotations

import pytest

import docker as sdk
from cosmos_coherence.drivers.engine import Engine
from support.docker_stack import HOST, docker

pytestmark = pytest.mark.docker


@pytest.fixture(scope="module")
def container():
    options = ("--label", "cosmos.test=calls", "--env", "A=b c", "--volume", "/x", "--network", "none")
    name = docker("run", "--detach", *options, "busybox:1", "sleep", "600").strip()
    yield name
    docker("rm", "--force", "--volumes", name)


def test_the_same_answers(container):
    ours = Engine(HOST)
    theirs = sdk.APIClient(base_url=HOST)
    try:
        label = {"label": "cosmos.test=calls"}
        listed = ours.ask("containers", all=True, filters=label)
        assert [c["Id"] for c in listed] == [c["Id"] for c in theirs.containers(all=True, filters=label)] == [container]
        inspected = ours.ask("inspect_container", container)
        assert inspected == theirs.inspect_container(container)
        volume = inspected["Mounts"][0]["Name"]
        for call, argument in [("inspect_image", "busybox:1"), ("history", "busybox:1"), ("inspect_volume", volume)]:
            assert ours.ask(call, argument) == getattr(theirs, call)(argument), call
        assert ours.ask("version") == theirs.version()
        assert ours.ask("info")["ID"] == theirs.info()["ID"]
        assert volume in {v["Name"] for v in ours.ask("volumes")["Volumes"]}
        assert ours.ask("top", container, ps_args="-eo pid,uid") == theirs.top(container, ps_args="-eo pid,uid")
        made = ours.ask("exec_create", container, ["echo", "a  b"], stdin=True, user="1", environment={"B": "c=d"})
        found = ours.ask("exec_inspect", made["Id"])
        assert found == theirs.exec_inspect(made["Id"])
        assert (found["ProcessConfig"]["arguments"], found["ProcessConfig"]["user"]) == (["a  b"], "1")
        assert found["OpenStdin"] is True
    finally:
        theirs.close()
        ours.close()
