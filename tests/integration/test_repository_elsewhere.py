"""The whole road with a repository on another machine: object storage, SFTP, restic's REST protocol, append-only."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping

import pytest

from support import backend_servers as servers
from support.embedded_stack import EmbeddedStack, embedded_stack
from support.program import cosmos

pytestmark = [pytest.mark.postgres, pytest.mark.redis]

Environment = Mapping[str, str]


@pytest.fixture(scope="module")
def stack() -> Iterator[EmbeddedStack]:
    with embedded_stack(writer=False) as made:
        (made.folder / "secrets").mkdir(mode=0o700)
        yield made


def secret(stack: EmbeddedStack, name: str, value: str) -> str:
    path = stack.folder / "secrets" / name
    path.write_text(value + "\n")
    path.chmod(0o600)
    return f"secrets/{name}"


def told(stack: EmbeddedStack, environment: Environment, *arguments: str, status: int = 0):
    ended = cosmos("-C", str(stack.folder), *arguments, "--json", **environment)
    assert ended.returncode == status, ended.stdout + ended.stderr
    assert servers.SECRET not in ended.stdout + ended.stderr
    assert servers.PASSWORD not in ended.stdout + ended.stderr
    return json.loads(ended.stdout)


@pytest.fixture(params=["s3", "sftp", "rest"])
def elsewhere(request: pytest.FixtureRequest, stack: EmbeddedStack) -> Iterator[Environment]:
    common = {"COSMOS_REPOSITORY_PASSWORD": "of the repository"}
    match request.param:
        case "s3":
            with servers.seaweedfs() as s3:
                yield common | {
                    "COSMOS_REPOSITORY__URL": f"s3://{servers.BUCKET}/stacks",
                    "COSMOS_REPOSITORY__S3_ENDPOINT": s3.endpoint,
                    "COSMOS_REPOSITORY__S3_KEY_ID": servers.KEY_ID,
                    "COSMOS_REPOSITORY__S3_SECRET_FILE": secret(stack, "s3", servers.SECRET),
                }
        case "sftp":
            with servers.sshd() as sftp:
                yield common | {
                    "COSMOS_REPOSITORY__URL": f"sftp://{sftp.user}@127.0.0.1:{sftp.port}/{sftp.folder}/stacks",
                    "COSMOS_REPOSITORY__SFTP_KEY": str(sftp.key),
                    "COSMOS_REPOSITORY__SFTP_KNOWN_HOSTS": str(sftp.known_hosts),
                }
        case _:
            with servers.rclone_restic() as rest:
                yield common | _rest(stack, rest.port)


def _rest(stack: EmbeddedStack, port: int) -> Environment:
    return {
        "COSMOS_REPOSITORY__URL": f"rest:http://127.0.0.1:{port}/stacks",
        "COSMOS_REPOSITORY__REST_USER": servers.USER,
        "COSMOS_REPOSITORY__REST_PASSWORD_FILE": secret(stack, "rest", servers.PASSWORD),
    }


def test_there_and_back(stack: EmbeddedStack, elsewhere: Environment, tmp_path) -> None:
    told(stack, elsewhere, "init", "--kit", str(tmp_path / "kit"))
    state = stack.state()
    first = told(stack, elsewhere, "backup")
    stack.change()
    second = told(stack, elsewhere, "backup")
    assert second["size"] * 4 < first["size"]
    assert told(stack, elsewhere, "check", "--read-data", "all")["checked"] is True
    told(stack, elsewhere, "restore", first["backup"], "--yes")
    assert stack.state() == state
    gone = told(stack, elsewhere, "forget", "--keep-within", "0s", "--prune")
    assert first["backup"] in gone["remove"]
    assert told(stack, elsewhere, "check", "--read-data", "all")["checked"] is True


def test_a_store_that_only_appends_keeps_its_past(stack: EmbeddedStack, tmp_path) -> None:
    """Whoever has the host has our password and our key to the store, and still cannot make it forget."""
    with servers.rclone_restic(append_only=True) as rest:
        there = _rest(stack, rest.port) | {"COSMOS_REPOSITORY_PASSWORD": "of the repository"}
        told(stack, there, "init", "--kit", str(tmp_path / "kit"))
        state = stack.state()
        first = told(stack, there, "backup")
        stack.change()
        told(stack, there, "backup")
        refused = told(stack, there, "forget", "--keep-within", "0s", status=7)
        assert refused["failure"]["code"] == "refused"
        told(stack, there, "forget", "--keep-within", "100d", "--prune")  # it wants the lock alone, and lets go of it
        assert told(stack, there, "unlock")["removed"] == 0
        told(stack, there, "restore", first["backup"], "--yes")
        assert stack.state() == state


def test_a_server_that_dies_and_comes_back(stack: EmbeddedStack, tmp_path) -> None:
    with servers.rclone_restic() as rest:
        there = _rest(stack, rest.port) | {"COSMOS_REPOSITORY_PASSWORD": "of the repository"}
        told(stack, there, "init", "--kit", str(tmp_path / "kit"))
        cutting = servers.Cutting(rest.port, after=1 << 20, cuts=2)
        through = there | {"COSMOS_REPOSITORY__URL": f"rest:http://127.0.0.1:{cutting.port}/stacks"}
        try:
            backup = told(stack, through, "backup")
        finally:
            cutting.close()
        assert cutting.cuts <= 0, "the planned fault never happened"
        assert told(stack, there, "show", "latest")["id"] == backup["backup"]
        assert told(stack, there, "check", "--read-data", "all")["checked"] is True
