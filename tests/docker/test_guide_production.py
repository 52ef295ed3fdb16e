"""What the guide says of production: strict owners, named volumes only, certificates, and all of it comes back.

The commands that the guide gives run without `COMPOSE_FILE`, as somebody types them who started production with `-f`.
"""

from __future__ import annotations

import json
import shutil

import pytest

from support.guide import FILLED, contents, fill, healths, installed, sql, typed
from support.reference_stack import PRODUCTION, ReferenceStack, reference_stack

pytestmark = [pytest.mark.docker, pytest.mark.private_engine, pytest.mark.timeout(300)]

ONLY_IN_PRODUCTION = {
    "app-data": ("cosmos-api", "/app/data/results"),
    "nginx-cache": ("cosmos-nginx", "/var/cache/nginx"),
    "certbot-www": ("cosmos-certbot", "/var/www/certbot"),
    "certbot-conf": ("cosmos-certbot", "/certificates"),
}
UP = "docker compose -f compose.yaml -f compose.prod.yaml up -d --wait"
DOWN = "docker compose -f compose.yaml -f compose.prod.yaml down -v"


@pytest.fixture(scope="module")
def stack(tmp_path_factory):
    with reference_stack(tmp_path_factory.mktemp("production"), PRODUCTION) as found:
        by_hand = ReferenceStack(
            found.folder, {k: v for k, v in found.environment.items() if k != "COMPOSE_FILE"}, found.ports
        )
        installed(by_hand).run("sh", "docker/make-secrets.sh")
        by_hand.shell(UP)
        fill(by_hand)
        for volume, (container, folder) in ONLY_IN_PRODUCTION.items():
            by_hand.run(
                "docker", "exec", container, "sh", "-c", f"echo {volume} > {folder}/kept; chmod 640 {folder}/kept"
            )
        yield by_hand


def kept(stack: ReferenceStack) -> dict[str, str]:
    """Owner, mode and content of what lies in each volume that only production has."""
    return {
        volume: stack.shell(f"docker exec {container} sh -c 'stat -c %u:%g:%a {folder}/kept; cat {folder}/kept'")
        for volume, (container, folder) in ONLY_IN_PRODUCTION.items()
    }


def assert_production(stack: ReferenceStack) -> None:
    found = stack.inspect()
    assert {"cosmos-nginx", "cosmos-certbot", "cosmos-agent"} < set(found)
    assert healths(stack) == {"healthy"}
    for name, container in found.items():
        files = container["Config"]["Labels"]["com.docker.compose.project.config_files"].split(",")
        assert [f.rpartition("/")[2] for f in files] == list(PRODUCTION), name
        assert container["HostConfig"]["ReadonlyRootfs"], name
        writable = {m["Destination"] for m in container["Mounts"] if m["Type"] == "bind" and m["RW"]}
        allowed = {"/app/backups", "/var/run/docker.sock"} if name == "cosmos-agent" else set()
        assert {w for w in writable if not w.startswith("/run/secrets/")} == allowed, name


def test_permission_lines_need_root(stack):
    refused = stack.run(
        "docker", "exec", "cosmos-api", "chown", "root:root", "/app/data/outputs/report.txt", check=False
    )
    assert refused.returncode != 0
    stack.shell("docker exec -u root cosmos-api chown -R appuser:appuser /app/data")
    stack.shell("docker exec -u root cosmos-api chmod -R 755 /app/data")
    found = stack.shell("docker exec cosmos-api stat -c %U:%a /app/data/outputs/report.txt")
    assert found.strip() == "appuser:755"


def test_everything_lost_and_production_stays_production(stack):
    before = kept(stack)
    stack.shell("./scripts/backup.sh")
    manifest = json.loads(stack.shell("./scripts/cosmos show latest --json"))
    assert manifest["complete"], manifest["missing"]
    assert set(manifest["config_files"]) == set(PRODUCTION)
    assert {f"volumes/{name}" for name in ONLY_IN_PRODUCTION} < {part["name"] for part in manifest["parts"]}
    stack.shell(DOWN)
    assert "cosmos-coherence_" not in stack.shell("docker volume ls")
    status, said = typed(stack, "./scripts/restore.sh latest.tar.gz", "y\n")
    assert status == 0, said
    assert_production(stack)
    assert kept(stack) == before
    assert contents(stack) == FILLED


def test_live_production_is_restored_in_place(stack):
    before = kept(stack)
    sql(stack, "DELETE FROM guide WHERE x > 10")
    for container, folder in ONLY_IN_PRODUCTION.values():
        stack.run("docker", "exec", container, "rm", f"{folder}/kept")
    stack.shell("./scripts/restore.sh latest.tar.gz --yes")
    assert_production(stack)
    assert kept(stack) == before
    assert contents(stack) == FILLED


def test_lost_certificates(stack):
    """One volume of production, lost while everything is down; the others are not touched."""
    before = kept(stack)
    stack.shell(DOWN.removesuffix(" -v"))
    stack.shell("docker volume rm cosmos-coherence_certbot-conf")
    stack.shell("./scripts/restore.sh latest.tar.gz --yes --only volumes/certbot-conf")
    stack.shell(UP)
    assert_production(stack)
    assert kept(stack) == before


def test_lost_with_the_secrets(stack):
    """The archive holds what production needs to start, so that the project's folder as cloned is enough."""
    shutil.copy(stack.folder / "backups" / "latest.tar.gz", stack.folder)
    stack.shell(DOWN)
    for name in ("secrets", "backups"):
        shutil.rmtree(stack.folder / name)
    stack.shell("./scripts/restore.sh latest.tar.gz")
    assert_production(stack)
    assert contents(stack) == FILLED
