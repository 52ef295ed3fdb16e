"""A backup while it goes into a repository: every source streams straight into blobs."""

from __future__ import annotations

import hashlib
import itertools
import queue
import shutil
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, Final

import cosmos_coherence
from cosmos_coherence import errors, interruption, manifests
from cosmos_coherence.model import Manifest, PartFile
from cosmos_coherence.parts import Stream, TreeWriter, stream_steps, tree_steps
from cosmos_coherence.repository import adopt, chunker, layout, locks
from cosmos_coherence.repository.forked import Team
from cosmos_coherence.repository.joined import joined
from cosmos_coherence.repository.reader import RepositoryReader
from cosmos_coherence.repository.repository import Repository
from cosmos_coherence.repository.snapshots import Snapshot
from cosmos_coherence.repository.tree_before import before_of
from cosmos_coherence.repository.tree_cache import TreeCache
from cosmos_coherence.repository.tree_writer import NOTHING, Content, Finished, RepositoryTree, save_content
from cosmos_coherence.repository.trees import Node
from cosmos_coherence.storage import local

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
        cache: TreeCache | None = None,
        prepare: Callable[[], None] = lambda: None,
    ) -> None:
        """``spool`` is a private folder that does not exist yet. Takes a shared lock: ``Locked`` when it cannot.

        ``published`` is told the snapshot's id as soon as it is written; it may not raise. ``cache`` is of this stack
        and keeps what its last backup saw. In the first backup of a stack, where the repository is local and no other
        thread runs, small files are read by ``workers`` processes; each calls ``prepare`` first.
        """
        self.id, self.spool, self.stored = backup_id, spool, 0
        self._repository, self._project, self._published = repository, project, published
        # Nothing is removed and nothing of this is referred to before ``publish`` has made sure of the lock.
        self._lock = locks.acquire(repository, exclusive=False, refresh=False, settle=False)
        self._team: Team | None = None
        try:
            local.make_private(spool)
            adopt.adopt(repository)
            listed, _ = repository.readable_snapshots()  # one that is damaged must not keep new ones from being made
            self._parent = next(iter(reversed(layout.backups(listed, project))), None)
            if self._parent is None and repository.backend.properties.local and threading.active_count() == 1:
                self._team = Team(repository, workers, prepare=prepare)
            self._lock.start_refreshing()
            self._saver = repository.saver(workers=workers)
            self._pool = chunker.Pool(2 * workers + 8)
            self._seed = chunker.seed_of(repository.key)
        except BaseException:
            self._lock.release()
            self._dismiss()
            shutil.rmtree(spool, ignore_errors=True)
            raise
        self._root = layout.Folder()
        self._adding = threading.Lock()
        self._cache = cache
        self._finished: dict[str, Finished] = {}
        self._streamed: set[str] = set()
        """Blobs of streams."""
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
        self._streamed.update(content.blobs)
        self._put(steps, layout.file_node(steps[-1], content.blobs, content.size, layout.time_ns(self.id)))

    def tree(self, name: str) -> TreeWriter:
        """As ``parts.Sink`` says; what the last backup of this stack holds of the tree is known."""
        steps = tree_steps(name)

        def done(finished: Finished) -> None:
            self._put(steps, finished.root)
            self._finished[name] = finished

        before = before_of(self._repository, self._parent, name, self._cache) if self._parent else NOTHING
        return RepositoryTree(self._saver, self._cut, "/".join(steps), before, done, self._team)

    def last(self) -> Manifest | None:
        """The manifest of the stack's newest backup in the repository."""
        with suppress(errors.CosmosError):
            return RepositoryReader(self._repository, self._parent).manifest if self._parent else None
        return None

    def pack(self, manifest: Manifest) -> None:
        """Store the manifest and the trees of the snapshot; everything is on the disk and in an index then."""
        assert manifest.id == self.id, f"the manifest of {manifest.id} for the backup {self.id}"
        held = {file.path for part in manifest.parts for file in part.files}
        time_ns = layout.time_ns(self.id)
        for name, finished in self._finished.items():
            if finished.sums and "/".join(tree_steps(name)) in held:
                self._text((layout.SUMS, *tree_steps(name)), layout.encode_sums(finished.sums), time_ns)
        self._text((manifests.NAME,), manifests.encode(manifest), time_ns)
        tree = self._root.save(self._saver, time_ns)
        if self._team is not None:
            self._team.finish(self._saver)
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
        named = itertools.chain(self._streamed, *(finished.added() for finished in self._finished.values()))
        if lost := self._repository.index.missing("data", named):
            raise errors.Damaged(f"{len(lost)} blobs were not stored, {min(lost)[:8]} is one of them")
        stored = {pack.hex() for pack in self._saver.packs}
        missing = stored - {found.name for found in self._repository.backend.list("data")}
        if missing:
            raise errors.Damaged(f"{len(missing)} packs of the backup are not where they were stored")

    def publish(self) -> str:
        """Write the snapshot, and say where it is."""
        assert self._snapshot is not None, "nothing is packed"
        self._lock.ensure()
        saved = self._repository.save_snapshot(self._snapshot)
        self._published(saved)
        self.abort()
        if self._cache is not None:
            stored = self._repository.index_files()
            states = {name: finished.state._replace(index_files=stored) for name, finished in self._finished.items()}
            self._cache.save(states)
        return f"{self._repository.location} snapshot {saved[:8]}"

    def abort(self) -> None:
        """Let go of the repository. Never raises; may be called again."""
        with suppress(errors.CosmosError):
            self._saver.close()
        self._dismiss()
        self._lock.release()
        shutil.rmtree(self.spool, ignore_errors=True)

    def _dismiss(self) -> None:
        if self._team is not None:
            self._team.close()

    def _cut(self, content: BinaryIO) -> Iterator[chunker.Chunk]:
        return chunker.chunks(chunker.reader(content), self._pool, chunker.cutter(self._seed))

    def _store(self, content: BinaryIO) -> Content:
        return save_content(self._saver, self._cut(content), hashlib.sha256())

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
        self._thread = interruption.Thread(target=self._run, args=(store,), name=f"stream {path}", daemon=True)
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
        return PartFile(self._path, self._content.size, self._content.digest, self._content.size)

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
