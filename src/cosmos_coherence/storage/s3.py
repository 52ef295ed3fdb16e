"""A repository in S3 or in what speaks like it, through obstore. Needs the extra ``remote``."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING

import obstore
from obstore import exceptions
from obstore.store import S3Store

from cosmos_coherence import errors
from cosmos_coherence.storage import layout
from cosmos_coherence.storage.backend import Kind, Properties, Stored

if TYPE_CHECKING:
    from obstore.store import ClientConfig, S3Credential  # types only, as the library has it

_UNKNOWN_TO_THE_STORE = {
    "InvalidAccessKeyId",
    "SignatureDoesNotMatch",
    "InvalidToken",
    "ExpiredToken",
    "InvalidSecurity",
}
_FULL = {"QuotaExceeded", "InsufficientStorage", "XMinioStorageFull", "EntityTooLarge"}
_OTHER_PART = re.compile(r"non-partial response|Requested .* got|content.range|wanted range", re.IGNORECASE)
"""How obstore says that the answer is not the part that was asked for."""
_CERTIFICATE = re.compile(r"InvalidCertificate\(\s*(?:Other\(\s*OtherError\(\s*)?(\w+)")
_CONNECTING_S, _READING_S, _REQUEST_S = 10, 60, 900
"""Seconds to wait: for a connection, for the next bytes, for a whole request with a slow line in mind."""


class S3Backend:
    """Objects ``prefix/config``, ``prefix/keys/ID``, ``prefix/data/XX/ID``, as restic's default layout has them.

    An object is there when its upload has ended, and never before; the signature covers its checksum.
    Trying again is left to who wraps this.
    """

    properties = Properties(connections=8)

    def __init__(
        self, bucket: str, prefix: str, *, endpoint: str, region: str, key_id: str, secret: str, ca: bytes | None = None
    ) -> None:
        """``endpoint``: ``https://host[:port]``, ``""`` for Amazon's own; ``ca``: PEM certificates to trust as well."""
        endpoint = (endpoint or f"https://s3.{region}.amazonaws.com").rstrip("/")
        self.location = f"s3:{endpoint}/{bucket}/{prefix}".rstrip("/")
        self._bucket = bucket
        self._conditional = True
        client: ClientConfig = {
            "allow_http": endpoint.startswith("http://"),
            "connect_timeout": timedelta(seconds=_CONNECTING_S),
            "read_timeout": timedelta(seconds=_READING_S),
            "timeout": timedelta(seconds=_REQUEST_S),
        }
        if ca:
            client["root_certificate"] = ca
        # All of it is said, because obstore looks for the rest in the environment; the keys are handed over by a
        # function, because beside plain values it would even take a token from there.
        keys: S3Credential = {"access_key_id": key_id, "secret_access_key": secret, "token": None, "expires_at": None}
        self._store = S3Store(
            bucket,
            prefix=prefix or None,
            endpoint=endpoint,
            region=region,
            virtual_hosted_style_request=False,
            conditional_put="etag",
            skip_signature=False,
            unsigned_payload=False,
            checksum_algorithm="SHA256",  # a bucket with object lock takes nothing without it
            credential_provider=lambda: keys,
            client_options=client,
            retry_config={"max_retries": 0},
        )

    def create(self) -> None:
        """Look that the bucket is there: ``NotFound`` if it is not. Folders are no things here."""
        with self._translated("looking at the bucket"):
            for _ in obstore.list(self._store, "keys"):
                break

    def save(self, kind: Kind, name: str, content: Sequence[bytes | bytearray | memoryview]) -> None:
        """As ``Backend.save``. The store is asked first what it has: some overwrite whatever the condition says."""
        path, data = layout.path_of(kind, name), b"".join(content)
        if self._is_there(kind, name, len(data)):
            return
        try:
            with self._translated(f"writing {path}"):
                obstore.put(self._store, path, data, mode="create" if self._conditional else None, use_multipart=False)
        except _Exists:
            self._is_there(kind, name, len(data))  # somebody was faster
        except _NoConditions:
            if not self._conditional:
                raise
            self._conditional = False
            self.save(kind, name, [data])

    def load(self, kind: Kind, name: str, offset: int = 0, length: int | None = None) -> bytes:
        """As ``Backend.load``."""
        path = layout.path_of(kind, name)
        with self._translated(f"reading {path}"):
            if length is not None:
                data = bytes(obstore.get_range(self._store, path, start=offset, length=length))
            elif offset:
                data = bytes(obstore.get(self._store, path, options={"range": {"offset": offset}}).bytes())
            else:
                data = bytes(obstore.get(self._store, path).bytes())
        if length is not None and len(data) != length:
            raise errors.Damaged(f"{path} in {self.location}: {length} bytes were asked for, {len(data)} came")
        return data

    def size(self, kind: Kind, name: str) -> int:
        """As ``Backend.size``."""
        path = layout.path_of(kind, name)
        with self._translated(f"looking at {path}"):
            return obstore.head(self._store, path)["size"]

    def list(self, kind: Kind) -> Iterator[Stored]:
        """As ``Backend.list``."""
        if kind == "config":
            try:
                yield Stored("", self.size("config", ""))
            except errors.NotFound:
                return
            return
        with self._translated(f"listing {kind}"):
            for chunk in obstore.list(self._store, kind, chunk_size=1000):
                for entry in chunk:
                    name = entry["path"].rpartition("/")[2]
                    if layout.is_name(name) and entry["path"] == layout.path_of(kind, name):
                        yield Stored(name, entry["size"])

    def remove(self, kind: Kind, name: str) -> None:
        """As ``Backend.remove``."""
        path = layout.path_of(kind, name)
        try:
            with self._translated(f"removing {path}"):
                obstore.delete(self._store, path)
        except errors.NotFound:
            return

    def close(self) -> None:
        """Connections are given back by themselves."""

    def _is_there(self, kind: Kind, name: str, size: int) -> bool:
        try:
            found = self.size(kind, name)
        except errors.NotFound:
            return False
        return layout.require_same(f"{layout.path_of(kind, name)} in {self.location}", found, size)

    @contextmanager
    def _translated(self, doing: str) -> Iterator[None]:
        try:
            yield
        except (exceptions.BaseError, OSError) as error:
            raise self._error(error, f"{doing} in {self.location}") from None  # its text may quote what was sent

    def _error(self, error: Exception, doing: str) -> Exception:
        text = str(error)
        status = int(found[1]) if (found := re.search(r"status code: (\d{3})", text)) else 0
        code = found[1] if (found := re.search(r"<Code>(\w{1,80})</Code>", text)) else ""
        said = f"the store answered {status} {code}".rstrip() + f" while {doing}"
        if isinstance(error, exceptions.AlreadyExistsError):
            return _Exists(said)
        if code == "NoSuchBucket":
            return errors.NotFound(
                f"there is no bucket {self._bucket!r}: {said}", remedy="Create the bucket, or mend repository.url."
            )
        if isinstance(error, FileNotFoundError | exceptions.NotFoundError):
            return errors.NotFound(said)
        if status == 416 or (not status and _OTHER_PART.search(text)):
            return errors.Damaged(f"the store did not answer with the part that was asked for while {doing}")
        if code in _UNKNOWN_TO_THE_STORE or status == 401 or (status == 403 and not code):
            return errors.AccessDenied(said, remedy="Check the access key, its secret and this machine's clock.")
        if code in _FULL or status in (413, 507):
            return errors.NoRoom(said)
        if status in (403, 405):
            return errors.Refused(said, remedy="Give that access key the right to do so in this bucket.")
        if status == 501 or code == "NotImplemented":
            return _NoConditions(said)
        if 400 <= status < 500 and status not in (408, 429) and code not in ("RequestTimeout", "SlowDown"):
            return errors.CosmosError(said, remedy="Check the endpoint and the region of the repository.")
        if status:
            return errors.BackendUnavailable(said)
        if found := _CERTIFICATE.search(text):
            return errors.Refused(
                f"the store's certificate is not trusted ({found[1]}) while {doing}",
                remedy="Name the certificate of its authority as the repository's CA file.",
            )
        kind = (
            found[1].lower() if (found := re.search(r"kind: (Connect|Timeout|Decode|Interrupted)", text)) else "request"
        )
        return errors.BackendUnavailable(f"the store did not answer ({kind}) while {doing}")


class _Exists(errors.Refused):
    """Something is under that name."""


class _NoConditions(errors.Refused):
    """The store does not know that kind of request."""
