"""Large files that a store takes at the same time."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import BinaryIO

import pytest

from cosmos_coherence import content_digest, errors
from cosmos_coherence.model import Entry, SourceRef
from cosmos_coherence.sources.volume import TreeSource
from support.memory_parts import MemorySink, MemoryTree

REF = SourceRef("files/data", "files")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "data"
    root.mkdir()
    for number in range(6):
        (root / f"large-{number}").write_bytes(os.urandom(content_digest.SMALL + number))
    return root


def test_two_are_read_at_the_same_time_and_all_of_them_are_there(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    together = threading.Barrier(2)
    add = MemoryTree.add

    def met(self: MemoryTree, entry: Entry, content: BinaryIO) -> str:
        together.wait(timeout=60)  # breaks, and fails the test, when the files come one by one
        return add(self, entry, content)

    monkeypatch.setattr(MemoryTree, "add", met)
    sink, source = MemorySink(), TreeSource(REF, root, spool=tmp_path)
    source.prepare(sink)
    source.anchor()
    monkeypatch.undo()
    source.capture(sink)
    source.close()
    ((_, tree),) = sink.trees.items()
    assert {path: content for path, (_, content) in tree.items() if path} == {
        file.name.encode(): file.read_bytes() for file in root.iterdir()
    }


def test_one_that_cannot_be_read_fails_all(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: MemoryTree, entry: Entry, content: BinaryIO) -> str:
        raise errors.CaptureFailed(f"{entry.path!r} cannot be read")

    monkeypatch.setattr(MemoryTree, "add", refuse)
    source = TreeSource(REF, root, spool=tmp_path)
    with pytest.raises(errors.CaptureFailed, match="cannot be read"):
        source.prepare(MemorySink())
    source.close()
