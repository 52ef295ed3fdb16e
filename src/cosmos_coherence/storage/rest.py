"""A repository behind restic's REST protocol, which its own server and ``rclone serve restic`` speak.

Needs the extra ``remote``.
"""

from __future__ import annotations

import ssl
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http import HTTPStatus
from pathlib import Path

import httpx
import msgspec

from cosmos_coherence import errors
from cosmos_coherence.storage import layout
from cosmos_coherence.storage.backend import Kind, Properties, Stored

_VERSION_2 = "application/vnd.x.restic.rest.v2"
_CONNECTIONS = 8
_TIMES = httpx.Timeout(connect=10, read=60, write=60, pool=None)
"""Seconds: for a connection, for the next bytes either way. A free connection is waited for."""


class _Entry(msgspec.Struct):
    name: str
    size: int


class RestBackend:
    """Files at ``url/config``, ``url/keys/ID``, ``url/data/ID``. Where and how durably they lie is the server's affair.

    The server may refuse to remove anything but locks. It may also show a file that is not whole yet, as rclone does
    with a local folder: ``save`` answers ``BackendUnavailable`` then. Trying again is left to who wraps this.
    """

    properties = Properties(connections=_CONNECTIONS)

    def __init__(self, url: str, *, user: str = "", password: str = "", ca: Path | None = None) -> None:
        """``url`` without user and password; ``ca``: PEM certificates to trust instead of the machine's own.

        Raises ``ConfigurationError`` when they cannot be read.
        """
        self.location = f"rest:{url.rstrip('/')}/"
        try:
            trusted = ssl.create_default_context(cafile=ca)
        except (OSError, ssl.SSLError) as error:
            raise errors.ConfigurationError(f"the certificates in {ca} cannot be read: {error}") from error
        self._client = httpx.Client(
            base_url=f"{url.rstrip('/')}/",
            auth=(user, password) if user else None,
            verify=trusted,
            timeout=_TIMES,
            limits=httpx.Limits(max_connections=_CONNECTIONS),
            headers={"Accept-Encoding": "identity"},
            trust_env=False,
        )

    def create(self) -> None:
        """Let the server make the repository's folders."""
        self._ask("POST", "?create=true", "making the repository")

    def save(self, kind: Kind, name: str, content: Sequence[bytes | bytearray | memoryview]) -> None:
        """As ``Backend.save``. The server is asked first what it has: it would overwrite."""
        doing, size = f"writing {layout.path_of(kind, name)}", sum(map(len, content))
        if self._is_there(kind, name, size):
            return
        try:
            headers = {"Content-Length": str(size), "Content-Type": "application/octet-stream"}
            self._ask("POST", self._url(kind, name), doing, headers=headers, content=map(bytes, content))
        except errors.Refused:
            if not self._is_there(kind, name, size):  # else somebody was faster, and the server keeps what it has
                raise

    def load(self, kind: Kind, name: str, offset: int = 0, length: int | None = None) -> bytes:
        """As ``Backend.load``."""
        whole = offset == 0 and length is None
        asked = {} if whole else {"Range": f"bytes={offset}-{'' if length is None else offset + length - 1}"}
        doing = f"reading {layout.path_of(kind, name)}"
        answer = self._ask("GET", self._url(kind, name), doing, headers=asked)
        if not whole and not _answers_part(answer, offset):
            raise errors.Damaged(f"the server did not answer with the part that was asked for while {doing}")
        if (length is not None and len(answer.content) != length) or (offset and not answer.content):
            raise errors.Damaged(f"{length or 'some'} bytes were asked for, {len(answer.content)} came while {doing}")
        return answer.content

    def size(self, kind: Kind, name: str) -> int:
        """As ``Backend.size``."""
        doing = f"looking at {layout.path_of(kind, name)}"
        length = self._ask("HEAD", self._url(kind, name), doing).headers.get("Content-Length", "")
        if not length.isdecimal():
            raise errors.Damaged(f"the server did not tell the size while {doing} in {self.location}")
        return int(length)

    def list(self, kind: Kind) -> Iterator[Stored]:
        """As ``Backend.list``. ``Damaged`` when the server speaks only the first version of the protocol."""
        try:
            if kind == "config":
                yield Stored("", self.size(kind, ""))
                return
            answer = self._ask("GET", f"{kind}/", f"listing {kind}", headers={"Accept": _VERSION_2})
        except errors.NotFound:
            return
        try:
            entries = msgspec.json.decode(answer.content or b"null", type=list[_Entry] | None) or []
        except msgspec.DecodeError as error:
            raise errors.Damaged(
                f"the list of {kind} in {self.location} is not what the protocol's version 2 says: {error}",
                remedy="Use a REST server of restic 0.9 or newer, or `rclone serve restic`.",
            ) from error
        for entry in entries:
            if layout.is_name(entry.name):
                yield Stored(entry.name, entry.size)

    def remove(self, kind: Kind, name: str) -> None:
        """As ``Backend.remove``."""
        try:
            self._ask("DELETE", self._url(kind, name), f"removing {layout.path_of(kind, name)}")
        except errors.NotFound:
            return

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def _url(self, kind: Kind, name: str) -> str:
        layout.path_of(kind, name)  # refuses what must not become a part of a URL
        return f"{kind}/{name}" if name else kind

    def _is_there(self, kind: Kind, name: str, size: int) -> bool:
        try:
            found = self.size(kind, name)
        except errors.NotFound:
            return False
        if found < size:  # rclone with a local folder shows a file while it grows, also one whose sender was lost
            where = f"{layout.path_of(kind, name)} in {self.location}"
            raise errors.BackendUnavailable(
                f"{where} has {found} of {size} bytes: it is still being written, or the server lost the rest",
                remedy="Run the same command again in a while; if it stays so, remove that file on the server.",
            )
        return layout.require_same(f"{layout.path_of(kind, name)} in {self.location}", found, size)

    def _ask(
        self,
        method: str,
        path: str,
        doing: str,
        *,
        headers: dict[str, str] | None = None,
        content: Iterator[bytes] | None = None,
    ) -> httpx.Response:
        doing = f"{doing} in {self.location}"
        with _translated(doing):
            answer = self._client.request(method, path, headers=headers, content=content)
        if answer.is_success:
            return answer
        raise _error(answer.status_code, doing)


@contextmanager
def _translated(doing: str) -> Iterator[None]:
    try:
        yield
    except httpx.TimeoutException as error:
        raise errors.BackendUnavailable(f"no answer in time while {doing}") from error
    except httpx.HTTPError as error:
        if isinstance(error.__cause__ and error.__cause__.__cause__, ssl.SSLCertVerificationError) or (
            "CERTIFICATE_VERIFY_FAILED" in str(error)
        ):
            raise errors.Refused(
                f"the server's certificate is not trusted while {doing}: {error}",
                remedy="Name the certificate of its authority as the repository's CA file.",
            ) from error
        raise errors.BackendUnavailable(f"no connection while {doing}: {error}") from error
    except RuntimeError as error:  # httpx's word for a client that was closed
        raise errors.BackendUnavailable(f"the connection was closed before {doing}") from error


def _answers_part(answer: httpx.Response, offset: int) -> bool:
    said = answer.headers.get("Content-Range", "")
    return answer.status_code == HTTPStatus.PARTIAL_CONTENT and said.startswith(f"bytes {offset}-")


def _error(status: int, doing: str) -> Exception:
    said = f"the server answered {status} while {doing}"
    match status:
        case 401:
            return errors.AccessDenied(said, remedy="Check the user and the password of the repository.")
        case 403 | 405:
            return errors.Refused(said, remedy="It may be append-only; ask who runs it.")
        case 404:
            return errors.NotFound(said)
        case 416:
            return errors.Damaged(said)
        case 413 | 507:
            return errors.NoRoom(said)
        case 408 | 429:
            return errors.BackendUnavailable(said)
    if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        return errors.BackendUnavailable(said)
    return errors.CosmosError(said, remedy="Check the repository's URL.")
