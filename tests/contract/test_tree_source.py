"""File trees as sources: what is captured while writers run is what was there at the instant, and it comes back."""

from __future__ import annotations

import io
import mmap
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cosmos_coherence import errors
from cosmos_coherence.model import Part, SourceRef
from cosmos_coherence.sources import tree_print
from cosmos_coherence.sources.base import Restorer, Source
from cosmos_coherence.sources.tree_restore import TreeRestorer
from cosmos_coherence.sources.volume import TreeSource
from support import trees
from support.memory_parts import MemorySink, MemoryTree
from support.storm import writing

PART = "files/data"


MANY = 0
SOURCES: list[TreeSource] = []


@pytest.fixture(params=["walked", "watched"], autouse=True)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Every test twice: once where only walks tell what has changed, once where the kernel does."""
    monkeypatch.setattr(sys.modules[__name__], "MANY", 0 if request.param == "watched" else 1 << 60)
    yield
    while SOURCES:
        SOURCES.pop().close()


def source_of(root: Path, *, exclude: tuple[str, ...] = (), **options: int) -> TreeSource:
    ref = SourceRef(kind="files", part=PART, path=root, exclude=exclude)
    SOURCES.append(TreeSource(ref, root, spool=root.parent, many=MANY, **options))
    return SOURCES[-1]


def capture(root: Path, *, exclude: tuple[str, ...] = ()) -> tuple[Part, MemorySink]:
    source, sink = source_of(root, exclude=exclude), MemorySink()
    source.prepare(sink)
    source.anchor()
    part = source.capture(sink)
    source.close()
    return part, sink


def restore(part: Part, sink: MemorySink, root: Path) -> None:
    restorer = TreeRestorer(part, PART, root, "run")
    restorer.stage(sink.reader())
    restorer.swap()
    restorer.verify()
    restorer.finish()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "root"
    folder.mkdir()
    return folder


def test_fits_the_protocols(root: Path) -> None:
    source: Source = source_of(root)
    restorer: Restorer = TreeRestorer(Part(PART, "files"), PART, root, "run")
    assert (source.clients(), restorer.stops) == ((), False)


def test_everything_comes_back_as_it_was(root: Path, tmp_path: Path) -> None:
    trees.odd_tree(root)
    part, sink = capture(root)
    back = tmp_path / "back"
    restore(part, sink, back)
    assert trees.looks(back) == trees.looks(root)
    assert trees.root_looks(back) == trees.root_looks(root)
    assert part.fingerprint.tree == tree_print.print_of_tree(back) == tree_print.print_of_tree(root)
    for name in ("sparse", "only-a-hole", "hole-at-the-end"):
        assert (back / name).stat().st_blocks == (root / name).stat().st_blocks


@settings(deadline=None, max_examples=60, suppress_health_check=list(HealthCheck))
@given(tree=trees.random_trees, other=trees.random_trees, seed=st.integers(0, 500))
def test_any_tree_replaces_any_other(tree: dict[bytes, object], other: dict[bytes, object], seed: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        root, back = Path(folder, "root"), Path(folder, "back")
        root.mkdir()
        back.mkdir()
        trees.plant(root, tree, seed)
        trees.plant(back, other, seed + 3)
        part, sink = capture(root)
        restore(part, sink, back)
        assert trees.looks(back) == trees.looks(root)
        assert part.fingerprint.tree == tree_print.print_of_tree(back)


def test_the_fingerprint_sees_every_kind_of_change(root: Path) -> None:
    trees.odd_tree(root)
    seen = {tree_print.print_of_tree(root).digest}

    def changed() -> bool:
        before = len(seen)
        seen.add(tree_print.print_of_tree(root).digest)
        return len(seen) > before

    assert not changed()
    os.utime(root, ns=(1, 1))
    assert not changed(), "swapping a root's content changes its time"
    with (root / "sparse").open("r+b") as file:
        file.seek(2 << 20)
        file.write(b"\x01")
    os.utime(root / "sparse", ns=(trees.STAMP, trees.STAMP))
    assert changed()
    os.utime(root / "plain.txt", ns=(trees.STAMP, trees.STAMP - 1))
    assert changed()
    os.utime(root / "absolute", ns=(trees.STAMP, 5), follow_symlinks=False)
    assert changed()
    (root / "plain.txt").chmod(0o644)
    assert changed()
    os.setxattr(root / "sub", "user.folder", b"no")
    assert changed()
    (root / "a-second").unlink()
    assert changed()
    shutil.copy2(root / "sub" / "first", root / "a-second")
    assert changed(), "an equal copy is no hard link"
    root.chmod(0o755)
    assert changed()


# ---------------------------------------------------------------------------------------------- writers that run
@pytest.mark.parametrize("seed", range(8))
def test_what_is_captured_is_what_was_there_while_writers_stood_still(root: Path, tmp_path: Path, seed: int) -> None:
    reference = tmp_path / "reference"
    with writing(root, seed, links=MANY > 0) as writer:
        time.sleep(0.2)
        source, sink = source_of(root, settle_bytes=200_000, rounds=3), MemorySink()
        source.prepare(sink)
        writer.hold()
        source.anchor()
        subprocess.run(["cp", "-a", str(root), str(reference)], check=True)
        writer.release()
        time.sleep(0.05)
        part = source.capture(sink)
        source.close()
    restore(part, sink, tmp_path / "back")
    assert trees.looks(tmp_path / "back") == trees.looks(reference)
    assert source.gaps == ()


def test_a_blown_budget_makes_another_round(root: Path, tmp_path: Path) -> None:
    reference = tmp_path / "reference"
    with writing(root, 99, links=MANY > 0) as writer:
        source, sink = source_of(root), MemorySink()
        for _ in range(3):
            source.prepare(sink)
            writer.hold()
            source.anchor()
            shutil.rmtree(reference, ignore_errors=True)
            subprocess.run(["cp", "-a", str(root), str(reference)], check=True)
            writer.release()
            time.sleep(0.05)
        part = source.capture(sink)
        source.close()
    restore(part, sink, tmp_path / "back")
    assert trees.looks(tmp_path / "back") == trees.looks(reference)


def test_what_only_a_blown_anchor_has_read_is_read_again(root: Path, tmp_path: Path) -> None:
    (root / "f").write_bytes(b"old")
    source, sink = source_of(root), MemorySink()
    source.prepare(sink)
    (root / "f").write_bytes(b"new")
    (root / "g").write_bytes(b"new")
    time.sleep(0.1)
    source.anchor()
    source.prepare(sink)
    source.anchor()
    part = source.capture(sink)
    source.close()
    restore(part, sink, tmp_path / "back")
    assert trees.looks(tmp_path / "back") == trees.looks(root)


def second_write_is_invisible(page: mmap.mmap, path: Path) -> bool:
    """Unless the system happens to write the page back between the two."""
    page[0] = 1
    time.sleep(0.03)
    before = path.stat().st_mtime_ns
    page[0] = 2
    return path.stat().st_mtime_ns == before


def test_a_mapped_page_that_was_dirty_already(root: Path, tmp_path: Path) -> None:
    """The second write to a dirty page moves no time: only the sync before the round makes it show."""
    path = root / "mapped"
    path.write_bytes(bytes(8192))
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 8192) as page:
        assert any(second_write_is_invisible(page, path) for _ in range(50)), "no such trap here, this shows nothing"
        source, sink = source_of(root), MemorySink()
        source.prepare(sink)
        time.sleep(0.1)
        page[0] = 3
        source.anchor()
        part = source.capture(sink)
        source.close()
    restore(part, sink, tmp_path / "back")
    assert (tmp_path / "back" / "mapped").read_bytes()[0] == 3


def test_a_mapped_write_during_the_round_itself(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The page gets dirty after the sync and before the copy; writes after the copy then move no time."""
    path = root / "mapped"
    path.write_bytes(bytes(8192))
    time.sleep(0.1)
    real = MemoryTree.add
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 8192) as page:

        def add(self: MemoryTree, entry: object, content: io.BytesIO) -> str:
            page[0] = 1
            stored = real(self, entry, content)  # type: ignore[arg-type]
            time.sleep(0.1)
            page[0] = 2
            return stored

        monkeypatch.setattr(MemoryTree, "add", add)
        source, sink = source_of(root), MemorySink()
        source.prepare(sink)
        monkeypatch.undo()
        source.anchor()
        part = source.capture(sink)
        source.close()
    restore(part, sink, tmp_path / "back")
    assert (tmp_path / "back" / "mapped").read_bytes()[0] == 2


def test_what_rests_is_read_once(root: Path) -> None:
    for number in range(50):
        (root / f"f{number}").write_bytes(b"x" * number)
    time.sleep(0.1)
    source, sink = source_of(root), MemorySink()
    source.prepare(sink)
    (root / "f7").write_bytes(b"new")
    source.anchor()
    source.capture(sink)
    source.close()
    added = sink.writers[PART].added
    assert (len(added), added[-1]) == (51, b"f7")


def test_much_that_changed_last_waits_on_disk(root: Path, tmp_path: Path) -> None:
    (root / "big").touch()
    source, sink = source_of(root), MemorySink()
    source.prepare(sink)
    (root / "big").write_bytes(os.urandom(40 << 20))
    trees.sparse(root / "holes", 64 << 20, {3 << 20: b"x" * 5000, 60 << 20: b"y"})
    source.anchor()
    (root / "big").write_bytes(b"after the instant")
    part = source.capture(sink)
    source.close()
    restore(part, sink, tmp_path / "back")
    assert (tmp_path / "back" / "big").stat().st_size == 40 << 20
    assert (tmp_path / "back" / "holes").stat().st_blocks * 512 < 1 << 20
    assert list(tmp_path.glob("tmp*")) == []


def test_a_first_name_of_a_hard_link_that_comes_and_goes(root: Path, tmp_path: Path) -> None:
    (root / "m").write_bytes(b"content")
    (root / "gone").write_bytes(b"gone")
    (root / "becomes-folder").write_bytes(b"file")
    time.sleep(0.1)
    source, sink = source_of(root), MemorySink()
    source.prepare(sink)
    (root / "a").hardlink_to(root / "m")
    (root / "gone").unlink()
    (root / "becomes-folder").unlink()
    (root / "becomes-folder").mkdir()
    source.anchor()
    part = source.capture(sink)
    source.close()
    kinds = {path: entry.kind for path, (entry, _) in sink.trees[PART].items()}
    assert kinds == {b"": "dir", b"a": "file", b"m": "hardlink", b"becomes-folder": "dir"}
    restore(part, sink, tmp_path / "back")
    assert trees.looks(tmp_path / "back") == trees.looks(root)


def test_a_writer_outside_the_hold_is_named(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (root / "shared").write_bytes(b"x" * 100)
    source, sink = source_of(root), MemorySink()
    source.prepare(sink)
    real = os.preadv
    with (root / "shared").open("ab", buffering=0) as stranger:

        def preadv(*given: object) -> int:
            stranger.write(b"y")
            return real(*given)  # type: ignore[arg-type]

        monkeypatch.setattr(os, "preadv", preadv)
        source.anchor()
    monkeypatch.undo()
    source.capture(sink)
    assert [(gap.what, gap.chosen) for gap in source.gaps] == [(f"shared of {PART}", False)]
    source.close()


# ------------------------------------------------------------------------------------------- what is not captured
def test_patterns_leave_out_whole_folders_and_say_how_much(root: Path, tmp_path: Path) -> None:
    for name in ("cache/a/x", "keep/x.log", "keep/y", "top.log", "cachet"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"12345")
    source, sink = source_of(root, exclude=("cache/", "*.log")), MemorySink()
    source.prepare(sink)
    source.anchor()
    source.capture(sink)
    assert set(sink.trees[PART]) == {b"", b"keep", b"keep/y", b"cachet"}
    assert [(gap.what, gap.size, gap.chosen) for gap in source.gaps] == [(f"3 names of {PART}", 15, True)]
    source.close()


def test_sockets_and_leftovers_of_a_restore_are_no_data(root: Path) -> None:
    subprocess.run(
        [sys.executable, "-c", "import socket; socket.socket(socket.AF_UNIX).bind('s')"], cwd=root, check=True
    )
    (root / ".cosmos-restore-other" / "old").mkdir(parents=True)
    (root / "sub" / ".cosmos-restore-is-data").mkdir(parents=True)
    part, sink = capture(root)
    assert set(sink.trees[PART]) == {b"", b"sub", b"sub/.cosmos-restore-is-data"}
    assert part.details == {"sockets": "1"}


def test_another_file_system_below_is_named_and_not_entered(root: Path) -> None:
    if subprocess.run(["unshare", "-m", "true"], capture_output=True, check=False).returncode != 0:
        pytest.skip("needs the right to mount")
    (root / "mounted").mkdir()
    (root / "file").write_text("x")
    script = f"""
import sys, pathlib
sys.path[:0] = {sys.path!r}
from cosmos_coherence.sources import tree_scan
scan = tree_scan.walk(pathlib.Path({str(root)!r}))
print(sorted(scan.names), scan.mounts)
"""
    command = f'mount -t tmpfs none {root}/mounted && touch {root}/mounted/x && {sys.executable} -c "$0"'
    done = subprocess.run(["unshare", "-m", "sh", "-c", command, script], capture_output=True, text=True, check=True)
    assert done.stdout == "[b'', b'file'] {b'mounted'}\n"


def test_a_live_postgres_is_refused_wherever_it_lies(root: Path) -> None:
    for name in ("pg/PG_VERSION", "pg/global/pg_control", "pg/postmaster.pid"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    with pytest.raises(errors.Unsupported, match="data directory of a PostgreSQL"):
        source_of(root).prepare(MemorySink())
    capture(root, exclude=("pg",))


@pytest.mark.parametrize("exception", [PermissionError(13, "Permission denied"), OSError(5, "Input/output error")])
def test_what_cannot_be_read_is_named(root: Path, monkeypatch: pytest.MonkeyPatch, exception: OSError) -> None:
    (root / "sub").mkdir()
    (root / "sub" / "secret\n").write_text("x")
    real = os.open

    def refuse(path: object, *given: object, **named: object) -> int:
        if path == b"secret\n":
            raise exception
        return real(path, *given, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(errors.CaptureFailed, match=r"sub/secret\\n in .* cannot be read: "):
        capture(root)


def test_an_ordinary_user_who_may_not_read_a_folder_is_told_which() -> None:
    with trees.public_folder() as root:
        (root / "closed").mkdir(mode=0o700 if os.geteuid() == 0 else 0)
        script = f"""
import os, pathlib, sys
sys.path[:0] = {sys.path!r}
from cosmos_coherence import errors
from cosmos_coherence.sources import tree_scan
if os.geteuid() == 0:
    os.setuid(65534)
try:
    tree_scan.walk(pathlib.Path({str(root)!r}))
except errors.CaptureFailed as error:
    print(error)
"""
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
        assert done.stdout == f"closed in {root} cannot be read: Permission denied\n"


def test_a_missing_root_is_named(tmp_path: Path) -> None:
    with pytest.raises(errors.CaptureFailed, match="nowhere cannot be read: No such file"):
        capture(tmp_path / "nowhere")
