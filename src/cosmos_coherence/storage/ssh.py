"""One SSH connection for threads: an event loop of its own, made when it is needed and again when it was lost."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

import asyncssh
import msgspec
from asyncssh import SFTPClient

from cosmos_coherence import errors, interruption

_Result = TypeVar("_Result")

_CIPHERS = "^aes128-gcm@openssh.com,aes256-gcm@openssh.com"
"""First, and whatever else asyncssh offers after them: about twice as fast as its own first choice."""
_CONNECTING_S, _ANSWER_S, _SLOWEST = 15, 60, 32 * 1024
"""Seconds for a connection; seconds for an answer, and one more for each so many bytes on the way."""
_LOST = (
    OSError, asyncssh.ConnectionLost, asyncssh.ChannelOpenError, asyncssh.SFTPNoConnection, asyncssh.SFTPConnectionLost,
    asyncssh.ServiceNotAvailable,
)  # fmt: skip

# A broken connection is an error that we raise; asyncio prints a line for each packet that was under way as well.
logging.getLogger("asyncio").addFilter(lambda record: "socket.send() raised exception" not in record.getMessage())


class Address(msgspec.Struct, frozen=True):
    """Which server, and what opens it. Files and sockets that are ``None`` are the user's own, where there are some."""

    host: str
    port: int
    user: str
    key: Path | None
    known_hosts: Path | None
    agent: Path | None

    @property
    def shown(self) -> str:
        """As a URL without a path."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"sftp://{self.user}@{host}:{self.port}"


class Connection:
    """Used by any number of threads at a time. What the server or the network does wrong becomes the catalogue's."""

    def __init__(self, address: Address) -> None:
        self.address = address
        self._open: tuple[asyncssh.SSHClientConnection, SFTPClient] | None = None
        self._connecting = asyncio.Lock()
        self._loop = asyncio.new_event_loop()
        self._thread = interruption.Thread(target=self._loop.run_forever, name="sftp", daemon=True)
        self._thread.start()

    def call(self, doing: str, what: Callable[[SFTPClient], Awaitable[_Result]], size: int = 0) -> _Result:
        """Await ``what`` over there, with time for ``size`` bytes. ``doing`` is for the error, like ``writing a/b``.

        When the time is over the connection is given up, for every call that uses it; the next call makes another.
        """
        doing = f"{doing} in {self.address.shown}"

        async def within_time() -> _Result:
            connection, sftp = await self._connected()
            # Not a cancellation, which would wait for the same server while it cleans up.
            alarm = self._loop.call_later(_ANSWER_S + size / _SLOWEST, connection.abort)
            try:
                return await what(sftp)
            finally:
                alarm.cancel()

        if self._loop.is_closed():
            raise errors.BackendUnavailable(f"the connection was closed before {doing}")
        future = asyncio.run_coroutine_threadsafe(within_time(), self._loop)
        try:
            return future.result()
        except (asyncssh.Error, asyncssh.KeyImportError, OSError) as error:
            raise self._error(error, doing) from error
        except BaseException:
            future.cancel()
            raise

    def close(self) -> None:
        """End it, and the thread that serves it. May be called again."""
        if not self._loop.is_closed():
            asyncio.run_coroutine_threadsafe(self._end(), self._loop).result()
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()

    async def _connected(self) -> tuple[asyncssh.SSHClientConnection, SFTPClient]:
        async with self._connecting:
            if not self._open or self._open[0].is_closed():
                async with asyncio.timeout(3 * _CONNECTING_S):
                    self._open = await self._connect()
            return self._open

    async def _connect(self) -> tuple[asyncssh.SSHClientConnection, SFTPClient]:
        address = self.address
        for file in (address.key, address.known_hosts):
            if file and not file.is_file():
                raise errors.ConfigurationError(f"{file}, named for {address.shown}, is not there")
        connection = await asyncssh.connect(
            address.host,
            address.port,
            username=address.user,
            client_keys=[str(address.key)] if address.key else (),
            agent_path=str(address.agent) if address.agent else None,
            known_hosts=str(address.known_hosts) if address.known_hosts else (),
            config=None,
            encryption_algs=_CIPHERS,
            connect_timeout=_CONNECTING_S,
            keepalive_interval=_CONNECTING_S,
        )
        try:
            return connection, await connection.start_sftp_client()
        except BaseException:
            connection.abort()
            raise

    async def _end(self) -> None:
        if self._open:
            connection, self._open = self._open[0], None
            connection.abort()
            await connection.wait_closed()

    def _error(self, error: Exception, doing: str) -> Exception:
        host, port = self.address.host, self.address.port
        match error:
            case asyncssh.HostKeyNotVerifiable():
                return errors.Refused(
                    f"the host key of {host}, port {port}, is not in the list of known hosts, or is another one there",
                    remedy=f"Compare it with the server's own, then add it: `ssh-keyscan -p {port} {host}`.",
                )
            case asyncssh.KeyImportError():
                return errors.ConfigurationError(
                    f"the key file for {self.address.shown} cannot be used: {error}",
                    remedy="Name a private key without a passphrase, or use an agent.",
                )
            case asyncssh.PermissionDenied():
                return errors.AccessDenied(
                    f"the server lets none of our keys in while {doing}",
                    remedy="Add the public key to `authorized_keys` of that user on the server.",
                )
            case asyncssh.SFTPNoSuchFile() | asyncssh.SFTPNoSuchPath():
                return errors.NotFound(f"file missing while {doing}")
            case asyncssh.SFTPPermissionDenied() | asyncssh.SFTPWriteProtect() | asyncssh.SFTPCannotDelete():
                return errors.Refused(f"not allowed while {doing}", remedy="Look at who may write there on the server.")
            case asyncssh.SFTPNoSpaceOnFilesystem() | asyncssh.SFTPQuotaExceeded():
                return errors.NoRoom(f"no room while {doing}")
            case TimeoutError():
                return errors.BackendUnavailable(f"no answer in time while {doing}")
        if isinstance(error, _LOST):
            return errors.BackendUnavailable(f"no connection while {doing}: {error}")
        return errors.CosmosError(f"the server failed while {doing}: {error}")
