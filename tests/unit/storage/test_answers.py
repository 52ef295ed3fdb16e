"""What servers may answer, and which error that is; the answers are made up, the clients are the real ones."""

from __future__ import annotations

import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from cosmos_coherence import errors
from cosmos_coherence.storage.backend import Backend
from cosmos_coherence.storage.rest import RestBackend
from cosmos_coherence.storage.s3 import S3Backend
from support import backend_servers

NAME = "ab" * 32
DATE = "Tue, 24 Nov 2026 12:00:00 GMT"
Answer = tuple[int, dict[str, str], bytes]


@contextmanager
def server(answer: Callable[[str, str, dict[str, str]], Answer], tls: tuple[Path, Path] | None = None) -> Iterator[str]:
    """``answer`` gets the method, the path and the headers in lower case; ``tls`` is a certificate and its key."""

    class Handler(BaseHTTPRequestHandler):
        def handle_any(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            headers = {key.lower(): value for key, value in self.headers.items()}
            status, more, body = answer(self.command, self.path, headers)
            self.send_response(status)
            for key, value in {"Content-Length": str(len(body)), **more}.items():
                self.send_header(key, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = handle_any  # noqa: N815

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        if tls:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(*tls)
            running.socket = context.wrap_socket(running.socket, server_side=True)
        thread = threading.Thread(target=running.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"{'https' if tls else 'http'}://127.0.0.1:{running.server_port}"
        finally:
            running.shutdown()
            thread.join()


def s3(url: str, ca: bytes | None = None) -> Backend:
    return S3Backend("bucket", "p", endpoint=url, region="us-east-1", key_id="k" * 20, secret="very-secret", ca=ca)


def rest(url: str) -> Backend:
    return RestBackend(url, user="who", password="very-secret")


def s3_error(status: int, code: str) -> Answer:
    text = f"<Error><Code>{code}</Code><Message>m</Message></Error>" if code else ""
    return status, {"Content-Type": "application/xml"}, text.encode()


@pytest.mark.parametrize(
    ("status", "code", "kind"),
    [
        (403, "SignatureDoesNotMatch", errors.AccessDenied),
        (401, "", errors.AccessDenied),
        (403, "", errors.AccessDenied),
        (403, "AccessDenied", errors.Refused),
        (405, "MethodNotAllowed", errors.Refused),
        (404, "NoSuchKey", errors.NotFound),
        (404, "NoSuchBucket", errors.NotFound),
        (416, "InvalidRange", errors.Damaged),
        (507, "", errors.NoRoom),
        (403, "QuotaExceeded", errors.NoRoom),
        (503, "SlowDown", errors.BackendUnavailable),
        (500, "InternalError", errors.BackendUnavailable),
        (429, "", errors.BackendUnavailable),
        (400, "RequestTimeout", errors.BackendUnavailable),
        (400, "AuthorizationHeaderMalformed", errors.CosmosError),
    ],
)
def test_what_an_s3_store_says(status: int, code: str, kind: type[errors.CosmosError]) -> None:
    with server(lambda *_: s3_error(status, code)) as url, pytest.raises(kind) as caught:
        s3(url).load("data", NAME, 1, 2)
    assert type(caught.value) is kind
    assert "very-secret" not in caught.value.message


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (401, errors.AccessDenied),
        (403, errors.Refused),
        (404, errors.NotFound),
        (416, errors.Damaged),
        (413, errors.NoRoom),
        (507, errors.NoRoom),
        (408, errors.BackendUnavailable),
        (429, errors.BackendUnavailable),
        (500, errors.BackendUnavailable),
        (503, errors.BackendUnavailable),
        (302, errors.CosmosError),
        (400, errors.CosmosError),
    ],
)
def test_what_a_rest_server_says(status: int, kind: type[errors.CosmosError]) -> None:
    with server(lambda *_: (status, {}, b"")) as url:
        backend = rest(url)
        with pytest.raises(kind) as caught:
            backend.load("data", NAME)
        assert type(caught.value) is kind
        assert str(status) in caught.value.message
        backend.close()


def test_a_store_without_conditional_writes_is_written_to_all_the_same() -> None:
    stored: dict[str, int] = {}

    def answer(method: str, path: str, headers: dict[str, str]) -> Answer:
        if method == "HEAD":
            found = stored.get(path)
            if found is None:
                return 404, {}, b""
            return 200, {"Content-Length": str(found), "Last-Modified": DATE}, b""
        if "if-none-match" in headers:
            return s3_error(501, "NotImplemented")
        stored[path] = int(headers["content-length"])
        return 200, {"ETag": '"e"'}, b""

    with server(answer) as url:
        backend = s3(url)
        for _ in range(2):
            backend.save("data", NAME, [b"12345"])
        backend.save("keys", NAME, [b"123"])
        with pytest.raises(errors.Refused):
            backend.save("data", NAME, [b"123"])
    assert stored == {f"/bucket/p/data/ab/{NAME}": 5, f"/bucket/p/keys/{NAME}": 3}


@pytest.mark.parametrize(
    "answer",
    [
        (200, {}, b"0123456789"),
        (206, {}, b"12345"),
        (206, {"Content-Range": "bytes 0-4/10"}, b"01234"),
        (206, {"Content-Range": "bytes 1-3/10"}, b"123"),
    ],
)
def test_a_part_that_was_not_asked_for_is_damage(answer: Answer) -> None:
    with server(lambda *_: answer) as url:
        for backend in (s3(url), rest(url)):
            with pytest.raises(errors.Damaged):
                backend.load("data", NAME, 1, 5)
            backend.close()


@pytest.mark.parametrize("body", [b"[]", b"null", b""])
def test_an_empty_list_has_several_looks(body: bytes) -> None:
    with server(lambda *_: (200, {}, body)) as url:
        backend = rest(url)
        assert [*backend.list("keys")] == []
        backend.close()


@pytest.mark.parametrize("body", [f'["{NAME}"]'.encode(), b"<html>", b'[{"name": "a"}]', b'{"name": "a", "size": 1}'])
def test_a_list_of_another_form_is_damage(body: bytes) -> None:
    with server(lambda *_: (200, {}, body)) as url:
        backend = rest(url)
        with pytest.raises(errors.Damaged, match="version 2"):
            list(backend.list("keys"))
        backend.close()


def test_the_certificate_of_an_s3_store_must_be_trusted(tmp_path: Path) -> None:
    certificate, key = tmp_path / "certificate.pem", tmp_path / "key.pem"
    backend_servers.make_certificate(certificate, key)
    with server(lambda *_: (200, {"ETag": '"e"', "Last-Modified": DATE}, b"12345"), (certificate, key)) as url:
        assert s3(url, certificate.read_bytes()).load("data", NAME) == b"12345"
        with pytest.raises(errors.Refused, match="certificate is not trusted") as caught:
            s3(url).load("data", NAME)
    assert "CA file" in caught.value.remedy
