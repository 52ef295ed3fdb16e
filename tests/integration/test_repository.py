"""Backups into a repository and out of it, with a writer that never stops, and with the real restic looking on."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from cosmos_coherence.drivers.embedded import DATABASE
from cosmos_coherence.flow import store
from cosmos_coherence.repository import locks
from support import restic as referee
from support.embedded_stack import EmbeddedStack, embedded_stack
from support.faulty import fail_at
from support.program import cosmos
from support.waiting import eventually

pytestmark = [pytest.mark.postgres, pytest.mark.redis]

UNPUBLISHED = ("prepare", "capture", "pack", "publish")
ALL = {"db", "redis", "writer"}


@pytest.fixture(scope="module")
def stack():
    with embedded_stack(rate=20) as made:
        assert eventually(made.lines)
        ended = call(made, "init")
        assert ended.returncode == 0, ended.stderr
        yield made


def call(stack: EmbeddedStack, *arguments: str, **environment: str):
    return cosmos("-C", str(stack.folder), *arguments, **environment)


def told(stack: EmbeddedStack, *arguments: str, status: int = 0, **environment: str):
    ended = call(stack, *arguments, "--json", **environment)
    assert ended.returncode == status, ended.stdout + ended.stderr
    return json.loads(ended.stdout)


def repository(stack: EmbeddedStack) -> Path:
    return stack.folder / "backups" / "repository"


def password(stack: EmbeddedStack) -> str:
    return (stack.folder / "secrets" / "repository-password").read_text().strip()


def restic(stack: EmbeddedStack, work: Path, *arguments: str) -> str:
    program = referee.restic("0.19", work, {"RESTIC_PASSWORD": password(stack)})
    return program.run(repository(stack), *arguments)


@pytest.fixture(scope="module")
def saved(stack):
    """A first backup, and what it holds."""
    state = stack.state()
    return told(stack, "backup"), state


# ------------------------------------------------------------------------------------------------------ the main road
def test_lost_and_restored_while_a_writer_writes(stack, saved):
    first, state = saved
    assert first["status"] == "done"
    stack.change()
    changed = stack.state()
    second = told(stack, "backup")
    assert second["size"] * 4 < first["size"], "a second backup stores what changed"

    restored = told(stack, "restore", first["backup"], "--yes")
    assert restored["status"] == "done"
    assert stack.state() == state
    restored = told(stack, "restore", second["backup"], "--yes")
    assert stack.state() == changed
    assert stack.running() == ALL
    assert stack.leftovers() == []
    newest = told(stack, "show", "latest")
    assert newest["id"] == second["backup"], "a safety backup is never the latest"


def test_restic_reads_checks_and_restores_it(stack, saved, tmp_path):
    backup, _ = saved
    listed = json.loads(restic(stack, tmp_path, "snapshots", "--json", "--tag", f"id={backup['backup']}"))
    assert [one["tags"][:2] for one in listed] == [["cosmos", f"id={backup['backup']}"]]
    restic(stack, tmp_path, "check", "--read-data")
    restic(stack, tmp_path, "restore", listed[0]["id"], "--target", str(tmp_path / "restic"))
    told(stack, "restore", backup["backup"], "--to", str(tmp_path / "ours"))
    for name in ("volumes", "database.sql", "globals.sql", "redis", "configs", "databases"):
        subprocess.run(
            ["diff", "-r", "--no-dereference", tmp_path / "restic" / name, tmp_path / "ours" / name], check=True
        )
    looks = [
        sorted(
            (str(p.relative_to(base)), s.st_mode, s.st_uid, s.st_gid, 0 if p.is_dir() and p == base else s.st_mtime_ns)
            for p in base.rglob("*")
            for s in [p.lstat()]
        )
        for base in (tmp_path / "restic" / "volumes", tmp_path / "ours" / "volumes")
    ]
    assert [e for e in looks[0] if e[0].count("/")] == [e for e in looks[1] if e[0].count("/")]
    assert "COPY " in (tmp_path / "ours" / "database.sql").read_text()


def test_what_a_person_looks_at(stack, saved, tmp_path):
    first, _ = saved
    second = told(stack, "backup")
    paths = {one["path"]: one for one in told(stack, "files", first["backup"])}
    assert {"database.sql", "globals.sql", "redis/dump.rdb", "configs/cosmos.toml"} <= paths.keys()
    assert not [path for path in paths if "password" in path and "configs/configs" not in path]
    inside = next(path for path in paths if path.endswith("/0.log"))
    below = told(stack, "files", first["backup"], inside.rpartition("/")[0])
    assert all(one["path"].startswith("volumes/") for one in below)
    dumped = call(stack, "dump", first["backup"], inside)
    assert dumped.stdout.count("\n") > 0
    assert paths[inside]["size"] == len(dumped.stdout.encode())
    assert told(stack, "dump", first["backup"], inside, "--to", str(tmp_path / "one"))["size"] == paths[inside]["size"]
    assert (tmp_path / "one").read_text() == dumped.stdout
    told(stack, "dump", first["backup"], inside, "--to", str(tmp_path / "one"), status=7)
    told(stack, "dump", first["backup"], inside, status=2)
    changes = {one["path"]: one["change"] for one in told(stack, "diff", first["backup"], second["backup"])}
    assert changes[inside] == "changed"
    assert call(stack, "dump", first["backup"], "no/such").returncode == 4
    assert call(stack, "show", "19990101_000000").returncode == 4
    listed = told(stack, "list")
    assert [one["id"] for one in listed] == sorted(one["id"] for one in listed)
    assert told(stack, "check", "--read-data", "all")["checked"] is True
    assert told(stack, "status")["last_backup"]["id"] == second["backup"]


def test_one_table_comes_back_beside_the_others(stack, saved):
    first, _ = saved
    rows = "SELECT md5(string_agg(i::text, ',' ORDER BY id)) FROM ballast.items i"
    told(stack, "restore", first["backup"], "--yes")
    before = stack.sql(rows)
    stack.sql("DROP TABLE ballast.items CASCADE")
    dumped = call(stack, "dump", first["backup"], "database.sql", "--table", "ballast.items")
    assert dumped.returncode == 0, dumped.stderr
    assert dumped.stdout.count("CREATE TABLE") == 1
    with stack.runtime.run("db", ["psql", "-qX", "-v", "ON_ERROR_STOP=1", "-d", DATABASE], stdin=True) as psql:
        psql.stdin.write(dumped.stdout.encode())
        psql.stdin.close()
    assert stack.sql(rows) == before
    missing = call(stack, "dump", first["backup"], "database.sql", "--table", "ballast.nothing")
    assert (missing.returncode, "no rows of a table" in missing.stderr) == (4, True)
    told(stack, "restore", first["backup"], "--yes")


def test_nothing_opens_without_the_password_and_no_backup_holds_it(stack, saved, tmp_path):
    file = stack.folder / "secrets" / "repository-password"
    assert file.stat().st_mode & 0o777 == 0o600
    wrong = told(stack, "list", COSMOS_REPOSITORY_PASSWORD="a guess", status=6)
    assert wrong["failure"]["code"] == "wrong-password"
    file.rename(file.with_name("away"))
    try:
        assert told(stack, "backup", status=4)["failure"]["code"] == "not-found"
    finally:
        file.with_name("away").rename(file)
    told(stack, "restore", "latest", "--to", str(tmp_path / "all"))
    held = [p for p in (tmp_path / "all").rglob("*") if p.is_file() and password(stack).encode() in p.read_bytes()]
    assert held == []


def test_the_recovery_kit_brings_it_back_with_restic_alone(stack, saved, tmp_path):
    kit = (stack.folder / "recovery-kit.txt").read_text()
    assert (stack.folder / "recovery-kit.txt").stat().st_mode & 0o777 == 0o600
    assert password(stack) in kit
    referee.restic("0.19", tmp_path)  # it is there
    lines = [line.strip() for line in kit.split("With restic alone")[1].splitlines() if line.startswith("  ")]
    (tmp_path / "secrets").mkdir()
    (tmp_path / "secrets" / "repository-password").write_text(password(stack) + "\n")
    tools = f"{Path(referee._NEWER).parent}:{os.environ['PATH']}"
    subprocess.run(
        ["bash", "-euc", "\n".join(lines)], cwd=tmp_path, check=True, capture_output=True,
        env={"PATH": tools, "HOME": str(tmp_path)},
    )  # fmt: skip
    assert (tmp_path / "restored" / "database.sql").stat().st_size
    assert json.loads((tmp_path / "restored" / "manifest.json").read_bytes())["project"] == "cosmos-demo"


def test_an_archive_of_the_same_instant(stack, saved, tmp_path):
    both = told(stack, "backup", COSMOS_BACKUP__ARCHIVE="true")
    inside, beside = told(stack, "show", both["backup"]), told(stack, "show", both["archive"])
    for field in ("id", "instant", "pause_ms", "held", "complete"):
        assert inside[field] == beside[field]
    assert [p["fingerprint"] for p in inside["parts"]] == [p["fingerprint"] for p in beside["parts"]]
    told(stack, "check", both["archive"])
    state = stack.state()
    stack.change()
    told(stack, "restore", both["archive"], "--yes")
    assert stack.state() == state


def test_an_archive_comes_into_the_repository_and_out_again(stack, saved, tmp_path):
    state = stack.state()
    made = told(stack, "backup", "--archive", str(tmp_path), COSMOS_REPOSITORY__URL="")
    assert made["path"].startswith(str(tmp_path))
    assert told(stack, "import", made["path"])["imported"] is True
    assert told(stack, "import", made["path"])["imported"] is False
    stack.change()
    told(stack, "restore", made["backup"], "--yes")
    assert stack.state() == state
    exported = told(stack, "export", made["backup"], "--to", str(tmp_path / "out"))
    assert told(stack, "diff", made["path"], exported["path"]) == []


def test_a_second_repository_gets_a_copy(stack, saved, tmp_path):
    first, _ = saved
    (stack.folder / "secrets" / "copy-password").write_text("another one\n")
    other = str(tmp_path / "second")
    settings = {"COSMOS_REPOSITORY__URL": other, "COSMOS_REPOSITORY__PASSWORD_FILE": "secrets/copy-password"}
    assert call(stack, "init", "--kit", str(tmp_path / "kit"), **settings).returncode == 0
    assert told(stack, "copy", other, first["backup"])["copied"] == 1
    assert told(stack, "copy", other, first["backup"])["there_already"] == 1
    assert told(stack, "check", "--read-data", "all", **settings)["checked"] is True
    assert [m["id"] for m in told(stack, "list", **settings) if m["id"] == first["backup"]] == [first["backup"]]


def test_keys_come_and_go(stack, tmp_path):
    new = tmp_path / "new"
    new.write_text("second password\n")
    before = told(stack, "key")["keys"]
    told(stack, "key", "add", "--new-password-file", str(new))
    second = {"COSMOS_REPOSITORY_PASSWORD": "second password"}
    assert told(stack, "list", **second)
    added = {k["id"] for k in told(stack, "key")["keys"]} - {k["id"] for k in before}
    assert told(stack, "key", "remove", *added, status=7, **second)["failure"]["code"] == "refused"
    told(stack, "key", "remove", *added)
    assert told(stack, "list", status=6, **second)["failure"]["code"] == "wrong-password"


# --------------------------------------------------------------------------------------------------- what goes wrong
def test_a_place_that_is_none(stack, tmp_path):
    nowhere = {"COSMOS_REPOSITORY__URL": str(tmp_path / "none")}
    assert told(stack, "backup", status=4, **nowhere)["failure"]["code"] == "not-found"
    strange = {"COSMOS_REPOSITORY__URL": "gopher://host/x"}
    assert told(stack, "backup", status=2, **strange)["failure"]["code"] == "configuration"
    dead = {"COSMOS_REPOSITORY__URL": "rest:http://127.0.0.1:9/x"}
    assert told(stack, "check", status=1, **dead)["failure"]["code"] == "backend-unavailable"


def test_somebody_prunes_meanwhile(stack, saved):
    opened = store.open_repository(stack.settings)
    with locks.acquire(opened, exclusive=True):
        assert told(stack, "backup", status=5)["failure"]["code"] == "locked"
    assert stack.running() == ALL
    told(stack, "backup")


def test_a_flipped_byte_is_found_before_anything_live_is_touched(stack, saved, tmp_path, rng):
    first, _ = saved
    copy = tmp_path / "damaged"
    shutil.copytree(repository(stack), copy)
    packs = sorted(p for p in (copy / "data").rglob("*") if p.is_file() and p.stat().st_size > 100_000)
    for pack in packs:
        data = bytearray(pack.read_bytes())
        for _ in range(20):
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        pack.chmod(0o600)
        pack.write_bytes(data)
    before = stack.state()
    damaged = {"COSMOS_REPOSITORY__URL": str(copy)}
    ended = told(stack, "restore", first["backup"], "--yes", status=6, **damaged)
    assert ended["failure"]["code"] in ("damaged", "hostile")
    assert stack.state() == before
    assert stack.running() == ALL
    assert told(stack, "check", "--read-data", "all", status=6, **damaged)["checked"] is False


def test_one_damaged_snapshot_keeps_nobody_from_the_others(stack, saved, tmp_path):
    first, _ = saved
    told(stack, "backup")
    copy = tmp_path / "damaged"
    shutil.copytree(repository(stack), copy)
    newest = max((copy / "snapshots").iterdir(), key=lambda path: path.stat().st_mtime_ns)
    newest.chmod(0o600)
    newest.write_bytes(newest.read_bytes()[:-5])
    settings = {"COSMOS_REPOSITORY__URL": str(copy)}
    listed = call(stack, "list", **settings)
    assert (listed.returncode, first["backup"] in listed.stdout, newest.name[:8] in listed.stderr) == (0, True, True)
    latest = told(stack, "show", "latest", status=6, **settings)
    assert "cosmos list" in latest["failure"]["remedy"]
    assert told(stack, "show", first["backup"], **settings)["id"] == first["backup"]
    told(stack, "backup", **settings)
    assert told(stack, "check", status=6, **settings)["checked"] is False


@pytest.mark.parametrize("name", UNPUBLISHED)
def test_a_backup_that_fails_publishes_nothing(stack, saved, name):
    listed = stack.published()
    step = fail_at(name)
    report = stack.backup(step)
    assert (report.status, report.exit_status, step.left) == ("failed", 1, [])
    assert stack.published() == listed


@pytest.mark.parametrize("name", [*UNPUBLISHED, "retention"])
def test_a_backup_that_is_killed_heals_and_what_it_stored_is_used(stack, saved, tmp_path, name):
    listed = stack.published()
    stack.killed_at(name, "backup")
    assert (stack.published() == listed) == (name in UNPUBLISHED)
    lines = stack.lines()
    assert eventually(lambda: stack.lines() > lines), "the writer stands still"
    again = stack.backup()
    assert again.status == "done", again.failure
    assert stack.leftovers() == []
    restic(stack, tmp_path, "check")


def test_an_archive_that_is_killed_while_it_is_made_leaves_nothing(stack, saved):
    settings = stack.folder / "cosmos.toml"
    before = settings.read_text()
    settings.write_text(f"{before}\n[backup]\narchive = true\n")
    big = stack.files / "ballast" / "big"
    big.write_bytes(os.urandom(64 << 20))
    try:
        assert stack.killed_within(0.4, "backup", after="export")
    finally:
        settings.write_text(before)
        big.unlink()
    assert stack.leftovers() != []
    assert stack.recover().status == "done"
    assert stack.leftovers() == []


@pytest.mark.parametrize(("name", "lost_mib"), [("pack", 32), ("publish", 1)])
def test_what_a_killed_run_has_stored_is_not_stored_again(stack, saved, rng, name, lost_mib):
    """``pack``: packs are there that no index names, and the one that was open is lost. ``publish``: all is there."""
    big = stack.files / "ballast" / "big"
    big.write_bytes(rng.randbytes(64 << 20))
    stack.killed_at(name, "backup")
    again = stack.backup()
    assert again.status == "done", again.failure
    assert again.size < (lost_mib << 20) + (2 << 20)
    big.unlink()


@pytest.mark.parametrize("name", ["safety", "swap", "finish"])
def test_a_restore_that_is_killed_heals(stack, saved, name):
    first, new = saved
    stack.change()
    before = stack.state()
    stack.killed_at(name, "restore", Path(first["backup"]))
    healed = stack.recover()
    assert healed.status == "done", healed.failure
    assert stack.state() == (new if name == "finish" else before)
    assert stack.running() == ALL
    again = stack.restore(Path(first["backup"]))
    assert again.status == "done", again.failure
    assert stack.state() == new


# ---------------------------------------------------------------------------------------------------- and what goes
def test_old_backups_go_and_their_data_after_them(stack, saved, tmp_path):
    """Last, since it takes the others' backups away."""
    newest = told(stack, "backup")
    planned = told(stack, "forget", "--keep-within", "0s", "--prune", "--dry-run")
    held = len(told(stack, "list"))
    assert planned["dry_run"] is True
    gone = told(stack, "forget", "--keep-within", "0s", "--prune")
    assert gone["remove"] == planned["remove"]
    assert stack.published() == [newest["backup"]]
    assert len(gone["remove"]) == held - len(told(stack, "list"))
    state = stack.state()
    stack.change()
    told(stack, "restore", "latest", "--yes")
    assert stack.state() == state
    restic(stack, tmp_path, "check", "--read-data")
    assert re.search(r"\b0 locks removed", call(stack, "unlock").stdout)
