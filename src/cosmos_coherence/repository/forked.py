"""Processes that save small files and their folders beside us: each has its own packs and tells what it has stored.

They share nothing with us but pipes. One that dies, or fails, fails the whole; when we die, however, their pipe breaks
and they end. What is left in their packs at the end comes to us, so that a backup does not end in many small packs.
"""

from __future__ import annotations

import contextlib
import gc
import itertools
import os
import pickle
import select
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Final

import msgspec

from cosmos_coherence import errors
from cosmos_coherence.copied import Copied
from cosmos_coherence.drivers import messages
from cosmos_coherence.drivers.messages import LENGTH_BYTES
from cosmos_coherence.repository import nodes, small_files, trees
from cosmos_coherence.repository.blob import Blob, Id
from cosmos_coherence.repository.repository import Repository
from cosmos_coherence.repository.saver import Added, Saver
from cosmos_coherence.storage import local

_AT_ONCE: Final = 256 << 10
_BATCH: Final = 64
"""Files that go to a process at a time."""
_AHEAD: Final = 2
"""Batches that a process has before it, so that it never waits for us."""


class Read(msgspec.Struct, tag=True):
    """To a process: read these files."""

    root: bytes
    paths: list[bytes]


class Join(msgspec.Struct, tag=True):
    """To a process: save the trees of these folders, each with its number, which hold nothing but plain files."""

    folders: list[tuple[int, list[Copied]]]


class Settle(msgspec.Struct, tag=True):
    """To a process: hardly anything follows; store a pack that is worth it already, while others do something else."""


class Finish(msgspec.Struct, tag=True):
    """To a process: nothing follows; hand over what is left."""


class Stored(msgspec.Struct, tag=True):
    """A pack is there. From a process, and on to the others, so that they do not store the same again."""

    pack: Id
    blobs: list[Blob]


class Done(msgspec.Struct, tag=True):
    """From a process: those that it has taken."""

    copied: list[Copied]


class Joined(msgspec.Struct, tag=True):
    """From a process: the tree of each folder, by its number."""

    trees: list[tuple[int, str]]


class Left(msgspec.Struct, tag=True):
    """From a process: blobs that are in none of its packs."""

    blobs: list[tuple[Blob, bytes]]


class Finished(msgspec.Struct, tag=True):
    """From a process: its last word, what was new in all."""

    data_blobs: int
    tree_blobs: int
    size: int
    packed: int


class Failed(msgspec.Struct, tag=True):
    """From a process: what it failed of."""

    error: bytes


Order = Read | Join | Settle | Finish | Stored
Answer = Stored | Done | Joined | Left | Finished | Failed
_orders: Final = msgspec.msgpack.Decoder(Order)
_answers: Final = msgspec.msgpack.Decoder(Answer)


class Team:
    """Some such processes. A context manager; leaving it ends them at once, whatever they do.

    To be made before any thread is started, since a fork copies no other thread. The repository must be local.
    """

    def __init__(self, repository: Repository, count: int = 2, *, prepare: Callable[[], None] = lambda: None) -> None:
        """``prepare`` is called first in each process."""
        if not repository.backend.properties.local:
            raise AssertionError("connections do not survive a fork")
        self._members: list[_Member] = []
        self._turn = threading.Lock()
        _ = repository.index  # loaded once, for all
        gc.freeze()  # so that no collection touches, and thereby copies, what the processes share
        try:
            for _number in range(count):
                self._members.append(_fork(repository, self._members, prepare))
        except OSError as error:
            self.close()
            raise errors.CosmosError(f"no process can be started: {error.strerror}") from error
        finally:
            gc.unfreeze()

    def __enter__(self) -> Team:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def pids(self) -> tuple[int, ...]:
        """Their process ids."""
        return tuple(member.pid for member in self._members)

    def copied(self, root: Path, paths: Iterable[bytes], saver: Saver) -> Iterator[Copied]:
        """Have files read and saved; those that were, in any order. One caller at a time, others wait.

        Raises as ``small_files.copied``, and ``CosmosError`` when a process has died.
        """
        place, left = os.fsencode(root.absolute()), iter(paths)
        batches = iter(lambda: list(itertools.islice(left, _BATCH)), [])
        for answer in self._answers_to((Read(place, batch) for batch in batches), saver):
            if isinstance(answer, Done):
                yield from answer.copied

    def trees(self, folders: Iterable[tuple[int, list[Copied]]], saver: Saver) -> Iterator[tuple[int, str]]:
        """Have the trees of folders saved that hold nothing but plain files; their ids by number. As ``copied``."""
        for answer in self._answers_to(map(Join, _batches(folders)), saver):
            if isinstance(answer, Joined):
                yield from answer.trees

    def _answers_to(self, orders: Iterator[Order], saver: Saver) -> Iterator[Answer]:
        with self._turn:
            outstanding, more = 0, True
            while more or outstanding:
                for member in sorted(self._members, key=lambda each: each.outstanding):
                    if more and member.outstanding < _AHEAD:
                        order = next(orders, None)
                        more = order is not None
                        if order is not None:
                            member.outstanding += 1
                            outstanding += 1
                            member.queue(order)
                if not outstanding:
                    continue
                for number, answer in self._answers():
                    if isinstance(answer, Stored):
                        self._take(answer, number, saver)
                    elif isinstance(answer, Done | Joined):
                        outstanding -= 1
                        yield answer

    def settle(self) -> None:
        """Hardly anything follows: packs that are worth it may be stored from now on. Nobody waits for it."""
        with self._turn:
            for member in self._members:
                member.queue(Settle())

    def finish(self, saver: Saver) -> None:
        """Nothing follows: the saver gets what is left in their packs. Raises as ``copied``."""
        with self._turn:
            for member in self._members:
                member.queue(Finish())
            left = len(self._members)
            while left:
                for number, answer in self._answers():
                    if isinstance(answer, Stored):
                        self._take(answer, number, saver)
                    elif isinstance(answer, Left):
                        for blob, sealed in answer.blobs:
                            saver.take_sealed(blob, sealed)
                    elif isinstance(answer, Finished):
                        left -= 1
                        saver.count(answer.data_blobs, answer.tree_blobs, answer.size, answer.packed)

    def _take(self, stored: Stored, by: int, saver: Saver) -> None:
        """A pack is there: the others shall not store the same again."""
        saver.take_pack(stored.pack, stored.blobs)
        for number, member in enumerate(self._members):
            if number != by:
                member.queue(stored)

    def _answers(self) -> Iterator[tuple[int, Answer]]:
        """What has come from which process; at least one piece of an answer is awaited."""
        poll = select.poll()
        numbers: dict[int, tuple[int, _Member]] = {}
        for number, member in enumerate(self._members):
            if not member.finished:
                poll.register(member.incoming, select.POLLIN)
                numbers[member.incoming] = number, member
            if member.unsent:
                poll.register(member.outgoing, select.POLLOUT)
                numbers[member.outgoing] = number, member
        for descriptor, event in poll.poll(None if numbers else 0):
            number, member = numbers[descriptor]
            if descriptor == member.outgoing and event & select.POLLOUT:
                member.send()
            elif descriptor == member.incoming:
                for answer in member.receive():
                    if isinstance(answer, Failed):
                        raise _failure(answer)
                    yield number, answer

    def close(self) -> None:
        """End them; may be called again."""
        for member in self._members:
            with contextlib.suppress(ProcessLookupError):
                os.kill(member.pid, signal.SIGKILL)
            os.close(member.incoming)
            os.close(member.outgoing)
        for member in self._members:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(member.pid, 0)
        self._members = []


class _Member:
    """Our end of one process."""

    def __init__(self, pid: int, incoming: int, outgoing: int) -> None:
        self.pid, self.incoming, self.outgoing = pid, incoming, outgoing
        self.outstanding = 0
        self.finished = False
        self.unsent: deque[memoryview] = deque()
        self._received = bytearray()

    def queue(self, order: Order) -> None:
        self.unsent.append(memoryview(_framed(order)))
        self.send()

    def send(self) -> None:
        """As much as the pipe takes now."""
        with contextlib.suppress(BlockingIOError):
            while self.unsent:
                try:
                    count = os.write(self.outgoing, self.unsent[0])
                except BrokenPipeError:
                    return  # it has died; its answers, which may say why, are read first
                self.unsent[0] = self.unsent[0][count:]
                if not self.unsent[0]:
                    self.unsent.popleft()

    def receive(self) -> Iterator[Answer]:
        received = self._received
        try:
            more = os.read(self.incoming, _AT_ONCE)
        except BlockingIOError:
            return
        if not more:
            raise errors.CosmosError("a process that read files for the backup has died")
        received += more
        at = 0
        while len(received) - at >= LENGTH_BYTES:
            end = at + LENGTH_BYTES + messages.length(received[at : at + LENGTH_BYTES])
            if end > len(received):
                break
            answer = _answers.decode(bytes(received[at + LENGTH_BYTES : end]))
            at = end
            if isinstance(answer, Done | Joined):
                self.outstanding -= 1
            self.finished = self.finished or isinstance(answer, Finished)
            yield answer
        del received[:at]


def _batches(folders: Iterable[tuple[int, list[Copied]]]) -> Iterator[list[tuple[int, list[Copied]]]]:
    """Some folders at a time, with so many names together that it is worth while."""
    batch: list[tuple[int, list[Copied]]] = []
    names = 0
    for folder in folders:
        batch.append(folder)
        names += len(folder[1])
        if names >= _BATCH:
            yield batch
            batch, names = [], 0
    if batch:
        yield batch


def _fork(repository: Repository, others: Iterable[_Member], prepare: Callable[[], None]) -> _Member:
    orders, outgoing = os.pipe()
    incoming, answers = os.pipe()
    pid = os.fork()
    if pid:
        os.close(orders)
        os.close(answers)
        os.set_blocking(outgoing, False)
        os.set_blocking(incoming, False)
        return _Member(pid, incoming, outgoing)
    status = 1
    try:
        gc.disable()
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # it goes to all of us; we are ended by the one who forked
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        for descriptor in (outgoing, incoming, *(each for one in others for each in (one.incoming, one.outgoing))):
            os.close(descriptor)  # else a pipe would not break when it should
        with contextlib.suppress(BrokenPipeError):
            prepare()
            _work(repository, orders, answers)
            status = 0
    finally:
        os._exit(status)  # nothing of the parent's is cleared up twice
    raise AssertionError


def _work(repository: Repository, orders: int, answers: int) -> None:
    def say(answer: Answer) -> None:
        local.write_all(answers, _framed(answer))

    def told(pack: Id, blobs: Sequence[Blob]) -> None:
        say(Stored(pack, list(blobs)))

    try:
        saver = repository.saver(workers=0, told=told)
        while (message := messages.read(orders)) is not None:
            order = _orders.decode(message)
            if isinstance(order, Read):
                root = Path(os.fsdecode(order.root))
                say(Done(list(small_files.copied(root, order.paths, lambda plain: saver.save("data", plain).hex()))))
            elif isinstance(order, Join):
                joined = ((number, trees.joined(map(nodes.plain_json, names))) for number, names in order.folders)
                say(Joined([(number, saver.save("tree", tree).hex()) for number, tree in joined]))
            elif isinstance(order, Stored):
                repository.index.add(order.pack, order.blobs)
            elif isinstance(order, Settle):
                saver.settle()
            else:
                _hand_over(saver, say)
    except BrokenPipeError:
        raise
    except BaseException as error:  # noqa: BLE001 - raised again where it is known what for
        say(Failed(_pickled(error)))


def _hand_over(saver: Saver, say: Callable[[Answer], None]) -> None:
    batch: list[tuple[Blob, bytes]] = []
    size = 0
    for blob, sealed in saver.leave():
        batch.append((blob, bytes(sealed)))
        size += len(sealed)
        if size > _AT_ONCE:
            say(Left(batch))
            batch, size = [], 0
    say(Left(batch))
    added: Added = saver.added
    say(Finished(added.data_blobs, added.tree_blobs, added.size, added.packed))


def _framed(message: Order | Answer) -> bytes:
    return messages.framed(msgspec.msgpack.encode(message))


def _pickled(error: BaseException) -> bytes:
    if not isinstance(error, errors.CosmosError):
        error = errors.CosmosError(f"a process that read files for the backup has failed: {error!r}")
    error.__cause__ = error.__context__ = None
    return pickle.dumps(error)


def _failure(answer: Failed) -> BaseException:
    found = pickle.loads(answer.error)  # noqa: S301 - from our own child, which has our memory anyway
    return found if isinstance(found, errors.CosmosError) else errors.CosmosError(str(found))
