"""The agent of the reference stack keeps its backups in a repository, set up with the lines of the manual."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from support import restic as referee
from support.guide import FILLED, contents, fill, spoil
from support.reference_stack import DEVELOPMENT, ReferenceStack, reference_stack
from support.waiting import eventually

pytestmark = [pytest.mark.docker, pytest.mark.private_engine, pytest.mark.timeout(900)]

DOCUMENT = Path(__file__).parents[2] / "docs" / "repository.md"
FILES = ":".join((*DEVELOPMENT, "compose.repository.yaml"))


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ReferenceStack]:
    """The stack, filled, and the repository made; the schedule rests until a test wants it."""
    schedule = {"COSMOS_SCHEDULE__BACKUP": "0 0 29 2 *"}
    with reference_stack(tmp_path_factory.mktemp("agent-repository"), **schedule) as found:
        found.up()
        fill(found)
        text = DOCUMENT.read_text().split("<!-- agent -->")[1]
        compose, lines = (text.split(f"```{kind}\n")[1].split("```")[0] for kind in ("yaml", "bash"))
        (found.folder / "compose.repository.yaml").write_text(compose)
        assert FILES in lines
        # nobody sits at a terminal here
        said = found.shell(lines.replace("docker compose exec agent", "docker compose exec -T agent"))
        assert re.search(r"\d{8}_\d{6} .* complete", said), said
        assert "RECOVERY KIT" in (found.folder / "recovery-kit.txt").read_text()
        yield replace(found, environment={**found.environment, "COMPOSE_FILE": FILES})


def asked(stack: ReferenceStack, *arguments: str):
    """The agent; the run lock may be the schedule's at this moment, then a person tries again."""
    done = [stack.compose("exec", "-T", "agent", "cosmos", *arguments, "--json", check=False)]

    def answered() -> bool:
        if done[-1].returncode == 5:
            done.append(stack.compose("exec", "-T", "agent", "cosmos", *arguments, "--json", check=False))
        return done[-1].returncode != 5

    assert eventually(answered, within_s=120)
    assert done[-1].returncode == 0, done[-1].stdout + done[-1].stderr
    return json.loads(done[-1].stdout)


def test_what_the_agent_saved_comes_back(stack: ReferenceStack, tmp_path: Path) -> None:
    (saved,) = asked(stack, "list")
    assert {part["name"] for part in saved["parts"]} >= {"postgres/db", "redis/redis", "volumes/api-cache", "config"}
    assert "files/backups" not in {part["name"] for part in saved["parts"]}, "a restore would take the backups back"
    assert not list((stack.folder / "backups").glob("*.tar.gz")), "it went to the repository"
    spoil(stack)
    asked(stack, "restore", saved["id"], "--yes")
    assert contents(stack) == FILLED
    assert saved["id"] in {one["id"] for one in asked(stack, "list")}

    password = (stack.folder / "secrets" / "repository-password").read_text().strip()
    everything = stack.shell("docker inspect $(docker ps -aq --filter label=com.docker.compose.project)")
    everything += stack.compose("logs", "agent").stdout
    assert password not in everything
    asked(stack, "restore", saved["id"], "--to", "backups/look")
    held = stack.shell("grep -rlF -f secrets/repository-password backups/look || true")
    assert held == "", "no backup holds what opens it"
    restic = referee.restic("0.19", tmp_path, {"RESTIC_PASSWORD": password})
    restic.check(stack.folder / "backups" / "repository")


def test_the_schedule_goes_there_as_well(stack: ReferenceStack) -> None:
    before = {one["id"] for one in asked(stack, "list")}
    often = replace(stack, environment={**stack.environment, "COSMOS_SCHEDULE__BACKUP": "* * * * *"})
    often.up("agent")
    assert eventually(lambda: {one["id"] for one in asked(often, "list")} - before, within_s=150), often.compose(
        "logs", "agent"
    ).stdout
    stack.up("agent")
    newest = asked(stack, "list")[-1]
    assert newest["id"] not in before
    spoil(stack)
    asked(stack, "restore", newest["id"], "--yes")
    assert contents(stack) == FILLED
