"""The main job on a real engine with a repository: lost with all its volumes, restored, every writer at one instant."""

from __future__ import annotations

import json

import pytest

from support import restic as referee
from support.shop_stack import one_round, shop_stack

pytestmark = [pytest.mark.docker, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def shop():
    with shop_stack() as stack:
        made = json.loads(stack.cosmos("init", "--json").stdout)
        assert made["created"]
        yield stack


def test_lost_and_restored_while_a_writer_writes(shop, capsys):
    pauses = []
    for _ in range(2):
        shop.write()
        pauses.append(one_round(shop))
    with capsys.disabled():
        print(f"\npause into the repository {' and '.join(f'{pause:.1f} ms' for pause in pauses)}")


def test_restic_finds_nothing_wrong_and_the_volume_in_it(shop, tmp_path):
    password = (shop.folder / "secrets" / "repository-password").read_text().strip()
    restic = referee.restic("0.19", tmp_path, {"RESTIC_PASSWORD": password})
    repository = shop.folder / "backups" / "repository"
    restic.check(repository)
    newest = [one["id"] for one in restic.snapshots(repository) if "safety" not in one["tags"]][-1]
    names = restic.run(repository, "ls", newest)
    assert f"/volumes/{shop.project}_files/tree/dangling" in names
    assert "postgres-data" not in names, "a live database's files are never copied"
