"""A backup while it goes into a repository: every source streams straight into blobs."""

from __future__ import annotations

import queue
import shutil
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO, Final

import cosmos_coherence
from cosmos_coherence import errors, manifests
from cosmos_coherence.model import Manifest, PartFile
from cosmos_coherence.parts import Known, Stream, TreeWriter, stream_steps, tree_steps
from cosmos_coherence.repository import adopt, chunker, layout, locks
from cosmos_coherence.repository.joined import joined
from cosmos_coherence.repository.reader import RepositoryReader
from cosmos_coherence.repository.repository import Repository
from cosmos_coherence.repository.snapshots import Listed, Snapshot
from cosmos_coherence.repository.tree_writer import NOTHING, Before, Content, RepositoryTree, save_content
from cosmos_coherence.repository.trees import Node
from cosmos_coherence.storage import local

_TICK_NS: Final = 20_000_000
"""The clock of file times may lag this far behind the clock of programs."""
_AHEAD: Final = 16
"""Pieces of a stream that may wait for the chunker."""


class RepositoryWriter:
    """A ``parts.BackupWriter`` into one snapshot. What is stored before it is published is used by the next run."""

    def __init__(
        self,
        repository: Repository,
        backup_id: str,
        project: str,
        spool: Path,
        *,
        workers: int = 2,
        published: Callable[[str], None] = lambda snapshot: None,
    ) -> None:
        """``spool`` is a private folder that does not exist yet. Takes a shared lock: ``Locked`` when it cannot.

        ``published`` is told the snapshot's id as soon as it is written; it may not raise.
        """
        self.id, self.spool, self.stored = backup_id, spool, 0
        self._repository, self._project, self._published = repository, project, published
        self._lock = locks.acquire(repository, exclusive=False)
        try:
            local.make_private(spool)
            adopt.adopt(repository)
            listed, _ = repository.readable_snapshots()  # one that is damaged must not keep new ones from being made
            self._parent = next(iter(reversed(layout.backups(listed, project))), None)
            self._saver = repository.saver(workers=workers)
            self._pool = chunker.Pool(2 * workers + 8)
            self._seed = chunker.seed_of(repository.key)
        except BaseException:
            self._lock.release()
            shutil.rmtree(spool, ignore_errors=True)
            raise
        self._root = layout.Folder()
        self._adding = threading.Lock()
        self._sums: dict[str, Mapping[bytes, str]] = {}
        self._added: set[str] = set()
        self._snapshot: Snapshot | None = None

    @contextmanager
    def stream(self, name: str) -> Iterator[Stream]:
        """As ``parts.Sink`` says: cut into blobs as it comes."""
        steps = stream_steps(name)
        stream = _Stream("/".join(steps), self._store)
        try:
            yield stream
            content = stream.close()
        except BaseException:
            stream.cancel()
            raise
        self._added.update(content.blobs)
        self._put(steps, layout.file_node(steps[-1], content.blobs, content.size, _time_ns(self.id)))

    def tree(self, name: str) -> TreeWriter:
        """As ``parts.Sink`` says; what the last backup of this stack holds of the tree is known."""
        steps = tree_steps(name)

        def done(node: Node, sums: Mapping[bytes, str]) -> None:
            self._put(steps, node)
            if sums:
                self._sums[name] = sums

        before = _before(self._repository, self._parent, name) if self._parent else NOTHING
        return RepositoryTree(self._saver, self._cut, "/".join(steps), before, self._added, done)

    def last(self) -> Manifest | None:
        """The manifest of the stack's newest backup in the repository."""
        with suppress(errors.CosmosError):
            return RepositoryReader(self._repository, self._parent).manifest if self._parent else None
        return None

    def pack(self, manifest: Manifest) -> None:
        """Store the manifest and the trees of the snapshot; everything is on the disk and in an index then."""
        assert manifest.id == self.id, f"the manifest of {manifest.id} for the backup {self.id}"
        held = {file.path for part in manifest.parts for file in part.files}
        time_ns = _time_ns(self.id)
        for name, sums in self._sums.items():
            if "/".join(tree_steps(name)) in held:
                self._text((layout.SUMS, *tree_steps(name)), layout.encode_sums(sums), time_ns)
        self._text((manifests.NAME,), manifests.encode(manifest), time_ns)
        tree = self._root.save(self._saver, time_ns)
        self._saver.flush()
        self.stored = self._saver.added.packed
        self._snapshot = Snapshot(
            time=manifest.instant,
            parent=self._parent.id if self._parent else None,
            tree=tree,
            paths=[f"/{self._project}"],
            hostname=socket.gethostname(),
            username="root",
            tags=layout.tags_of(self.id, safety=manifest.safety, complete=manifest.complete, tags=manifest.tags),
            program_version=f"cosmos-coherence {cosmos_coherence.__version__}",
        )

    def verify(self) -> None:
        """Every blob that was added is in the index, and its pack where it was stored. Raises ``Damaged``.

        What earlier backups have stored was looked up when it became known.
        """
        assert self._snapshot is not None, "nothing is packed"
        packs = set()
        for name in self._added:
            place = self._repository.index.find("data", bytes.fromhex(name))
            if place is None:
                raise errors.Damaged(f"blob {name[:8]} was not stored")
            packs.add(place.pack.hex())
        missing = packs - {stored.name for stored in self._repository.backend.list("data")}
        if missing:
            raise errors.Damaged(f"{len(missing)} packs of the backup are not where they were stored")

    def publish(self) -> str:
        """Write the snapshot, and say where it is."""
        assert self._snapshot is not None, "nothing is packed"
        self._lock.ensure()
        saved = self._repository.save_snapshot(self._snapshot)
        self._published(saved)
        self.abort()
        return f"{self._repository.location} snapshot {saved[:8]}"

    def abort(self) -> None:
        """Let go of the repository. Never raises; may be called again."""
        with suppress(errors.CosmosError):
            self._saver.close()
        self._lock.release()
        shutil.rmtree(self.spool, ignore_errors=True)

    def _cut(self, content: BinaryIO) -> Iterator[chunker.Chunk]:
        return chunker.chunks(chunker.reader(content), self._pool, chunker.cutter(self._seed))

    def _store(self, content: BinaryIO) -> Content:
        return save_content(self._saver, self._cut(content))

    def _put(self, steps: tuple[str, ...], node: Node) -> None:
        with self._adding:
            self._root.put(steps, node)

    def _text(self, steps: tuple[str, ...], text: bytes, time_ns: int) -> None:
        blob = self._saver.save("data", text).hex()
        self._put(steps, layout.file_node(steps[-1], [blob], len(text), time_ns))


class _Stream:
    """Bytes that are written here are cut and stored by a thread of its own, which reads only a little ahead."""

    def __init__(self, path: str, store: Callable[[BinaryIO], Content]) -> None:
        self._path = path
        self._queue: queue.Queue[bytes] = queue.Queue(_AHEAD)
        self._content: Content | None = None
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, args=(store,), name=f"stream {path}", daemon=True)
        self._thread.start()

    def write(self, data: bytes | memoryview, /) -> int:
        """Take all of the bytes. Raises what kept them from being stored."""
        if data:
            self._hand_over(bytes(data))
        return len(data)

    def close(self) -> Content:
        """The stream has ended: what was stored of it. Raises what kept it from being stored."""
        self._hand_over(b"")
        self._thread.join()
        if self._failure is not None:
            raise self._failure
        assert self._content is not None
        return self._content

    def cancel(self) -> None:
        """Nobody writes any more. What was stored so far is not named by anything."""
        with suppress(BaseException):
            self.close()

    def file(self) -> PartFile:
        """As ``parts.Stream`` says."""
        assert self._content is not None, "the stream has not ended"
        return PartFile(self._path, self._content.size, self._content.sha256, self._content.size)

    def _hand_over(self, data: bytes) -> None:
        while self._thread.is_alive():
            with suppress(queue.Full):
                self._queue.put(data, timeout=0.5)
                return
        if self._failure is not None:
            raise self._failure

    def _run(self, store: Callable[[BinaryIO], Content]) -> None:
        try:
            self._content = store(joined(iter(self._queue.get, b"")))
        except BaseException as error:  # noqa: BLE001 - raised again by whoever writes or closes
            self._failure = error


def _before(repository: Repository, parent: Listed, name: str) -> Before:
    """The names of the tree in the last backup that can be trusted to be as they were, unless they look different.

    A change time that is not older than the *beginning* of that backup proves nothing: what was written within the same
    tick of the clock looks the same, and so does what was written through a mapping, up to and after the instant, to a
    page that was dirty since then. A backup syncs after it began; that brings the times of older dirty pages forward.
    A parent that cannot be read any more is no parent.
    """
    identity = layout.backup_id(parent.snapshot)
    trusted_ns = min(parent.snapshot.time_ns, _time_ns(identity) if identity else 0) - _TICK_NS
    has = repository.index.has
    names: dict[bytes, tuple[Known, Content | None]] = {}
    folders: dict[bytes, tuple[str, int]] = {}
    counts: dict[bytes, int] = {}
    try:
        for entry, node, sha256 in RepositoryReader(repository, parent).nodes(name):
            path, seen = entry.path, entry.seen
            if path:
                above = path.rpartition(b"/")[0]
                counts[above] = counts.get(above, 0) + 1
            if entry.kind == "dir":
                folders[path] = node.subtree or "", 0
            if entry.kind == "hardlink" or seen is None or not seen.ino or seen.ctime_ns >= trusted_ns:
                continue
            content = None
            if entry.kind == "file":
                if not sha256 or not all(has("data", blob) for blob in node.blobs):
                    continue
                content = Content(tuple(node.content or ()), node.size, sha256)
            names[path] = Known(entry, sha256), content
    except (errors.Damaged, errors.NotFound):
        return NOTHING
    return Before(names, {path: (subtree, counts.get(path, 0)) for path, (subtree, _) in folders.items()})


def _time_ns(backup_id: str) -> int:
    made = datetime.strptime(backup_id[: len("YYYYMMDD_HHMMSS")], "%Y%m%d_%H%M%S").replace(tzinfo=UTC)
    return int(made.timestamp()) * 1_000_000_000
