"""The guide's recovery, migration, upgrade and cleaning chapters: everything that loses data first.

What would empty an engine (`docker volume prune`, `docker system prune -a --volumes`) runs on a second one.
"""

from __future__ import annotations

import re
import shutil
from dataclasses import replace

import pytest

from support.guide import FILLED, contents, fill, healths, installed, sql, typed
from support.reference_stack import ReferenceStack, copy_tree, eventually, reference_stack
from support.second_engine import load, second_engine

pytestmark = [pytest.mark.docker, pytest.mark.private_engine, pytest.mark.timeout(300)]

IMAGES = ("postgres:15", "redis:7", "cosmos-coherence:latest", "alpine:latest")


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """The stack, filled, with one backup of that."""
    with reference_stack(tmp_path_factory.mktemp("recovery")) as found:
        installed(found).up()
        fill(found)
        found.shell("./scripts/backup.sh")
        yield found


@pytest.fixture
def stack(kept):
    """The stack, running and filled."""
    kept.up()
    assert contents(kept) == FILLED
    return kept


@pytest.fixture(scope="module")
def new_host(kept, tmp_path_factory):
    """Another engine and another clone, nothing running; the archive has been copied there."""
    folder = tmp_path_factory.mktemp("new-host")
    with second_engine(folder) as host:
        load(IMAGES, into=host, from_host=kept.environment["DOCKER_HOST"])
        clone = folder / "another-name"
        clone.mkdir()
        copy_tree(clone)
        found = installed(
            ReferenceStack(
                clone,
                {
                    **kept.environment,
                    "DOCKER_HOST": host,
                    "COSMOS_DOCKER_SOCKET": host.removeprefix("unix://"),
                },
                kept.ports,
            )
        )
        shutil.copy(kept.folder / "backups" / "latest.tar.gz", clone)
        yield found
        found.compose("down", "--volumes", "--timeout", "5")


# --------------------------------------------------------------------------------------------------------- recovery
def test_corrupted_database(stack):
    sql(stack, "DROP TABLE guide; CREATE TABLE rubbish ()")
    stack.shell("docker compose down")
    status, said = typed(stack, "./scripts/restore.sh latest.tar.gz", "y\n")
    assert status == 0, said
    assert "equal" in said
    stack.shell("docker compose up -d")
    assert contents(stack) == FILLED
    assert sql(stack, "SELECT to_regclass('rubbish')") == ""


def test_corrupted_database_that_does_not_start(stack):
    stack.shell("docker compose down")
    stack.shell(
        "docker run --rm -v cosmos-coherence_postgres-data:/data alpine "
        "dd if=/dev/zero of=/data/global/pg_control bs=8192 count=1 conv=notrunc"
    )
    stack.shell("./scripts/restore.sh latest.tar.gz --yes")
    stack.shell("docker compose up -d")
    assert contents(stack) == FILLED
    (kept,) = re.findall(r"\S+postgres-data-broken-\S+", stack.shell("docker volume ls"))
    stack.shell(f"./scripts/cosmos volume remove {kept} --without-backup --yes")


def test_lost_volume(stack):
    stack.shell("docker compose down")
    stack.shell("docker volume rm cosmos-coherence_api-cache")
    assert "api-cache" not in stack.shell("docker volume ls")
    stack.shell("./scripts/restore.sh latest.tar.gz --yes --only volumes/api-cache")
    stack.up()
    assert contents(stack) == FILLED
    labels = stack.shell("docker volume inspect --format '{{json .Labels}}' cosmos-coherence_api-cache")
    assert '"com.docker.compose.volume":"api-cache"' in labels


def test_lost_volume_created_by_hand(stack):
    """Compose's labels are missing on such a volume, and still it is the stack's."""
    stack.shell("docker compose down")
    stack.shell("docker volume rm cosmos-coherence_postgres-data")
    stack.shell("docker volume create cosmos-coherence_postgres-data")
    stack.shell("docker compose up -d")
    stack.up()
    assert sql(stack, "SELECT to_regclass('guide')") == "", "started anew"
    assert "postgres/db" in stack.shell("./scripts/cosmos status")
    stack.shell("./scripts/restore.sh latest.tar.gz --yes")
    assert contents(stack) == FILLED


def test_everything_lost(stack):
    stack.shell("docker compose down -v")
    shutil.rmtree(stack.folder / "data")
    assert "cosmos-coherence_" not in stack.shell("docker volume ls")
    status, said = typed(stack, "./scripts/restore.sh latest.tar.gz", "y\n")
    assert status == 0, said
    assert contents(stack) == FILLED
    assert healths(stack) == {"healthy"}


# --------------------------------------------------------------------------------------------------------- upgrading
def newer(stack: ReferenceStack) -> ReferenceStack:
    return replace(stack, environment={**stack.environment, "POSTGRES_IMAGE": "postgres:17"})


def test_upgrading_postgres_by_hand(stack):
    """The step the guide lacks: the new server refuses the old one's files, so it needs an empty volume."""
    stack.shell("docker exec cosmos-db pg_dumpall -U cosmos > all.sql")
    stack.shell("docker compose down")
    upgraded = newer(stack)
    upgraded.shell("docker compose up -d db")

    def refuses() -> None:
        assert "database files are incompatible with server" in upgraded.compose("logs", "db").stdout

    eventually(refuses)
    upgraded.shell("docker compose down")
    upgraded.shell("docker volume rm cosmos-coherence_postgres-data")
    upgraded.up("db")
    upgraded.shell("docker exec -i cosmos-db psql -U cosmos postgres < all.sql")
    assert sql(upgraded, "SHOW server_version").startswith("17.")
    upgraded.up()
    assert contents(upgraded) == FILLED
    upgraded.shell("docker compose down")
    upgraded.shell("docker volume rm cosmos-coherence_postgres-data")
    stack.shell("./scripts/restore.sh latest.tar.gz --yes")


def test_upgrading_postgres_with_our_archive(stack):
    stack.shell("docker compose down")
    stack.shell("docker volume rm cosmos-coherence_postgres-data")
    upgraded = newer(stack)
    upgraded.shell("./scripts/restore.sh latest.tar.gz --yes")
    assert sql(upgraded, "SHOW server_version").startswith("17.")
    assert contents(upgraded) == FILLED
    assert healths(upgraded) == {"healthy"}
    upgraded.shell("docker compose down -v")
    stack.shell("./scripts/restore.sh latest.tar.gz --yes")


# ----------------------------------------------------------------------------------------------- another host, cleaning
def test_migrating_to_a_new_host(new_host):
    assert "cosmos-coherence_" not in new_host.shell("docker volume ls")
    new_host.shell("./scripts/restore.sh latest.tar.gz")
    assert contents(new_host) == FILLED
    assert healths(new_host) == {"healthy"}


def test_pruning_leaves_a_running_stack_alone(new_host):
    for line in ("docker volume prune", "docker system prune -a --volumes"):
        status, said = typed(new_host, line, "y\n")
        assert status == 0, said
    assert "alpine" not in new_host.shell("docker image ls"), "it prunes what nobody uses"
    assert contents(new_host) == FILLED


def test_pruning_takes_the_data_of_a_stack_that_is_down(new_host):
    new_host.shell("./scripts/backup.sh")
    new_host.shell("docker compose down")
    new_host.shell("docker volume prune --force")
    new_host.shell("docker volume rm --force cosmos-coherence_postgres-data")  # newer engines spare it
    new_host.shell("./scripts/restore.sh latest.tar.gz --yes")
    assert contents(new_host) == FILLED
