"""A command inside a container: its streams over one connection, its exit status, its end.

The engine mixes standard output and standard error into one stream of frames. They are told apart on demand, by
whoever reads, and by whoever writes and would have to wait otherwise: no thread stands between the program and an
answer that it awaits while writers are held.
"""

from __future__ import annotations

import contextlib
import io
import secrets
import select
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, BinaryIO, cast

from cosmos_coherence import errors
from cosmos_coherence.drivers.engine import Engine, Wire

TAIL_BYTES = 8 * 1024
_CHUNK = 64 * 1024
_STDERR = 2
_AHEAD = 4 * 1024 * 1024
"""Output that is taken in at most while only input is being written."""
_STATUS_S = 30.0
"""How long a command may live on after its output has ended."""
_ENDED_S = 5.0
_MARK = "COSMOS_COMMAND"
_END = """
for round in 1 2 3 4 5 6 7 8; do
  found=
  for process in /proc/[0-9]*; do
    if tr '\\0' '\\n' <"$process/environ" 2>/dev/null | grep -qxF "$0"; then
      kill -9 "${process#/proc/}" 2>/dev/null && found=1
    fi
  done
  [ "$found" ] || exit 0
done
"""
"""Ends whatever carries the mark ``$0`` in its environment, which children inherit, until a look finds nothing."""


Ender = Callable[[], None]


class Frames(io.RawIOBase):
    """Standard output out of the engine's frames; the tail of standard error is kept on the way.

    After its end ``broken`` says whether the connection was lost in the middle.
    """

    def __init__(self, wire: Wire) -> None:
        self._source = wire.source
        self._lock = threading.Lock()
        self._ahead: deque[memoryview] = deque()
        self._left = 0
        self._stderr = bytearray()
        self.ended = self.broken = False

    @property
    def stderr_tail(self) -> str:
        """The last of standard error that has been met so far."""
        return bytes(self._stderr).decode("utf-8", "replace")

    def readable(self) -> bool:
        """Always."""
        return True

    def readinto(self, buffer: Any, /) -> int:
        """As for every raw stream; 0 at the end, also when the connection was lost."""
        with self._lock, memoryview(buffer).cast("B") as target:
            if self._ahead:
                first = self._ahead.popleft()
                size = min(len(first), len(target))
                target[:size] = first[:size]
                if size < len(first):
                    self._ahead.appendleft(first[size:])
                return size
            try:
                if not self._at_output():
                    return 0
                size = self._source.readinto1(target[: self._left])
            except (OSError, ValueError):  # ValueError: closed by another thread
                size = 0
            self._took(size)
            return size

    def take(self) -> bool:
        """Take one frame in ahead of its reader. False when another thread is reading, when enough waits already, and
        at the end."""
        if not self._lock.acquire(blocking=False):
            return False
        try:
            if sum(map(len, self._ahead)) >= _AHEAD or self.ended:
                return False
            if not self._left:
                self._next()
            if self._left:
                piece = self._source.read1(min(self._left, _CHUNK))
                self._took(len(piece))
                self._ahead.append(memoryview(piece))
        except (OSError, ValueError):
            self.ended = self.broken = True
        finally:
            self._lock.release()
        return True

    def _took(self, size: int) -> None:
        self._left -= size
        if not size:
            self.ended = self.broken = True

    def _at_output(self) -> bool:
        """Go on to the next bytes of standard output. False at the end."""
        while not self._left and not self.ended:
            self._next()
        return not self.ended

    def _next(self) -> None:
        """Enter the next frame; one of standard error is read to its end."""
        head = self._source.read(8)
        size = int.from_bytes(head[4:], "big")
        if len(head) < 8:
            self.ended, self.broken = True, bool(head)
        elif head[0] == _STDERR:
            self._keep(size)
        else:
            self._left = size

    def _keep(self, size: int) -> None:
        while size:
            piece = self._source.read1(min(size, _CHUNK))
            if not piece:
                self.ended = self.broken = True
                return
            size -= len(piece)
            self._stderr += piece
            del self._stderr[:-TAIL_BYTES]


class Input(io.RawIOBase):
    """Standard input of what is at the other end of ``wire``; closing it is end of file there."""

    def __init__(self, wire: Wire, frames: Frames, child: ExecChild | None = None) -> None:
        self._door, self._frames, self._child = wire.door, frames, child

    def writable(self) -> bool:
        """Always."""
        return True

    def write(self, data: Any, /) -> int:
        """As for every raw stream. ``CommandFailed`` when nobody reads any more."""
        view = memoryview(data).cast("B")
        while True:
            try:
                return self._door.send(view, socket.MSG_DONTWAIT)
            except BlockingIOError:
                self._make_way()
            except OSError as error:
                raise self._gone() from error

    def close(self) -> None:
        """Say that nothing more comes."""
        if not self.closed:
            super().close()
            with contextlib.suppress(OSError):
                self._door.shutdown(socket.SHUT_WR)

    def _make_way(self) -> None:
        """Wait until something can be written; meanwhile take in what the other end has to say first."""
        waiter = select.poll()
        waiter.register(self._door, select.POLLIN | select.POLLOUT)
        events = dict(waiter.poll(100)).get(self._door.fileno(), 0)
        if events & select.POLLIN and not events & select.POLLOUT and not self._frames.take():
            if self._frames.ended:
                raise self._gone()
            waiter.modify(self._door, select.POLLOUT)
            waiter.poll(20)

    def _gone(self) -> errors.CommandFailed:
        return self._child.went_away() if self._child else errors.CommandFailed("the other end has gone away")


class ExecChild:
    """A command in a container; keeps the promises of ``drivers.runtime.Child``.

    ``stdin`` is buffered: ``flush`` it before waiting for an answer.
    """

    def __init__(self, engine: Engine, command: str, wire: Wire, *, what: str, stdin: bool, ender: Ender) -> None:
        self._engine, self._command, self._wire, self._what, self._ender = engine, command, wire, what, ender
        self._frames = Frames(wire)
        self._stdout = cast(BinaryIO, io.BufferedReader(self._frames, _CHUNK))
        self._stdin: BinaryIO | None = None
        if stdin:
            self._stdin = cast(BinaryIO, io.BufferedWriter(Input(wire, self._frames, self), _CHUNK))
        self._finished = False
        self._status: int | None = None

    @property
    def stdin(self) -> BinaryIO:
        """See ``Child``."""
        if self._stdin is None:
            raise AssertionError(f"{self._what} was started without standard input")
        return self._stdin

    @property
    def stdout(self) -> BinaryIO:
        """See ``Child``."""
        return self._stdout

    @property
    def stderr_tail(self) -> str:
        """See ``Child``."""
        return self._frames.stderr_tail

    def wait(self) -> None:
        """See ``Child``. May be called again."""
        if not self._finished:
            try:
                if self._stdin is not None:
                    self._stdin.close()
                while not self._stdout.closed and self._stdout.read(_CHUNK):
                    pass
                self._status = self._exit_status()
            except BaseException:
                self.kill()
                raise
            self._finish()
        if self._status != 0 or self._frames.broken:
            raise self._failure()

    def kill(self) -> None:
        """See ``Child``."""
        if self._finished:
            return
        with contextlib.suppress(errors.CosmosError):
            if self._running():
                self._ender()
                deadline = time.monotonic() + _ENDED_S
                while self._running() and time.monotonic() < deadline:
                    time.sleep(0.005)
        self._status = None
        self._finish()

    def went_away(self) -> errors.CommandFailed:
        """The failure of a command that does not read its input to the end, with the reason that it gives."""
        while self._frames.take():
            pass
        self._status = self._exit_status()
        return self._failure()

    def __enter__(self) -> ExecChild:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.wait()
        else:
            self.kill()

    def _running(self) -> bool:
        return bool(self._engine.ask("exec_inspect", self._command)["Running"])

    def _exit_status(self) -> int | None:
        """Its exit status, None when that cannot be had: it still runs without a connection, or the engine is gone."""
        deadline = time.monotonic() + _STATUS_S
        pause = 0.001
        try:
            while True:
                facts = self._engine.ask("exec_inspect", self._command)
                if not facts["Running"] and facts["ExitCode"] is not None:
                    return int(facts["ExitCode"])
                if time.monotonic() > deadline:
                    return None
                time.sleep(pause)
                pause = min(pause * 2, 0.1)
        except errors.CosmosError:
            return None

    def _finish(self) -> None:
        self._finished = True
        self._wire.close()
        if self._stdin is not None:
            with contextlib.suppress(errors.CommandFailed, OSError):
                self._stdin.close()
        self._stdout.close()

    def _failure(self) -> errors.CommandFailed:
        status, said = self._status, self.stderr_tail.strip().rsplit("\n", 1)[-1].strip()
        if status is None:
            outcome = "was cut off"
        elif self._frames.broken and status == 0:
            outcome = "was cut off after it had ended"
        elif status == 0:
            outcome = "ended before it had read all of its input"
        elif status in (126, 127) and not said:
            outcome = "cannot be started: there is no such program or user in the container"
        else:
            outcome = f"ended with status {status}"
        message = f"{self._what} {outcome}{': ' + said if said else ''}"
        return errors.CommandFailed(message, status=status, stderr=self.stderr_tail)


def start(
    engine: Engine,
    container: str,
    argv: Sequence[str],
    *,
    name: str,
    stdin: bool = False,
    environment: Mapping[str, str] | None = None,
    user: str = "",
) -> ExecChild:
    """Start a command in the running container of this id, which sentences call ``name``. Raises as ``Engine.ask``."""
    mark = secrets.token_hex(8)
    marked = {**(environment or {}), _MARK: mark}
    command = engine.ask("exec_create", container, list(argv), stdin=stdin, user=user, environment=marked)["Id"]

    def end() -> None:
        # The engine kills nothing that it was asked to execute, and cutting the connection ends nothing either.
        ender = engine.ask("exec_create", container, ["sh", "-c", _END, f"{_MARK}={mark}"], user=user)["Id"]
        engine.ask("exec_start", ender)

    wire = engine.upgrade(f"/exec/{command}/start", {"Detach": False, "Tty": False})
    return ExecChild(engine, command, wire, what=f"{argv[0]} in {name}", stdin=stdin, ender=end)
