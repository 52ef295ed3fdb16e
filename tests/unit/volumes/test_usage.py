"""Sizes are those of ``du``, to the byte, in one process and in several."""

from __future__ import annotations

import ctypes
import os
import random
import stat
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cosmos_coherence.drivers import bulk_stat
from cosmos_coherence.volumes.usage import Usage, folder_size, measure_tree
from cosmos_coherence.volumes.walkers import count_tree
from support.program import NOBODY
from support.trees import odd_tree, public_folder, sparse


def du(root: Path) -> int:
    """What ``du`` counts, without other file systems."""
    done = subprocess.run(["du", "-s", "-x", "--block-size=1", str(root)], capture_output=True, check=True)
    return int(done.stdout.split()[0])


def both(root: Path) -> Usage:
    """Measured in one process and in two, which must not differ."""
    alone = count_tree(root, processes=1)
    together = count_tree(root, processes=2, large=1)
    assert alone.usage == together.usage
    assert alone.shares == together.shares
    return alone.usage


@pytest.fixture(scope="module")
def tree() -> Iterator[Path]:
    with public_folder() as root:
        chance = random.Random(5)
        odd_tree(root)
        for number in range(60):
            folder = root / f"d{number % 4}" / f"e{number % 7}" / f"f{number}" / "deep" / "deeper"
            folder.mkdir(parents=True)
            for each in range(30):
                (folder / f"{each}").write_bytes(bytes(chance.randrange(9000)))
        first = root / "d0/e0/f0/deep/deeper/0"
        for number in range(1, 50):
            os.link(first, root / f"d{number % 4}" / f"link{number}")
        sparse(root / "holes", 1 << 30, {5 << 20: b"x" * 70000})
        os.sync()  # what is not written yet may still change its size
        yield root


def test_it_is_what_du_counts(tree: Path) -> None:
    usage = both(tree)
    assert usage.bytes == du(tree)
    assert usage.unreadable == 0
    links, files, folders = set(), 0, 0
    for above, below, names in os.walk(tree):
        folders += 1
        for name in [*below, *names]:
            status = os.lstat(Path(above) / name)
            if not stat.S_ISDIR(status.st_mode):
                files += (status.st_dev, status.st_ino) not in links
                links.add((status.st_dev, status.st_ino))
    assert (usage.files, usage.folders) == (files, folders)
    assert measure_tree(tree) == usage


def test_shares_ages_and_files_add_up(tree: Path) -> None:
    found = count_tree(tree, processes=2, large=1)
    assert sum(blocks for blocks, _ in found.shares.values()) == found.blocks
    assert sum(files for _, files in found.shares.values()) == found.files == sum(files for _, files in found.ages)
    assert all(path.count(b"/") < 3 for path in found.shares)
    largest = sorted(found.largest, reverse=True)
    assert largest[0].blocks * 512 >= 70000
    assert [os.lstat(os.fsencode(tree) + b"/" + each.path).st_blocks for each in largest] == [e.blocks for e in largest]


def test_ages(tmp_path: Path) -> None:
    now = time.time()
    for days in (0, 0.5, 3, 20, 100, 1000):
        file = tmp_path / f"{days}"
        file.write_bytes(b"x")
        os.utime(file, (now, now - days * 86400))
    assert [files for _, files in count_tree(tmp_path).ages] == [1, 1, 1, 1, 2]


def test_deeper_than_a_path_may_be_long(tmp_path: Path) -> None:
    folder = os.open(tmp_path, os.O_RDONLY)
    for _ in range(60):  # 60 times 200 letters
        for name in ("n" * 200, "sibling"):
            os.mkdir(name, dir_fd=folder)
            file = os.open(f"of {name[:7]}", os.O_CREAT | os.O_WRONLY, dir_fd=folder)
            os.write(file, b"content")
            os.close(file)
        below = os.open("n" * 200, os.O_RDONLY, dir_fd=folder)
        os.close(folder)
        folder = below
    os.close(folder)
    usage = both(tmp_path)
    assert (usage.files, usage.folders, usage.unreadable) == (120, 121, 0)
    assert usage.bytes == du(tmp_path)
    subprocess.run(["rm", "-r", *tmp_path.iterdir()], check=True)


def test_more_folders_below_each_other_than_may_be_open(tmp_path: Path) -> None:
    folder = os.open(tmp_path, os.O_RDONLY)
    for _ in range(1500):
        os.mkdir("d", dir_fd=folder)
        os.mkdir("e", dir_fd=folder)
        below = os.open("d", os.O_RDONLY, dir_fd=folder)
        os.close(folder)
        folder = below
    os.close(folder)
    assert both(tmp_path) == Usage(du(tmp_path), 0, 3001)
    subprocess.run(["rm", "-r", *tmp_path.iterdir()], check=True)


def test_names_that_are_no_text(tmp_path: Path) -> None:
    (Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff\xfe"))).mkdir()
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff\xfe/\x80\n\x1b[31m")).write_bytes(b"x" * 5000)
    assert both(tmp_path) == Usage(du(tmp_path), 1, 2)
    assert count_tree(tmp_path).largest[0].path == b"\xff\xfe/\x80\n\x1b[31m"


def test_links_are_not_followed(tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/large").write_bytes(bytes(1 << 20))
    root = tmp_path / "root"
    root.mkdir()
    (root / "away").symlink_to(tmp_path / "outside")
    (root / "loop").symlink_to(root)
    (tmp_path / "door").symlink_to(root)
    assert both(root) == Usage(du(root), 2, 1)
    assert both(tmp_path / "door").files == 2, "the root itself may be named by a link"


def test_a_folder_that_becomes_a_link_leads_nowhere(tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    for number in range(200):
        (tmp_path / "outside" / f"{number}").write_bytes(b"secret")
    root, ended = tmp_path / "root", threading.Event()
    (root / "swapped").mkdir(parents=True)

    def swap() -> None:
        while not ended.is_set():
            (root / "swapped").rename(tmp_path / "aside")
            (root / "swapped").symlink_to(tmp_path / "outside")
            (root / "swapped").unlink()
            (tmp_path / "aside").rename(root / "swapped")

    swapping = threading.Thread(target=swap)
    swapping.start()
    try:
        assert all(measure_tree(root).files <= 1 for _ in range(300))
    finally:
        ended.set()
        swapping.join()


def test_what_vanishes_counts_nothing(tmp_path: Path) -> None:
    ended = threading.Event()

    def churn() -> None:
        while not ended.is_set():
            for number in range(50):
                (tmp_path / f"{number}").write_bytes(b"")
            for number in range(50):
                (tmp_path / f"{number}").unlink()

    churning = threading.Thread(target=churn)
    churning.start()
    try:
        assert all(measure_tree(tmp_path).unreadable == 0 for _ in range(100))
    finally:
        ended.set()
        churning.join()


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts need root")
def test_mounts_below_do_not_count(tmp_path: Path) -> None:
    (tmp_path / "mounted").mkdir()
    (tmp_path / "file").write_bytes(b"x")
    subprocess.run(["mount", "-t", "tmpfs", "none", tmp_path / "mounted"], check=True)
    try:
        (tmp_path / "mounted/large").write_bytes(bytes(1 << 20))
        (tmp_path / "bound").touch()
        subprocess.run(["mount", "--bind", tmp_path / "mounted/large", tmp_path / "bound"], check=True)
        try:
            assert both(tmp_path) == Usage(du(tmp_path), 1, 1)
        finally:
            subprocess.run(["umount", tmp_path / "bound"], check=True)
    finally:
        subprocess.run(["umount", tmp_path / "mounted"], check=True)


@pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user")
def test_what_may_not_be_looked_at_is_told() -> None:
    with public_folder() as root:
        for name, mode in (("closed", 0o700), ("listed", 0o744), ("open", 0o755)):
            (root / name).mkdir()
            for number in range(3):
                (root / name / f"{number}").write_bytes(b"x")
            (root / name).chmod(mode)
        pid = os.fork()
        if pid == 0:  # in this very interpreter, since another user may not read where it lies
            os.setgid(NOBODY)
            os.setuid(NOBODY)
            ctypes.CDLL(None).prctl(4, 1)  # PR_SET_DUMPABLE: else its own /proc is closed to it until it execs
            found = measure_tree(root)
            os._exit(0 if (found.files, found.folders, found.unreadable) == (3, 4, 2) else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_without_the_fast_call_it_is_the_same(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = measure_tree(tree)

    class Old:
        """A C library that does not have it."""

    monkeypatch.setattr(bulk_stat.ctypes, "CDLL", lambda *_: Old())
    assert count_tree(tree, processes=1).usage == wanted


def test_what_is_not_there(tmp_path: Path) -> None:
    assert folder_size(tmp_path / "nothing") == 0
    with pytest.raises(FileNotFoundError):
        measure_tree(tmp_path / "nothing")


def test_a_walker_that_dies_ends_it(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from cosmos_coherence import errors
    from cosmos_coherence.volumes import walkers

    pids: list[int] = []
    fork = os.fork

    def noted() -> int:
        pids.append(fork())
        return pids[-1]

    monkeypatch.setattr(os, "fork", noted)
    monkeypatch.setattr(walkers, "_work", lambda *_: os._exit(9))
    with pytest.raises(errors.CosmosError, match="has died"):
        count_tree(tree, large=1)
    assert len(pids) == walkers.PROCESSES
    for pid in pids:
        with pytest.raises(ChildProcessError):
            os.waitpid(pid, os.WNOHANG)
