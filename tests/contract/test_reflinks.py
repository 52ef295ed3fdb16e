"""Large files on a file system that shares blocks: cloned in the pause and read later, as they were at the instant."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cosmos_coherence.drivers import reflink
from cosmos_coherence.model import SourceRef
from cosmos_coherence.sources.tree_restore import TreeRestorer
from cosmos_coherence.sources.volume import TreeSource
from support.capturing import capture
from support.embedded_stack import embedded_stack
from support.killing import killed_at
from support.memory_parts import MemorySink
from support.small_disk import formatted_disk
from support.waiting import eventually

PART = "files/data"
SLOT = 4096
SIZES = {"log": 8 << 20, "slots": 64 << 20, "mapped": 8 << 20}
_WRITER = """
import mmap, os, sys
os.chdir(sys.argv[1])
log, slots, mapped = (os.open(name, os.O_RDWR) for name in ("log", "slots", "mapped"))
os.lseek(log, 0, os.SEEK_END)
page, room, k = mmap.mmap(mapped, 0), os.fstat(slots).st_size // 4096, 0
while True:
    k += 1
    record = b"%015d\\n" % k
    os.write(log, record)
    os.pwrite(slots, record, k * 7919 % room * 4096)
    at = k * 7919 % (len(page) // 4096) * 4096
    page[at : at + 16] = record
"""


class Writer:
    """Number after number goes to the log, then into a slot, then through a mapping, until it is held."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._child = subprocess.Popen([sys.executable, "-c", _WRITER, str(root)])

    def has_written(self, numbers: int) -> bool:
        size = (self._root / "log").stat().st_size
        return eventually(lambda: (self._root / "log").stat().st_size > size + 16 * numbers)

    def hold(self) -> None:
        self._child.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, self._child.pid, os.WSTOPPED | os.WNOWAIT)

    def release(self) -> None:
        self._child.send_signal(signal.SIGCONT)

    def end(self) -> None:
        self._child.kill()
        self._child.wait()


@contextmanager
def written_to(root: Path) -> Iterator[Writer]:
    root.mkdir()
    for name, size in SIZES.items():
        (root / name).touch()
        if name == "slots":  # as for databases on Btrfs; elsewhere it is refused
            subprocess.run(["chattr", "+C", root / name], capture_output=True)
        (root / name).write_bytes((15 * b"0" + b"\n") * (size // 16) if name == "log" else os.urandom(size))
    with (root / "sparse").open("wb") as sparse:
        sparse.truncate(32 << 20)
    writer = Writer(root)
    try:
        assert writer.has_written(1000)
        yield writer
    finally:
        writer.end()


def sums(root: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in root.iterdir()}


def clones(disk: Path) -> list[str]:
    """The open files of this process on the disk that have no name."""
    held = []
    for link in Path("/proc/self/fd").iterdir():
        try:
            target = str(link.readlink())
        except FileNotFoundError:
            continue
        if target.startswith(f"{disk}/") and target.endswith(" (deleted)"):
            held.append(target)
    return held


def highest(root: Path) -> tuple[int, int, int]:
    """How far the writer has come in the log, the slots and the mapped file."""

    def last(content: bytes, step: int) -> int:
        heads = (content[at : at + 16] for at in range(0, len(content), step))
        return max((int(head) for head in heads if head[:15].isdigit() and head[15:] == b"\n"), default=0)

    log = (root / "log").read_bytes()
    return int(log[-16:]), last((root / "slots").read_bytes(), SLOT), last((root / "mapped").read_bytes(), SLOT)


def restored(part, sink: MemorySink, into: Path) -> Path:
    into.mkdir()
    restorer = TreeRestorer(part, PART, into, "run")
    restorer.stage(sink.reader())
    restorer.swap()
    restorer.verify()
    restorer.finish()
    return into


@pytest.mark.parametrize(("kind", "cloned"), [("btrfs", 4), ("xfs", 4), ("ext4", 0)])
def test_what_is_captured_is_what_was_there_at_the_instant(tmp_path: Path, kind: str, cloned: int) -> None:
    with formatted_disk(tmp_path / kind, kind) as disk, written_to(disk / "root") as writer:
        root = disk / "root"
        source = TreeSource(SourceRef(kind="files", part=PART, path=root), root, spool=tmp_path)
        instant = {}

        def hold() -> None:
            with (root / "sparse").open("r+b") as sparse:
                sparse.seek(20 << 20)
                sparse.write(b"late")
            writer.hold()
            instant.update(sums(root))

        def release() -> None:
            assert len(clones(disk)) == cloned
            writer.release()
            assert writer.has_written(20_000)

        part, sink = capture(source, prepared=hold, anchored=release)
        source.close()
        assert clones(disk) == []
        assert [path.name for path in disk.iterdir() if path.name != "lost+found"] == ["root"]
        assert source.gaps == ()
        writer.hold()
        live = sums(root)
        back = restored(part, sink, tmp_path / "back")
        assert sums(back) == instant
        assert {name for name in live if live[name] != instant[name]} == set(SIZES), "the writer did not go on"
        log, slots, mapped = highest(back)
        assert log >= slots >= mapped >= log - 1 > 0
        assert (back / "sparse").stat().st_blocks * 512 < 1 << 20


def test_a_file_that_cannot_be_cloned_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tried = []

    def refuse(file: int, folder: int) -> int:
        tried.append(file)
        raise OSError(18, "Invalid cross-device link")

    with formatted_disk(tmp_path / "btrfs", "btrfs") as disk, written_to(disk / "root") as writer:
        root = disk / "root"
        source = TreeSource(SourceRef(kind="files", part=PART, path=root), root, spool=tmp_path)
        instant = {}

        def hold() -> None:
            monkeypatch.setattr(reflink, "clone", refuse)
            writer.hold()
            instant.update(sums(root))

        part, sink = capture(source, prepared=hold, anchored=writer.release)
        source.close()
        assert len(tried) == len(SIZES)
        assert sums(restored(part, sink, tmp_path / "back")) == instant


def test_nothing_is_left_by_a_program_that_is_killed_between(tmp_path: Path) -> None:
    with formatted_disk(tmp_path / "btrfs", "btrfs") as disk, written_to(disk / "root") as writer:
        root, told = disk / "root", tmp_path / "told"
        writer.hold()

        def anchor(killed: Callable[[str], None]) -> None:
            source = TreeSource(SourceRef(kind="files", part=PART, path=root), root, spool=tmp_path)
            source.prepare(MemorySink())
            for name in SIZES:
                (root / name).open("r+b").write(b"changed")
            source.anchor()
            told.write_text(str(len(clones(disk))))
            killed("anchored")

        assert killed_at(1, anchor)
        assert told.read_text() == str(len(SIZES))
        assert sorted(path.name for path in root.iterdir()) == sorted([*SIZES, "sparse"])
        for path in root.iterdir():
            path.unlink()
        writer.end()
        # a clone that was still there would keep the blocks of the files
        assert eventually(lambda: _used(disk) < min(SIZES.values()))


def _used(disk: Path) -> int:
    subprocess.run(["sync", "-f", disk], check=True)
    room = os.statvfs(disk)
    return (room.f_blocks - room.f_bfree) * room.f_frsize


@pytest.mark.postgres
@pytest.mark.redis
def test_a_backup_that_is_killed_and_the_next_one(tmp_path: Path) -> None:
    with embedded_stack(rate=20, disk="900m", kind="btrfs") as stack:
        large = stack.files / "large"
        large.write_bytes(os.urandom(SIZES["slots"]))
        disk = stack.folder.parent
        with large.open("r+b", buffering=0) as file:

            def touch(step: str) -> None:
                if step == "hold":
                    file.write(os.urandom(16))
                elif step == "capture":
                    seen.extend(clones(disk))

            seen: list[str] = []
            stack.killed_at("capture", "backup")
            report = stack.backup(touch)
        assert report.status == "done", report.failure
        assert seen, "nothing was cloned"
        assert clones(disk) == []
        assert stack.leftovers() == []
        state, saved = stack.state(), large.read_bytes()
        large.write_bytes(b"newer")
        stack.change()
        assert stack.restore(stack.backups / "latest.tar.gz").status == "done"
        assert stack.state() == state
        assert large.read_bytes() == saved
