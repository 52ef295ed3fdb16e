"""What the next backup takes over from the last one: only what is proven, wherever it was noted."""

from __future__ import annotations

import mmap
import os
import threading
import time
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from pathlib import Path

import pytest

from cosmos_coherence import content_digest
from cosmos_coherence.copied import Copied
from cosmos_coherence.model import Manifest, SourceRef, TreePrint
from cosmos_coherence.repository import layout
from cosmos_coherence.repository.adopt import adopt
from cosmos_coherence.repository.blob import BlobKind
from cosmos_coherence.repository.index import Index
from cosmos_coherence.repository.reader import RepositoryReader
from cosmos_coherence.repository.repository import Repository
from cosmos_coherence.repository.tree_before import before_of
from cosmos_coherence.repository.tree_cache import TreeCache
from cosmos_coherence.repository.tree_writer import NOTHING, Before
from cosmos_coherence.repository.writer import RepositoryWriter
from cosmos_coherence.sources import tree_print
from cosmos_coherence.sources.volume import TreeSource
from cosmos_coherence.storage.folder import FolderBackend
from support.trees import odd_tree

PASSWORD = "right-Horse-9"
NAME = "files/x"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "root"
    root.mkdir()
    odd_tree(root)
    (root / "large").write_bytes(os.urandom(3 << 20))
    return root


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    return Repository.init(FolderBackend(tmp_path / "repository"), PASSWORD, generated=True)


def back_up(
    repository: Repository, root: Path, *, late: float = 1.1, meanwhile: Callable[[str], None] = lambda step: None
) -> int:
    """One backup that begins ``late`` seconds from now, with a cache beside the root; how many data blobs were new.

    ``meanwhile`` is called before and after the anchor.
    """
    time.sleep(late)
    identity = f"{datetime.now(UTC):%Y%m%d_%H%M%S}"
    writer = RepositoryWriter(repository, identity, "p", root.parent / "spool", cache=TreeCache(root.parent / "cache"))
    try:
        source = TreeSource(SourceRef("files", NAME, path=root), root, spool=writer.spool)
        source.prepare(writer)
        meanwhile("before")
        source.anchor()
        instant = datetime.now(UTC).isoformat().replace("+00:00", "Z")
        meanwhile("after")
        part = source.capture(writer)
        source.close()
        writer.pack(Manifest(identity, "p", "process", instant, 0.0, "test", parts=(part,)))
        added = writer._saver.added.data_blobs
        writer.verify()
        writer.publish()
    finally:
        writer.abort()
    return added


def before(repository: Repository, root: Path, *, cached: bool = True) -> Before:
    listed = layout.backups(repository.snapshots(), "p")[-1]
    return before_of(repository, listed, NAME, TreeCache(root.parent / "cache") if cached else None)


def is_large(copied: Copied) -> bool:
    return copied.found.kind == "file" and copied.found.size > content_digest.SMALL


def test_the_cache_says_what_the_trees_say(repository: Repository, root: Path) -> None:
    back_up(repository, root)
    cached, read = before(repository, root), before(repository, root, cached=False)
    assert len(cached.names) > 15
    assert cached.names.keys() == read.names.keys()
    for path, each in cached.names.items():
        other = read.names[path]
        assert (each.found, each.xattrs, each.digest) == (other.found, other.xattrs, other.digest), path
    assert (cached.large, cached.folders) == (read.large, read.folders)
    assert set(cached.large) == {p for p, each in cached.names.items() if is_large(each)} >= {b"large", b"sparse"}


@pytest.mark.parametrize("damage", [False, True])
def test_what_was_read_ahead_is_what_would_have_been_read(repository: Repository, root: Path, damage: bool) -> None:
    back_up(repository, root)
    (file,) = (root.parent / "cache").iterdir()
    if damage:
        file.write_bytes(file.read_bytes()[:-1])
    cache, tree = TreeCache(root.parent / "cache"), before(repository, root).folders[b""][0]
    threads = threading.active_count()
    with cache.reading_ahead():
        pass
    assert threading.active_count() == threads, "what follows may fork"
    expected = TreeCache(root.parent / "cache").load(NAME, tree)
    file.unlink()
    assert cache.load(NAME, tree) == expected
    assert (expected is None) == damage
    assert cache.load(NAME, tree) is None, "it is not kept twice"


def test_reading_ahead_where_nothing_is_kept(tmp_path: Path) -> None:
    with TreeCache(tmp_path / "none").reading_ahead():
        pass


@pytest.mark.parametrize("way", ["cached", "read", "damaged", "cut", "of another"])
def test_nothing_is_read_or_stored_again(
    repository: Repository, root: Path, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    back_up(repository, root)
    for file in (root.parent / "cache").iterdir():
        content = file.read_bytes()
        if way == "read":
            file.unlink()
        elif way == "damaged":
            file.write_bytes(content[:-9] + bytes([content[-9] ^ 1]) + content[-8:])
        elif way == "cut":
            file.write_bytes(content[:50])
        elif way == "of another":
            state = before(repository, root)
            TreeCache(root.parent / "cache").save({NAME: state._replace(folders={b"": ("ab" * 32, 1)})})
            assert TreeCache(root.parent / "cache").load(NAME, state.folders[b""][0]) is None
    monkeypatch.setattr("cosmos_coherence.sources.tree_live.open_file", None)
    monkeypatch.setattr("cosmos_coherence.repository.small_files.open_file", None)
    first = layout.backups(repository.snapshots(), "p")[-1].snapshot.tree
    assert back_up(repository, root) == 1, "the manifest"
    assert layout.backups(repository.snapshots(), "p")[-1].snapshot.tree != first


def test_what_the_repository_has_lost_is_read_again(repository: Repository, root: Path) -> None:
    back_up(repository, root)
    whole = before(repository, root)
    lost = {bytes.fromhex(whole.names[b"plain.txt"].digest), bytes.fromhex(whole.large[b"large"][-1])}
    forgetful = Repository(repository.backend, repository.opened, repository.config)
    for place in repository.index:
        if place.blob.id not in lost:
            forgetful._index.add(place.pack, [place.blob])
    forgetful._index_loaded = True
    for cached in (True, False):
        left = before(forgetful, root, cached=cached)
        assert whole.names.keys() - left.names.keys() == {b"plain.txt", b"large"}
        assert b"large" not in left.large


def test_what_is_younger_than_the_backup_proves_nothing(repository: Repository, root: Path) -> None:
    (root / "old").write_bytes(b"1")
    time.sleep(1.1)
    (root / "young").write_bytes(b"1")
    os.utime(root / "young", ns=(0, 0))  # its change time stays young
    back_up(repository, root, late=0)
    names = before(repository, root).names
    assert b"old" in names
    assert b"young" not in names


def test_a_mapped_page_that_is_dirty_since_before_the_instant(repository: Repository, root: Path) -> None:
    """It is written again after the instant without any time moving: the next backup must read the file again."""
    path = root / "mapped"
    path.write_bytes(bytes(4096))
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 4096) as page:

        def write(step: str) -> None:
            if step == "before":
                page[0] = 1
                time.sleep(0.1)
            else:
                page[0] = 2

        for _ in range(8):  # until nobody on this machine syncs between the two writes
            back_up(repository, root, meanwhile=write)
            listed = layout.backups(repository.snapshots(), "p")[-1]
            if path.stat().st_ctime_ns < listed.snapshot.time_ns - 20_000_000:
                break
        else:
            pytest.fail("no such trap here, this shows nothing")
        assert b"mapped" not in before(repository, root).names
        back_up(repository, root)
    restored = root.parent / "restored"
    restored.mkdir()
    RepositoryReader(repository, layout.backups(repository.snapshots(), "p")[-1]).place(NAME, restored)
    assert (restored / "mapped").read_bytes()[0] == 2


def test_a_parent_that_cannot_be_read_is_none(repository: Repository, root: Path) -> None:
    back_up(repository, root)
    listed = layout.backups(repository.snapshots(), "p")[-1]
    assert before_of(repository, listed, "files/other", None) is NOTHING


def test_the_fingerprint_is_that_of_the_last_backup_only_where_the_tree_is_the_very_same(
    repository: Repository, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[None] = []

    def print_of(names: Iterable[Copied]) -> TreePrint:
        made.append(None)
        return tree_print.tree_print((each.entry(), each.digest) for each in names)

    monkeypatch.setattr("cosmos_coherence.sources.volume.tree_print.print_of", print_of)
    mode = root.stat().st_mode
    for change, again in (
        (lambda: None, True),
        (lambda: None, False),
        (lambda: root.chmod(mode ^ 0o005), True),
        (lambda: root.chmod(mode), True),
        (lambda: os.setxattr(root, "user.note", b"1"), True),
        (lambda: os.utime(root, ns=(0, 0)), False),
        (lambda: (root / "plain.txt").chmod(0o640), True),
        (lambda: (root / "large").write_bytes(os.urandom(3 << 20)), True),
        (lambda: None, False),
    ):
        change()
        made.clear()
        back_up(repository, root)
        assert bool(made) is again
        reader = RepositoryReader(repository, layout.backups(repository.snapshots(), "p")[-1])
        assert reader.manifest.parts[0].fingerprint.tree == tree_print.print_of_tree(root)


def test_nobody_asks_for_each_blob_while_every_index_file_is_there(
    repository: Repository, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    back_up(repository, root)
    asked: list[str] = []
    missing = Index.missing

    def noted(index: Index, kind: BlobKind, ids: Iterable[str]) -> set[str]:
        asked.append(kind)
        return missing(index, kind, ids)

    monkeypatch.setattr(Index, "missing", noted)
    whole = before(repository, root)
    assert b"plain.txt" in whole.names
    assert not asked
    wanted = bytes.fromhex(whole.names[b"plain.txt"].digest)
    place = repository.index.find("data", wanted)
    assert place is not None
    pack = root.parent / "repository" / "data" / place.pack.hex()[:2] / place.pack.hex()
    pack.rename(root.parent / "away")
    robbed = Repository(repository.backend, repository.opened, repository.config)
    adopt(robbed)
    assert b"plain.txt" not in before(robbed, root).names
    (root.parent / "away").rename(pack)
    for old in (root.parent / "repository" / "index").iterdir():
        repository.save_index(repository.index.by_pack().items())
        old.unlink()
    pruned = Repository(repository.backend, repository.opened, repository.config)
    asked.clear()
    assert b"plain.txt" in before(pruned, root).names
    assert asked
