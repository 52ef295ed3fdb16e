"""The agent of the reference stack backs it up by itself, into the project's folder on the host."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from support.reference_stack import ReferenceStack, reference_stack
from support.waiting import eventually

pytestmark = [pytest.mark.docker, pytest.mark.private_engine, pytest.mark.timeout(900)]

LIMIT_MS = 500


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ReferenceStack]:
    with reference_stack(tmp_path_factory.mktemp("agent"), COSMOS_SCHEDULE__BACKUP="* * * * *") as found:
        found.up()
        yield found


def test_a_scheduled_backup(stack: ReferenceStack, capsys: pytest.CaptureFixture[str]) -> None:
    backups = stack.folder / "backups"

    def latest() -> dict[str, Any]:
        found = stack.shell(f"tar -xzOf {backups}/latest.tar.gz --wildcards '*/manifest.json' || echo '{{}}'")
        return dict(json.loads(found))

    # the first may come before the other services are up
    there = backups / "latest.tar.gz"
    assert eventually(lambda: there.exists() and latest().get("held"), within_s=200), stack.compose(
        "logs", "agent"
    ).stdout
    manifest = latest()
    with capsys.disabled():
        print(f"\npause of the reference stack {manifest['pause_ms']:.1f} ms")
    assert manifest["project"] == "cosmos-coherence"
    assert 0 < manifest["pause_ms"] < LIMIT_MS
    assert set(manifest["held"]) == {"cosmos-api", "cosmos-dashboard"}
    assert {part["name"] for part in manifest["parts"]} >= {"postgres/db", "redis/redis", "volumes/api-cache", "config"}
    assert "files/backups" not in {part["name"] for part in manifest["parts"]}, "a restore would take the backups back"
    # its report reaches the history, and so the API
    told = "SELECT count(*) FROM run WHERE verb = 'backup' AND status = 'done'"
    call = f'docker exec cosmos-db psql -XAtq -U cosmos cosmos_coherence -c "{told}"'
    assert eventually(lambda: int(stack.run("bash", "-c", call, check=False).stdout or 0) > 0, within_s=60)
    left = "docker ps -aq --filter label=cosmos.role=run --filter status=exited"
    assert stack.shell(left) == ""


def test_a_person_asks_the_agent(stack: ReferenceStack) -> None:
    """The run lock may be the schedule's at this moment; then the answer is 5 and a person tries again."""
    done = [stack.run("docker", "exec", "cosmos-agent", "cosmos", "backup", "--json", check=False)]

    def answered() -> bool:
        if done[-1].returncode == 5:
            done.append(stack.run("docker", "exec", "cosmos-agent", "cosmos", "backup", "--json", check=False))
        return done[-1].returncode != 5

    assert eventually(answered, within_s=120)
    assert done[-1].returncode == 0, done[-1].stdout + done[-1].stderr
    report = json.loads(done[-1].stdout)
    assert (stack.folder / "backups" / f"{report['backup']}.tar.gz").exists()


def test_it_measures_the_volumes_that_it_does_not_have(stack: ReferenceStack) -> None:
    done = stack.run("docker", "exec", "cosmos-agent", "cosmos", "schedule", "run", "measure", "--json", check=False)
    assert done.returncode in (0, 5), done.stdout + done.stderr  # 5: the schedule measures at this moment
    named = "SELECT count(DISTINCT subject) FROM measurement WHERE subject LIKE 'volume:%' AND name = 'bytes'"
    call = f'docker exec cosmos-db psql -XAtq -U cosmos cosmos_coherence -c "{named}"'
    there = stack.shell("docker volume ls -q --filter label=com.docker.compose.project=cosmos-coherence").split()
    assert eventually(lambda: int(stack.run("bash", "-c", call, check=False).stdout or 0) >= len(there), within_s=60)
