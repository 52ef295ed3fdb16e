"""A door in front of a server, which a test shuts: connections break, and nobody is let in until it opens again."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable
from pathlib import Path

Address = int | Path
"""A port of this machine, or a unix socket."""


class Door:
    """Passes on to ``server`` what comes to ``at``; a context manager, open inside."""

    def __init__(self, server: Address, at: Address) -> None:
        self._server, self._at = server, at
        self._lock = threading.Lock()
        self._door: socket.socket | None = None
        self._passing: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []
        self.passed = 0
        """How many connections have come through."""

    def __enter__(self) -> Door:
        self.open()
        return self

    def __exit__(self, *_: object) -> None:
        self.shut()

    def open(self) -> None:
        if self._door is None:
            self._door = _listen(self._at)
            self._start(self._accept, self._door)

    def shut(self) -> None:
        """When this returns, every connection has been broken."""
        with self._lock:
            door, self._door = self._door, None
            if door is not None:
                _end(door)
            for end in self._passing:
                _end(end, close=False)  # whoever reads from it closes it
            self._passing.clear()
            threads, self._threads = self._threads, []
        for thread in threads:
            thread.join(10)

    @property
    def port(self) -> int:
        assert isinstance(self._at, int)
        return self._at

    @property
    def is_open(self) -> bool:
        return self._door is not None

    def _accept(self, door: socket.socket) -> None:
        while True:
            try:
                client, _ = door.accept()
            except OSError:
                return
            with self._lock:
                if self._door is not door:
                    _end(client)
                    return
                try:
                    server = _dial(self._server)
                except OSError:
                    _end(client)
                    continue
                self._passing |= {client, server}
                self.passed += 1
            ended = threading.Barrier(2, action=lambda pair=(client, server): self._forget(*pair))
            for one, other in ((client, server), (server, client)):
                self._start(self._pass_on, one, other, ended)

    def _start(self, target: Callable[..., None], *arguments: object) -> None:
        thread = threading.Thread(target=target, args=arguments, daemon=True)
        thread.start()
        self._threads.append(thread)

    def _pass_on(self, one: socket.socket, other: socket.socket, ended: threading.Barrier) -> None:
        with contextlib.suppress(OSError):
            while data := one.recv(1 << 16):
                other.sendall(data)
        with contextlib.suppress(OSError):
            other.shutdown(socket.SHUT_WR)
        ended.wait()

    def _forget(self, *ends: socket.socket) -> None:
        """Both directions have ended."""
        with self._lock:
            self._passing.difference_update(ends)
        for end in ends:
            end.close()


def _listen(at: Address) -> socket.socket:
    if isinstance(at, int):
        return socket.create_server(("127.0.0.1", at))
    at.unlink(missing_ok=True)
    door = socket.socket(socket.AF_UNIX)
    door.bind(str(at))
    door.listen()
    return door


def _dial(server: Address) -> socket.socket:
    if isinstance(server, int):
        return socket.create_connection(("127.0.0.1", server), 10)
    made = socket.socket(socket.AF_UNIX)
    try:
        made.connect(str(server))
    except OSError:
        made.close()
        raise
    return made


def _end(one: socket.socket, *, close: bool = True) -> None:
    with contextlib.suppress(OSError):
        one.shutdown(socket.SHUT_RDWR)
    if close:
        one.close()
