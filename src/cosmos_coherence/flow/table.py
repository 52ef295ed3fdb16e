"""One table out of the SQL of a whole database: its definition, its rows, its own constraints.

The SQL is what ``pg_dump`` writes as plain text: a preamble, then entries under a comment that names each, and rows as
``COPY`` data up to a line ``\\.``. What other entries refer to (types, indexes of their own name, foreign keys to other
tables) is not followed: it is for looking, and for putting rows back.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import BinaryIO, Final

from cosmos_coherence import errors

_ENTRY: Final = re.compile(rb"-- (?:Data for )?Name: (?P<name>.+); Type: (?P<type>[A-Z ]+); Schema: (?P<schema>[^;]+);")
_WANTED: Final = frozenset({b"TABLE", b"TABLE DATA", b"DEFAULT", b"CONSTRAINT", b"SEQUENCE", b"SEQUENCE OWNED BY"})
_END: Final = b"\\.\n"


def only(sql: BinaryIO, table: str) -> Iterator[bytes]:
    """The lines of the dump that make ``table`` (``schema.name``, or a name in ``public``), with the dump's preamble.

    Raises ``NotFound`` at the end when the dump has no such table. Memory: the longest line.
    """
    schema, _, name = table.rpartition(".")
    wanted = ((schema or "public").encode(), name.encode())
    keeping, rows, found = True, False, False
    for line in sql:
        if rows:
            rows = line != _END
        elif line.startswith(b"-- "):
            if entry := _ENTRY.match(line):
                keeping = _is_of(entry, wanted)
                found = found or (keeping and entry["type"] == b"TABLE DATA")
        elif line.startswith(b"COPY ") and line.rstrip().endswith(b"FROM stdin;"):
            rows = True
            if keeping:
                yield line
            continue
        if keeping:
            yield line
    if not found:
        raise errors.NotFound(
            f"the dump has no rows of a table {table}", remedy="Write it like `public.items`, as the database does."
        )


def _is_of(entry: re.Match[bytes], wanted: tuple[bytes, bytes]) -> bool:
    """Whether an entry belongs to the table: it bears its name, or begins with it (``items items_pkey``)."""
    schema, name = wanted
    own = entry["name"] == name or entry["name"].startswith(name + b" ")
    serial = entry["type"].startswith(b"SEQUENCE") and entry["name"].startswith(name + b"_")
    return entry["type"] in _WANTED and entry["schema"] == schema and (own or serial)
