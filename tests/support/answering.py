"""Servers that answer strangely, for checks that ask them."""

from __future__ import annotations

import contextlib
import datetime
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

_TLS_HELLO = 22

Answer = Callable[[socket.socket, str], None]
"""Given the connection and the path that was asked for."""


@contextlib.contextmanager
def answering(answer: Answer, *, pem: Path | None = None) -> Iterator[int]:
    """A server on loopback, with TLS when there is a ``pem`` of certificate and key; its port."""
    with _serving(socket.create_server(("127.0.0.1", 0)), answer, pem) as listener:
        yield listener.getsockname()[1]


@contextlib.contextmanager
def unix_answering(answer: Answer, path: Path) -> Iterator[Path]:
    """The same behind a unix socket."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen()
    with _serving(listener, answer, None):
        yield path


@contextlib.contextmanager
def _serving(listener: socket.socket, answer: Answer, pem: Path | None) -> Iterator[socket.socket]:
    context = None
    if pem:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(pem)

    def serve(door: socket.socket) -> None:
        with contextlib.suppress(OSError, ValueError), door:
            talking = context.wrap_socket(door, server_side=True) if context else door
            with talking:
                head = b""
                while b"\r\n\r\n" not in head and (said := talking.recv(65536)):
                    head += said
                    if head[0] == _TLS_HELLO:
                        return  # as servers do that speak something else
                if b"\r\n\r\n" in head:
                    answer(talking, head.split()[1].decode())

    def listen() -> None:
        with contextlib.suppress(OSError):
            while True:
                door, _ = listener.accept()
                threading.Thread(target=serve, args=(door,), daemon=True).start()

    threading.Thread(target=listen, daemon=True).start()
    try:
        yield listener
    finally:
        with contextlib.suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
        listener.close()


def says(status: str, *headers: str, body: bytes = b"") -> Answer:
    """The same answer to everything."""
    head = "\r\n".join([f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *headers, "", ""])
    return lambda door, _path: door.sendall(head.encode() + body)


def certificate(days: float, *, begun: float = 30.0) -> tuple[bytes, bytes]:
    """A self-signed certificate that is good for so many days more, and its key, in PEM."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "cosmos.test")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=begun))
        .not_valid_after(now + datetime.timedelta(days=days))
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return made.public_bytes(serialization.Encoding.PEM), private
