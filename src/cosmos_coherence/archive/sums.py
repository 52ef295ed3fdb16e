"""``SHA256SUMS``, in the form that ``sha256sum -c`` reads."""

from __future__ import annotations

import re
from collections.abc import Mapping

from cosmos_coherence import errors

NAME = "SHA256SUMS"
_LINE = re.compile(rb"(\\?)([0-9a-f]{64})  (.+)")
_ESCAPES = {b"\\": b"\\\\", b"\n": b"\\n", b"\r": b"\\r"}
_PLAIN = {escaped: plain for plain, escaped in _ESCAPES.items()}


def encode(sums: Mapping[bytes, str]) -> bytes:
    """One line for each path, sorted."""
    return b"".join(_line(path, digest) for path, digest in sorted(sums.items()))


def decode(data: bytes) -> dict[bytes, str]:
    """The digest of every path. ``Damaged`` for anything that ``encode`` does not write."""
    sums: dict[bytes, str] = {}
    for line in data.split(b"\n")[:-1]:
        if not (found := _LINE.fullmatch(line)):
            raise errors.Damaged("a line of SHA256SUMS cannot be read")
        path = re.sub(rb"\\[\\nr]", lambda m: _PLAIN[m[0]], found[3]) if found[1] else found[3]
        sums[path] = found[2].decode()
    if encode(sums) != data:
        raise errors.Damaged("SHA256SUMS is not in the form this program writes")
    return sums


def _line(path: bytes, digest: str) -> bytes:
    escaped = re.sub(rb"[\\\n\r]", lambda m: _ESCAPES[m[0]], path)
    mark = b"\\" if escaped != path else b""
    return b"%b%b  %b\n" % (mark, digest.encode(), escaped)
