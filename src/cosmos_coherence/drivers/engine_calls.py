"""The engine's calls that only look or run a command, as plain HTTP over its unix socket.

The SDK takes a quarter of a second to load, which a look at the stack does not have. What changes the stack, and
engines that are reached by other roads, are left to it.
"""

from __future__ import annotations

import http.client
import json
import socket
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import msgspec

from cosmos_coherence import settings

ANSWER_S = 60.0


class Call(msgspec.Struct, frozen=True):
    """One request: what to send where."""

    path: str
    body: Mapping[str, Any] | None = None
    """POSTed as JSON; without one it is a GET."""


class Refusal(Exception):
    """The engine answered with an error status; ``str`` is its sentence."""

    def __init__(self, status: int, said: str) -> None:
        super().__init__(said)
        self.status = status


def socket_of(docker_host: str) -> str:
    """The path of the engine's unix socket; empty where only the SDK knows the way: over the network, or by a context.

    ``docker_host`` empty means what the environment says.
    """
    environment = settings.environment()
    host = docker_host or environment.get("DOCKER_HOST", "")
    if not host:
        return "" if _context(environment) else "/var/run/docker.sock"
    return host.removeprefix("unix://") if host.startswith("unix:///") else ""


def prepared(call: str, arguments: Sequence[Any], named: Mapping[str, Any]) -> Call | None:
    """The request for a call that is named and given as in the SDK; None for those that are left to it."""
    known = _CALLS.get(call)
    return known(*arguments, **named) if known else None


def answer(path: str, call: Call) -> Any:
    """What the engine behind the socket answers. ``Refusal``, ``OSError`` and ``http.client.HTTPException``."""
    connection = http.client.HTTPConnection("docker")
    connection.sock = _dialled(path)
    try:
        if call.body is None:
            connection.request("GET", call.path)
        else:
            sent = json.dumps(call.body).encode()
            connection.request("POST", call.path, sent, {"Content-Type": "application/json"})
        response = connection.getresponse()
        body = response.read()
    finally:
        connection.close()
    try:
        found = json.loads(body) if body else None
    except ValueError:
        found = None
    if response.status >= 400:
        said = found.get("message") if isinstance(found, dict) else None
        raise Refusal(response.status, str(said or response.reason))
    return found


def _dialled(path: str) -> socket.socket:
    door = socket.socket(socket.AF_UNIX)
    try:
        door.settimeout(ANSWER_S)
        door.connect(path)
    except BaseException:
        door.close()
        raise
    return door


def _context(environment: Mapping[str, str]) -> bool:
    """Whether a context may say where the engine is."""
    if environment.get("DOCKER_CONTEXT"):
        return True
    folder = environment.get("DOCKER_CONFIG") or f"{environment.get('HOME', '')}/.docker"
    try:
        found = json.loads(Path(folder, "config.json").read_text("utf-8"))
        return found.get("currentContext", "default") not in ("", "default")
    except FileNotFoundError:
        return False
    except (OSError, ValueError, AttributeError):
        return True  # the SDK says what is wrong with it


def _containers(*, all: bool = False, filters: Mapping[str, str] | None = None) -> Call:  # noqa: A002  as in the SDK
    given = json.dumps({name: [value] for name, value in (filters or {}).items()})
    return Call(f"/containers/json?{urlencode({'all': int(all), 'filters': given})}")


def _top(container: str, *, ps_args: str) -> Call:
    return Call(f"/containers/{_name(container)}/top?{urlencode({'ps_args': ps_args})}")


def _exec_create(
    container: str,
    cmd: Sequence[str],
    *,
    stdin: bool = False,
    user: str = "",
    environment: Mapping[str, str] | None = None,
) -> Call:
    return Call(
        f"/containers/{_name(container)}/exec",
        {
            "Cmd": list(cmd), "User": user, "AttachStdin": stdin, "AttachStdout": True, "AttachStderr": True,
            "Env": [f"{name}={value}" for name, value in (environment or {}).items()],
        },
    )  # fmt: skip


def _one(path: str) -> Callable[..., Call]:
    return lambda name: Call(path.replace("*", _name(name)))


def _image(path: str) -> Callable[..., Call]:
    """Names of images have steps of their own."""
    return lambda name: Call(path.replace("*", quote(name, safe="/:@")))


def _name(name: str) -> str:
    return quote(name, safe="")


_CALLS: Mapping[str, Callable[..., Call]] = {
    "containers": _containers,
    "volumes": lambda: Call("/volumes"),
    "info": lambda: Call("/info"),
    "version": lambda: Call("/version"),
    "inspect_container": _one("/containers/*/json"),
    "inspect_image": _image("/images/*/json"),
    "inspect_volume": _one("/volumes/*"),
    "history": _image("/images/*/history"),
    "exec_create": _exec_create,
    "exec_inspect": _one("/exec/*/json"),
    "top": _top,
}
