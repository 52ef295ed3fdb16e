"""The verbs that change volumes, on a real engine: with running writers, a real server, users of real images."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cosmos_coherence.cut.journal import anything_pending
from support.docker_stack import HOST, ComposeStack, docker
from support.faulty import FaultyStack
from support.killing import killed_at
from support.ordinary_user import ordinary_user
from support.program import SOURCE
from support.trees import looks
from support.waiting import eventually

pytestmark = [pytest.mark.docker, pytest.mark.timeout(300)]

NOBODY = 65534
COMPOSE = """
services:
  db:
    image: postgres:15
    environment: {POSTGRES_USER: shop, POSTGRES_DB: shop, POSTGRES_PASSWORD: test-only}
    command: ["postgres", "-c", "fsync=off"]
    volumes: ["db-data:/var/lib/postgresql/data"]
    healthcheck: {test: ["CMD", "pg_isready", "-q", "-h", "127.0.0.1", "-U", "shop"], interval: 1s, retries: 60}
    network_mode: none
    restart: unless-stopped
  app:
    image: python:3.11-slim
    user: nobody
    command: ["sh", "-c", "n=0; while :; do n=$$((n+1)); echo $$n >t; mv t a; echo $$n >t; mv t b; sleep 0.05; done"]
    working_dir: /files
    init: true
    stop_grace_period: 1s
    volumes: ["files:/files", "cache:/cache", "scratch:/scratch"]
    network_mode: none
volumes:
  db-data: {}
  files: {labels: {mine: "yes"}}
  cache: {labels: {cosmos.cache: "true"}}
  scratch: {driver_opts: {type: tmpfs, device: tmpfs, o: "size=1m"}}
"""
KEPT = "-broken-"


class Shop(ComposeStack):
    """The stack, and the program that looks after it."""

    def cosmos(self, *words: str, status: int = 0) -> dict[str, Any]:
        """What ``cosmos ... --json`` says."""
        done = subprocess.run(
            self.call(*words, "--json"), capture_output=True, text=True, timeout=200, env=self.environment()
        )
        assert done.returncode == status, done.stdout + done.stderr
        return dict(json.loads(done.stdout))

    def call(self, *words: str) -> list[str]:
        folder = ["-C", str(self.folder), "--project", self.project]
        return [sys.executable, "-m", "cosmos_coherence.cli.main", *folder, *words]

    def environment(self) -> dict[str, str]:
        return {**os.environ, "PYTHONPATH": str(SOURCE), "DOCKER_HOST": HOST, "COSMOS_BACKUP__MIN_FREE": "0"}

    def path(self, short: str) -> Path:
        """Where the files of a volume lie."""
        return Path(docker("volume", "inspect", "--format", "{{.Mountpoint}}", self.volume(short)).strip())

    def labels(self, short: str) -> dict[str, str]:
        return dict(json.loads(docker("volume", "inspect", self.volume(short)))[0]["Labels"] or {})

    def up(self, *words: str) -> str:
        """Bring it up; what Compose says on standard error."""
        done = subprocess.run(
            ["docker", "compose", "--project-name", self.project, "up", "--detach", "--wait", *words],
            cwd=self.folder, capture_output=True, text=True, env={**os.environ, "DOCKER_HOST": HOST}, timeout=200,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stderr

    def sql(self, statement: str) -> str:
        return self.execute("db", "psql", "-qXAt", "-v", "ON_ERROR_STOP=1", "-U", "shop", "-c", statement).strip()

    def pending(self) -> bool:
        return anything_pending(self.runtime().state_directory())

    def faulty(self) -> FaultyStack:
        return FaultyStack(self.folder, self.project, HOST)


@pytest.fixture(scope="module")
def stack() -> Iterator[Shop]:
    folder = Path(tempfile.mkdtemp(prefix="cosmos-test-", dir="/var/tmp"))
    folder.chmod(0o711)  # an ordinary user goes through it
    try:
        with Shop(folder, COMPOSE, start=False) as made:
            docker("volume", "create", "--label", "mine=yes", "--label", f"com.docker.compose.project={made.project}",
                   "--label", "com.docker.compose.volume=files", made.volume("files"))  # fmt: skip
            made.up()
            os.chown(made.path("files"), NOBODY, NOBODY)
            assert eventually((made.path("files") / "b").exists)
            made.sql("CREATE TABLE marks (mark text); INSERT INTO marks VALUES ('saved')")
            yield made
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def shop(stack: Shop) -> Shop:
    """All of it running, nothing left to heal."""
    stack.up()
    assert not stack.pending()
    return stack


def of_one_instant(root: Path) -> bool:
    a, b = (int((root / name).read_text()) for name in "ab")
    return a - b in (0, 1)


# --------------------------------------------------------------------------------------------------------- clone, copy
def test_a_clone_of_what_is_being_written(shop: Shop) -> None:
    report = shop.cosmos("volume", "clone", "files", "twin")
    assert report["pause_ms"] > 0
    assert of_one_instant(shop.path("twin"))
    assert shop.path("twin").stat().st_uid == NOBODY
    assert {k: v for k, v in shop.labels("twin").items() if k != "cosmos.cloned"} == {"mine": "yes"}
    assert shop.state("app")["Paused"] is False
    count = int((shop.path("files") / "a").read_text())
    assert eventually(lambda: int((shop.path("files") / "a").read_text()) > count)
    refused = shop.cosmos("volume", "clone", "files", "twin", status=7)
    assert "is there already" in refused["failure"]["message"]
    shop.cosmos("volume", "copy", "cache", "twin", status=7)
    shop.cosmos("volume", "copy", "cache", "twin", "--yes")
    assert looks(shop.path("twin")) == {}
    assert shop.cosmos("volume", "remove", "twin", "--without-backup", "--yes")["removed"] == [shop.volume("twin")]


def test_the_volume_of_a_running_server_is_refused_and_of_a_stopped_one_copied(shop: Shop) -> None:
    refused = shop.cosmos("volume", "clone", "db-data", "spare", status=7)
    assert "running postgres server (db)" in refused["failure"]["message"]
    docker("kill", shop.container("db"))  # it leaves its postmaster.pid behind
    shop.compose("stop", "db")
    try:
        shop.cosmos("volume", "clone", "db-data", "spare")
        assert looks(shop.path("spare")) == looks(shop.path("db-data"))
        mount = f"{shop.volume('spare')}:/var/lib/postgresql/data"
        said = docker("run", "-i", "--rm", "--network", "none", "--user", "postgres", "-v", mount, "postgres:15",
                      "sh", "-c", "rm -f /var/lib/postgresql/data/postmaster.pid; postgres --single shop "
                      "-D /var/lib/postgresql/data", stdin=b"SELECT * FROM marks\n")  # fmt: skip
        assert '"saved"' in said
    finally:
        shop.up()
    shop.cosmos("volume", "remove", "spare", "--yes", status=7)
    shop.cosmos("volume", "remove", "spare", "--yes", "--without-backup")


@pytest.mark.parametrize("verb", ["clone", "copy"])
def test_killed_in_the_middle(shop: Shop, verb: str) -> None:
    """SIGKILL while files are copied: nothing half is live, `recover` cleans up, the same again converges."""
    big = shop.path("files") / "big"
    big.mkdir(exist_ok=True)
    for number in range(80):
        (big / str(number)).write_bytes(os.urandom(1 << 20))
    if verb == "copy":
        docker("volume", "create", shop.volume("twin"))
        (shop.path("twin") / "old").write_text("old")
    words = ("volume", verb, "files", "twin", "--yes")
    child = subprocess.Popen(
        shop.call(*words), env=shop.environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    volumes = shop.path("files").parents[1]
    copied = lambda: len(list(volumes.glob(f"{shop.volume('twin')}/_data/.cosmos-restore-*-copy/*")))  # noqa: E731
    assert eventually(lambda: copied() > 5, within_s=60)
    child.send_signal(signal.SIGKILL)
    child.wait()
    seen = {path.name for path in shop.path("twin").iterdir() if not path.name.startswith(".cosmos-restore-")}
    assert seen == (set() if verb == "clone" else {"old"})
    assert shop.pending()
    assert shop.cosmos("recover")["notes"]
    assert eventually(lambda: shop.state("app")["Paused"] is False)
    if verb == "clone":
        assert shop.volume("twin") not in shop.volumes()
    else:
        assert [path.name for path in shop.path("twin").iterdir()] == ["old"]
    shop.cosmos(*words)
    assert of_one_instant(shop.path("twin"))
    assert looks(shop.path("twin") / "big") == looks(big)
    shop.cosmos("volume", "remove", "twin", "--yes", "--without-backup")
    shutil.rmtree(big)


# ------------------------------------------------------------------------------------------- create, clean, fix-owner
def test_lost_volumes_are_created_and_compose_does_not_warn(shop: Shop) -> None:
    shop.compose("rm", "--stop", "--force", "app")
    before = shop.labels("cache")
    docker("volume", "rm", shop.volume("cache"), shop.volume("scratch"))
    plan = shop.cosmos("volume", "create", "--dry-run")
    assert [lost["record"]["short"] for lost in plan["plan"]["missing"]] == ["cache", "scratch"]
    made = shop.cosmos("volume", "create", "cache")
    assert [volume["name"] for volume in made["created"]] == [shop.volume("cache")]
    known = {key: value for key, value in before.items() if not key.endswith((".version", ".config-hash"))}
    assert known.items() <= shop.labels("cache").items()
    assert [volume["short"] for volume in shop.cosmos("volume", "create")["created"]] == ["scratch"]
    options = json.loads(docker("volume", "inspect", "--format", "{{json .Options}}", shop.volume("scratch")))
    assert options == {"type": "tmpfs", "device": "tmpfs", "o": "size=1m"}
    assert "already exists" not in shop.up()
    assert shop.cosmos("volume", "create")["created"] == []


def test_a_volume_that_only_the_backup_knows_comes_back_as_it_was(shop: Shop) -> None:
    docker("volume", "create", "--label", "kept=yes", shop.volume("old"))
    shop.cosmos("backup")
    docker("volume", "rm", shop.volume("old"))
    shop.cosmos("volume", "create", "old")
    assert shop.labels("old") == {"kept": "yes"}
    docker("volume", "rm", shop.volume("old"))


def test_a_cache_is_cleared(shop: Shop) -> None:
    (shop.path("cache") / "page").write_bytes(b"x" * 100_000)
    assert shop.cosmos("volume", "clean", "cache", "--yes")["holds"]["files"] == 0
    assert list(shop.path("cache").iterdir()) == []
    refused = shop.cosmos("volume", "clean", "files", "--yes", status=7)
    assert "not marked as a cache" in refused["failure"]["message"]


def test_owners_are_the_user_s_of_the_image(shop: Shop) -> None:
    wrong = shop.path("files") / "wrong"
    wrong.mkdir(mode=0o055)
    (wrong / "file").touch(0o000)
    plan = shop.cosmos("volume", "fix-owner", "files", "--dry-run")
    assert plan["user"] == {"uid": NOBODY, "gid": NOBODY, "service": "app"}
    assert wrong.stat().st_uid == 0, "a dry run changes nothing"
    shop.cosmos("volume", "fix-owner", "files", status=7)
    shop.cosmos("volume", "fix-owner", "files", "--yes")
    assert (wrong.stat().st_uid, wrong.stat().st_mode & 0o700) == (NOBODY, 0o700)
    assert ((wrong / "file").stat().st_uid, (wrong / "file").stat().st_mode & 0o600) == (NOBODY, 0o600)
    shop.execute("app", "rm", "-r", "/files/wrong")


def test_where_the_program_leaves_root_the_image_s_own_folder_says_whose_it_is(shop: Shop) -> None:
    server = shop.path("db-data") / "PG_VERSION"
    owner = server.stat().st_uid
    assert owner != 0
    os.chown(server, 0, 0)
    plan = shop.cosmos("volume", "fix-owner", "db-data", "--yes")
    assert (plan["changed"], plan["user"]["uid"], server.stat().st_uid) == (1, owner, owner)
    assert "look" not in docker("ps", "--all", "--format", '{{.Label "cosmos.role"}}')


# ---------------------------------------------------------------------------------------------------- remove and prune
def test_removed_is_only_what_a_backup_holds(shop: Shop) -> None:
    in_use = shop.cosmos("volume", "remove", "files", "--yes", "--without-backup", status=7)
    assert shop.container("app") in in_use["failure"]["message"]
    shop.cosmos("volume", "clone", "files", "idle")
    (shop.path("idle") / "mine").write_text("kept")
    shop.cosmos("backup")
    (shop.path("idle") / "later").write_text("newer than the backup")
    refused = shop.cosmos("volume", "remove", "idle", "--yes", status=7)
    assert "later (too many)" in refused["failure"]["message"]
    kept = shop.cosmos("volume", "prune", "--yes")
    assert (kept["removed"], kept["steps"][0]["remove"]) == ([], False)
    (shop.path("idle") / "later").unlink()
    plan = shop.cosmos("volume", "prune", "--dry-run")
    assert [step["volume"] for step in plan["steps"] if step["remove"]] == [shop.volume("idle")]
    assert shop.volume("idle") in shop.volumes()
    assert shop.cosmos("volume", "prune", "--yes")["removed"] == [shop.volume("idle")]
    # and what was removed is there again when it is wanted
    shop.cosmos("restore", "latest", "--only", "volumes/idle", "--yes")
    assert (shop.path("idle") / "mine").read_text() == "kept"
    shop.cosmos("volume", "remove", "idle", "--yes")


def test_pruning_a_stack_that_is_down_takes_nothing_that_it_will_use(shop: Shop) -> None:
    shop.cosmos("backup")
    shop.compose("down")
    found = shop.cosmos("volume", "prune", "--yes", "--without-backup")
    assert found["removed"] == []
    assert {shop.volume(name) for name in ("db-data", "files", "cache")} <= {step["volume"] for step in found["steps"]}
    refused = shop.cosmos("volume", "remove", "db-data", "--yes", status=7)
    assert "data of a postgres server" in refused["failure"]["message"]
    assert "--without-backup" in refused["failure"]["remedy"]


def test_anonymous_volumes_are_named_only_when_they_are_asked_for(shop: Shop) -> None:
    nameless = docker("volume", "create").strip()
    try:
        assert nameless not in json.dumps(shop.cosmos("volume", "prune", "--yes"))
        found = shop.cosmos("volume", "prune", "--anonymous", "--yes")
        assert [s["remove"] for s in found["steps"] if s["volume"] == nameless] == [False]
    finally:
        docker("volume", "rm", nameless)


# --------------------------------------------------------------------------------------------------- corrupted database
def corrupt(shop: Shop) -> bytes:
    """Spoil the server's files so that it does not start; what is in the file that was spoilt."""
    control = shop.path("db-data") / "global" / "pg_control"
    shop.compose("stop", "db")
    control.write_bytes(bytes(8192))
    shop.compose("start", "db")
    return control.read_bytes()


def kept_volumes(shop: Shop) -> list[str]:
    return [name for name in shop.volumes() if KEPT in name]


def test_corrupted_database(shop: Shop) -> None:
    saved = shop.cosmos("backup")
    shop.sql("INSERT INTO marks VALUES ('never backed up')")
    spoilt = corrupt(shop)
    began = time.monotonic()
    report = shop.cosmos("restore", "latest", "--only", "postgres/db", "--yes")
    print(f"restored in {time.monotonic() - began:.1f} s")
    assert report["backup"] == saved["backup"]
    assert shop.sql("SELECT * FROM marks") == "saved"
    (kept,) = kept_volumes(shop)
    assert report["safety_backup"] == f"volume {kept}"
    files = Path(docker("volume", "inspect", "--format", "{{.Mountpoint}}", kept).strip())
    assert (files / "global" / "pg_control").read_bytes() == spoilt, "the old files are kept"
    again = shop.cosmos("backup")
    assert KEPT not in "".join(part["name"] for part in again["parts"]), "and no backup is filled with them"
    assert shop.cosmos("volume", "prune", "--yes")["removed"] == []
    assert shop.cosmos("volume", "remove", kept, "--without-backup", "--yes")["removed"] == [kept]


def test_a_restore_into_a_new_server_that_does_not_end_well_brings_the_old_files_back(shop: Shop) -> None:
    """Killed when it has stopped the writers and the next step would be the swap."""
    archive = Path(shop.cosmos("backup")["path"])
    spoilt = corrupt(shop)
    faulty = shop.faulty()
    assert killed_at(5, lambda step: faulty.restore(archive, step=step, only=["postgres/db"]))
    assert len(kept_volumes(shop)) == 1
    assert shop.cosmos("recover")["notes"]
    assert (shop.path("db-data") / "global" / "pg_control").read_bytes() == spoilt
    assert {b"base", b"PG_VERSION"} <= set(looks(shop.path("db-data")))
    assert kept_volumes(shop) == []
    assert not shop.pending()
    shop.cosmos("restore", "latest", "--only", "postgres/db", "--yes")
    assert shop.sql("SELECT * FROM marks") == "saved"
    shop.cosmos("volume", "remove", *kept_volumes(shop), "--without-backup", "--yes")


# ------------------------------------------------------------------------------------------------- beside the volumes
def test_an_ordinary_user_clones_and_mends_beside_the_volumes(shop: Shop, program_image: str) -> None:
    with ordinary_user(shop.folder, engine=HOST, image=program_image) as user:
        done = user.cosmos("--project", shop.project, "volume", "clone", "files", "twin", "--json")
        assert done.returncode == 0, done.stdout + done.stderr
        assert "only root" in done.stderr
        os.chown(shop.path("twin") / "a", 0, 0)
        assert of_one_instant(shop.path("twin"))
        for words in (("copy", "files", "twin", "--yes"), ("remove", "twin", "--without-backup", "--yes")):
            done = user.cosmos("--project", shop.project, "volume", *words, "--json")
            assert done.returncode == 0, done.stdout + done.stderr
    assert shop.volume("twin") not in shop.volumes()
