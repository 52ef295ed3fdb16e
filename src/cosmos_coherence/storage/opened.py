"""From a repository's URL to its backend."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import SplitResult, unquote, urlsplit

from cosmos_coherence import errors
from cosmos_coherence.storage.backend import Backend
from cosmos_coherence.storage.folder import FolderBackend
from cosmos_coherence.storage.retrying import RetryingBackend
from cosmos_coherence.storage.throttled import ThrottledBackend

FORMS = "a path, s3://bucket/prefix, s3:https://host/bucket/prefix, sftp://user@host/path, or rest:https://host/path"
"""What a repository's URL may look like."""


@dataclass(frozen=True, slots=True)
class Access:
    """What opens a store, and how much of the line it may use. Its ``repr`` shows no secret."""

    s3_key_id: str = ""
    s3_secret: str = field(default="", repr=False)
    s3_endpoint: str = ""
    """``https://host[:port]`` for ``s3://`` URLs; Amazon's own when empty."""
    s3_region: str = "us-east-1"
    sftp_key: Path | None = None
    sftp_known_hosts: Path | None = None
    sftp_agent: Path | None = None
    """The agent's socket."""
    rest_user: str = ""
    rest_password: str = field(default="", repr=False)
    ca: Path | None = None
    """Certificates, PEM, of an authority that the machine does not know, for S3 and REST."""
    upload_limit: int | None = None
    download_limit: int | None = None
    """Bytes per second."""


def open_backend(url: str, access: Access = Access()) -> Backend:
    """The backend for ``url``, with limits, and with further tries where a network lies between. Nothing is asked yet.

    ``FORMS`` says what a URL looks like; a path is relative to the working directory, and an SFTP path to the user's
    home unless it begins with a second slash, as restic has it. Raises ``ConfigurationError`` for any other URL, for
    missing credentials and for a library that is not installed.
    """
    scheme = found[1].lower() if (found := re.match(r"([A-Za-z][A-Za-z0-9+.-]*):", url)) else ""
    match scheme:
        case "":
            if not url.strip():
                raise _malformed(url, "it is empty")
            return _limited(FolderBackend(Path(url)), access)
        case "s3":
            backend = _s3(url, access)
        case "sftp":
            backend = _sftp(url, access)
        case "rest":
            backend = _rest(url, access)
        case _:
            raise _malformed(url, f"there is no kind of store called {scheme!r}")
    return RetryingBackend(_limited(backend, access), first_attempts=3)


def _s3(url: str, access: Access) -> Backend:
    if url.startswith("s3://"):
        endpoint, path = access.s3_endpoint, url.removeprefix("s3://")
    else:
        address = url.removeprefix("s3:")
        parts = _split(url, address if "://" in address else f"https://{address}", "http", "https")
        if "@" in parts.netloc:
            raise _malformed(url, "keys do not belong into it")
        endpoint, path = f"{parts.scheme}://{parts.netloc}", parts.path.lstrip("/")
    bucket, _, prefix = path.partition("/")
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", bucket):
        raise _malformed(url, "it names no bucket")
    if not (access.s3_key_id and access.s3_secret):
        raise errors.ConfigurationError(
            f"{_shown(url)} needs an access key and its secret", remedy="Set both for the repository."
        )
    with _extra("obstore"):
        from cosmos_coherence.storage.s3 import S3Backend
    return S3Backend(
        bucket,
        prefix.strip("/"),
        endpoint=endpoint,
        region=access.s3_region,
        key_id=access.s3_key_id,
        secret=access.s3_secret,
        ca=_certificates(access.ca),
    )


def _sftp(url: str, access: Access) -> Backend:
    parts = _split(url, url, "sftp")
    if not parts.username:
        raise _malformed(url, "it names no user")
    if parts.password is not None:
        raise _malformed(url, "passwords are not used for SFTP, only a key file or an agent")
    with _extra("asyncssh"):
        from cosmos_coherence.storage.sftp import SftpBackend
    return SftpBackend(
        parts.hostname or "",
        unquote(parts.path[1:]),
        user=unquote(parts.username),
        port=parts.port or 22,
        key=access.sftp_key,
        known_hosts=access.sftp_known_hosts,
        agent=access.sftp_agent,
    )


def _rest(url: str, access: Access) -> Backend:
    parts = _split(url, url.removeprefix("rest:"), "http", "https")
    user = unquote(parts.username or "") or access.rest_user
    password = unquote(parts.password or "") or access.rest_password
    with _extra("httpx"):
        from cosmos_coherence.storage.rest import RestBackend
    address = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
    return RestBackend(address, user=user, password=password, ca=access.ca)


def _split(url: str, address: str, *schemes: str) -> SplitResult:
    try:
        parts = urlsplit(address)
        _ = parts.port
    except ValueError as error:
        raise _malformed(url, "its host or port is wrong") from error
    if parts.scheme not in schemes or not parts.hostname:
        raise _malformed(url, "it names no host")
    if parts.query or parts.fragment:
        raise _malformed(url, "it has a `?` or a `#`")
    return parts


def _limited(backend: Backend, access: Access) -> Backend:
    if access.upload_limit or access.download_limit:
        return ThrottledBackend(backend, up=access.upload_limit, down=access.download_limit)
    return backend


def _certificates(path: Path | None) -> bytes | None:
    try:
        return path.read_bytes() if path else None
    except OSError as error:
        raise errors.ConfigurationError(f"the certificates in {path} cannot be read: {error.strerror}") from error


@contextmanager
def _extra(library: str) -> Iterator[None]:
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name != library:
            raise
        raise errors.ConfigurationError(
            f"this kind of repository needs {library}, which is not installed",
            remedy="Install it with the extra `remote`: `pip install 'cosmos-coherence[remote]'`.",
        ) from error


def _malformed(url: str, why: str) -> errors.ConfigurationError:
    return errors.ConfigurationError(
        f"the repository's URL {_shown(url)!r} cannot be used: {why}", remedy=f"Write {FORMS}."
    )


def _shown(url: str) -> str:
    """The URL without what may be a password, however broken it is."""
    return re.sub(r"//.*@", "//***@", url)
