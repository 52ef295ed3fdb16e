"""An ordinary user, who may talk to the engine but cannot read a volume: the program runs again beside the volumes."""

from __future__ import annotations

import io
import json
import os
import subprocess
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cosmos_coherence.cut.lock import run_lock
from support.docker_stack import HOST, docker
from support.ordinary_user import OrdinaryUser, ordinary_user
from support.program import NOBODY
from support.shop_stack import ShopStack, shop_stack
from support.trees import public_folder
from support.waiting import eventually

pytestmark = [pytest.mark.docker, pytest.mark.timeout(600)]

STAND_STILL = """
import os
if os.environ.get("COSMOS_TEST_STAND_STILL"):
    import time
    from cosmos_coherence.cut import freezer

    freeze_all = freezer.freeze_all
    def stand_still(targets, *, within_s):
        freeze_all(targets, within_s=within_s)
        time.sleep(600)
    freezer.freeze_all = stand_still
"""
"""What the image of these tests does when it is asked to: it hangs in the hold."""


@pytest.fixture(scope="module")
def image(program_image: str) -> Iterator[str]:
    name = f"{program_image}-hangs"
    find = "import sysconfig; print(sysconfig.get_paths()['purelib'])"
    where = docker("run", "--rm", "--network", "none", program_image, "python", "-c", find).strip()
    container = docker("create", "--network", "none", program_image).strip()
    try:
        subprocess.run(
            ["docker", "-H", HOST, "cp", "-", f"{container}:{where}"],
            input=tar_of({"stand_still.py": STAND_STILL, "stand_still.pth": "import stand_still\n"}),
            check=True, capture_output=True,
        )  # fmt: skip
        docker("commit", container, name)
    finally:
        docker("rm", "--force", container)
    yield name
    docker("rmi", "--force", name)


def tar_of(files: dict[str, str]) -> bytes:
    whole = io.BytesIO()
    with tarfile.open(fileobj=whole, mode="w") as tar:
        for name, text in files.items():
            member = tarfile.TarInfo(name)
            member.size, member.mode = len(text.encode()), 0o644
            tar.addfile(member, io.BytesIO(text.encode()))
    return whole.getvalue()


@pytest.fixture(scope="module")
def shop() -> Iterator[ShopStack]:
    with shop_stack() as shop:
        # the kernel shows attributes of this kind to nobody without a capability that a container of ours never gets
        os.removexattr(shop.volume("files") / "tree" / "dangling", "trusted.link", follow_symlinks=False)
        shop.write()
        yield shop


@pytest.fixture(scope="module")
def user(shop: ShopStack, image: str) -> Iterator[OrdinaryUser]:
    with ordinary_user(shop.folder, engine=HOST, image=image) as user:
        yield user


def ours(image: str, role: str) -> list[str]:
    """The containers of the program that run."""
    return docker("ps", "--quiet", "--filter", f"ancestor={image}", "--filter", f"label=cosmos.role={role}").split()


def writes(shop: ShopStack) -> bool:
    log = shop.volume("files") / "0.log"
    size = log.stat().st_size
    time.sleep(0.3)
    return log.stat().st_size > size


def test_status_is_the_same_as_root_s(shop: ShopStack, user: OrdinaryUser) -> None:
    done = user.cosmos("status", "--json")
    assert done.returncode == 0, done.stderr
    found, of_root = json.loads(done.stdout), json.loads(shop.cosmos("status", "--json").stdout)
    assert found["coverage"] == of_root["coverage"]
    assert found["stack"]["volumes"] == of_root["stack"]["volumes"]


def test_backup_and_restore(shop: ShopStack, user: OrdinaryUser) -> None:
    began, standing = shop.reached(), shop.standing()
    backup = user.cosmos("backup", "--json")
    assert (backup.returncode, json.loads(backup.stdout)["status"]) == (0, "done"), backup.stderr
    assert "only root" in backup.stderr
    saved = json.loads(backup.stdout)
    ended = shop.reached()
    assert saved["pause_ms"] > 0
    # the archive is the user's to list, to copy and to check
    assert Path(saved["path"]).is_relative_to(shop.folder)
    assert json.loads(user.cosmos("show", "latest", "--json").stdout)["id"] == saved["backup"]
    assert user.cosmos("check", "latest").returncode == 0
    assert {p.stat().st_uid for p in (shop.folder / "backups").iterdir()} == {shop.folder.stat().st_uid}

    (shop.folder / "uploads" / "picture").unlink()
    refused = user.cosmos("restore", "latest", "--json")
    assert (refused.returncode, json.loads(refused.stdout)["status"]) == (7, "failed")
    restore = user.cosmos("restore", "latest", "--yes", "--json")
    assert (restore.returncode, json.loads(restore.stdout)["status"]) == (0, "done"), restore.stderr
    found = shop.sequences()
    assert all(one.of_one_instant for one in found.values()), found
    assert all(began[w] <= found[w].database <= ended[w] for w in found)
    assert shop.standing() == standing
    assert not ours(user.environment["COSMOS_IMAGE"], "run")
    shop.write()


def test_wrong_usage_has_its_words_and_its_status(user: OrdinaryUser) -> None:
    done = user.cosmos("backup", "--only", "no/such", "--json")
    assert (done.returncode, json.loads(done.stdout)["failure"]["code"]) == (4, "not-found")
    assert user.cosmos("restore", "19990101_000000").returncode == 4


def test_settings_of_the_environment_count_inside(shop: ShopStack, user: OrdinaryUser) -> None:
    settings = {"COSMOS_BACKUP__DIRECTORY": "elsewhere", "COSMOS_STATE_DIRECTORY": str(shop.folder / "state")}
    done = user.cosmos("backup", "--json", **settings)
    assert done.returncode == 0, done.stdout + done.stderr
    assert Path(json.loads(done.stdout)["path"]).parent == shop.folder / "elsewhere"
    assert (shop.folder / "state" / "run.lock").exists()
    wrong = user.cosmos("backup", "--json", COSMOS_CUT__MAX_PAUSE="soon")
    assert wrong.returncode == 2


def test_the_run_lock_is_the_same_for_root_on_the_host(shop: ShopStack, user: OrdinaryUser) -> None:
    with run_lock(shop.volume("cosmos-state"), run="r1", what="backup"):
        done = user.cosmos("backup", "--json")
    assert (done.returncode, json.loads(done.stdout)["failure"]["code"]) == (5, "locked")
    assert "r1" in json.loads(done.stdout)["failure"]["message"]


def test_killed_in_the_hold_leaves_nothing_held(shop: ShopStack, user: OrdinaryUser) -> None:
    """With a budget that does not run out, so that only the watchdog can have released the writer."""
    image = user.environment["COSMOS_IMAGE"]
    assert writes(shop)
    with user.start("backup", "--json", COSMOS_TEST_STAND_STILL="1", COSMOS_CUT__MAX_PAUSE="10m") as caller:
        try:
            assert eventually(lambda: not writes(shop), within_s=90), "it never came to the hold"
            assert len(ours(image, "watchdog")) == 1
            # meanwhile nobody else may begin, in a container or on the host
            assert user.cosmos("backup", "--json").returncode == 5
            assert shop.cosmos("backup", "--json", check=False).returncode == 5
            (job,) = ours(image, "run")
            docker("kill", job)
            assert eventually(lambda: writes(shop), within_s=10)
            assert eventually(lambda: not ours(image, "watchdog"), within_s=60)
            caller.communicate(timeout=60)
        except BaseException:
            caller.kill()
            for job in ours(image, "run"):
                docker("rm", "--force", job)
            shop.cosmos("recover")  # else nobody could stop a writer that is still frozen
            raise
    assert caller.returncode == 137
    after = user.cosmos("backup", "--json")
    assert after.returncode == 0, after.stdout
    assert json.loads(after.stdout)["notes"], "it says what it healed"
    assert not list((shop.folder / "backups").glob(".spool*"))
    assert writes(shop)


def from_a_container(shop: ShopStack, image: str, *mounts: str) -> tuple[int, dict[str, Any]]:
    """A backup asked for in a container that sees the engine, as ``docker exec`` into the agent would."""
    options = [f"--volume={mount}" for mount in (f"{HOST.removeprefix('unix://')}:/var/run/docker.sock", *mounts)]
    settings = ["--env=COSMOS_STATE_DIRECTORY=/var/lib/cosmos", f"--env=COSMOS_IMAGE={image}"]
    call = ("docker", "run", "--rm", "--network=none", *options, *settings, image)
    done = shop.run(*call, "cosmos", "--project", shop.project, "backup", "--json", check=False)
    return done.returncode, json.loads(done.stdout)


def test_from_a_container_it_uses_the_shared_journal_and_the_host_s_folder(shop: ShopStack, image: str) -> None:
    backups = shop.folder / "from-a-container"
    status, report = from_a_container(shop, image, f"{backups}:/app/backups")
    assert (status, report["status"]) == (0, "done")
    assert (backups / f"{report['backup']}.tar.gz").exists()
    assert (shop.volume("cosmos-state") / "spool" / f"{report['run']}-backup.json").exists()


def test_from_a_container_nothing_is_written_where_it_would_be_lost(shop: ShopStack, image: str) -> None:
    status, report = from_a_container(shop, image)
    assert (status, report["failure"]["code"]) == (7, "refused")
    assert "/app/backups" in report["failure"]["message"]


def test_a_repository_outside_of_the_project(user: OrdinaryUser) -> None:
    """Its folder and its password come along into the container, and what is written belongs to the user."""
    with public_folder() as place:
        (place / "safe").mkdir(mode=0o700)
        (place / "safe" / "password").write_text("of the repository\n")
        for path in (place, place / "safe", place / "safe" / "password"):
            os.chown(path, NOBODY, NOBODY)
        there = {
            "COSMOS_REPOSITORY__URL": str(place / "repository"),
            "COSMOS_REPOSITORY__PASSWORD_FILE": str(place / "safe" / "password"),
        }
        made = user.cosmos("init", "--kit", str(place / "kit"), **there)
        assert made.returncode == 0, made.stdout + made.stderr
        done = user.cosmos("backup", "--json", **there)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "running in a container" in done.stderr
        saved = json.loads(done.stdout)
        listed = user.cosmos("list", "--json", **there)
        assert saved["backup"] in [one["id"] for one in json.loads(listed.stdout)]
        owners = {path.stat().st_uid for path in (place / "repository").rglob("*")}
        assert owners == {NOBODY}


def test_without_the_image_there_is_a_remedy(user: OrdinaryUser) -> None:
    done = user.cosmos("backup", "--json", COSMOS_IMAGE="cosmos-test-no-such-image:1")
    assert (done.returncode, json.loads(done.stdout)["failure"]["code"]) == (4, "not-found")
    assert "make images" in json.loads(done.stdout)["failure"]["remedy"]


def test_as_root_nothing_of_this_is_needed(shop: ShopStack) -> None:
    assert "container" not in shop.cosmos("status").stderr
