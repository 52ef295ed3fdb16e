"""A repository in a local directory: durable, private, and nothing half there whatever happens."""

from __future__ import annotations

import errno
import hashlib
import os
import resource
import signal
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cosmos_coherence import errors
from cosmos_coherence.storage.backend import Stored
from cosmos_coherence.storage.folder import FolderBackend
from support import stores
from support.program import SOURCE

NAME = "ab" * 32


@pytest.fixture
def backend(tmp_path: Path) -> FolderBackend:
    backend = FolderBackend(tmp_path / "repository")
    backend.create()
    return backend


def test_everything_in_it_is_private(backend: FolderBackend, tmp_path: Path) -> None:
    root = tmp_path / "repository"
    backend.save("data", NAME, [b"x"])
    backend.save("config", "", [b"x"])
    folders = [root, *(path for path in root.rglob("*") if path.is_dir())]
    assert len(folders) == 1 + 5 + 256
    assert {stat.S_IMODE(path.stat().st_mode) for path in folders} == {0o700}
    for path in (root / "config", root / "data" / "ab" / NAME):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_what_root_writes_belongs_to_whom_the_folder_belongs(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        stores.missing("root")
    os.chown(tmp_path, 1234, 1234)
    backend = FolderBackend(tmp_path / "repository")
    backend.create()
    backend.save("data", NAME, [b"x"])
    assert {path.stat().st_uid for path in (tmp_path / "repository").rglob("*")} == {1234}


@pytest.mark.parametrize("without", ["", "O_TMPFILE", "O_TMPFILE and links"])
def test_a_file_is_synced_named_and_its_folder_synced_in_that_order(
    backend: FolderBackend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, without: str
) -> None:
    """Also on disks that know no files without a name, and on those that know no hard links either."""
    steps: list[str] = []
    fsync, link, rename = os.fsync, os.link, Path.rename

    def synced(descriptor: int) -> None:
        steps.append("sync folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "sync file")
        fsync(descriptor)

    def linked(*arguments: Any, **options: Any) -> None:
        steps.append("link")
        if "links" in without:
            raise OSError(errno.EPERM, os.strerror(errno.EPERM))
        link(*arguments, **options)

    def renamed(self: Path, target: Path) -> Path:
        steps.append("rename")
        return rename(self, target)

    if without:
        monkeypatch.delattr(os, "O_TMPFILE")
    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "link", linked)
    monkeypatch.setattr(Path, "rename", renamed)
    parts = [bytes([number % 256]) * 7 for number in range(1500)]
    backend.save("data", NAME, parts)
    assert steps == ["sync file", "link", *(["rename"] if "links" in without else []), "sync folder"]
    assert backend.load("data", NAME) == b"".join(parts)
    backend.save("data", NAME, parts)
    with pytest.raises(errors.Refused):
        backend.save("data", NAME, parts[1:])
    assert [path.name for path in (tmp_path / "repository" / "data" / "ab").iterdir()] == [NAME]


@pytest.mark.parametrize("named", [False, True])
def test_who_comes_second_finds_the_first(
    backend: FolderBackend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, named: bool
) -> None:
    """Another program gives a file that name while ours is being written."""
    if named:
        monkeypatch.delattr(os, "O_TMPFILE")
    fsync = os.fsync

    def overtaken(descriptor: int) -> None:
        monkeypatch.setattr(os, "fsync", fsync)
        (tmp_path / "repository" / "data" / "ab" / NAME).write_bytes(b"12345")

    for content, ends_well in ((b"54321", True), (b"123", False)):
        monkeypatch.setattr(os, "fsync", overtaken)
        if ends_well:
            backend.save("data", NAME, [content])
        else:
            with pytest.raises(errors.Refused):
                backend.save("data", NAME, [content])
        assert backend.load("data", NAME) == b"12345"
        backend.remove("data", NAME)


def test_a_folder_of_data_that_is_missing_is_made_and_a_repository_is_not(
    backend: FolderBackend, tmp_path: Path
) -> None:
    (tmp_path / "repository" / "data" / "ab").rmdir()
    assert [*backend.list("data")] == []
    backend.save("data", NAME, [b"x"])
    assert backend.load("data", NAME) == b"x"
    nowhere = FolderBackend(tmp_path / "not" / "mounted")
    for kind in ("data", "keys"):
        with pytest.raises(errors.NotFound):
            nowhere.save(kind, NAME, [b"x"])
    assert [*nowhere.list("keys")] == [*nowhere.list("data")] == [*nowhere.list("config")] == []
    assert not (tmp_path / "not").exists()


@pytest.mark.parametrize("named", [False, True])
def test_a_limit_on_file_sizes_is_no_room(
    backend: FolderBackend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, named: bool
) -> None:
    if named:
        monkeypatch.delattr(os, "O_TMPFILE")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        with pytest.raises(errors.NoRoom):
            backend.save("data", NAME, [bytes(60_000), bytes(60_000)])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert [*(tmp_path / "repository" / "data" / "ab").iterdir()] == []


def test_a_full_disk_is_no_room(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        stores.missing("root, who may mount a small disk")
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", tmp_path], check=True)
    try:
        backend = FolderBackend(tmp_path / "repository")
        backend.create()
        with pytest.raises(errors.NoRoom):
            backend.save("data", NAME, [bytes(3_000_000)])
        assert [*backend.list("data")] == []
        backend.save("data", NAME, [b"small enough"])
        assert [*backend.list("data")] == [Stored(NAME, 12)]
    finally:
        subprocess.run(["umount", tmp_path], check=True)


SAVING = """
import hashlib, os, sys
from pathlib import Path
from cosmos_coherence.storage.folder import FolderBackend
if sys.argv[2] == "named":
    del os.O_TMPFILE
backend = FolderBackend(Path(sys.argv[1]))
print("ready", flush=True)
for number in range(10**9):
    content = number.to_bytes(8, "big") * 40_000
    backend.save("data", hashlib.sha256(content).hexdigest(), [content])
"""


@pytest.mark.parametrize("how", ["unnamed", "named"])
def test_killed_while_saving_nothing_is_half_there(backend: FolderBackend, tmp_path: Path, how: str) -> None:
    seen = 0
    for _ in range(8):
        command = [sys.executable, "-c", SAVING, str(tmp_path / "repository"), how]
        child = subprocess.Popen(command, stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(SOURCE)})
        assert child.stdout
        child.stdout.readline()
        while sum(1 for _ in backend.list("data")) <= seen:
            assert child.poll() is None
        child.send_signal(signal.SIGKILL)
        child.wait()
        child.stdout.close()
        listed = [*backend.list("data")]
        seen = len(listed)
        for stored in listed:
            assert hashlib.sha256(backend.load("data", stored.name)).hexdigest() == stored.name
    if how == "unnamed":
        files = [path for path in (tmp_path / "repository" / "data").rglob("*") if path.is_file()]
        assert len(files) == seen
