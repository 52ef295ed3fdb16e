"""Do the addresses answer that people and neighbours ask: HTTP, HTTPS, or any published port.

What is asked is named by labels and answered by whoever runs there, so both are taken as hostile: a label can only name
its own service, no redirect leads away from it, and of an answer no more is read than says that it is one.
"""

from __future__ import annotations

import contextlib
import http.client
import socket
import ssl
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from urllib.parse import SplitResult, urljoin, urlsplit

import msgspec

from cosmos_coherence import errors
from cosmos_coherence.health.checks import Check, CheckResult, Number
from cosmos_coherence.model import Port, Service, Stack

LABEL = "cosmos.health.url"
"""Label of a service: the addresses that have to answer, as its neighbours write them (``http://api:8000/health``)."""

_LOCAL = ("localhost", "127.0.0.1", "::1")
_PORTS = {"http": 80, "https": 443}
_REDIRECTS = 5
_REDIRECTING = (301, 302, 303, 307, 308)
_READ_BYTES = 64 * 1024
_BLIND = "cannot be asked from here"

Address = tuple[str, int]


class Endpoint(msgspec.Struct, frozen=True):
    """One address, and where it can be reached from here."""

    url: str
    """Without a scheme (``//name:port``) it is enough that somebody takes the connection."""
    addresses: tuple[Address, ...]
    """Tried in this order."""
    foreign: bool = False
    """This program runs in a container outside of the stack: that nothing can be reached says nothing then."""

    @property
    def name(self) -> str:
        """Host, port and path, for people."""
        found = urlsplit(self.url)
        return f"{found.hostname}:{_port_of(found)}{found.path.rstrip('/')}"

    @property
    def host(self) -> str:
        """Host and port."""
        return self.name.partition("/")[0]


def checks_of(stack: Stack, urls: Sequence[str], limit_s: float) -> Mapping[str, Check]:
    """The checks of all addresses: those of the labels, the published ports of other services that have a health check,
    and ``urls``. Those with TLS are ``tls_of``'s as well."""
    found: dict[str, Check] = {}
    for service in stack.services:
        for url in service.labels.get(LABEL, "").split():
            found[f"endpoint {service.name} {url[:80]}"] = _of_label(service, url, stack, limit_s)
    for endpoint in (*_published(stack), *(Endpoint(url, (_address_of(url),)) for url in urls)):
        found[f"endpoint {endpoint.name}"] = _check(endpoint, limit_s)
    return found


def tls_of(stack: Stack, urls: Sequence[str]) -> tuple[Endpoint, ...]:
    """The addresses that show a certificate, each host and port once. A label that makes no sense is left out, since
    its own check tells of it."""
    found: dict[str, Endpoint] = {}
    for service in stack.services:
        for url in service.labels.get(LABEL, "").split():
            with contextlib.suppress(errors.ConfigurationError):
                endpoint = _endpoint(service, url, stack)
                found.setdefault(endpoint.host, endpoint)
    for url in urls:
        endpoint = Endpoint(url, (_address_of(url),))
        found.setdefault(endpoint.host, endpoint)
    return tuple(e for e in found.values() if e.url.startswith("https:") and e.addresses)


def check_endpoint(endpoint: Endpoint, limit_s: float) -> CheckResult:
    """It answers a GET with a status from 200 to 299, within ``limit_s`` seconds. Redirects to itself are followed."""
    began = time.monotonic()
    if not endpoint.addresses:
        return CheckResult("", "fail", "its service does not run")
    url, seen = endpoint.url, set[str]()
    try:
        while True:
            if url in seen or len(seen) > _REDIRECTS:
                return CheckResult("", "fail", "redirects in a circle" if url in seen else "redirects without end")
            seen.add(url)
            left = limit_s - (time.monotonic() - began)
            status, location = _get(endpoint, url, left)
            if status not in _REDIRECTING or not location:
                break
            url = urljoin(url, location)
            if not _same_place(url, endpoint.url):
                return CheckResult("", "warn", f"answers {status} and redirects elsewhere: name the address it means")
    except ConnectionError:
        return CheckResult("", *(("ok", _BLIND) if endpoint.foreign else ("fail", "takes no connection")))
    except ssl.SSLError:
        return CheckResult("", "fail", "speaks no TLS that we know")
    except TimeoutError:
        return CheckResult("", *(("ok", _BLIND) if endpoint.foreign else ("fail", "no answer in time")))
    except (http.client.HTTPException, ValueError):
        return CheckResult("", "fail", "answers something else than HTTP")
    except OSError as error:
        return CheckResult("", "fail", f"cannot be asked: {error.strerror or type(error).__name__}")
    took = Number(f"endpoint:{endpoint.name}", "seconds", round(time.monotonic() - began, 4))
    said = f"answers {status}" if status else "takes connections"
    return CheckResult("", "ok" if not status or 200 <= status < 300 else "fail", said, numbers=(took,))


@contextlib.contextmanager
def connected(endpoint: Endpoint, limit_s: float) -> Iterator[socket.socket]:
    """A connection to the first of its addresses that takes one, with TLS where its address says so.

    It is shut when the time is over, so that nobody is kept by an answer that comes a byte at a time. The certificate
    is not judged here: a check of its own looks at it. ``OSError``.
    """
    door = _dialled(endpoint.addresses, limit_s)
    tls = _wrapped(door, urlsplit(endpoint.url).hostname or "") if endpoint.url.startswith("https:") else None
    over = threading.Timer(max(0.0, limit_s), _shut, (tls or door,))
    over.daemon = True
    over.start()
    try:
        if tls:
            tls.do_handshake()
        yield tls or door
    finally:
        over.cancel()
        (tls or door).close()


def _wrapped(door: socket.socket, host: str) -> ssl.SSLSocket:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context.wrap_socket(door, server_hostname=host, do_handshake_on_connect=False)


def _get(endpoint: Endpoint, url: str, limit_s: float) -> tuple[int, str]:
    """Status and where it redirects to; 0 for an address without a scheme."""
    found = urlsplit(url)
    began = time.monotonic()
    try:
        with connected(endpoint, limit_s) as door:
            if not found.scheme:
                return 0, ""
            connection = http.client.HTTPConnection(found.hostname or "", _port_of(found))
            connection.sock = door
            target = f"{found.path or '/'}{'?' if found.query else ''}{found.query}"
            connection.request("GET", target, headers={"User-Agent": "cosmos-health", "Accept": "*/*"})
            answer = connection.getresponse()
            answer.read(_READ_BYTES)
    except (http.client.HTTPException, OSError):
        if time.monotonic() - began < limit_s:
            raise
        raise TimeoutError from None
    if time.monotonic() - began >= limit_s:  # the door was shut in the middle, which looks like an end
        raise TimeoutError
    return answer.status, answer.headers.get("Location", "") or ""


def _dialled(addresses: Sequence[Address], limit_s: float) -> socket.socket:
    if limit_s <= 0:
        raise TimeoutError
    for place, address in enumerate(addresses, 1):
        try:
            door = socket.create_connection(address, timeout=limit_s / len(addresses))
            door.settimeout(limit_s)
            return door
        except OSError as error:
            if place == len(addresses):
                if isinstance(error, TimeoutError | ConnectionError):
                    raise
                raise ConnectionError from error
    raise ConnectionError


def _shut(door: socket.socket) -> None:
    with contextlib.suppress(OSError):
        socket.socket.shutdown(door, socket.SHUT_RDWR)  # that of TLS would take away what another thread reads from


# ---------------------------------------------------------------------------------------------- what is to be asked
def _check(endpoint: Endpoint, limit_s: float) -> Check:
    return lambda: check_endpoint(endpoint, limit_s)


def _of_label(service: Service, url: str, stack: Stack, limit_s: float) -> Check:
    return lambda: check_endpoint(_endpoint(service, url, stack), limit_s)


def _endpoint(service: Service, url: str, stack: Stack) -> Endpoint:
    """Raises ``ConfigurationError`` for a label that names anything but its own service."""
    try:
        found = urlsplit(url)
        port = _port_of(found)
    except ValueError:
        found, port = SplitResult("", "", "", "", ""), 0
    own = (service.name, service.container, *service.addresses)
    if found.scheme not in _PORTS or found.username or found.hostname not in (*own, *_LOCAL):
        raise errors.ConfigurationError(
            f"label {LABEL} of service {service.name} does not name an address of it",
            remedy=f"Write it like http://{service.name}:8000/health; other addresses go into `health.urls`.",
        )
    local = found.hostname in _LOCAL
    return Endpoint(url, _addresses(service, port, stack, published=local), foreign=_foreign(stack))


def _published(stack: Stack) -> Iterator[Endpoint]:
    """Open ports of services that say themselves whether they are well, and have no label that says more."""
    for service in stack.services:
        if service.health is None or LABEL in service.labels:
            continue
        for target in sorted({port.target for port in service.ports}):
            addresses = _addresses(service, target, stack)
            yield Endpoint(f"//{service.name}:{target}", addresses, foreign=_foreign(stack))


def _addresses(service: Service, port: int, stack: Stack, *, published: bool = False) -> tuple[Address, ...]:
    """Where that port of a service is reached from here. ``published``: it is the number on the host."""
    open_here = [p for p in service.ports if port == (p.published if published else p.target)]
    inside = tuple((address, p) for address in service.addresses for p in {q.target for q in open_here} or {port})
    if stack.program:
        return inside
    here = tuple((_on_host(p), p.published) for p in open_here)
    if published:
        return here or (("127.0.0.1", port),)
    return (*here, *inside)


def _on_host(port: Port) -> str:
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(port.address, port.address)  # noqa: S104


def _foreign(stack: Stack) -> bool:
    return bool(stack.program) and stack.program not in {service.container for service in stack.services}


def _address_of(url: str) -> Address:
    found = urlsplit(url)
    return found.hostname or "", _port_of(found)


def _port_of(found: SplitResult) -> int:
    return found.port or _PORTS.get(found.scheme, 0)


def _same_place(one: str, other: str) -> bool:
    first, second = urlsplit(one), urlsplit(other)
    return (first.scheme, first.hostname, _port_of(first)) == (second.scheme, second.hostname, _port_of(second))
