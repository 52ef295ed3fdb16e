"""The journal: on disk, what must be undone or finished should this program die.

One small file per obligation. The order is the whole point: a record is opened, and lies on disk, *before* the step
that it describes is taken; it is closed *after* the step was undone or finished. What is pending once nobody runs is
what a crash left.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import secrets
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Generic, TypeVar, overload

import msgspec

from cosmos_coherence import errors
from cosmos_coherence.interruption import uninterrupted
from cosmos_coherence.model import HoldTarget


class HoldRecord(msgspec.Struct, frozen=True, tag="hold"):
    """Writers that are about to be frozen."""

    run: str
    targets: tuple[HoldTarget, ...]
    since: str
    """RFC 3339, UTC."""


class QuietRecord(msgspec.Struct, frozen=True, tag="quiet"):
    """Services that are about to be made quiet for a cut."""

    run: str
    after: dict[str, str] = {}
    """Command that has to run in a service, by service."""
    stopped: dict[str, tuple[str, ...]] = {}
    """Containers that have to be started, by service."""


class SettingsRecord(msgspec.Struct, frozen=True, tag="settings"):
    """Settings of a server that are about to be changed for a cut, with the values to put back."""

    run: str
    service: str
    values: dict[str, str]


class RestoreRecord(msgspec.Struct, frozen=True, tag="restore"):
    """A restore under way."""

    run: str
    phase: str
    parts: Any
    """The parts it brings back, as the sources wrote them down (JSON values)."""
    roots: dict[str, str] = {}
    """Folder that holds a part's files, by part."""
    stop: tuple[str, ...] = ()
    """Services that it stops."""
    start: tuple[str, ...] = ()
    """Services that it starts."""
    running: tuple[str, ...] = ()
    """Services that ran before."""
    created: tuple[str, ...] = ()
    """Volumes that were lost and that it creates."""
    overwrite: bool = False
    """Configuration files that differ are replaced too."""
    made: tuple[str, ...] = ()
    """Volumes that have not been there before, and go again when it is taken back."""
    aside: dict[str, str] = {}
    """Volume into which the files of a server that does not start are moved, by service."""
    emptied: tuple[str, ...] = ()
    """Those of these services of which all files have been moved: what lies in its place now is a new server's."""


class SpoolRecord(msgspec.Struct, frozen=True, tag="spool"):
    """A folder of temporary files, and where else a backup leaves something while it runs."""

    run: str
    path: str
    postgres: tuple[str, ...] = ()
    """Services with sessions of its own."""
    redis: tuple[str, ...] = ()
    """Services that keep a dump for it."""


Record = HoldRecord | QuietRecord | SettingsRecord | RestoreRecord | SpoolRecord
R = TypeVar("R", bound=Record)


class _Sealed(msgspec.Struct, frozen=True):
    """What a file holds; the checksum is over the bytes of the record."""

    record: msgspec.Raw
    sha256: str


class Handle(Generic[R]):
    """One open obligation."""

    def __init__(self, path: Path, record: R) -> None:
        self._path, self._record = path, record

    @property
    def record(self) -> R:
        """What is on disk."""
        return self._record

    def update(self, record: R) -> None:
        """Replace the record: on disk when this returns, the old or the new one after a crash. Raises as ``open``."""
        _write(self._path, record)
        self._record = record

    def close(self) -> None:
        """The obligation was met. May be repeated."""
        with _translated(self._path.parent):
            self._path.unlink(missing_ok=True)
            _sync(self._path.parent)


class Journal:
    """The journal in ``directory/journal``, which is made (mode 0700) when missing.

    May be used from several threads. Calls raise ``NoRoom`` when the disk is full, ``ConfigurationError`` when the
    folder cannot be used.
    """

    def __init__(self, directory: Path) -> None:
        self._folder = directory / "journal"
        with _translated(self._folder):
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    def open(self, record: R) -> Handle[R]:
        """Write an obligation down. It is on disk when this returns, and only then may the step be taken."""
        path = self._folder / f"{time.time_ns():020d}-{secrets.token_hex(4)}.json"
        handle = Handle(path, record)
        try:
            with uninterrupted():
                _write(path, record)
            return handle
        except BaseException:  # Ctrl-C, too: the caller will not know of it
            path.unlink(missing_ok=True)
            raise

    @overload
    def pending(self) -> tuple[Handle[Record], ...]: ...

    @overload
    def pending(self, kind: type[R]) -> tuple[Handle[R], ...]: ...

    def pending(self, kind: Any = Record) -> Any:
        """The open obligations (of one kind), in the order they were opened; leftovers when nothing runs.

        A file that is not what was written is renamed to ``*.broken``, and named by ``broken`` from then on.
        """
        handles = []
        with _translated(self._folder):
            for path in sorted(self._folder.glob("*.json")):
                try:
                    handles.append(Handle(path, _read(path)))
                except FileNotFoundError:
                    continue  # closed meanwhile
                except (msgspec.MsgspecError, ValueError):
                    path.rename(path.with_suffix(".broken"))
                    _sync(self._folder)
        return tuple(handle for handle in handles if isinstance(handle.record, kind))

    def discard_drafts(self) -> None:
        """Remove records that a crash left half written: no step was taken on them. For the holder of the run lock."""
        with _translated(self._folder):
            for draft in self._folder.glob("*.draft"):
                draft.unlink(missing_ok=True)

    def broken(self) -> tuple[Path, ...]:
        """Files that were found damaged. What they asked for is unknown: they stay until a person has looked."""
        with _translated(self._folder):
            return tuple(sorted(self._folder.glob("*.broken")))


def anything_pending(directory: Path) -> bool:
    """Whether the journal in ``directory`` has an open obligation, by one listing: nothing is made, and none is read.

    False too where it may not be looked at.
    """
    try:
        with os.scandir(directory / "journal") as listed:
            return any(entry.name.endswith(".json") for entry in listed)
    except OSError:
        return False


def _read(path: Path) -> Record:
    sealed = msgspec.json.decode(path.read_bytes(), type=_Sealed)
    if hashlib.sha256(sealed.record).hexdigest() != sealed.sha256:
        raise ValueError("the checksum does not match")
    record: Record = msgspec.json.decode(sealed.record, type=Record)
    return record


def _write(path: Path, record: Record) -> None:
    text = msgspec.json.encode(record)
    data = msgspec.json.encode(_Sealed(msgspec.Raw(text), hashlib.sha256(text).hexdigest()))
    draft = path.with_suffix(".draft")
    with _translated(path.parent):
        try:
            handle = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            with os.fdopen(handle, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(handle)
            draft.replace(path)
            _sync(path.parent)
        except OSError:
            draft.unlink(missing_ok=True)
            raise


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def _translated(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise unusable(folder, error) from error


def unusable(path: Path, error: OSError) -> errors.CosmosError:
    """The catalogue's word for a state folder that cannot be used."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return errors.NoRoom(f"there is no room to write {path}")
    return errors.ConfigurationError(
        f"{path} cannot be used: {error.strerror or error}",
        remedy="Run as the user who owns it, or set COSMOS_STATE_DIRECTORY to another folder.",
    )
