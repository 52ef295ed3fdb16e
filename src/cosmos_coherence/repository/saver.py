"""Saving blobs: hashed, deduplicated, compressed and sealed into packs by a few threads.

A blob becomes known to the index only when its pack is stored, so an interrupted run leaves nothing that refers to
bytes which are not there. Indexes are written on the way, so the next run finds what this one has uploaded.
"""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Final

from cosmos_coherence import errors, interruption
from cosmos_coherence.repository.blob import Blob, BlobKind, Id, id_of
from cosmos_coherence.repository.crypto import Buffer
from cosmos_coherence.repository.packs import Builder

if TYPE_CHECKING:
    from cosmos_coherence.repository.repository import Repository

INDEX_BLOBS: Final = 50_000
INDEX_BYTES: Final = 1 << 30
INDEX_SECONDS: Final = 60.0
"""An index file is written as soon as one of these is reached."""
_WORTH_IT: Final = 4 << 20
"""Bytes of a pack from which on it need not wait for more."""


@dataclass(slots=True)
class Added:
    """What was new. Bytes count plain, ``packed`` as stored."""

    data_blobs: int = 0
    tree_blobs: int = 0
    size: int = 0
    packed: int = 0


class Pending:
    """A blob on its way."""

    __slots__ = ("_saver", "found")

    def __init__(self, saver: Saver) -> None:
        self._saver = saver
        self.found: Id | None = None

    def id(self) -> Id:
        """Its id, as soon as it is known. Raises what made a worker fail."""
        return self._saver._await(self)


@dataclass(slots=True)
class _Job:
    kind: BlobKind
    plain: Buffer
    pending: Pending
    known: Id | None
    """Its id, when the caller has hashed and claimed it already."""
    release: Callable[[], None] | None


@dataclass(slots=True)
class _Batch:
    """Small blobs, hashed and claimed already, that are handed over in one go."""

    kind: BlobKind
    blobs: Sequence[tuple[Id, bytes]]


class Saver:
    """Takes blobs from any thread. A context manager: left well it flushes, left with an exception it drops the rest.

    A failure of a worker is raised by every later call, so nothing that depends on the lost blob can be published.
    Threads are started with the first blob that needs one. Memory: an open pack of at most 28 MiB for each worker and
    kind.
    """

    def __init__(
        self, repository: Repository, *, workers: int, level: int, told: Callable[[Id, Sequence[Blob]], None] | None
    ) -> None:
        """``told`` of each stored pack, it is somebody else who writes index files."""
        self.added = Added()
        self.packs: set[Id] = set()
        """What was stored, here or by another process that told."""
        self._told = told
        self._repository = repository
        self._level = level
        self._index = repository.index
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._claimed: set[tuple[BlobKind, Id]] = set()
        self._builders: dict[BlobKind, list[Builder]] = {"data": [], "tree": []}
        self._idle: list[Builder] = []
        self._stored: list[tuple[Id, Sequence[Blob]]] = []
        self._stored_size = self._stored_blobs = 0
        self._indexed_at = time.monotonic()
        self._failure: BaseException | None = None
        self._jobs: queue.Queue[_Job | _Batch | None] = queue.Queue(max(1, workers * 2))
        self._outstanding = self._waiting = 0
        self._workers = workers
        self._threads: list[interruption.Thread] = []

    def __enter__(self) -> Saver:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self.flush()
        finally:
            self.close()

    # ----------------------------------------------------------------------------------------------- callers
    def save(self, kind: BlobKind, plain: Buffer, blob_id: Id | None = None) -> Id:
        """Save a blob and return its id. It is hashed here, unless the caller has done it and gives ``blob_id``.

        What is new is copied unless it is ``bytes``. Raises what made a worker fail.
        """
        if blob_id is None:
            blob_id = id_of(plain)
        if self._claim(kind, blob_id):
            if not self._workers:
                self._store(kind, blob_id, plain)
            else:
                kept = plain if isinstance(plain, bytes) else bytes(plain)
                self._hand_over(_Job(kind, kept, Pending(self), blob_id, None))
        return blob_id

    def save_many(self, kind: BlobKind, blobs: Iterable[tuple[Id, bytes]]) -> None:
        """Save small blobs with their ids: for many of them handing over each would cost more than storing it.

        Raises what made a worker fail.
        """
        new = [(blob_id, plain) for blob_id, plain in blobs if self._claim(kind, blob_id)]
        if not new:
            return
        if self._workers:
            self._hand_over(_Batch(kind, new))
        else:
            self._do(_Batch(kind, new))

    def submit(self, kind: BlobKind, plain: Buffer, release: Callable[[], None]) -> Pending:
        """Have a blob hashed and saved by a worker; ``release`` is called once, when ``plain`` is not needed any more.

        Raises what made a worker fail.
        """
        pending = Pending(self)
        job = _Job(kind, plain, pending, None, release)
        if self._workers:
            try:
                self._raise_failure()
            except BaseException:
                release()
                raise
            self._hand_over(job)
        else:
            self._do(job)
        return pending

    def take_pack(self, pack: Id, blobs: Sequence[Blob]) -> None:
        """Take in a pack that another process has stored. Raises the backend's errors."""
        self._index.add(pack, blobs)
        self._note(pack, blobs)

    def take_sealed(self, blob: Blob, sealed: Buffer) -> None:
        """Take in a blob that another process has sealed, unless we have it. Raises what made a worker fail."""
        if self._claim(blob.kind, blob.id):
            try:
                builder = self._borrow(blob.kind)
                builder.add_sealed(blob, sealed)
                self._give_back(builder)
            except BaseException as error:
                self._fail(error)
                raise

    def count(self, data_blobs: int, tree_blobs: int, size: int, packed: int) -> None:
        """Count what another process has added."""
        with self._lock:
            self.added.data_blobs += data_blobs
            self.added.tree_blobs += tree_blobs
            self.added.size += size
            self.added.packed += packed

    def settle(self) -> None:
        """Store every open pack that is large enough to stay as it is. Without workers only."""
        assert not self._workers
        for builders in self._builders.values():
            for builder in [each for each in builders if each.size >= _WORTH_IT]:
                builders.remove(builder)
                self._finish(builder)

    def leave(self) -> Iterator[tuple[Blob, memoryview]]:
        """Give up what is not in a stored pack yet, sealed, to somebody who takes it."""
        for builders in self._builders.values():
            while builders:
                yield from builders.pop().sealed()

    def flush(self) -> None:
        """Return when everything saved so far is stored and in an index file. Raises what made a worker fail."""
        with self._changed:
            self._waiting += 1
            while self._outstanding:
                self._changed.wait()
            self._waiting -= 1
        self._raise_failure()
        try:
            for kind in ("data", "tree"):
                with self._lock:
                    taken, self._builders[kind] = self._builders[kind], []
                for builder in _merged(taken):
                    self._finish(builder)
            self._save_index()
        except BaseException as error:
            self._fail(error)
            raise

    def close(self) -> None:
        """End the workers; what was not flushed is dropped, but packs that were stored get into an index. Never raises.

        May be called again.
        """
        if self._failure is None:
            self._failure = errors.Interrupted("saving was ended")
        for _ in self._threads:
            self._jobs.put(None)
        for thread in self._threads:
            thread.join()
        self._threads.clear()
        with contextlib.suppress(errors.CosmosError):  # those packs are unused data, which the next prune removes
            self._save_index()
        self._builders = {"data": [], "tree": []}
        self._idle = []

    # ----------------------------------------------------------------------------------------------- workers
    def _hand_over(self, job: _Job | _Batch) -> None:
        with self._lock:
            self._outstanding += 1
            if len(self._threads) < self._workers:
                thread = interruption.Thread(target=self._work, name=f"saver {len(self._threads)}", daemon=True)
                self._threads.append(thread)
                thread.start()
        self._jobs.put(job)

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            try:
                self._do(job)
            except BaseException as error:  # noqa: BLE001 - raised again by every later call
                self._fail(error)
            finally:
                with self._changed:
                    self._outstanding -= 1
                    if self._waiting:
                        self._changed.notify_all()

    def _do(self, job: _Job | _Batch) -> None:
        if isinstance(job, _Batch):
            for blob_id, plain in job.blobs:
                if self._failure is None:
                    self._store(job.kind, blob_id, plain)
            return
        try:
            if job.known is not None:
                job.pending.found = job.known
                if self._failure is None:
                    self._store(job.kind, job.known, job.plain)
            else:
                blob_id = id_of(job.plain)
                if self._claim(job.kind, blob_id):
                    self._store(job.kind, blob_id, job.plain)
                job.pending.found = blob_id
        finally:
            if job.release is not None:
                job.release()

    def _claim(self, kind: BlobKind, blob_id: Id) -> bool:
        """Whether the blob is new, and from now on ours to store."""
        self._raise_failure()
        claim = (kind, blob_id)
        with self._lock:
            # The index first: a blob leaves the claimed ones only when it is in there.
            if claim in self._claimed or self._index.has(kind, blob_id):
                return False
            self._claimed.add(claim)
        return True

    def _store(self, kind: BlobKind, blob_id: Id, plain: Buffer) -> None:
        try:
            envelope = self._repository.envelope(self._level)
            stored, plain_length = envelope.pack(plain)
            builder = self._borrow(kind)
            packed = builder.add(blob_id, stored, plain_length, envelope.sealer)
            with self._lock:
                self.added.size += len(plain)
                self.added.packed += packed
                if kind == "data":
                    self.added.data_blobs += 1
                else:
                    self.added.tree_blobs += 1
            self._give_back(builder)
        except BaseException as error:
            self._fail(error)
            raise

    def _borrow(self, kind: BlobKind) -> Builder:
        with self._lock:
            if self._builders[kind]:
                return self._builders[kind].pop()
            builder = self._idle.pop() if self._idle else Builder(kind)
        builder.kind = kind
        return builder

    def _give_back(self, builder: Builder) -> None:
        if builder.full:
            self._finish(builder)
            return
        with self._lock:
            self._builders[builder.kind].append(builder)

    def _finish(self, builder: Builder) -> None:
        """Store a pack, then let the index know it."""
        pack = builder.finish(self._repository.envelope(self._level).sealer)
        self._repository.backend.save("data", pack.id.hex(), [pack.content])
        self._index.add(pack.id, pack.blobs)
        with self._lock:
            self._claimed.difference_update((blob.kind, blob.id) for blob in pack.blobs)
            builder.reset()
            self._idle.append(builder)
        self._note(pack.id, pack.blobs)

    def _note(self, pack: Id, blobs: Sequence[Blob]) -> None:
        """Have a pack, which is in our index, in an index file in time."""
        with self._lock:
            self.packs.add(pack)
        if self._told is not None:
            self._told(pack, blobs)
            return
        with self._lock:
            self._stored.append((pack, blobs))
            self._stored_blobs += len(blobs)
            self._stored_size += blobs[-1].offset + blobs[-1].length
            due = (
                self._stored_blobs >= INDEX_BLOBS
                or self._stored_size >= INDEX_BYTES
                or time.monotonic() - self._indexed_at >= INDEX_SECONDS
            )
        if due:
            self._save_index()

    def _save_index(self) -> None:
        with self._lock:
            stored, self._stored = self._stored, []
            self._stored_blobs = self._stored_size = 0
            self._indexed_at = time.monotonic()
        if not stored:
            return
        try:
            self._repository.save_index(stored)
        except BaseException:
            with self._lock:
                self._stored = stored + self._stored
            raise

    def _fail(self, error: BaseException) -> None:
        with self._changed:
            if self._failure is None:
                self._failure = error
            self._changed.notify_all()

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise self._failure

    def _await(self, pending: Pending) -> Id:
        if pending.found is None:
            with self._changed:
                self._waiting += 1
                while pending.found is None and self._failure is None:
                    self._changed.wait()
                self._waiting -= 1
        self._raise_failure()
        assert pending.found is not None
        return pending.found


def _merged(builders: list[Builder]) -> list[Builder]:
    """The same blobs in as few packs as fit."""
    kept: list[Builder] = []
    for builder in sorted(builders, key=lambda each: each.size, reverse=True):
        if not len(builder):
            continue
        room = next((other for other in kept if other.fits(builder)), None)
        if room is None:
            kept.append(builder)
        else:
            room.absorb(builder)
    return kept
