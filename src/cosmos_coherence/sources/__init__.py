"""Bytes out of a stack and back into it; one protocol, one explicit table."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec

from cosmos_coherence import errors
from cosmos_coherence.drivers.runtime import Runtime
from cosmos_coherence.model import Part, SourceRef
from cosmos_coherence.sources import sqlite
from cosmos_coherence.sources.base import Restorer, Source
from cosmos_coherence.sources.config import ConfigSource
from cosmos_coherence.sources.postgres import PostgresSource
from cosmos_coherence.sources.postgres_restore import PostgresRestorer
from cosmos_coherence.sources.redis import RedisSource
from cosmos_coherence.sources.redis_restore import RedisRestorer
from cosmos_coherence.sources.scout import Scout
from cosmos_coherence.sources.volume import ConfigRestorer, TreeRestorer, TreeSource


class Setting(msgspec.Struct, frozen=True):
    """What every source of one run shares."""

    runtime: Runtime
    run: str
    spool: Path
    """Private folder for what has to wait on disk."""
    configuration: tuple[str, ...] = ()
    """Names below the project's folder that are its configuration."""
    primary: tuple[str, ...] = ()
    """The services whose dumps get the plain names ``database.sql`` and ``redis/dump.rdb``."""
    still: bool = True
    """Whether anybody is held for the instant."""
    scout: Scout | None = None
    """Walks trees, from the moment on at which their source is opened."""


def open_source(ref: SourceRef, setting: Setting) -> Source:
    """The source for this reference."""
    primary = ref.service in setting.primary
    match ref.kind:
        case "postgres":
            return PostgresSource(ref, setting.runtime, setting.run, primary=primary)
        case "redis":
            return RedisSource(ref, setting.runtime, setting.run, primary=primary)
        case "volume" | "files":
            root = _reachable(ref.path, ref.part)
            return TreeSource(ref, root, spool=setting.spool, still=setting.still, scout=setting.scout)
        case "sqlite":
            place = _reachable(ref.path, ref.part)
            sqlite.require_database(place)
            only = sqlite.files_of(place)
            return TreeSource(ref, place.parent, spool=setting.spool, still=setting.still, only=only)
        case "config":
            return ConfigSource(ref, _reachable(ref.path, ref.part), setting.configuration)


def open_restorer(part: Part, root: Path | None, runtime: Runtime, run: str, *, overwrite: bool = False) -> Restorer:
    """The way back for this part; ``root`` is the folder it goes to (all but postgres).
    ``overwrite``: configuration files that differ are replaced too.
    """
    match part.kind:
        case "postgres":
            return PostgresRestorer(part, runtime, part.service, run)
        case "redis":
            return RedisRestorer(part, runtime, part.service, _reachable(root, part.name), run)
        case "volume" | "files":
            return TreeRestorer(part, tree_name(part), _reachable(root, part.name), run)
        case "sqlite":
            only = sqlite.files_of(Path(part.details.get("path", "")))
            return TreeRestorer(part, tree_name(part), _reachable(root, part.name), run, only=only)
        case "config":
            return ConfigRestorer(part, _reachable(root, part.name), run, overwrite=overwrite)


def encode_parts(parts: Sequence[Part]) -> object:
    """The parts as JSON values, for the journal."""
    return msgspec.to_builtins(tuple(parts))


def decode_parts(value: object) -> tuple[Part, ...]:
    """Back from the journal. ``Damaged`` when they are none."""
    try:
        return msgspec.convert(value, tuple[Part, ...])
    except msgspec.ValidationError as error:
        raise errors.Damaged(f"the journal names no parts: {error}", remedy="Look into the journal folder.") from error


def tree_name(part: Part) -> str:
    """The logical name under which a backup holds the file tree of this part."""
    return f"volumes/{part.volume}" if part.kind == "volume" else "configs" if part.kind == "config" else part.name


def _reachable(path: Path | None, part: str) -> Path:
    if path is None:
        raise errors.CaptureFailed(
            f"the files of {part} cannot be reached from here",
            remedy="Run as root on the host of the engine, or let it run in a container there: `make images`.",
        )
    return path
