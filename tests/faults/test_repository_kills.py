"""Backup, prune and copy that end in the middle: killed, with a store that gives out, on a disk that is full.

Our own next run makes it whole: then the real restic finds nothing wrong, and every backup that was published restores.
"""

from __future__ import annotations

import os
import random
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest

from cosmos_coherence import errors
from cosmos_coherence.repository import copying, layout, locks, prune
from cosmos_coherence.repository.check import check
from cosmos_coherence.storage.backend import Backend
from cosmos_coherence.storage.folder import FolderBackend
from support import small_backups
from support.faulty_backend import Fault, FaultyBackend
from support.killing import killed_within
from support.memory_backend import MemoryBackend
from support.restic import Restic, restic
from support.small_backups import back_up, extracted, grow, on_disk, opened, seen
from support.small_disk import small_disk

Verb = Literal["backup", "prune", "copy"]
VERBS: tuple[Verb, ...] = ("backup", "prune", "copy")
KEPT = 3
"""Backups that are kept while the others come and go."""


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    small_backups.quick_to_open(monkeypatch)
    small_backups.many_small_packs(monkeypatch)


def do_prune(backend: Backend) -> prune.Plan:
    repository = opened(backend)
    with locks.acquire(repository, exclusive=True) as lock:
        planned = prune.plan(repository, max_unused=0)
        prune.apply(repository, planned, lock)
    return planned


def do_copy(source: Backend, target: Backend) -> copying.Copied:
    here, there = opened(source), opened(target)
    with locks.acquire(here), locks.acquire(there):
        return copying.copy(here, there, [each.id for each in here.snapshots()])


# ---------------------------------------------------------------------------------------------------------- kill -9
@dataclass
class Places:
    """A folder that lives, its repository, and the repository's copy."""

    work: Path
    rng: random.Random
    referee: Restic
    ids: Iterator[str] = field(default_factory=small_backups.identities)
    wanted: dict[str, tuple[Any, ...]] = field(default_factory=dict)
    """What each backup must restore to, by its id."""
    stream: bytes = b""
    seconds: dict[Verb, float] = field(default_factory=dict)
    """How long each takes when it is left alone."""
    turns: int = 0

    def __post_init__(self) -> None:
        self.root.mkdir(parents=True)
        for folder in (self.first, self.second):
            small_backups.new(FolderBackend(folder))
        for _ in range(2):
            self.live()
            self.run("backup")
        self.run("copy")
        self.forget(1)
        self.run("prune")

    @property
    def root(self) -> Path:
        return self.work / "root"

    @property
    def first(self) -> Path:
        return self.work / "first"

    @property
    def second(self) -> Path:
        return self.work / "second"

    def live(self) -> None:
        """The folder changes, and has settled: what was written within the last tick of the clock is read again."""
        grow(self.root, self.rng, files=25, size=12_000)
        self.stream = self.rng.randbytes(self.rng.randrange(150_000))

    def forget(self, kept: int, place: Path | None = None) -> None:
        repository = opened(FolderBackend(place or self.first))
        for each in repository.snapshots()[:-kept]:
            repository.remove_snapshot(each.id)

    def act(self, verb: Verb, identity: str) -> Callable[[], object]:
        if verb == "prune":
            return lambda: do_prune(FolderBackend(self.first))
        if verb == "copy":
            return lambda: do_copy(FolderBackend(self.first), FolderBackend(self.second))
        return lambda: back_up(
            opened(FolderBackend(self.first)), self.root, identity, work=self.work, stream=self.stream
        )

    def run(self, verb: Verb) -> None:
        """Left alone. What a killed one has left in the spool is the journal's business."""
        for spool in self.work.glob("spool-*"):
            shutil.rmtree(spool)
        identity = next(self.ids)
        self.wanted[identity] = on_disk(self.root, self.stream)
        began = time.monotonic()
        self.act(verb, identity)()
        self.seconds[verb] = time.monotonic() - began

    def killed(self, verb: Verb) -> bool:
        identity = next(self.ids)
        self.wanted[identity] = on_disk(self.root, self.stream)
        return killed_within(self.rng.uniform(0, 1.1 * self.seconds[verb]), self.act(verb, identity))

    def turn(self, verb: Verb) -> str:
        """Kill one, let the same run to its end, and look at everything."""
        self.turns += 1
        before = self.listed(self.first)
        self.live()
        if verb == "prune":
            self.forget(KEPT - 1)
        kept = self.listed(self.first) & before
        outcome = "killed" if self.killed(verb) else "too late"
        left = bool(list((self.first / "locks").iterdir()))
        assert self.listed(self.first) >= kept
        self.run(verb)
        for place in (self.first, self.second):
            assert not list((place / "locks").iterdir()), "a dead process has kept its lock"
        self.referee.check(self.second if verb == "copy" else self.first)
        assert self.listed(self.first) >= kept
        self.look(self.first)
        if verb == "copy":
            self.look(self.second)
            assert self.listed(self.second) >= kept
            self.forget(KEPT + 1, self.second)
        self.forget(KEPT)
        return f"{verb} {outcome}{' holding a lock' if left and outcome == 'killed' else ''}"

    def listed(self, place: Path) -> set[str]:
        return {layout.backup_id(each.snapshot) or "" for each in opened(FolderBackend(place)).snapshots()}

    def look(self, place: Path) -> None:
        """Every backup that is published restores to what was there."""
        repository = opened(FolderBackend(place))
        for each in repository.snapshots():
            folder = self.work / "restored"
            assert extracted(repository, each, folder) == self.wanted[layout.backup_id(each.snapshot) or ""]
            shutil.rmtree(folder)


def campaign(places: Places, kills: int) -> Counter[str]:
    """So many kills, each verb in its turn; those that came too late do not count."""
    told: Counter[str] = Counter()
    while sum(count for what, count in told.items() if "killed" in what) < kills:
        told[places.turn(VERBS[places.turns % len(VERBS)])] += 1
    for place in (places.first, places.second):
        do_prune(FolderBackend(place))
        places.referee.check(place)
        report = check(opened(FolderBackend(place)), read_share=1.0)
        assert report.sound, report.faults
        assert report.unused_packs == 0
        places.look(place)
    return told


@pytest.fixture
def places(tmp_path: Path, rng: random.Random) -> Places:
    return Places(tmp_path / "places", rng, restic("0.19", tmp_path / "restic-home"))


def test_killed_at_any_moment(places: Places) -> None:
    campaign(places, 6)


@pytest.mark.soak
@pytest.mark.timeout(7200)
def test_killed_at_two_hundred_moments(places: Places) -> None:
    began = time.monotonic()
    told = campaign(places, 200)
    print(f"{places.turns} turns in {time.monotonic() - began:.0f} s: {dict(sorted(told.items()))}")


# ------------------------------------------------------------------------------------------- a store that gives out
FAULTS = ("before", "after", "from")
"""Once without doing it, once having done it, and for good from then on."""


@dataclass(frozen=True)
class Scene:
    """Two repositories before the run that goes wrong, and the folder that it backs up."""

    work: Path
    stream: bytes
    first: dict[str, bytes]
    second: dict[str, bytes]
    kept: dict[str, list[object]]
    """What each backup in the first one must restore to, by the id of its snapshot."""

    @property
    def root(self) -> Path:
        return self.work / "root"


@pytest.fixture
def scene(tmp_path: Path, rng: random.Random) -> Scene:
    """Of three backups one was forgotten, and one was copied."""
    first, second, ids = MemoryBackend(), MemoryBackend(), small_backups.identities()
    small_backups.new(first)
    small_backups.new(second)
    for number in range(3):
        grow(tmp_path / "root", rng, files=8, size=8_000)
        back_up(opened(first), tmp_path / "root", next(ids), work=tmp_path, stream=rng.randbytes(30_000), workers=1)
        if number == 1:
            do_copy(first, second)
    repository = opened(first)
    oldest, *kept = repository.snapshots()
    repository.remove_snapshot(oldest.id)
    grow(tmp_path / "root", rng, files=8, size=8_000)
    whole = {each.id: seen(repository, each) for each in kept}
    return Scene(tmp_path, rng.randbytes(30_000), dict(first.files), dict(second.files), whole)


def broken(scene: Scene, where: str, nth: int, how: str) -> bool:
    """The run with its ``nth`` call going wrong, then what it left, then the same run again. False when it had fewer.

    ``where`` is what is done, and of a copy the side that goes wrong.
    """
    first, second = MemoryBackend(), MemoryBackend()
    first.files, second.files = dict(scene.first), dict(scene.second)
    last = 1 << 30 if how == "from" else None
    fault = Fault("any", nth=nth, last=last, when="after" if how == "after" else "before")
    bad = FaultyBackend(second if where == "copy to" else first, fault)

    def run(one: Backend, other: Backend, identity: str) -> None:
        if where == "backup":
            back_up(opened(one), scene.root, identity, work=scene.work, stream=scene.stream, workers=1)
        elif where == "prune":
            do_prune(one)
        else:
            do_copy(one, other)

    try:
        run(first if where == "copy to" else bad, bad if where == "copy to" else second, "20250101_000000")
        ended = True
    except errors.CosmosError:
        ended = False
    if bad.missed:
        return False
    for again in range(2):
        for backend in (first, second):
            repository = opened(backend)
            report = check(repository, read_share=1.0)
            assert report.sound, (where, nth, how, report.faults)
            there = {each.snapshot.original or each.id: each for each in repository.snapshots()}
            assert backend is second or there.keys() >= scene.kept.keys()
            for snapshot in there.keys() & scene.kept.keys():
                assert seen(repository, there[snapshot]) == scene.kept[snapshot], (where, nth, how)
            if where == "copy to" and backend is second and (ended or again):
                assert there.keys() >= scene.kept.keys()
            if where == "backup" and backend is first and (ended or again):
                (made, *_) = [each for key, each in there.items() if key not in scene.kept]
                assert scene.stream in seen(repository, made)
            locks.unlock(repository, every=True)  # its process lives: for us they are somebody's
        if not again:
            run(first, second, "20250101_000001")
    return True


def sweep(scene: Scene, where: str, how: Callable[[], str]) -> int:
    """Every call of the run in turn; how many there are."""
    nth = 1
    while broken(scene, where, nth, how()):
        nth += 1
    assert nth > 10, f"{where} has only {nth - 1} calls"
    return nth - 1


PLACES = ("backup", "prune", "copy from", "copy to")


@pytest.mark.parametrize("where", PLACES)
def test_a_store_that_fails_at_every_call(scene: Scene, where: str, rng: random.Random) -> None:
    sweep(scene, where, lambda: rng.choice(FAULTS))


@pytest.mark.soak
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("how", FAULTS)
@pytest.mark.parametrize("where", PLACES)
def test_a_store_that_fails_at_every_call_in_every_way(scene: Scene, where: str, how: str) -> None:
    print(f"{where}, {how}: {sweep(scene, where, lambda: how)} calls")


# ------------------------------------------------------------------------------------------------------- a full disk
@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    with small_disk(tmp_path / "disk", "4m") as mounted:
        yield mounted


@pytest.mark.parametrize("verb", ["backup", "prune"])
def test_a_full_disk(disk: Path, tmp_path: Path, rng: random.Random, verb: str) -> None:
    """At several degrees of full: nothing is lost, and with room the same run comes to its end."""
    backend, root, ids = FolderBackend(disk / "repository"), tmp_path / "root", small_backups.identities()
    small_backups.new(backend)
    wanted: dict[str, tuple[Any, ...]] = {}
    stream = b""

    def run_backup() -> None:
        listed = back_up(opened(backend), root, next(ids), work=tmp_path, stream=stream)
        wanted[listed.id] = on_disk(root, stream)

    def run_prune() -> None:
        assert not do_prune(backend).empty

    def forget(kept: int) -> None:
        repository = opened(backend)
        for each in repository.snapshots()[:-kept]:
            repository.remove_snapshot(each.id)

    run, refused, ballast = run_backup if verb == "backup" else run_prune, 0, disk / "ballast"
    for free in (0, 8 << 10, 40 << 10, 90 << 10, 150 << 10):
        for _ in range(3):
            grow(root, rng, files=12, size=12_000)
            stream = rng.randbytes(60_000)
            run_backup()
        forget(2)
        grow(root, rng, files=12, size=12_000)
        stream = rng.randbytes(90_000)
        with ballast.open("wb") as file:
            room = os.statvfs(disk)
            os.posix_fallocate(file.fileno(), 0, room.f_bavail * room.f_frsize - free)
        try:
            run()
        except errors.NoRoom:
            refused += 1
            sound_and_equal(backend, wanted, tmp_path)
            assert not list(backend.list("locks"))
            ballast.unlink()
            run()
        ballast.unlink(missing_ok=True)
        sound_and_equal(backend, wanted, tmp_path)
        forget(1)
        do_prune(backend)
    assert refused >= 3


def sound_and_equal(backend: Backend, wanted: dict[str, tuple[Any, ...]], work: Path) -> None:
    repository = opened(backend)
    report = check(repository, read_share=1.0)
    assert report.sound, report.faults
    for each in repository.snapshots():
        assert extracted(repository, each, work / "restored") == wanted[each.id]
        shutil.rmtree(work / "restored")
