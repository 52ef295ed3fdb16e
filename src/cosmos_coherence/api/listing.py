"""The list of runs, from the history, or from the cache volume while the history does not answer."""

from __future__ import annotations

import contextlib
from datetime import UTC, datetime
from pathlib import Path

import msgspec
from sqlalchemy import Engine

from cosmos_coherence import errors
from cosmos_coherence.history import database, runs
from cosmos_coherence.storage import local

_FILE = "runs.json"
_DECODER = msgspec.json.Decoder(runs.RunList)


def read(engine: Engine, cache: Path, *, limit: int) -> runs.RunList:
    """The newest runs. While the history cannot be read, the last list that could, under its own ``read_at``; without
    one, the reason: ``ServiceDown``, ``Unsupported``.
    """
    try:
        database.migrate(engine)
        found = runs.RunList(datetime.now(UTC).isoformat(timespec="seconds"), runs.recent(engine, limit=limit))
    except errors.CosmosError:
        try:
            return _DECODER.decode((cache / _FILE).read_bytes())
        except (OSError, msgspec.MsgspecError):
            pass
        raise
    with contextlib.suppress(OSError, errors.CosmosError):  # a cache that cannot be written is no reason to fail
        local.write_atomically(cache / _FILE, msgspec.json.encode(found))
    return found
