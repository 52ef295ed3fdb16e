"""The door to the Docker engine: where it listens, what it answers, and its errors in our words."""

from __future__ import annotations

import contextlib
import http.client
import importlib
import io
import json
import socket
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast
from urllib.parse import quote, urlsplit

import msgspec

from cosmos_coherence import errors, settings
from cosmos_coherence.drivers import engine_calls

DEFAULT_SOCKET = "/var/run/docker.sock"
_ANSWER_S = engine_calls.ANSWER_S


class Wire(msgspec.Struct, frozen=True):
    """A connection to the engine that carries bytes both ways; ``source`` reads what ``door`` receives."""

    door: socket.socket
    source: io.BufferedReader

    def close(self) -> None:
        """Cut it; whoever reads or writes at this moment sees its end. May be repeated."""
        with contextlib.suppress(OSError):
            self.door.shutdown(socket.SHUT_RDWR)
        self.source.close()
        self.door.close()


class Engine:
    """One engine: ``docker_host``, or where ``DOCKER_HOST`` or the context in use points. Connects when first asked."""

    def __init__(self, docker_host: str = "") -> None:
        self._wanted = docker_host
        self._socket = engine_calls.socket_of(docker_host)
        self._lock = threading.Lock()
        self._api: Any = None
        self._host = ""

    @property
    def host(self) -> str:
        """Its address: ``unix:///var/run/docker.sock``, ``tcp://10.0.0.5:2376``."""
        if self._socket:
            return f"unix://{self._socket}"
        self._connected()
        return self._host

    @property
    def socket_path(self) -> str:
        """The path of its unix socket; empty when it listens elsewhere."""
        return self.host.removeprefix("unix://") if self.host.startswith("unix://") else ""

    def ask(self, call: str, *arguments: Any, **named: Any) -> Any:
        """The answer to the SDK's low-level ``call``, without the SDK where it is not needed. May be used from several
        threads.

        Raises ``EngineUnavailable``, ``EngineForbidden``, ``NotFound``, ``Refused`` for a conflict with the state that
        something is in, ``NoRoom``, and ``CommandFailed`` for whatever else the engine does not do.
        """
        plain = engine_calls.prepared(call, arguments, named) if self._socket else None
        if plain is not None:
            with _in_plain_words(self.host):
                return engine_calls.answer(self._socket, plain)
        api = self._connected()
        with _in_our_words(self._host):
            return getattr(api, call)(*arguments, **named)

    def volume(self, name: str) -> Mapping[str, Any] | None:
        """What the engine says of a volume; None when there is none of that name. Raises as ``ask`` does.

        By hand where the engine listens at a plain socket: loading the SDK takes longer than the answer.
        """
        host = self._host or _plain(self._wanted)
        if not host.startswith("unix://"):
            try:
                return cast("Mapping[str, Any]", self.ask("inspect_volume", name))
            except errors.NotFound:
                return None
        try:
            with _dial(host, encrypted=False) as door:
                door.sendall(f"GET /volumes/{quote(name, safe='')} HTTP/1.0\r\nHost: docker\r\n\r\n".encode())
                said = b"".join(iter(lambda: door.recv(1 << 16), b""))
            head, _, body = said.partition(b"\r\n\r\n")
            status, found = int(head.split(None, 2)[1]), json.loads(body)
        except PermissionError as error:
            raise errors.EngineForbidden(f"this user may not talk to the Docker engine at {host}") from error
        except (OSError, ValueError, IndexError) as error:
            raise errors.EngineUnavailable(f"the Docker engine at {host} does not answer") from error
        if status == 404:
            return None
        if status != 200:
            raise _of_status(status, str(found.get("message", "")))
        return cast("Mapping[str, Any]", found)

    def upgrade(self, path: str, body: Mapping[str, Any] | None = None) -> Wire:
        """POST to ``path`` and keep the connection as a stream. Raises as ``ask`` does.

        By hand, since the SDK hides what it has read ahead and cannot close one direction alone.
        """
        api = None if self._socket else self._connected()
        sent = json.dumps(body).encode() if body is not None else b""
        version = f"/v{api.api_version}" if api else ""
        head = (
            f"POST {version}{path} HTTP/1.1\r\nHost: docker\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(sent)}\r\n\r\n"
        )
        with _in_our_words(self._host) if api else _in_plain_words(self.host):
            encrypted = bool(api and (api.cert or api.base_url.startswith("https")))
            door = _dial(self.host, encrypted=encrypted)
            wire = Wire(door, cast("io.BufferedReader", door.makefile("rb", 64 * 1024)))
            try:
                door.sendall(head.encode() + sent)
                _expect_stream(wire.source)
                door.settimeout(None)
            except BaseException:
                wire.close()
                raise
            return wire

    def close(self) -> None:
        """Let go of the connections; asking again opens new ones."""
        with self._lock:
            if self._api is not None:
                self._api.close()
            self._api = None

    def _connected(self) -> Any:
        with self._lock:
            if self._api is None:
                self._api, self._host = _connect(self._wanted)
            return self._api


def _sdk(module: str = "docker") -> Any:
    # Imported when needed: it takes a quarter of a second, which `cosmos --help` does not have.
    return importlib.import_module(module)


def _connect(docker_host: str) -> tuple[Any, str]:
    docker = _sdk()
    environment = {**settings.environment(), **({"DOCKER_HOST": docker_host} if docker_host else {})}
    try:
        where = docker.utils.kwargs_from_env(environment=environment)
        if "base_url" not in where:
            context = docker.ContextAPI.get_context(environment.get("DOCKER_CONTEXT"))
            where = {"base_url": context.Host, "tls": context.TLSConfig or False} if context else {}
        host = str(where.pop("base_url", None) or f"unix://{DEFAULT_SOCKET}").removeprefix("http+")
    except Exception as error:  # the SDK raises bare ones for a context that it cannot read
        raise errors.ConfigurationError(
            f"the Docker context cannot be used: {error}", remedy="`docker context ls` shows the contexts."
        ) from error
    if host.startswith("ssh://"):
        raise errors.Unsupported(
            f"the engine is reached through {host}, which is not spoken here",
            remedy="Run cosmos on that machine, or forward the engine's socket: `ssh -nNT -L /tmp/engine.sock:"
            f"{DEFAULT_SOCKET} HOST`, then --docker-host unix:///tmp/engine.sock.",
        )
    with _in_our_words(host):
        if host.startswith("unix:"):
            _dial(host, encrypted=False).close()  # the SDK leaves the socket open that it could not connect
        return docker.APIClient(base_url=host, timeout=_ANSWER_S, **where), host


def _plain(wanted: str) -> str:
    """Where the engine listens, when that can be told without looking at Docker's contexts; else empty."""
    environment = settings.environment()
    host = wanted or environment.get("DOCKER_HOST", "")
    if host:
        return host
    configuration = Path(environment.get("DOCKER_CONFIG") or Path.home() / ".docker") / "config.json"
    told = environment.get("DOCKER_CONTEXT") or configuration.exists()
    return "" if told else f"unix://{DEFAULT_SOCKET}"


def _dial(host: str, *, encrypted: bool) -> socket.socket:
    where = urlsplit(host)
    if where.scheme == "tcp" and not encrypted:
        return socket.create_connection((where.hostname or "localhost", where.port or 2375), timeout=_ANSWER_S)
    if where.scheme != "unix":
        raise errors.Unsupported(
            f"commands in services cannot be run through {host}",
            remedy="Run cosmos on the machine of the engine; its own image is enough there.",
        )
    door = socket.socket(socket.AF_UNIX)
    try:
        door.settimeout(_ANSWER_S)
        door.connect(host.removeprefix("unix://"))
    except BaseException:
        door.close()
        raise
    return door


def _expect_stream(source: io.BufferedReader) -> None:
    """Read the head of the answer, and the whole of one that refuses."""
    words = source.readline(8192).split(None, 2)
    status = int(words[1]) if len(words) > 1 and words[1].isdigit() else 0
    length = 0
    while (line := source.readline(8192)) not in (b"\r\n", b"\n", b""):
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length" and value.strip().isdigit():
            length = int(value)
    if status in (101, 200):
        return
    body = source.read(min(length, 64 * 1024))
    try:
        said = str(json.loads(body)["message"])
    except (ValueError, KeyError, TypeError):
        said = body.decode("utf-8", "replace")
    raise _of_status(status, said) if status else ConnectionError("the engine hung up")


# ------------------------------------------------------------------------------------------------------- errors
@contextlib.contextmanager
def _in_our_words(host: str) -> Iterator[None]:
    docker_errors, requests = _sdk("docker.errors"), _sdk("requests")
    try:
        yield
    except docker_errors.APIError as error:
        status = error.response.status_code if error.response is not None else 500
        raise _of_status(status, str(error.explanation or error)) from error
    except (docker_errors.DockerException, requests.RequestException, OSError) as error:
        causes = list(_causes(error))
        if any(isinstance(cause, PermissionError) for cause in causes):
            raise errors.EngineForbidden(f"this user may not talk to the Docker engine at {host}") from error
        if any(isinstance(cause, OSError) for cause in causes):
            raise errors.EngineUnavailable(f"the Docker engine at {host} does not answer") from error
        raise errors.ConfigurationError(f"the Docker engine at {host} cannot be used: {error}") from error


@contextlib.contextmanager
def _in_plain_words(host: str) -> Iterator[None]:
    try:
        yield
    except engine_calls.Refusal as error:
        raise _of_status(error.status, str(error)) from error
    except PermissionError as error:
        raise errors.EngineForbidden(f"this user may not talk to the Docker engine at {host}") from error
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise errors.EngineUnavailable(f"the Docker engine at {host} does not answer") from error


def _of_status(status: int, said: str) -> errors.CosmosError:
    said = said.strip().rstrip(".")
    if "no space left on device" in said:
        return errors.NoRoom(f"the Docker engine has no room: {said}")
    if status == 404:
        return errors.NotFound(f"the Docker engine does not find it: {said}")
    if status == 409:
        return errors.Refused(f"the Docker engine refuses: {said}", remedy="`docker ps -a` shows the state of each.")
    if status in (401, 403):
        return errors.EngineForbidden(f"the Docker engine does not allow it: {said}")
    return errors.CommandFailed(f"the Docker engine cannot do it: {said}")


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The error and everything that it was made from: libraries put causes into arguments, too."""
    seen: set[int] = set()
    waiting: list[BaseException | None] = [error]
    while waiting:
        one = waiting.pop()
        if one is None or id(one) in seen:
            continue
        seen.add(id(one))
        yield one
        waiting += [one.__cause__, one.__context__, *(a for a in one.args if isinstance(a, BaseException))]
