"""Messages over a pipe between processes of ours: each has its length before it, in four bytes."""

from __future__ import annotations

import os
from typing import Final

LENGTH_BYTES: Final = 4


def framed(message: bytes) -> bytes:
    """What goes through the pipe."""
    return len(message).to_bytes(LENGTH_BYTES, "little") + message


def length(head: bytes | bytearray) -> int:
    """How many bytes follow these first ones."""
    return int.from_bytes(head, "little")


def read(descriptor: int) -> bytes | None:
    """The next message; None when there will be no more, be it in the middle of one. ``OSError``."""
    head = exactly(descriptor, LENGTH_BYTES)
    return None if head is None else exactly(descriptor, length(head))


def exactly(descriptor: int, count: int) -> bytes | None:
    """So many bytes; None when there are fewer. ``OSError``."""
    pieces: list[bytes] = []
    while count:
        more = os.read(descriptor, count)
        if not more:
            return None
        pieces.append(more)
        count -= len(more)
    return b"".join(pieces)
