"""The real restic mounts a repository that `cosmos backup` wrote; what is seen there is compared with the source."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import stat
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from support import restic as referee
from support import stores
from support.program import cosmos
from support.trees import odd_tree
from support.waiting import eventually

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="owners and trusted attributes need root")


@dataclass(frozen=True)
class Saved:
    """A backup of the folder ``tree``."""

    folder: Path
    tree: Path
    id: str

    @property
    def repository(self) -> Path:
        return self.folder / "backups" / "repository"


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Saved:
    place = tmp_path_factory.mktemp("mount")
    tree, folder = place / "srv", place / "papers"
    folder.mkdir()
    odd_tree(tree)
    os.removexattr(tree / "dangling", "trusted.link", follow_symlinks=False)  # restic leaves those of links alone
    (tree / "large").write_bytes(os.urandom(5 << 20) + bytes(3 << 20))
    (folder / "cosmos.toml").write_text(f'[[source]]\nkind = "files"\nname = "srv"\npath = "{tree}"\n')
    told(folder, "init")
    return Saved(folder, tree, told(folder, "backup")["backup"])


def told(folder: Path, *arguments: str) -> Any:
    ended = cosmos("-C", str(folder), *arguments, "--json", DOCKER_HOST="unix:///nowhere/docker.sock")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return json.loads(ended.stdout)


@contextlib.contextmanager
def mounted(restic: referee.Restic, repository: Path, place: Path) -> Iterator[Path]:
    """The repository as a file system, until the end of the block."""
    unmount = shutil.which("fusermount")  # by which restic itself mounts
    if unmount is None or not Path("/dev/fuse").exists():
        stores.missing("FUSE (`apt-get install fuse3`, and /dev/fuse)")
    place.mkdir()
    log = place.with_name("log")
    with log.open("wb") as said:
        server = restic.start(repository, "mount", place, output=said)
    try:
        assert eventually(lambda: os.path.ismount(place) or server.poll() is not None)
        assert server.poll() is None, log.read_text()
        yield place
    finally:
        if os.path.ismount(place):
            subprocess.run([unmount, "-u", str(place)], check=True)
        else:
            server.kill()
        server.wait(60)


@pytest.mark.parametrize("version", referee.VERSIONS)
def test_a_mounted_backup_is_equal_to_the_source(saved: Saved, tmp_path: Path, version: str) -> None:
    password = (saved.folder / "secrets" / "repository-password").read_text().strip()
    restic = referee.restic(version, tmp_path / "home", {"RESTIC_PASSWORD": password})
    (snapshot,) = restic.snapshots(saved.repository)
    assert f"id={saved.id}" in snapshot["tags"]
    with mounted(restic, saved.repository, tmp_path / "mnt") as place:
        top = place / "ids" / snapshot["short_id"]
        assert json.loads((top / "manifest.json").read_bytes())["id"] == saved.id
        found, wanted = seen(top / "files" / "srv"), seen(saved.tree)
        if version == "0.14":  # it shows no sticky bit of a folder
            wanted = {path: ((look[0] & ~stat.S_ISVTX), *look[1:]) for path, look in wanted.items()}
        assert sorted(found) == sorted(wanted)
        for path, look in wanted.items():
            assert found[path] == look, path
    assert not list(saved.repository.glob("locks/*"))


def seen(root: Path) -> dict[bytes, tuple[Any, ...]]:
    """Each name below ``root`` with what a mount shows: all but the attributes of links and pipes."""
    found: dict[bytes, tuple[Any, ...]] = {}
    for folder, folders, files in os.walk(os.fsencode(root)):
        for name in (*folders, *files):
            place = folder + b"/" + name
            status = os.lstat(place)
            kind, content, attributes = stat.S_IFMT(status.st_mode), None, {}
            if kind == stat.S_IFREG:
                content = hashlib.sha256(Path(os.fsdecode(place)).read_bytes()).hexdigest()
            elif kind == stat.S_IFLNK:
                content = os.readlink(place)  # noqa: PTH115 - bytes, as it is
            if kind in (stat.S_IFREG, stat.S_IFDIR):
                attributes = {key: os.getxattr(place, key) for key in os.listxattr(place)}
            found[os.path.relpath(place, os.fsencode(root))] = (
                status.st_mode,
                status.st_uid,
                status.st_gid,
                status.st_mtime_ns,
                status.st_size if kind != stat.S_IFDIR else 0,
                status.st_nlink if kind == stat.S_IFREG else 0,
                content,
                attributes,
            )
    return found
