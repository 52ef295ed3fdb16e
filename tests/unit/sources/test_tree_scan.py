"""Looking at trees and reading odd files."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cosmos_coherence import errors
from cosmos_coherence.drivers import folders
from cosmos_coherence.sources import tree_read, tree_scan
from support import trees


@pytest.mark.parametrize(
    ("names", "answer"),
    [
        ((), ""),
        (("data/x", "PG_VERSION"), ""),
        (("PG_VERSION", "global/pg_control"), "postgres"),
        (("data/PG_VERSION", "data/global/pg_control"), "postgres"),
        (("18/docker/PG_VERSION", "18/docker/global/pg_control"), "postgres"),
        (("dump.rdb",), "redis"),
        (("appendonlydir/appendonly.aof.manifest",), "redis"),
        (("backup/dump.rdb",), ""),
    ],
)
def test_recognises_databases(tmp_path: Path, names: tuple[str, ...], answer: str) -> None:
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert tree_scan.looks_like_database(tmp_path) == answer


def test_no_path_disturbs_a_terminal() -> None:
    assert tree_scan.show("a\n\x1b[31mé".encode() + b"\xff") == "a\\n\\x1b[31mé\\xff"
    assert tree_scan.show(b"") == "."


def test_deep_trees_are_walked_or_refused(tmp_path: Path) -> None:
    place = os.open(tmp_path, os.O_RDONLY)
    for _ in range(300):
        os.mkdir("d" * 100, dir_fd=place)
        below = os.open("d" * 100, os.O_RDONLY, dir_fd=place)
        os.close(place)
        place = below
    os.close(place)
    assert len(tree_scan.walk(tmp_path).names) == 301


def test_a_folder_swapped_for_a_link_is_not_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "file").touch()
    root = tmp_path / "root"
    (root / "sub").mkdir(parents=True)
    real = os.open

    def swap(path: object, *given: object, **named: object) -> int:
        if path == b"sub":
            (root / "sub").rmdir()
            (root / "sub").symlink_to(tmp_path / "secret")
        return real(path, *given, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "open", swap)
    assert set(tree_scan.walk(root).names) == {b""}


def test_a_pipe_in_the_place_of_a_file_does_not_hang(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "f")
    (tmp_path / "link").symlink_to("/etc/passwd")
    with folders.Folders(tmp_path) as below:
        assert [folders.open_file(below, name) for name in (b"f", b"link", b"none")] == [None, None, None]


def test_content_shows_holes_as_zeros_and_never_ends_early(tmp_path: Path) -> None:
    path = tmp_path / "f"
    trees.sparse(path, 3 << 20, {1 << 20: b"abc", (2 << 20) + 5: b"d" * 9000})
    number = os.open(path, os.O_RDONLY)
    runs = folders.data_runs(number, os.fstat(number))
    assert runs is not None
    assert sum(length for _, length in runs) < 100_000
    store = tree_read.OpenFile(number, b"f", tmp_path)
    with tree_read.content(store, 3 << 20, [(offset, length, offset) for offset, length in runs]) as content:
        assert content.read() == path.read_bytes()
        assert content.seek((2 << 20) + 4) == (2 << 20) + 4
        assert content.read(3) == b"\0dd"
        assert content.seek(1 << 20) == 1 << 20
        assert content.read(4) == b"abc\0"
    os.truncate(path, 10)
    with tree_read.content(store, 50, [(0, 50, 0)]) as content:
        assert content.read() == bytes(50)
    os.close(number)
    with (
        tree_read.content(store, 50, [(0, 50, 0)]) as content,
        pytest.raises(errors.CaptureFailed, match=r"f in .* cannot"),
    ):
        content.read()


def test_the_size_of_what_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "d" / "e").mkdir(parents=True)
    (tmp_path / "d" / "e" / "x").write_bytes(b"123")
    (tmp_path / "y").write_bytes(b"12")
    (tmp_path / "d" / "up").symlink_to("/")
    assert tree_scan.size_of(tmp_path, [b"d", b"y", b"none"]) == 3 + 2
