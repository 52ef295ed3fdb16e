"""As much of the protocols of PostgreSQL and Redis as the writers need, from the standard library alone."""

from __future__ import annotations

import base64
import hashlib
import hmac
import secrets
import socket
import struct


class Refused(Exception):
    """The server said no."""


class Postgres:
    """One connection, one statement at a time; passwords by SCRAM-SHA-256, or none."""

    def __init__(self, host: str, port: int, user: str, password: str, database: str) -> None:
        self._door = socket.create_connection((host, port), timeout=60)
        self._door.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._answers = self._door.makefile("rb")
        names = f"user\0{user}\0database\0{database}\0\0".encode()
        self._door.sendall(struct.pack("!ii", len(names) + 8, 196608) + names)
        self._enter(password)

    def run(self, statement: str) -> None:
        """Return when the server has carried it out and, outside of a transaction, committed it."""
        self._send(b"Q", statement.encode() + b"\0")
        self._until_ready()

    def _send(self, kind: bytes, body: bytes) -> None:
        self._door.sendall(kind + struct.pack("!i", len(body) + 4) + body)

    def _message(self) -> tuple[bytes, bytes]:
        kind = self._answers.read(1)
        if not kind:
            raise Refused("PostgreSQL went away")
        (size,) = struct.unpack("!i", self._answers.read(4))
        body = self._answers.read(size - 4)
        if kind == b"E":
            raise Refused(body.replace(b"\0", b" ").decode(errors="replace"))
        return kind, body

    def _until_ready(self) -> None:
        while self._message()[0] != b"Z":
            pass

    def _enter(self, password: str) -> None:
        nonce = secrets.token_urlsafe(18)
        first = f"n=,r={nonce}"
        while True:
            kind, body = self._message()
            (step,) = struct.unpack("!i", body[:4]) if kind == b"R" else (None,)
            if kind == b"Z":
                return
            if step == 10:
                said = f"n,,{first}".encode()
                self._send(b"p", b"SCRAM-SHA-256\0" + struct.pack("!i", len(said)) + said)
            elif step == 11:
                self._send(b"p", _proof(password, first, body[4:].decode()).encode())
            elif step not in (None, 0, 12):
                raise Refused(f"PostgreSQL wants a way of authentication ({step}) that is not spoken here")


def _proof(password: str, first: str, challenge: str) -> str:
    parts = dict(item.split("=", 1) for item in challenge.split(","))
    salted = hashlib.pbkdf2_hmac("sha256", password.encode(), base64.b64decode(parts["s"]), int(parts["i"]))
    key = hmac.digest(salted, b"Client Key", "sha256")
    last = f"c=biws,r={parts['r']}"
    signature = hmac.digest(hashlib.sha256(key).digest(), f"{first},{challenge},{last}".encode(), "sha256")
    return f"{last},p={base64.b64encode(bytes(a ^ b for a, b in zip(key, signature, strict=True))).decode()}"


class Redis:
    """One connection, one command at a time."""

    def __init__(self, host: str, port: int, password: str) -> None:
        self._door = socket.create_connection((host, port), timeout=60)
        self._door.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._answers = self._door.makefile("rb")
        if password:
            self.run("AUTH", password)

    def run(self, *words: str) -> None:
        """Return when a command that answers with a word or a number is acknowledged."""
        encoded = [word.encode() for word in words]
        self._door.sendall(b"*%d\r\n" % len(encoded) + b"".join(b"$%d\r\n%s\r\n" % (len(w), w) for w in encoded))
        answer = self._answers.readline()
        if not answer.startswith((b"+", b":")):
            raise Refused(answer.decode(errors="replace") or "Redis went away")
