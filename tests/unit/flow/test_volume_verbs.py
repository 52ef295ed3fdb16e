"""The verbs that change volumes, on the real folders of a stack of local processes."""

from __future__ import annotations

import json
import os
import shutil
import struct
from pathlib import Path

import pytest

from cosmos_coherence import errors, settings
from cosmos_coherence.cut.journal import anything_pending
from cosmos_coherence.drivers.local import LocalRuntime
from cosmos_coherence.flow import backup as backing
from cosmos_coherence.flow import (
    cache_cleaning,
    lost_volume,
    owner_fixing,
    recover,
    volume_copy,
    volume_removal,
)
from cosmos_coherence.flow.events import Report, Story
from support.killing import killed_at
from support.trees import looks, odd_tree, root_looks

ACL = struct.pack("<I", 2) + b"".join(
    struct.pack("<HHI", tag, allowed, who)
    for tag, allowed, who in [
        (1, 6, 2**32 - 1),
        (2, 6, 1234),
        (4, 4, 2**32 - 1),
        (16, 6, 2**32 - 1),
        (32, 4, 2**32 - 1),
    ]
)
"""rw for user 1234, besides the usual."""


class Shop:
    """A stack in a folder of its own; nothing of it runs unless it is started."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.backups = folder, folder / "backups"
        volumes = {"files": {}, "target": {}, "cache": {"labels": {"cosmos.cache": "true"}}, "idle": {}}
        loop = "n=0; while :; do n=$((n+1)); echo $n >t; mv t a; echo $n >t; mv t b; done"
        services = [
            {"name": "writer", "argv": ["sh", "-c", f"cd {folder}/volumes/files && {loop}"],
             "volumes": [{"volume": "files"}]},
            {"name": "reader", "argv": ["sleep", "1000"], "volumes": [{"volume": "target"}]},
        ]  # fmt: skip
        (folder / "stack.json").write_text(json.dumps({"project": "shop", "services": services, "volumes": volumes}))
        self.settings = settings.load(folder, environ={}, stack__runtime="process", backup__min_free=0)
        self.runtime = LocalRuntime(folder)
        self.runtime.create()

    def __getitem__(self, short: str) -> Path:
        return self.folder / "volumes" / short

    def story(self, verb: str = "volume-copy", step=lambda name: None) -> Story:
        return Story(verb=verb, run=backing.new_run(), project="shop", step=step)

    def clone(self, name: str, new: str, step=lambda name: None) -> Report:
        plan = volume_copy.plan_clone(self.runtime, self.settings, name, new, backups=self.backups)
        story = self.story("volume-clone", step)
        return volume_copy.copy(self.runtime, self.settings, plan, story, backups=self.backups)

    def copy(self, name: str, to: str, step=lambda name: None) -> Report:
        plan = volume_copy.plan_copy(self.runtime, self.settings, name, to, backups=self.backups)
        return volume_copy.copy(self.runtime, self.settings, plan, self.story(step=step), backups=self.backups)

    def backup(self, only=()) -> Report:
        plan = backing.plan_backup(self.runtime, self.settings, only=only)
        return backing.backup(self.runtime, self.settings, plan, self.story("backup"))

    def remove(self, *names: str, without_backup: bool = False) -> tuple[str, ...]:
        plan = volume_removal.plan_removal(
            self.runtime, self.settings, names, backups=self.backups, without_backup=without_backup
        )
        return volume_removal.remove(self.runtime, plan, self.story("volume-remove"))

    def heal(self) -> Report:
        return recover.recover(self.runtime, self.story("recover"), backups=self.backups)


@pytest.fixture
def shop(tmp_path):
    made = Shop(tmp_path)
    yield made
    made.runtime.stop(["writer", "reader"])


def done(report: Report) -> Report:
    assert report.status == "done", report.failure
    return report


def fill(root: Path) -> None:
    odd_tree(root)
    os.setxattr(root / "plain.txt", "system.posix_acl_access", ACL)


# --------------------------------------------------------------------------------------------------------------- copies
def test_a_clone_is_equal_in_everything(shop):
    fill(shop["files"])
    before = looks(shop["files"]), root_looks(shop["files"])
    done(shop.clone("files", "twin"))
    assert (
        (looks(shop["twin"]), root_looks(shop["twin"])) == before == (looks(shop["files"]), root_looks(shop["files"]))
    )
    hole = (shop["twin"] / "sparse").stat()
    assert hole.st_blocks * 512 < hole.st_size // 2
    assert not anything_pending(shop.runtime.state_directory())


def test_a_copy_replaces_all_and_takes_nothing_over_from_the_target(shop):
    fill(shop["files"])
    (shop["target"] / "old").write_text("old")
    os.setxattr(shop["target"], "system.posix_acl_default", ACL)
    report = done(shop.copy("files", "target"))
    assert looks(shop["target"]) == looks(shop["files"])
    assert root_looks(shop["target"]) == root_looks(shop["files"])
    assert "safety-" in report.safety_backup, "what was there is saved first"


def test_it_is_of_one_instant_and_the_writer_goes_on(shop):
    shop.runtime.start(["writer", "reader"])
    while not (shop["files"] / "b").exists():
        pass
    for number in range(3):
        report = done(shop.clone("files", f"twin{number}"))
        a, b = (int((shop[f"twin{number}"] / name).read_text()) for name in "ab")
        assert a - b in (0, 1)
        assert report.pause_ms > 0
    assert {s.state for s in shop.runtime.stack().services} == {"running"}


def test_a_copy_stops_who_uses_the_target_and_starts_it_again(shop):
    shop.runtime.start(["reader"])
    (shop["files"] / "x").write_text("x")
    plan = volume_copy.plan_copy(shop.runtime, shop.settings, "files", "target", backups=shop.backups)
    assert plan.stop == ("reader",)
    done(shop.copy("files", "target"))
    assert shop.runtime.stack().service("reader").state == "running"


def test_what_cannot_be_copied(shop):
    (shop["target"] / "x").touch()
    for name, new, error in [
        ("files", "target", errors.Refused), ("nothing", "twin", errors.NotFound), ("files", "a/b", errors.UsageError)
    ]:  # fmt: skip
        with pytest.raises(error):
            shop.clone(name, new)
    with pytest.raises(errors.Refused, match="same place"):
        shop.copy("files", "files")


def test_a_target_that_was_filled_after_the_plan_is_not_overwritten(shop):
    plan = volume_copy.plan_copy(shop.runtime, shop.settings, "files", "target", backups=shop.backups)
    assert plan.overwrites is None
    (shop["target"] / "precious").write_text("x")
    report = volume_copy.copy(shop.runtime, shop.settings, plan, shop.story(), backups=shop.backups)
    assert (report.exit_status, (shop["target"] / "precious").read_text()) == (7, "x")


@pytest.mark.parametrize("verb", ["clone", "copy"])
def test_killed_at_every_step(shop, verb):
    """Nothing half is live, `recover` leaves nothing, and the same command again converges."""
    (shop["files"] / "sub").mkdir()
    (shop["files"] / "sub" / "file").write_text("new")
    wanted = looks(shop["files"])
    (shop["target"] / "old").write_text("old")
    old = looks(shop["target"])
    to = "twin" if verb == "clone" else "target"
    act = shop.clone if verb == "clone" else shop.copy
    step = 1
    while killed_at(step, lambda checkpoint: done(act("files", to, checkpoint))):
        assert done(shop.heal())
        if verb == "clone":
            assert not shop[to].exists() or looks(shop[to]) == wanted
        else:
            assert looks(shop[to]) in (old, wanted)
        assert not list(shop[to].glob(".cosmos-restore-*"))
        assert not anything_pending(shop.runtime.state_directory())
        if step == 8:  # not each time, since it takes as long as all before
            done(act("files", to))
            assert looks(shop[to]) == wanted
        step += 1
        shutil.rmtree(shop[to], ignore_errors=True)
        if verb == "copy":
            shop[to].mkdir()
            (shop[to] / "old").write_text("old")
            old = looks(shop[to])
    assert step > 15
    assert looks(shop[to]) == wanted


# -------------------------------------------------------------------------------------------------------------- removal
def test_removed_is_what_a_complete_backup_holds(shop):
    fill(shop["idle"])
    with pytest.raises(errors.Refused, match="no complete backup"):
        shop.remove("idle")
    saved = done(shop.backup())
    assert shop.remove("idle") == ("shop_idle",)
    assert not shop["idle"].exists()
    assert saved.backup


@pytest.mark.parametrize("change", ["newer", "gone", "mode"])
def test_what_differs_from_the_backup_is_named_and_stays(shop, change):
    (shop["idle"] / "file").write_text("x")
    done(shop.backup())
    if change == "newer":
        (shop["idle"] / "newer").write_text("y")
    elif change == "gone":
        (shop["idle"] / "file").unlink()
    else:
        (shop["idle"] / "file").chmod(0o640)
    with pytest.raises(errors.Refused, match="newer" if change == "newer" else "file") as refused:
        shop.remove("idle", "cache")
    assert refused.value.exit_status == 7
    assert shop["idle"].exists()
    assert shop["cache"].exists(), "all of them or none"
    assert shop.remove("idle", without_backup=True) == ("shop_idle",)


def test_an_older_backup_counts_when_it_is_the_one_that_holds_it(shop):
    (shop["idle"] / "file").write_text("x")
    os.utime(shop["idle"] / "file", ns=(1, 1))
    first = done(shop.backup()).backup
    (shop["idle"] / "file").write_text("y")
    done(shop.backup())
    (shop["idle"] / "file").write_text("x")
    os.utime(shop["idle"] / "file", ns=(1, 1))
    plan = volume_removal.plan_removal(
        shop.runtime, shop.settings, ["idle"], backups=shop.backups, without_backup=False
    )
    assert plan.steps[0].backup == f"{first}.tar.gz"


def test_an_incomplete_or_damaged_backup_does_not_count(shop):
    (shop["idle"] / "file").write_text("x" * 5000)
    assert shop.backup(only=["volumes/idle"]).status == "incomplete"
    with pytest.raises(errors.Refused, match="no complete backup"):
        shop.remove("idle")
    archive = Path(done(shop.backup()).path)
    data = bytearray(archive.read_bytes())
    data[len(data) // 2] ^= 1
    archive.write_bytes(data)
    with pytest.raises(errors.Damaged):
        shop.remove("idle")
    assert shop["idle"].exists()


def test_what_changes_after_the_plan_stays(shop):
    (shop["idle"] / "file").write_text("x")
    done(shop.backup())
    plan = volume_removal.plan_removal(
        shop.runtime, shop.settings, ["idle"], backups=shop.backups, without_backup=False
    )
    (shop["idle"] / "file").write_text("y")
    with pytest.raises(errors.Refused, match="changed since"):
        volume_removal.remove(shop.runtime, plan, shop.story("volume-remove"))
    assert shop["idle"].exists()


def test_one_in_use_is_refused(shop):
    shop.runtime.start(["reader"])
    with pytest.raises(errors.Refused, match="in use by reader"):
        shop.remove("target", without_backup=True)


def test_prune_takes_what_nobody_uses_or_will_use_and_a_backup_holds(shop):
    (shop["idle"] / "file").write_text("x")
    (shop["cache"] / "file").write_text("x")
    done(shop.backup())
    (shop["cache"] / "newer").write_text("y")
    plan = volume_removal.plan_prune(
        shop.runtime, shop.settings, backups=shop.backups, without_backup=False, anonymous=True
    )
    reasons = {step.volume: step.reason for step in plan.steps}
    assert plan.removes == ("shop_idle",)
    assert "newer (too many)" in reasons["shop_cache"]
    assert "reader uses it" in reasons["shop_target"]
    assert all(reasons.values())
    assert volume_removal.remove(shop.runtime, plan, shop.story("volume-prune")) == ("shop_idle",)
    assert shop["cache"].exists()
    assert shop["target"].exists()


# ------------------------------------------------------------------------------------------------ create, clean, owners
def test_a_lost_volume_is_created(shop):
    shutil.rmtree(shop["idle"])
    plan = lost_volume.plan_create(shop.runtime, shop.settings, "", backups=shop.backups)
    assert [lost.record.name for lost in plan.missing] == ["shop_idle"]
    (made,) = lost_volume.create(shop.runtime, plan, run="r")
    assert made.exists
    assert lost_volume.plan_create(shop.runtime, shop.settings, "idle", backups=shop.backups).there == ("shop_idle",)
    with pytest.raises(errors.NotFound):
        lost_volume.plan_create(shop.runtime, shop.settings, "unheard-of", backups=shop.backups)


def test_one_that_only_the_backup_knows_comes_back_by_its_name(shop):
    shop["extra"].mkdir()
    done(shop.backup())
    shutil.rmtree(shop["extra"])
    assert lost_volume.plan_create(shop.runtime, shop.settings, "", backups=shop.backups).missing == ()
    plan = lost_volume.plan_create(shop.runtime, shop.settings, "extra", backups=shop.backups)
    assert plan.missing[0].said_by == "backup"
    lost_volume.create(shop.runtime, plan, run="r")
    assert shop["extra"].is_dir()


def test_a_cache_is_cleared_and_nothing_beyond_it(shop, tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "file").write_text("x")
    cache = shop["cache"]
    (cache / "made" / "at" / "start").mkdir(parents=True)
    (cache / "made" / "at" / "file").write_text("y" * 100_000)
    (cache / "link").symlink_to(outside)
    plan = cache_cleaning.plan_clean(shop.runtime, "cache")
    left = cache_cleaning.clean(shop.runtime, plan, run="r")
    assert (left.files, left.folders, plan.holds.files) == (0, 4, 2)
    assert (outside / "file").read_text() == "x"
    with pytest.raises(errors.Refused, match="not marked as a cache"):
        cache_cleaning.plan_clean(shop.runtime, "files")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_owners_and_modes_come_back_from_the_backup(shop):
    fill(shop["files"])
    done(shop.backup())
    before = {path: facts[:3] for path, facts in looks(shop["files"]).items()}
    for path in [shop["files"], *shop["files"].rglob("*")]:
        os.chown(path, 4711, 4711, follow_symlinks=False)
        if not path.is_symlink():
            path.chmod(0o777)
    plan = owner_fixing.plan_fix(shop.runtime, shop.settings, "files", backups=shop.backups)
    assert owner_fixing.fix(shop.runtime, plan, run="r") == ()
    after = {path: facts[:3] for path, facts in looks(shop["files"]).items()}
    assert [path for path in after if after[path] != before[path]] == [b"set-id"], "which changed hands"
    assert owner_fixing.plan_fix(shop.runtime, shop.settings, "files", backups=shop.backups).changes == ()
