"""The door to a repository: open it, and load, save and list what it holds."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING, Final, TypeVar

from cosmos_coherence import errors
from cosmos_coherence.repository import config as configs
from cosmos_coherence.repository import index as indexes
from cosmos_coherence.repository import keys, snapshots, trees
from cosmos_coherence.repository.blob import Blob, BlobKind, Id, Location
from cosmos_coherence.repository.config import Config
from cosmos_coherence.repository.crypto import Buffer, Key, Sealer
from cosmos_coherence.repository.envelope import DEFAULT_LEVEL, Envelope
from cosmos_coherence.repository.index import Index, PackBlobs
from cosmos_coherence.repository.keys import Opened
from cosmos_coherence.repository.snapshots import Listed, Snapshot
from cosmos_coherence.storage.backend import Backend, Kind

if TYPE_CHECKING:
    from cosmos_coherence.repository.saver import Saver

_READ_AHEAD: Final = 32 << 20
_GAP: Final = 256 << 10
"""Unwanted bytes between two wanted blobs that are cheaper to read than a second request."""
_AT_ONCE: Final = 16 << 20
_WITNESSES: Final[tuple[Kind, ...]] = ("config", "snapshots", "index", "data")
"""Where any of these is, there is a repository, even if a damaged one."""
T = TypeVar("T")


class Repository:
    """An open repository. Safe to use from several threads; holds no thread and no connection of its own."""

    def __init__(self, backend: Backend, opened: Opened, config: Config) -> None:
        self.backend = backend
        self.opened = opened
        self.config = config
        self._index = Index()
        self._indexed: set[str] = set()
        self._incomplete = False
        """Packs that index files name are gone."""
        self._index_lock = threading.Lock()
        self._index_loaded = False
        self._ahead: dict[str, bytes] = {}
        self._threads = threading.local()

    @classmethod
    def init(cls, backend: Backend, password: str, *, generated: bool = False) -> Repository:
        """Make a repository and open it; ``generated`` as in ``keys.create``.

        What an init that was killed has left is cleared. Raises ``Refused`` when there is one already, and the
        backend's errors.
        """
        there = errors.Refused(
            f"there is a repository in {backend.location} already",
            remedy="Use it with its password, or choose another place.",
        )
        if any(True for kind in _WITNESSES for _ in backend.list(kind)):
            raise there
        backend.create()
        for stored in list(backend.list("keys")):  # without a config they open nothing, and could be taken for ours
            backend.remove("keys", stored.name)
        master, config = Key.new(), configs.new()
        opened = Opened(keys.create(backend, password, master, generated=generated), master)
        backend.save("config", "", [Sealer(master).seal(configs.encode(config))])
        try:
            found = configs.decode(Sealer(master).open(backend.load("config", "")))
        except errors.Damaged:
            raise there from None  # somebody else made one at the same time and was faster
        return cls(backend, opened, found)

    @classmethod
    def open(cls, backend: Backend, password: str) -> Repository:
        """Open a repository. While the key is derived from the password, its config and index files are read ahead.

        Raises ``WrongPassword``, ``NotFound`` when there is no repository, ``Unsupported`` for another version than 2,
        ``Damaged``, and the backend's errors.
        """
        deriving = _beside(lambda: keys.find(backend, password))
        ahead: dict[str, bytes] = {}
        try:
            sealed = backend.load("config", "")
            size = 0
            for stored in backend.list("index"):
                if (size := size + stored.size) <= _READ_AHEAD:
                    ahead[stored.name] = backend.load("index", stored.name)
        except errors.CosmosError as error:
            deriving.result()  # its failure says more
            if not isinstance(error, errors.NotFound):
                raise
            if not any(True for _ in backend.list("config")):
                raise errors.Damaged(f"the repository in {backend.location} has keys, but no config") from error
            ahead.clear()  # an index file was replaced meanwhile; it is all read again
            sealed = backend.load("config", "")
        opened = deriving.result()
        try:
            config = configs.decode(Sealer(opened.master).open(sealed))
        except errors.Damaged as error:
            raise errors.Damaged(f"the config of {backend.location}: {error}") from error
        repository = cls(backend, opened, config)
        repository._ahead = ahead
        return repository

    @property
    def key(self) -> Key:
        """The master key."""
        return self.opened.master

    @property
    def location(self) -> str:
        """Where it is, for people."""
        return self.backend.location

    def envelope(self, level: int = DEFAULT_LEVEL) -> Envelope:
        """This thread's own."""
        kept: dict[int, Envelope] = vars(self._threads).setdefault("envelopes", {})
        if level not in kept:
            kept[level] = Envelope(self.key, level)
        return kept[level]

    # ------------------------------------------------------------------------------------------------- index
    @property
    def index(self) -> Index:
        """What is in which pack, loaded at its first use. Raises ``Damaged`` and the backend's errors."""
        if not self._index_loaded:
            self.refresh_index()
        return self._index

    def refresh_index(self) -> bool:
        """Take in the index files that came since the last time; whether there were any. Errors as in ``index``."""
        with self._index_lock:
            # Those that were superseded and not removed yet name packs that are still there: no harm in taking them in.
            new = sorted(stored.name for stored in self.backend.list("index") if stored.name not in self._indexed)
            envelope = self.envelope()
            for name in new:
                try:
                    stored = self._ahead.pop(name, None) or self.backend.load("index", name)
                except errors.NotFound:  # replaced since it was listed
                    continue
                self._index.add_file(envelope.read("index", name, stored))
                self._indexed.add(name)
            self._ahead.clear()
            self._index_loaded = True
            return bool(new)

    def forget_index(self) -> None:
        """Load the index anew at its next use: packs have gone."""
        with self._index_lock:
            self._index, self._indexed, self._index_loaded = Index(), set(), False
            self._incomplete = False

    def index_files(self) -> frozenset[str]:
        """The index files that were read or written."""
        with self._index_lock:
            return frozenset(self._indexed)

    def has_all_of(self, index_files: Collection[str]) -> bool:
        """Whether all that these named is still there: whoever removes a pack replaces the index files that name it."""
        _ = self.index
        with self._index_lock:
            return not self._incomplete and self._indexed.issuperset(index_files)

    def leave_out(self, gone: Collection[Id]) -> None:
        """Have packs that are gone in no index any more, as far as we are concerned."""
        if not gone:
            return
        with self._index_lock:
            self._incomplete = True
            left = Index()
            for pack, blobs in self._index.by_pack().items():
                if pack not in gone:
                    left.add(pack, blobs)
            self._index = left

    def save_index(self, packs: Iterable[PackBlobs], supersedes: Iterable[Id] = ()) -> Id:
        """Write an index file. The packs must be stored already. Raises the backend's errors."""
        saved = self.envelope().save(self.backend, "index", indexes.encode(packs, supersedes))
        self._indexed.add(saved.hex())
        return saved

    # ------------------------------------------------------------------------------------------------- blobs
    def load_blob(self, kind: BlobKind, blob_id: Id) -> Buffer:
        """The bytes of a blob, whose hash is its id. Where one place is damaged, the others are tried.

        Raises ``Damaged`` when it is in no index or nowhere whole, and the backend's errors.
        """
        problem = errors.Damaged(f"{kind} blob {blob_id.hex()[:8]} is in no index of {self.location}")
        tried: set[Location] = set()
        while True:
            for place in self.index.places(kind, blob_id):
                if place in tried:
                    continue
                tried.add(place)
                try:
                    return self._load_at(place)
                except errors.NotFound:
                    problem = errors.Damaged(f"pack {place.pack.hex()[:8]} is missing")
                except errors.Damaged as error:
                    problem = error
            if not self.refresh_index():  # somebody may have saved or pruned since it was read
                raise problem

    def load_tree(self, tree_id: Id) -> list[trees.Node]:
        """The nodes of a tree, checked. Raises ``Hostile``, and as ``load_blob``."""
        return trees.decode(self.load_blob("tree", tree_id))

    def load_from_pack(self, pack: Id, blobs: Sequence[Blob]) -> Iterator[tuple[Blob, Buffer]]:
        """Some blobs of one pack in their order in it, their hashes checked; neighbours are read in one request.

        A request has at most 16 MiB, or one blob.

        Raises ``Damaged`` and the backend's errors.
        """
        envelope = self.envelope()
        for blob, sealed in self.load_sealed(pack, blobs):
            yield blob, envelope.unpack(blob, sealed)

    def load_sealed(self, pack: Id, blobs: Sequence[Blob]) -> Iterator[tuple[Blob, memoryview]]:
        """As ``load_from_pack``, but as they are stored: neither opened nor checked. Raises the backend's errors."""
        for run in _runs(sorted(blobs, key=lambda blob: blob.offset)):
            start = run[0].offset
            data = self.backend.load("data", pack.hex(), start, run[-1].offset + run[-1].length - start)
            for blob in run:
                at = blob.offset - start
                yield blob, memoryview(data)[at : at + blob.length]

    def saver(
        self,
        *,
        workers: int = 2,
        level: int = DEFAULT_LEVEL,
        told: Callable[[Id, Sequence[Blob]], None] | None = None,
    ) -> Saver:
        """A saver of blobs. With 0 workers it does its work in the calling threads and starts none.

        With ``told`` it writes no index files: that is told of each pack as soon as it is stored.
        """
        from cosmos_coherence.repository.saver import Saver

        return Saver(self, workers=workers, level=level, told=told)

    def _load_at(self, place: Location) -> Buffer:
        sealed = self.backend.load("data", place.pack.hex(), place.blob.offset, place.blob.length)
        return self.envelope().unpack(place.blob, sealed)

    # --------------------------------------------------------------------------------------------- snapshots
    def snapshots(self) -> tuple[Listed, ...]:
        """Every snapshot, oldest first. Raises ``Damaged`` naming one that cannot be read, and the backend's errors.

        Index files that are needed to read them and came later are found by themselves.
        """
        listed, damaged = self.readable_snapshots()
        if damaged:
            raise damaged[0]
        return listed

    def readable_snapshots(self) -> tuple[tuple[Listed, ...], tuple[errors.Damaged, ...]]:
        """Every snapshot that can be read, oldest first, and an error for each that cannot.

        Raises the backend's errors.
        """
        listed: list[Listed] = []
        damaged: list[errors.Damaged] = []
        for stored in self.backend.list("snapshots"):
            try:
                listed.append(Listed(stored.name, self.load_snapshot(stored.name)))
            except errors.NotFound:  # forgotten since it was listed
                continue
            except errors.Damaged as error:
                damaged.append(error)
        return snapshots.in_order(listed), tuple(damaged)

    def load_snapshot(self, snapshot_id: str) -> Snapshot:
        """One snapshot. Raises ``NotFound``, ``Damaged`` and the backend's errors."""
        plain = self.envelope().load(self.backend, "snapshots", snapshot_id)
        try:
            return snapshots.decode(plain)
        except errors.Damaged as error:
            raise errors.Damaged(f"snapshots/{snapshot_id[:8]}: {error}") from error

    def save_snapshot(self, snapshot: Snapshot) -> str:
        """Publish a backup: its blobs and their index must be stored already. Returns the id."""
        return self.envelope().save(self.backend, "snapshots", snapshots.encode(snapshot)).hex()

    def remove_snapshot(self, snapshot_id: str) -> None:
        """Forget a backup; its data go with the next prune. Raises the backend's errors."""
        self.backend.remove("snapshots", snapshot_id)


def _runs(blobs: Iterable[Blob]) -> Iterator[list[Blob]]:
    run: list[Blob] = []
    end = 0
    for blob in blobs:
        if run and (blob.offset - end > _GAP or blob.offset + blob.length - run[0].offset > _AT_ONCE):
            yield run
            run = []
        run.append(blob)
        end = blob.offset + blob.length
    if run:
        yield run


def _beside(work: Callable[[], T]) -> Future[T]:
    """Do something in a thread that ends with it."""
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:  # noqa: BLE001 - raised again by whoever asks for the result
            future.set_exception(error)

    threading.Thread(target=run, name="key derivation", daemon=True).start()
    return future
