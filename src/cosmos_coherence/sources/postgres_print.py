"""What a database holds, as the fingerprint says it: rows by table, last values by sequence."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Final

import msgspec

from cosmos_coherence.model import DatabasePrint
from cosmos_coherence.sources.postgres_session import Session

_BATCH: Final = 200
"""Statements sent at once; their answers must fit into a pipe while nobody reads."""
_SHOWN: Final = 5

_OWN: Final = """
    n.nspname NOT IN ('pg_catalog', 'information_schema') AND n.nspname !~ '^pg_(toast|temp)'
    AND c.relpersistence <> 't'
    AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid
                    AND d.deptype = 'e')
"""
"""Relation ``c`` of schema ``n`` is the user's: not the system's, not temporary, not an extension's."""

LARGE_OBJECTS: Final = "pg_catalog.pg_largeobject_metadata"
"""Under this name large objects are counted, where there are any."""

_TABLES: Final = f"""
SELECT coalesce(json_agg(format('%I.%I', n.nspname, c.relname)), '[]')
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.relkind = 'r' AND {_OWN};
"""

SEQUENCES: Final = f"""
(SELECT coalesce(json_object_agg(format('%I.%I', n.nspname, c.relname), pg_sequence_last_value(c.oid)), '{{}}')
 FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.relkind = 'S' AND {_OWN})
"""
"""Every sequence of the user with its last value as it is now (it obeys no snapshot); null when it was never called."""


class SequenceState(msgspec.Struct, frozen=True):
    """What ``setval`` takes: the value, and whether it was given out already."""

    value: int
    called: bool


def take(session: Session) -> DatabasePrint:
    """Count what the session sees. Sequences are read as they are now."""
    last: Mapping[str, int | None] = session.json(f"SELECT {SEQUENCES};")
    return DatabasePrint(rows(session), {name: value for name, value in sorted(last.items()) if value is not None})


def rows(session: Session) -> dict[str, int]:
    """Rows of every table and leaf partition that the session sees, by its quoted name, and its large objects."""
    tables: list[str] = sorted(session.json(_TABLES))
    counts: list[str] = []
    for batch in batches(tables):
        counts += session.ask("".join(f"SELECT count(*) FROM ONLY {name};\n" for name in batch))
    found = dict(zip(tables, map(int, counts), strict=True))
    if objects := int(session.value(f"SELECT count(*) FROM {LARGE_OBJECTS};")):
        found[LARGE_OBJECTS] = objects
    return found


def states(session: Session, names: Sequence[str]) -> dict[str, SequenceState]:
    """The states of these sequences as they are now."""
    found: dict[str, SequenceState] = {}
    for batch in batches(names):
        lines = session.ask("".join(f"SELECT last_value, is_called FROM {name};\n" for name in batch))
        for name, line in zip(batch, lines, strict=True):
            value, _, called = line.partition("|")
            found[name] = SequenceState(int(value), called == "t")
    return found


def differences(expected: DatabasePrint, found: DatabasePrint) -> str:
    """The first few of what differs, as half a sentence; empty when nothing does."""
    tables = dict(found.tables)
    if LARGE_OBJECTS not in expected.tables:  # there were none, or the backup is from before they were counted
        tables.pop(LARGE_OBJECTS, None)
    contrasts = [
        *_contrasts("rows in", expected.tables, tables),
        *_contrasts("as the last value of", expected.sequences, found.sequences),
    ]
    more = f" and {len(contrasts) - _SHOWN} more" if len(contrasts) > _SHOWN else ""
    return ", ".join(contrasts[:_SHOWN]) + more


def _contrasts(what: str, expected: Mapping[str, int], found: Mapping[str, int]) -> Iterator[str]:
    for name in sorted({*expected, *found}):
        if expected.get(name) != found.get(name):
            yield f"{found.get(name, 'nothing')} {what} {name} instead of {expected.get(name, 'nothing')}"


def batches(names: Iterable[str]) -> Iterator[list[str]]:
    """These names, so many at a time that they can be asked about at once."""
    rest = iter(names)
    while batch := list(islice(rest, _BATCH)):
        yield batch
