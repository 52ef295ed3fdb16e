"""Talking to a Redis or Valkey server through its own command line client, over the standard input of a command in its
service. User, password and certificates come from the service's own environment; the password is never an argument."""

from __future__ import annotations

import contextlib
import re
import secrets
from collections.abc import Iterable, Mapping
from typing import Final

import msgspec

from cosmos_coherence import errors
from cosmos_coherence.drivers.runtime import Child, Runtime

_CLIENT: Final = """\
exec 2>&1
if [ -z "${REDISCLI_AUTH-}" ] && [ -r "${REDIS_PASSWORD_FILE-}" ]; then
    REDISCLI_AUTH=$(cat "$REDIS_PASSWORD_FILE")
elif [ -z "${REDISCLI_AUTH-}" ]; then
    REDISCLI_AUTH=${REDIS_PASSWORD-}
fi
[ -z "$REDISCLI_AUTH" ] || export REDISCLI_AUTH
set --
if [ -n "${REDIS_USERNAME-}" ]; then set -- --user "$REDIS_USERNAME"; fi
port=${REDIS_PORT_NUMBER-}
case ${REDIS_TLS_ENABLED-} in
yes | true | 1)
    port=${REDIS_TLS_PORT_NUMBER:-$port}
    set -- "$@" --tls
    if [ -n "${REDIS_TLS_CA_FILE-}" ]; then set -- "$@" --cacert "$REDIS_TLS_CA_FILE"; else set -- "$@" --insecure; fi
    if [ -n "${REDIS_TLS_CERT_FILE-}" ]; then
        set -- "$@" --cert "$REDIS_TLS_CERT_FILE" --key "${REDIS_TLS_KEY_FILE-}"
    fi
    ;;
esac
if [ -n "$port" ]; then set -- "$@" -p "$port"; fi
command -v redis-cli >/dev/null && exec redis-cli "$@"
exec valkey-cli "$@"
"""
"""The names are those of the most used images. What the client says on its standard error comes between the answers: it
lives on when it cannot connect."""

_DOWN: Final = ("LOADING ", "Could not connect", "Error: ")
_HUNG_UP: Final = re.compile(r"closed the connection|reset by peer|wrong version number|SSL_connect")
_FAULT: Final = re.compile(r"[A-Z]{3,} ")


class Session:
    """One connection, held open by a client that reads commands, one a line.

    Calls raise ``AccessDenied`` for a wrong password, ``ServiceDown`` when the server does not answer or still loads.
    """

    def __init__(self, runtime: Runtime, service: str, run: str) -> None:
        self._service = service
        self._child: Child = runtime.run(service, ["sh", "-c", _CLIENT], stdin=True)
        try:
            self.name = f"cosmos-{run}"
            self.ask(f"CLIENT SETNAME {argument(self.name)}")
        except BaseException:
            self.close()
            raise

    def ask(self, command: str) -> list[str]:
        """The lines of the raw answer to a command."""
        (answer,) = self.each(command)
        return answer

    def each(self, *commands: str) -> list[list[str]]:
        """The answers to commands that are sent in one piece."""
        nonce = secrets.token_hex(12)
        text = "".join(f"{command}\nECHO {nonce}\n" for command in commands)
        try:
            self._child.stdin.write(text.encode())
            self._child.stdin.flush()
        except (errors.CommandFailed, OSError) as error:
            raise self._down("the connection broke off") from error
        return [self._receive(nonce) for _ in commands]

    def _receive(self, nonce: str) -> list[str]:
        lines: list[str] = []
        for raw in iter(self._child.stdout.readline, b""):
            line = raw.decode("utf-8", "replace").rstrip("\r\n")
            if line == nonce:
                return lines
            if line.startswith("NOAUTH ") or "WRONGPASS" in line or (line.startswith("NOPERM ") and "'echo'" in line):
                raise errors.AccessDenied(f"the Redis server of {self._service} refuses us: {line}")
            if line.startswith(_DOWN):
                raise self._down(line)
            if "AUTH failed" not in line:  # a password was given to a server that wants none
                lines.append(line)
        raise self._down(lines[-1] if lines else "its client ended")

    def info(self, section: str) -> dict[str, str]:
        """A section of ``INFO``. ``AccessDenied`` when this user may not ask for it."""
        return fields(self.permitted(self.ask(f"INFO {section}")))

    def permitted(self, answer: list[str]) -> list[str]:
        """The same answer. ``AccessDenied`` when it says that this user may not."""
        if refused := next((line for line in answer if line.startswith("NOPERM ")), ""):
            raise errors.AccessDenied(
                f"the Redis server of {self._service} refuses us: {refused}",
                remedy="Give the user the commands that docs/protect-your-stack.md lists.",
            )
        return answer

    def config(self, name: str) -> str | None:
        """A setting; None when it does not exist or this user may not read it."""
        lines = self.ask(f"CONFIG GET {name}")
        return lines[1] if len(lines) == 2 and lines[0] == name else None

    def close(self) -> None:
        """End it. Never raises."""
        with contextlib.suppress(errors.CosmosError, OSError):
            self._child.kill()

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _down(self, reason: str) -> errors.ServiceDown:
        remedy = None
        if _HUNG_UP.search(reason):
            remedy = "If it takes TLS only, say so in the service's environment: docs/protect-your-stack.md."
        return errors.ServiceDown(f"the Redis server of {self._service} does not answer: {reason}", remedy=remedy)


def argument(text: str) -> str:
    """A text as one argument on a line for the client."""
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def fields(lines: Iterable[str]) -> dict[str, str]:
    """The ``name:value`` lines of an answer to ``INFO``."""
    return {name: value for name, colon, value in (line.partition(":") for line in lines) if colon}


def fault(lines: Iterable[str]) -> str:
    """The error that an answer consists of (``ERR ...``, ``NOPERM ...``); empty when it is none."""
    return next((line for line in lines if _FAULT.match(line)), "")


def keyspace(info: Iterable[str]) -> dict[str, tuple[int, int]]:
    """Keys without and with an expiry by logical database, from the section ``keyspace``."""
    found = {}
    for name, value in fields(info).items():
        counts = dict(item.partition("=")[::2] for item in value.split(","))
        expiring = int(counts["expires"])
        found[name.removeprefix("db")] = (int(counts["keys"]) - expiring, expiring)
    return found


class Server(msgspec.Struct, frozen=True):
    """Which program a server is."""

    name: str
    """``redis`` or ``valkey``."""
    version: str

    @property
    def release(self) -> tuple[int, int]:
        """Major and minor version."""
        major, minor, *_ = (int(n) for n in re.findall(r"\d+", self.version + ".0.0"))
        return major, minor


def server(info: Mapping[str, str]) -> Server:
    """From the section ``server``."""
    if "valkey_version" in info:
        return Server("valkey", info["valkey_version"])
    return Server("redis", info.get("redis_version", ""))


def require_alone(session: Session, service: str) -> Mapping[str, str]:
    """The section ``server`` of one that is its own master.

    ``Unsupported`` for a replica, a cluster's node, a sentinel: what those hold is not all data, or not of the instant.
    """
    found = session.info("server")
    mode = found.get("redis_mode") or found.get("server_mode", "standalone")
    if mode != "standalone":
        raise errors.Unsupported(
            f"the Redis server of {service} runs as {mode}, which cannot be captured or restored",
            remedy="Label the service `cosmos.kind=none` and its volume `cosmos.exclude=true`.",
        )
    replication = session.info("replication")
    if replication.get("role") == "slave":
        master = f"{replication.get('master_host')}:{replication.get('master_port')}"
        raise errors.Unsupported(
            f"the Redis server of {service} is a replica of {master}: it may lack what its master has acknowledged, and"
            " would lose what is restored into it",
            remedy="Protect the master; label this service `cosmos.kind=none` and its volume `cosmos.exclude=true`.",
        )
    return found
