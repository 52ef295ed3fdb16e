"""Talking to a Redis or Valkey server through its own command line client, over the standard input of a command in its
service. The password comes from the service's own environment and is never an argument."""

from __future__ import annotations

import contextlib
import re
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

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
command -v redis-cli >/dev/null && exec redis-cli
exec valkey-cli
"""
"""What the client says on its standard error comes between the answers: it lives on when it cannot connect."""

_DOWN: Final = ("LOADING ", "Could not connect", "Error: ")
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
        """A section of ``INFO``."""
        return fields(self.ask(f"INFO {section}"))

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
        return errors.ServiceDown(f"the Redis server of {self._service} does not answer: {reason}")


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


@dataclass(frozen=True, slots=True)
class Server:
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
