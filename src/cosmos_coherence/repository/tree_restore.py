"""A tree of a repository onto this machine's disk: pack by pack, each read once, by several processes.

Every blob's seal and hash are checked before a byte of it is written.
"""

from __future__ import annotations

import os
import pickle
import queue
import select
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, closing, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cosmos_coherence import errors, interruption
from cosmos_coherence.repository import collection, restore_plan, restore_write
from cosmos_coherence.repository.blob import Blob, Id
from cosmos_coherence.repository.crypto import Buffer
from cosmos_coherence.repository.repository import Repository
from cosmos_coherence.repository.restore_plan import Plan, Target
from cosmos_coherence.repository.restore_write import Places

_FOLDER: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_NUMBER_BYTES: Final = 4
_SYNC_MS: Final = 1000
"""More often, and those who write wait for the journal."""


@dataclass(slots=True)
class Restored:
    """What a restore has made."""

    files: int = 0
    """All of them, ``kept`` and further names included."""
    kept: int = 0
    """Files that were there already and were not written again."""
    folders: int = 0
    others: int = 0
    size: int = 0
    """Bytes of all files."""
    unset: int = 0
    """Names whose owner or attributes this user or file system could not set."""


def restore_tree(
    repository: Repository,
    tree: Id,
    target: Path,
    *,
    existing: bool = False,
    devices: bool = False,
    workers: int = 2,
    forked: bool = True,
    forking: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> Restored:
    """Write all of a tree below ``target``, a folder that is there; its own mode and owner stay.

    It must be empty, unless ``existing``: then a file that has the size and time of the tree's is kept as it is, other
    names of the tree are made anew, and what the tree does not name stays. Everything is on the disk when this returns;
    what was written before a failure stays.

    With ``forked`` and a local repository the workers are processes, which are forked within ``forking``, if no other
    thread runs there; else threads. Raises
    ``Refused``, ``Hostile`` for a tree that would leave the folder or makes a device nobody allowed, ``Damaged`` for
    content that is nowhere whole, ``NoRoom``, ``RestoreFailed`` for what else the system refuses, and the backend's
    errors. Nothing is written before the whole tree was read and judged.
    """
    with ExitStack() as stack:
        stack.enter_context(collection.paused())
        planned = restore_plan.plan(repository, tree, devices=devices)
        try:
            root = os.open(target, _FOLDER)
        except OSError as error:
            raise errors.RestoreFailed(f"{target} cannot be opened: {error.strerror}") from error
        stack.callback(os.close, root)
        if not existing and os.listdir(root):  # noqa: PTH208 - a descriptor
            raise errors.Refused(f"{target} is not empty", remedy="Restore into an empty folder.")
        places = stack.enter_context(closing(Places(target, root)))
        restored = Restored(folders=len(planned.folders), others=len(planned.others), size=planned.size)
        restored.files = len(planned.files) + len(planned.hard_links)
        kept = _prepare(planned, places, existing)
        restored.kept = len(kept)
        run = _Run(repository, planned, kept, target, root)
        alone = forked and repository.backend.properties.local
        unset = _in_processes(run, workers, forking, places.sync) if alone else None
        restored.unset += _in_threads(run, workers) if unset is None else unset
        _complete(planned, places, stack.enter_context(closing(Places(target, root))), kept)
        restored.unset += places.unset
        places.sync()
    return restored


def _prepare(planned: Plan, places: Places, existing: bool) -> set[int]:
    """Make the folders, and the files that are not of one blob; the numbers of those that may stay as they are."""
    kept: set[int] = set()
    for path, _ in planned.folders:
        with places.at(path):
            places.folder(path)
    for number, file in enumerate(planned.files):
        if not existing and file.whole:
            continue
        with places.at(file.path):
            if existing and places.is_there(file):
                kept.add(number)
            elif not file.whole:
                opened = places.create(file.path)
                try:
                    os.truncate(opened, file.size)
                finally:
                    os.close(opened)
    return kept


def _complete(planned: Plan, places: Places, others: Places, kept: set[int]) -> None:
    """What comes after the contents: further names, what is no file, and how files and folders look."""
    for number, file in enumerate(planned.files):
        if not file.whole or number in kept:
            with places.at(file.path):
                places.apply_to_file(file.path, file.look)
    for path, first in planned.hard_links:
        with places.at(path):
            places.hard_link(path, first, others)
    for other in planned.others:
        with places.at(other.path):
            places.other(other)
    for path, look in reversed(planned.folders):
        with places.at(path):
            places.apply_to_folder(path, look)


class _Run:
    """The contents: what is shared by those who write them."""

    def __init__(self, repository: Repository, planned: Plan, kept: set[int], target: Path, root: int) -> None:
        self._repository, self._planned, self._kept = repository, planned, kept
        self._target, self._root = target, root
        self.packs = len(planned.packs)

    def places(self) -> Places:
        """For one thread or process."""
        return Places(self._target, self._root)

    def pack(self, number: int, places: Places) -> None:
        """Write whatever a pack holds to wherever it belongs."""
        pack, wanted = self._planned.packs[number]
        if self._kept:
            wanted = [
                (blob, left) for blob, to in wanted if (left := [each for each in to if each[0] not in self._kept])
            ]
        for (_, targets), plain in zip(wanted, self._load(pack, [blob for blob, _ in wanted]), strict=True):
            self._write(targets, plain, places)

    def _load(self, pack: Id, blobs: Sequence[Blob]) -> Iterator[Buffer]:
        envelope = self._repository.envelope()
        done = 0
        try:
            for blob, sealed in self._repository.load_sealed(pack, blobs):
                try:
                    plain = envelope.unpack(blob, sealed)
                except errors.Damaged:
                    plain = self._repository.load_blob("data", blob.id)  # another pack may have it
                yield plain
                done += 1
        except (errors.NotFound, errors.Damaged):
            for blob in blobs[done:]:
                yield self._repository.load_blob("data", blob.id)

    def _write(self, targets: Sequence[Target], plain: Buffer, places: Places) -> None:
        for number, at in targets:
            file = self._planned.files[number]
            try:
                if file.whole:
                    places.whole(file, plain)
                    continue
                opened = places.reopen(file.path)
                try:
                    restore_write.write(opened, plain, at)
                finally:
                    os.close(opened)
            except OSError as error:
                raise places.failure(file.path, error) from error


def _in_processes(
    run: _Run, count: int, forking: Callable[[], AbstractContextManager[None]], sync: Callable[[], None]
) -> int | None:
    """Names whose look could not be set; None when another thread runs, which a fork would cut off in mid-step.

    Everybody takes the next pack from one list, whose offset they share. Meanwhile what they write is brought to the
    disk, so that little is left to wait for when they have done.
    """
    if not run.packs:
        return 0
    todo = os.memfd_create("packs")
    children: dict[int, int] = {}
    try:
        # In as many strands as there are processes: neighbours are mostly of one file, in which only one can write.
        strand = -(-run.packs // count)
        order = [number for first in range(strand) for number in range(first, run.packs, strand)]
        os.write(todo, b"".join(number.to_bytes(_NUMBER_BYTES, "little") for number in order))
        os.lseek(todo, 0, os.SEEK_SET)
        with forking():
            if threading.active_count() > 1:
                return None
            for _ in range(min(count, run.packs)):
                answer, pid = _fork(run, todo)
                children[answer] = pid
        return sum(_answer(answer) for answer in _as_they_end(list(children), sync))
    except OSError as error:
        raise errors.RestoreFailed(f"no process can be started: {error.strerror}") from error
    finally:
        os.close(todo)
        for answer, pid in children.items():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            with suppress(ChildProcessError):
                os.waitpid(pid, 0)
            os.close(answer)


def _fork(run: _Run, todo: int) -> tuple[int, int]:
    parent = os.getpid()
    answer, result = os.pipe()
    pid = os.fork()
    if pid:
        os.close(result)
        return answer, pid
    try:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # it goes to all of us; we are ended by the one who forked
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        outcome: int | BaseException
        try:
            places = run.places()
            while (number := os.read(todo, _NUMBER_BYTES)) and os.getppid() == parent:
                run.pack(int.from_bytes(number, "little"), places)
            outcome = places.unset
        except BaseException as error:  # noqa: BLE001 - raised again by the parent
            outcome = error if isinstance(error, errors.CosmosError) else errors.RestoreFailed(f"failed: {error!r}")
            outcome.__cause__ = outcome.__context__ = None
        os.write(result, pickle.dumps(outcome))
    finally:
        os._exit(0)  # nothing of the parent's is cleared up twice
    raise AssertionError


def _as_they_end(answers: Sequence[int], meanwhile: Callable[[], None]) -> Iterator[int]:
    """Those that have something to read; while others are left, what is to be done now and then and after each."""
    poll = select.poll()
    for answer in answers:
        poll.register(answer, select.POLLIN)
    left = len(answers)
    while left:
        for answer, _ in poll.poll(_SYNC_MS):
            poll.unregister(answer)
            left -= 1
            yield answer
        if left:
            meanwhile()


def _answer(answer: int) -> int:
    data = b""
    while more := os.read(answer, 1 << 16):
        data += more
    if not data:
        raise errors.RestoreFailed("a process that wrote files has died")
    outcome = pickle.loads(data)  # noqa: S301 - from our own child, which has our memory anyway
    if isinstance(outcome, BaseException):
        raise outcome
    return int(outcome)


def _in_threads(run: _Run, count: int) -> int:
    todo: queue.SimpleQueue[int] = queue.SimpleQueue()
    for number in range(run.packs):
        todo.put(number)
    failures: list[BaseException] = []
    unset: list[int] = []

    def work() -> None:
        try:
            with closing(run.places()) as places:
                with suppress(queue.Empty):
                    while not failures:
                        run.pack(todo.get_nowait(), places)
                unset.append(places.unset)
        except BaseException as error:  # noqa: BLE001 - raised again below
            failures.append(error)

    threads = [interruption.Thread(target=work, name=f"restore {number}", daemon=True) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]
    return sum(unset)
