"""What the writers write: one record in each store for each number, the same in every store but for its times.

The operations of a writer are counted from 1 in the order in which it does them: number k goes to the first store, then
to the second, ... then k + 1 to the first. An operation begins when the one before is acknowledged.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from typing import NamedTuple

STORES = ("postgres", "redis", "file", "sqlite")
"""In the order of writing. The last may be left out."""
WIDTH = 160
"""Bytes of a record in a file, which makes some twenty-five of them share a page."""
PER_FILE = 4096
"""Records before a writer goes on in a new file."""
_STRIDE = 1021
"""Has no divisor in common with ``PER_FILE``; some forty pages."""


class Record(NamedTuple):
    """One operation, as it left its trace in a store."""

    k: int
    at_ns: int
    """When it began, by the real-time clock."""
    seen: tuple[int, ...]
    """How many operations each writer had acknowledged by then."""


def operation(k: int, store: int, stores: int) -> int:
    """The place of "number ``k`` to store ``store``" in its writer's order."""
    return (k - 1) * stores + store + 1


def text(record: Record) -> str:
    """The record on one line."""
    return f"{record.k} {record.at_ns} {','.join(map(str, record.seen))}"


def parse(line: str) -> Record:
    """What ``text`` made. ``ValueError`` for anything else."""
    k, at_ns, seen = line.split(" ")
    return Record(int(k), int(at_ns), tuple(int(n) for n in seen.split(",")))


def line(record: Record) -> bytes:
    """The record in ``WIDTH`` bytes that end with a checksum, so that a torn one is told from a whole one."""
    body = text(record).encode().ljust(WIDTH - 10)
    if len(body) != WIDTH - 10:
        raise ValueError(f"a record of {len(body)} bytes has no room")
    return b"%s %08x\n" % (body, zlib.crc32(body))


def place(slot: int) -> int:
    """Where the record of a slot lies in a mapped file: far from the one before.

    So every page is soon a dirty one, and a write to a dirty page through a mapping moves no time of the file: what
    goes by times alone sees nothing of it.
    """
    return slot * _STRIDE % PER_FILE


def in_order(content: bytes) -> bytes:
    """The content of a mapped file, slot by slot."""
    return b"".join(content[place(slot) * WIDTH :][:WIDTH] for slot in range(PER_FILE))


def lines(content: bytes) -> Iterator[Record | None]:
    """The records of a file, None for each that is torn; slots that were never written are left out."""
    for start in range(0, len(content), WIDTH):
        piece = content[start : start + WIDTH]
        body = piece[: WIDTH - 10]
        if len(piece) == WIDTH and piece[WIDTH - 10 :] == b" %08x\n" % zlib.crc32(body):
            yield parse(body.decode().rstrip())
        elif piece.strip(b"\0"):
            yield None
