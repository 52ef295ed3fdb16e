"""Full disks and kills at every step: what was published stays, what was not is not listed."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from cosmos_coherence import errors
from cosmos_coherence.archive import listing
from cosmos_coherence.archive.verify import verify_archive
from cosmos_coherence.archive.writer import ArchiveWriter, discard, spool_of
from cosmos_coherence.copied import Copied
from cosmos_coherence.model import Entry, Part
from cosmos_coherence.storage import local
from unit.archive.building import ROOT, make_archive, manifest

_CHILD = """
import os, resource, signal, sys
from pathlib import Path
deadly, calls = int(sys.argv[2]), 0
def counted(name):
    original = getattr(os, name)
    def call(*arguments, **named):
        global calls
        calls += 1
        if calls == deadly:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*arguments, **named)
    setattr(os, name, call)
for name in ("fsync", "rename", "replace", "link", "unlink", "write", "open"):
    counted(name)
from cosmos_coherence.storage import local
from unit.archive.building import make_archive
make_archive(Path(sys.argv[1]), backup_id="20240102_000000")
"""


def _run(code: str, *arguments: str) -> int:
    folder = Path(__file__).parents[3]
    environment = {**os.environ, "PYTHONPATH": f"{folder / 'src'}:{folder / 'tests'}"}
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], check=False, env=environment, timeout=120
    ).returncode


def test_a_kill_at_any_step_leaves_no_half_backup(tmp_path: Path) -> None:
    """And what it leaves, ``discard`` removes or finishes."""
    first = make_archive(tmp_path / "0")
    step, seen = 0, set()
    while True:
        step += 1
        directory = tmp_path / str(step)
        directory.mkdir()
        for path in (tmp_path / "0").iterdir():
            os.link(path, directory / path.name)
        status = _run(_CHILD, str(directory), str(step))
        listed = [archive.id for archive in listing.list_archives(directory)]
        assert listed in (["20240101_120000"], ["20240101_120000", "20240102_000000"])
        for archive in listing.list_archives(directory):
            verify_archive(archive.path, archive.manifest)
        assert listing.unreadable(directory) == ()
        latest = verify_archive(directory / "latest.tar.gz").id
        assert latest in listed
        seen.add((len(listed), latest))
        discard(spool_of(directory, "20240102_000000"))
        assert listing.leftovers(directory) == ()
        assert verify_archive(directory / "latest.tar.gz").id == listed[-1]
        assert sorted(p.name for p in directory.iterdir()) == sorted(
            ["latest.tar.gz", *(p for i in listed for p in (f"{i}.json", f"{i}.tar.gz"))]
        )
        if status == 0:
            break
        assert status == -signal.SIGKILL
        assert step < 500
    assert seen == {(1, "20240101_120000"), (2, "20240101_120000"), (2, "20240102_000000")}
    verify_archive(first)


_LIMITED = """
import resource, signal, sys
from pathlib import Path
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), int(sys.argv[2])))
from cosmos_coherence import errors
from unit.archive.test_crash import write_large
try:
    write_large(Path(sys.argv[1]))
except errors.NoRoom:
    sys.exit(7)
"""


def write_large(directory: Path) -> Path:
    """An archive of a few megabytes that cannot be compressed."""
    writer = ArchiveWriter(directory, "20240102_000000")
    try:
        tree = writer.tree("volumes/v")
        tree.add(Entry(b"f", "file"), io.BytesIO(os.urandom(3_000_000)))
        file = tree.finish(map(Copied.of, [ROOT, Entry(b"f", "file")]))
        with writer.stream("database.sql") as stream:
            stream.write(os.urandom(3_000_000).hex().encode())
        parts = (Part("v", "volume", (file,)), Part("p", "postgres", (stream.file(),)))
        writer.pack(manifest(*parts, backup_id=writer.id))
        return writer.publish()
    finally:
        writer.abort()


@pytest.mark.parametrize("limit", [1_000_000, 3_100_000, 6_000_000])
def test_a_limit_on_file_sizes_is_no_room(tmp_path: Path, limit: int) -> None:
    first = make_archive(tmp_path)
    before = sorted(p.name for p in tmp_path.iterdir())
    assert _run(_LIMITED, str(tmp_path), str(limit)) == 7
    assert sorted(p.name for p in tmp_path.iterdir()) == before
    assert (tmp_path / "latest.tar.gz").samefile(first)
    verify_archive(first)


@pytest.mark.parametrize("size", ["2m", "5m", "7m"])
def test_a_full_disk_is_no_room(tmp_path: Path, size: str) -> None:
    """On a disk of its own where we may mount one; the limit above stands in for it elsewhere."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if os.geteuid() != 0:
        return
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "none", disk], check=True)
    try:
        first = make_archive(disk)
        before = sorted(p.name for p in disk.iterdir())
        with pytest.raises(errors.NoRoom):
            write_large(disk)
        assert sorted(p.name for p in disk.iterdir()) == before
        assert (disk / "latest.tar.gz").samefile(first)
        verify_archive(first)
        with pytest.raises(errors.NoRoom):
            local.write_atomically(disk / "x", bytes(8_000_000))
        assert sorted(p.name for p in disk.iterdir()) == before
    finally:
        subprocess.run(["umount", disk], check=True)
