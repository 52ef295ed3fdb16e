"""Real servers on loopback that answer, do not, and answer strangely."""

from __future__ import annotations

import contextlib
import socket
import threading
from pathlib import Path

import pytest

from cosmos_coherence import errors
from cosmos_coherence.health import checks, endpoints
from cosmos_coherence.health.endpoints import Endpoint
from cosmos_coherence.model import Port, Service, Stack
from support.answering import answering, certificate, says
from support.stores import free_port

WELL = says("200 OK", body=b"well")


def ask(port: int, path: str = "/health", *, scheme: str = "http", limit_s: float = 30.0, **options):
    return endpoints.check_endpoint(
        Endpoint(f"{scheme}://127.0.0.1:{port}{path}", (("127.0.0.1", port),), **options), limit_s
    )


@pytest.mark.parametrize(
    ("answer", "outcome", "detail"),
    [
        (WELL, "ok", "answers 200"),
        (says("204 No Content"), "ok", "answers 204"),
        (says("503 Service Unavailable", body=b"\x1b[31mpassword"), "fail", "answers 503"),
        (says("401 Unauthorized"), "fail", "answers 401"),
        (says("302 Found", "Location: http://169.254.169.254/latest"), "warn", "answers 302 and redirects elsewhere"),
        (says("302 Found", "Location: //evil.example/"), "warn", "answers 302 and redirects elsewhere"),
        (says("302 Found", "Location: ftp:x"), "warn", "answers 302 and redirects elsewhere"),
        (says("302 Found"), "fail", "answers 302"),
        (lambda door, _: door.sendall(b"SSH-2.0-x\r\n"), "fail", "answers something else than HTTP"),
        (lambda door, _: door.sendall(b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 5000 + b"\r\n"), "fail", "something else"),
        (lambda door, _: door.sendall(b"HTTP/1.1 999999 OK\r\n\r\n"), "fail", "something else"),
        (lambda door, _: door.close(), "fail", "connection"),
    ],
)
def test_what_it_answers(answer, outcome, detail):
    with answering(answer) as port:
        found = ask(port)
    assert (found.outcome, detail in found.detail) == (outcome, True), found
    assert "\x1b" not in found.detail


def test_redirects_to_itself_are_followed_and_a_circle_is_found():
    def moved(door: socket.socket, path: str) -> None:
        to = {"/health": "/a", "/a": "/b"}.get(path)
        (says("302 Found", f"Location: {to}") if to else WELL)(door, path)

    with answering(moved) as port:
        assert ask(port).detail == "answers 200"
    with answering(says("302 Found", "Location: /health")) as port:
        assert ask(port).detail == "redirects in a circle"
    with answering(lambda door, path: says("302 Found", f"Location: {path}x")(door, path)) as port:
        assert ask(port).detail == "redirects without end"


def test_of_a_huge_body_little_is_read():
    sent = []

    def pour(door: socket.socket, _path: str) -> None:
        door.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000000\r\n\r\n")
        with contextlib.suppress(OSError):
            while True:
                sent.append(door.send(bytes(1 << 16)))

    with answering(pour) as port:
        assert ask(port).detail == "answers 200"
    assert sum(sent) < 1 << 26


@pytest.mark.parametrize("words", [b"", b"HTTP/1.1 200 OK\r\nX: ", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n1"])
def test_one_that_hangs_or_drips_is_a_finding_in_time(words):
    done = threading.Event()

    def drip(door: socket.socket, _path: str) -> None:
        with contextlib.suppress(OSError):
            door.sendall(words)
            while not done.wait(0.02):
                if words:
                    door.sendall(b"x" if b"X: " in words else b"")

    try:
        with answering(drip) as port:
            assert ask(port, limit_s=0.3).detail == "no answer in time"
    finally:
        done.set()


def test_a_connection_that_nobody_takes():
    closed = free_port()
    assert ask(closed).outcome == "fail"
    blind = ask(closed, foreign=True)
    assert (blind.outcome, blind.detail) == ("ok", "cannot be asked from here")
    nowhere = endpoints.check_endpoint(Endpoint("http://api:8000/", ()), 1.0)
    assert nowhere.detail == "its service does not run"


def test_the_first_address_that_takes_it_is_asked():
    with answering(WELL) as port:
        addresses = (("127.0.0.1", free_port()), ("127.0.0.1", port))
        found = endpoints.check_endpoint(Endpoint("http://api:8000/health", addresses), 30.0)
    assert found.outcome == "ok"
    assert [n.subject for n in found.numbers] == ["endpoint:api:8000/health"]


def test_tls_and_what_is_none(tmp_path):
    pem = tmp_path / "pem"
    pem.write_bytes(b"".join(certificate(90)))
    with answering(WELL, pem=pem) as port:
        assert ask(port, scheme="https").detail == "answers 200"
    with answering(WELL) as port:
        assert ask(port, scheme="https").outcome == "fail"


# ------------------------------------------------------------------------------------------- what a stack has of them
def stack(*services: Service, program: str = "") -> Stack:
    return Stack("p", "docker", Path("/p"), services=services, program=program)


API = Service(
    "api",
    "p-api-1",
    labels={endpoints.LABEL: "http://api:8000/health"},
    addresses=("172.18.0.3",),
    ports=(Port("127.0.0.1", 18000, 8000),),
)


@pytest.mark.parametrize(
    ("program", "addresses"),
    [("", (("127.0.0.1", 18000), ("172.18.0.3", 8000))), ("p-agent-1", (("172.18.0.3", 8000),))],
)
def test_where_a_labelled_address_is_reached(program, addresses):
    found = endpoints._endpoint(API, "http://api:8000/health", stack(API, program=program))
    assert found.addresses == addresses


@pytest.mark.parametrize(
    "url",
    [
        "http://169.254.169.254/latest/meta-data",
        "http://other:8000/",
        "file:///etc/passwd",
        "http://user:secret@api:8000/",
        "api:8000",
        "http://[::1",
        "http://api:99999/",
        "gopher://api/",
    ],
)
def test_a_label_can_only_name_its_own_service(url):
    with pytest.raises(errors.ConfigurationError):
        endpoints._endpoint(API, url, stack(API))
    service = Service("api", "p-api-1", labels={endpoints.LABEL: url})
    found = checks.run(endpoints.checks_of(stack(service), (), 1.0))
    assert found.outcome == "fail"
    assert "secret" not in found.checks[0].detail
    assert endpoints.tls_of(stack(service), ()) == ()


def test_published_ports_of_services_with_a_health_check():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        db = Service("db", "p-db-1", health="healthy", ports=(Port("0.0.0.0", port, 5432),))
        silent = Service("mail", "p-mail-1", ports=(Port("0.0.0.0", free_port(), 25),))
        found = checks.run(endpoints.checks_of(stack(db, silent), (), 30.0))
    assert [(c.name, c.outcome, c.detail) for c in found.checks] == [("endpoint db:5432", "ok", "takes connections")]


def test_addresses_of_the_settings_are_asked_as_they_are():
    with answering(WELL) as port:
        url = f"http://127.0.0.1:{port}/x?y=1"
        found = checks.run(endpoints.checks_of(stack(), (url,), 30.0))
    assert [(c.name, c.outcome) for c in found.checks] == [(f"endpoint 127.0.0.1:{port}/x", "ok")]
