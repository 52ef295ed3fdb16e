"""The engine is asked for one volume by hand; a door that is not there, or not an engine, is an error of ours."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cosmos_coherence import errors
from cosmos_coherence.drivers.engine import Engine


@contextmanager
def door(path: Path, answer: bytes) -> Iterator[list[bytes]]:
    """A socket that gives every question this answer."""
    asked: list[bytes] = []

    def serve() -> None:
        for _ in range(1):
            connection, _ = listening.accept()
            with connection:
                asked.append(connection.recv(4096))
                connection.sendall(answer)

    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        listening.listen()
        thread = threading.Thread(target=serve)
        thread.start()
        yield asked
        thread.join()


def test_the_name_cannot_leave_its_place_in_the_question(tmp_path: Path) -> None:
    with door(tmp_path / "s", b'HTTP/1.0 200 OK\r\n\r\n{"Name": "x"}') as asked:
        assert Engine(f"unix://{tmp_path}/s").volume("a/../b\r\nX: 1 ?#") == {"Name": "x"}
    assert asked[0].startswith(b"GET /volumes/a%2F..%2Fb%0D%0AX%3A%201%20%3F%23 HTTP/1.0\r\n")


def test_what_is_not_there_is_none(tmp_path: Path) -> None:
    with door(tmp_path / "s", b'HTTP/1.0 404 Not Found\r\n\r\n{"message": "no such volume"}'):
        assert Engine(f"unix://{tmp_path}/s").volume("x") is None


@pytest.mark.parametrize("answer", [b"", b"HTTP/1.0 200 OK\r\n\r\nnonsense", b"SSH-2.0\r\n\r\n"])
def test_whoever_is_no_engine(tmp_path: Path, answer: bytes) -> None:
    with door(tmp_path / "s", answer), pytest.raises(errors.EngineUnavailable):
        Engine(f"unix://{tmp_path}/s").volume("x")


def test_no_door(tmp_path: Path) -> None:
    with pytest.raises(errors.EngineUnavailable):
        Engine(f"unix://{tmp_path}/none").volume("x")
