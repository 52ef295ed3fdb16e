"""A repository on a machine that is reached by SFTP, through asyncssh. Needs the extra ``remote``."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import stat
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import asyncssh
from asyncssh import SFTPAttrs, SFTPClient

from cosmos_coherence import errors
from cosmos_coherence.storage import layout
from cosmos_coherence.storage.backend import KINDS, Kind, Properties, Stored
from cosmos_coherence.storage.ssh import Address, Connection

_Result = TypeVar("_Result")

_AT_A_TIME = 32
"""Folders that are made or listed at the same time."""
_LISTING = 8 * 1024 * 1024
"""Bytes, by a generous guess, that a listing of everything takes; only for the time that it is given."""


class SftpBackend:
    """Files below ``path`` of an SSH server: private, and whole under their names or not there.

    A file is written under another name, synced where the server can, and then linked, which does not overwrite. A
    server has no way to sync a folder: a power cut of that machine within seconds of ``save`` may take the name back.
    What a broken connection leaves is called ``ID-tmp-`` and random letters, and passed over.
    """

    properties = Properties(connections=5)

    def __init__(  # every one of them is part of one address
        self,
        host: str,
        path: str,
        *,
        user: str,
        port: int = 22,
        key: Path | None = None,
        known_hosts: Path | None = None,
        agent: Path | None = None,
    ) -> None:
        """``path``: relative to the user's home unless it begins with a slash; ``agent``: its socket.

        Without ``key`` and ``agent`` the user's own key files are tried, without ``known_hosts`` the user's own list is
        asked. The host's key is always checked.
        """
        self._connection = Connection(Address(host, port, user, key, known_hosts, agent))
        self.location = f"{self._connection.address.shown}/{path}"
        self._root = path.rstrip("/") or ("/" if path else ".")

    def create(self) -> None:
        """Make the folders, mode 0700."""

        async def make(sftp: SFTPClient) -> None:
            await sftp.makedirs(self._root, SFTPAttrs(permissions=0o700), exist_ok=True)
            for names in (kind for kind in KINDS if kind != "config"), (f"data/{name}" for name in layout.SUBFOLDERS):
                await _at_a_time(lambda name: _make_folder(sftp, f"{self._root}/{name}"), names)

        self._connection.call("making the folders", make)

    def save(self, kind: Kind, name: str, content: Sequence[bytes | bytearray | memoryview]) -> None:
        """As ``Backend.save``, as far as the server can."""
        path, folder = self._path(kind, name), layout.folder_of(kind, name)
        data = b"".join(content)

        async def write(sftp: SFTPClient) -> None:
            temporary = f"{path}-tmp-{secrets.token_hex(4)}"
            try:
                try:
                    await _write(sftp, temporary, data)
                except (asyncssh.SFTPNoSuchFile, asyncssh.SFTPNoSuchPath):
                    await self._make_missing(sftp, folder)
                    await _write(sftp, temporary, data)
                await self._publish(sftp, temporary, path, len(data))
            except asyncssh.SFTPFailure as error:
                raise await self._failure(sftp, len(data), path, error) from error
            finally:
                with contextlib.suppress(asyncssh.Error, OSError):
                    await sftp.remove(temporary)

        self._connection.call(f"writing {path}", write, len(data))

    def load(self, kind: Kind, name: str, offset: int = 0, length: int | None = None) -> bytes:
        """As ``Backend.load``."""
        path = self._path(kind, name)
        wanted = self.size(kind, name) - offset if length is None else length
        if wanted <= 0:
            if offset == 0:
                return b""
            raise errors.Damaged(f"{path} in {self.location} ends before byte {offset}")

        async def read(sftp: SFTPClient) -> bytes:
            async with sftp.open(path, "rb") as file:
                data = await file.read(wanted, offset)
                return data if isinstance(data, bytes) else data.encode()

        data = self._connection.call(f"reading {path}", read, wanted)
        if len(data) != wanted:
            raise errors.Damaged(f"{path} in {self.location}: {wanted} bytes were asked for, {len(data)} came")
        return data

    def size(self, kind: Kind, name: str) -> int:
        """As ``Backend.size``."""
        path = self._path(kind, name)

        async def look(sftp: SFTPClient) -> int:
            return (await sftp.stat(path)).size or 0

        return self._connection.call(f"looking at {path}", look)

    def list(self, kind: Kind) -> Iterator[Stored]:
        """As ``Backend.list``. Everything is asked for at once, which hides the way to the server and back."""
        if kind == "config":
            with contextlib.suppress(errors.NotFound):
                yield Stored("", self.size("config", ""))
            return
        prefixes = layout.SUBFOLDERS if kind == "data" else ("",)

        async def scan(sftp: SFTPClient) -> Sequence[Sequence[Stored]]:
            return await _at_a_time(lambda prefix: _scan(sftp, f"{self._root}/{kind}/{prefix}", prefix), prefixes)

        for found in self._connection.call(f"listing {kind}", scan, _LISTING):
            yield from found

    def remove(self, kind: Kind, name: str) -> None:
        """As ``Backend.remove``."""
        path = self._path(kind, name)

        async def unlink(sftp: SFTPClient) -> None:
            with contextlib.suppress(asyncssh.SFTPNoSuchFile, asyncssh.SFTPNoSuchPath):
                await sftp.remove(path)

        self._connection.call(f"removing {path}", unlink)

    def close(self) -> None:
        """End the connection and the thread that serves it."""
        self._connection.close()

    def _path(self, kind: Kind, name: str) -> str:
        return f"{self._root}/{layout.path_of(kind, name)}"

    async def _make_missing(self, sftp: SFTPClient, folder: str) -> None:
        """Of a repository only: what was copied from an object store has no folders that were empty there."""
        top = f"{self._root}/{folder.partition('/')[0]}"
        if not (folder.startswith("data/") and await sftp.isdir(top)):
            if not await sftp.exists(f"{self._root}/config"):
                raise asyncssh.SFTPNoSuchFile(f"{self._root} holds no repository")
            await _make_folder(sftp, top)
        if folder.startswith("data/"):
            await _make_folder(sftp, f"{self._root}/{folder}")

    async def _publish(self, sftp: SFTPClient, temporary: str, path: str, size: int) -> None:
        try:
            await sftp.link(temporary, path)
        except (asyncssh.SFTPFailure, asyncssh.SFTPOpUnsupported, asyncssh.SFTPFileAlreadyExists):
            # It says only that it failed: because something is there, or because there are no hard links.
            try:
                found = (await sftp.stat(path)).size or 0
            except asyncssh.SFTPNoSuchFile:
                await sftp.rename(temporary, path)
            else:
                layout.require_same(f"{path} in {self.location}", found, size)

    async def _failure(self, sftp: SFTPClient, size: int, path: str, error: asyncssh.SFTPError) -> Exception:
        """The protocol's plain failure, told apart as far as the server lets us: a full disk has no code of its own."""
        with contextlib.suppress(asyncssh.Error, OSError):
            disk = await sftp.statvfs(self._root)
            if disk.bavail * disk.frsize < size or disk.favail == 0:
                return errors.NoRoom(f"no room while writing {path} in {self.location}")
        return error


async def _at_a_time(do: Callable[[str], Awaitable[_Result]], names: Iterable[str]) -> Sequence[_Result]:
    limit = asyncio.Semaphore(_AT_A_TIME)

    async def one(name: str) -> _Result:
        async with limit:
            return await do(name)

    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one(name)) for name in names]
    except BaseExceptionGroup as failures:
        raise failures.exceptions[0] from None
    return [task.result() for task in tasks]


async def _make_folder(sftp: SFTPClient, path: str) -> None:
    try:
        await sftp.mkdir(path, SFTPAttrs(permissions=0o700))
    except (asyncssh.SFTPFailure, asyncssh.SFTPFileAlreadyExists):
        if not await sftp.isdir(path):
            raise


async def _write(sftp: SFTPClient, path: str, data: bytes) -> None:
    async with sftp.open(path, "xb", SFTPAttrs(permissions=0o600)) as file:
        await file.write(data, 0)
        with contextlib.suppress(asyncssh.SFTPOpUnsupported):
            await file.fsync()


async def _scan(sftp: SFTPClient, folder: str, prefix: str) -> Sequence[Stored]:
    found = []
    with contextlib.suppress(asyncssh.SFTPNoSuchFile, asyncssh.SFTPNoSuchPath):
        async for entry in sftp.scandir(folder):
            name = entry.filename if isinstance(entry.filename, str) else entry.filename.decode(errors="replace")
            if layout.is_name(name) and name.startswith(prefix) and stat.S_ISREG(entry.attrs.permissions or 0):
                found.append(Stored(name, entry.attrs.size or 0))
    return found
