"""What this host knows of a repository: the backups that it made there, so that one that somebody removed is missed.

A repository alone cannot tell: without its snapshot file a backup has never been. The record is a small file for each
repository in the stack's state directory. It never fails a backup: one that is lost or damaged is said and begun anew
from what the repository lists.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from cosmos_coherence import errors
from cosmos_coherence.flow import store
from cosmos_coherence.storage import local

if TYPE_CHECKING:
    from cosmos_coherence.repository.repository import Repository

FOLDER: Final = "known"


class Backup(msgspec.Struct, frozen=True):
    """One backup that is known."""

    backup: str
    """Its id."""
    snapshot: str
    """Id of its snapshot, 64 hex digits."""


class _Record(msgspec.Struct, frozen=True):
    backups: list[Backup]


def file_of(state: Path, repository: str) -> Path:
    """The record of the repository of that id."""
    return state / FOLDER / f"{repository}.json"


def add(state: Path, repository: Repository, project: str, made: Backup) -> str:
    """Take in a backup that was just published; what there is to say of the record, mostly nothing. Never raises."""
    file = file_of(state, repository.config.id)
    try:
        with local.alone(file.parent):
            known, why = _read(file)
            if known is None:
                known = _listed(repository, project)
                others = len({each.snapshot for each in known} - {made.snapshot})
                why = why or (f"this host had no record of the backups in {repository.location}" if others else "")
                why = why and f"{why}; it was begun anew with the {others} others that are there"
            _write(file, {*known, made})
            return why
    except (errors.CosmosError, OSError) as error:
        return f"the backup is made, but not noted in {file}: {error}"


def forget(state: Path, repository: str, snapshot: str) -> None:
    """Take out a backup that we are about to remove. Never raises: a record that cannot be written goes."""
    file = file_of(state, repository)
    with contextlib.suppress(errors.CosmosError, OSError), local.alone(file.parent):
        known, _ = _read(file)
        if known is not None:
            try:
                _write(file, (each for each in known if each.snapshot != snapshot))
            except errors.CosmosError:  # a full disk must not keep us from forgetting
                file.unlink()


def missing(state: Path, repository: Repository, project: str) -> tuple[tuple[Backup, ...], str]:
    """The known backups that are not in the repository, and what there is to say of the record.

    Raises the backend's errors, and those of writing the record when it is begun anew.
    """
    file = file_of(state, repository.config.id)
    with local.alone(file.parent):
        known, why = _read(file)
        if known is None:
            known = _listed(repository, project)
            _write(file, known)
            why = why or f"this host had no record of the backups in {repository.location}"
            return (), f"{why}; it was begun anew with the {len(known)} that are there"
    # The record first: what is published meanwhile is not missed. And again: what is forgotten meanwhile is not either.
    there = {stored.name for stored in repository.backend.list("snapshots")}
    gone = [each for each in known if each.snapshot not in there]
    if gone:
        still, _ = _read(file)
        gone = [each for each in gone if each in (still or ())]
    return tuple(gone), ""


def _listed(repository: Repository, project: str) -> list[Backup]:
    return [Backup(each.id, each.snapshot) for each in store.kept(repository, project)]


def _read(file: Path) -> tuple[list[Backup] | None, str]:
    """The record; None where there is none, with the reason when there should be one."""
    try:
        return msgspec.json.decode(file.read_bytes(), type=_Record).backups, ""
    except FileNotFoundError:
        return None, ""
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None, f"the record of backups in {file} is damaged"
    except OSError as error:
        return None, f"the record of backups in {file} cannot be read: {error.strerror}"


def _write(file: Path, known: Iterable[Backup]) -> None:
    ordered = sorted(known, key=lambda each: (each.backup, each.snapshot))
    local.write_atomically(file, msgspec.json.format(msgspec.json.encode(_Record(ordered)), indent=2) + b"\n")
