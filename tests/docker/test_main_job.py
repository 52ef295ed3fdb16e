"""The main job on a real engine: back up while a writer runs, lose everything, restore, everything equal."""

from __future__ import annotations

import json
import statistics

import pytest

from support.shop_stack import PASSWORD, WRITERS, ShopStack, one_round, shop_stack

pytestmark = [pytest.mark.docker, pytest.mark.timeout(600)]

MAX_PAUSE_MS = 500
"""What the suite insists on, on a machine that does other things too: far less than any copy takes."""


@pytest.fixture(scope="module")
def shop():
    with shop_stack() as stack:
        yield stack


@pytest.fixture
def writing(shop):
    """The stack while its writer writes."""
    shop.write()
    return shop


def test_lost_and_restored_while_a_writer_writes_twice(shop, capsys):
    pauses = []
    for _ in range(2):
        shop.write()
        pauses.append(one_round(shop))
    with capsys.disabled():
        print(f"\npause {' and '.join(f'{pause:.1f} ms' for pause in pauses)}")
    assert all(0 < pause < MAX_PAUSE_MS for pause in pauses)

    # a cache that reads its append-only file comes up with what was restored, not with what was there before
    found, standing = shop.sequences(), shop.standing()
    shop.compose("restart", "db", "cache")
    shop.compose("up", "-d", "--wait")
    assert (shop.sequences(), shop.standing()) == (found, standing)


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_lost_and_restored_twenty_times(shop, capsys):
    pauses = []
    for _ in range(20):
        shop.write()
        pauses.append(one_round(shop))
    with capsys.disabled():
        print(f"\n20 rounds equal; pause median {statistics.median(pauses):.1f} ms, worst {max(pauses):.1f} ms")


def test_the_archive_alone_is_of_one_instant(writing, tmp_path):
    """Read with tar and gunzip, so that nothing of ours can hide a skew."""
    saved = json.loads(writing.cosmos("backup", "--json").stdout)
    writing.run("tar", "-xzf", saved["path"], "-C", str(tmp_path), "--strip-components=1")
    text = writing.run("gunzip", "-c", f"{tmp_path}/database.sql.gz").stdout
    table = text.split("COPY public.sequence_log", 1)[1].split("\n\\.\n", 1)[0].splitlines()[1:]
    unpacked = tmp_path / "unpacked"
    unpacked.mkdir()
    writing.run("tar", "-xzf", f"{tmp_path}/volumes/{writing.project}_files.tar.gz", "-C", str(unpacked))
    for writer in range(WRITERS):
        in_database = max(int(line.split("\t")[1]) for line in table if line.startswith(f"{writer}\t"))
        in_file = (unpacked / f"{writer}.log").read_bytes().count(b"\n")
        assert 0 <= in_database - in_file <= 1


def test_status_shows_everything_and_says_no_secret(writing):
    status = json.loads(writing.cosmos("status", "--json").stdout)
    assert [s["part"] for s in status["coverage"]["sources"]] == [
        "postgres/db", "redis/cache", "volumes/files", "files/uploads", "config",
    ]  # fmt: skip
    assert {s["name"] for s in status["stack"]["services"]} == {"db", "cache", "writer"}
    verbs = (("backup",), ("backup", "--json"), ("status",), ("status", "--json"), ("list",), ("show", "--json"))
    said = [writing.cosmos(*argv) for argv in verbs]
    assert not [done.args for done in said if PASSWORD in done.stdout + done.stderr]


def test_a_dry_run_changes_nothing_and_neither_does_a_restore_with_nobody_to_ask(writing):
    writing.cosmos("backup")
    writing.compose("stop", "writer")
    before = everything(writing)
    assert "overwrite postgres/db" in writing.cosmos("restore", "latest", "--dry-run").stdout
    asked = writing.cosmos("restore", "latest", check=False)
    assert (asked.returncode, "--yes" in asked.stderr) == (7, True)
    assert everything(writing) == before


def everything(shop: ShopStack) -> tuple[object, ...]:
    return shop.sequences(), shop.standing(), shop.configuration(), sorted((shop.folder / "backups").iterdir())


def test_one_part_alone(writing):
    """The others stay, so does who is stopped; and what was overwritten is in a safety backup that is never newest."""
    saved = json.loads(writing.cosmos("backup", "--json").stdout)
    writing.compose("stop", "writer")
    standing, before = writing.standing(), writing.sequences()
    (writing.folder / "uploads" / "picture").write_bytes(b"spoilt")
    call = ("restore", saved["backup"], "--only", "files/uploads", "--yes", "--json")
    restored = json.loads(writing.cosmos(*call).stdout)
    assert (writing.sequences(), writing.standing()) == (before, standing)
    assert [part["name"] for part in restored["parts"]] == ["files/uploads"]
    assert "writer" not in writing.compose("ps", "--services", "--status", "running").split()
    safety = writing.run("tar", "-xzOf", restored["safety_backup"], "--wildcards", "*/manifest.json").stdout
    assert json.loads(safety)["safety"] is True
    assert json.loads(writing.cosmos("show", "latest", "--json").stdout)["id"] == saved["backup"]
