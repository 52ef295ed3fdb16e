"""The tar format: PAX headers as GNU tar, bsdtar and Python read them, and a strict reader of just these.

Why not ``tarfile``: it takes a broken header for the end of the archive, reads extended headers of any size into
memory, loses its place after sparse files above 8 GiB, and costs several times more for each small file.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from typing import cast

from msgspec.structs import replace

from cosmos_coherence import errors
from cosmos_coherence.archive import names
from cosmos_coherence.archive.gzipped import Gunzip, Slice
from cosmos_coherence.model import Entry, EntryKind

BLOCK = 512
END = bytes(2 * BLOCK)
"""What follows the last member."""
MOST_RUNS = 1_000_000
"""Runs of data in one sparse file; one with more is stored with its holes written out."""

_USTAR = struct.Struct("100s8s8s8s12s12s8sc100s8s32s32s8s8s155s12x")
_MAGIC = b"ustar\x0000"
_TYPES: dict[str, bytes] = {
    "file": b"0", "hardlink": b"1", "symlink": b"2", "char": b"3", "block": b"4", "dir": b"5", "fifo": b"6",
}  # fmt: skip
_KINDS = {flag: cast(EntryKind, kind) for kind, flag in _TYPES.items()}
_EXTENDED = b"x"
_XATTR = "SCHILY.xattr."
_LARGEST_EXTENDED = 16 * 1024 * 1024
_LONGEST_TAIL = 20 * BLOCK
_MTIME = re.compile(rb"(-?)(\d{1,12})(?:\.(\d{1,9})\d*)?")
_OCTAL = re.compile(rb"[0-7]{1,12}")
_NUMBER = re.compile(rb"\d{1,18}")


# --------------------------------------------------------------------------------------------------- writing
def header(entry: Entry) -> bytes:
    """Everything that precedes the content of an entry: the PAX records where they are needed, the header, and for a
    sparse file the map of its data. A file's ``size`` must be right; ``padding(stored_size(entry))`` follows it."""
    runs = _map(entry) if entry.kind == "file" and entry.data is not None else b""
    name = entry.path
    if entry.kind == "dir":
        name = name + b"/" if name else b"./"
    size = len(runs) + stored_size(entry)
    records = _records(entry, name, size)
    if runs:
        name = b"GNUSparseFile.0/" + entry.path.rpartition(b"/")[2]
    block = _block(entry, name, size)
    if records:
        body = b"".join(_record(key, value) for key, value in records.items())
        extended = Entry(path=b"", kind="file", mode=0o644)
        block = _block(extended, b"././@PaxHeader", len(body), _EXTENDED) + body + padding(len(body)) + block
    return block + runs


def stored_size(entry: Entry) -> int:
    """Bytes of content a member has: without the holes of a sparse file, none for anything that is no file."""
    if entry.kind != "file":
        return 0
    return entry.size if entry.data is None else sum(length for _, length in entry.data)


def padding(size: int) -> bytes:
    """The zeros that fill the last block."""
    return bytes(-size % BLOCK)


def _records(entry: Entry, name: bytes, size: int) -> dict[bytes, bytes]:
    records: dict[bytes, bytes] = {}
    if entry.kind == "file" and entry.data is not None:
        records[b"GNU.sparse.major"] = b"1"
        records[b"GNU.sparse.minor"] = b"0"
        records[b"GNU.sparse.name"] = name
        records[b"GNU.sparse.realsize"] = b"%d" % entry.size
    elif len(name) > 100 or not name.isascii():
        records[b"path"] = name
    if len(entry.target) > 100 or not entry.target.isascii():
        records[b"linkpath"] = entry.target
    if entry.mtime_ns % 1_000_000_000 or not 0 <= entry.mtime_ns < 0o100000000000 * 1_000_000_000:
        seconds, nanoseconds = divmod(abs(entry.mtime_ns), 1_000_000_000)
        records[b"mtime"] = b"%b%d.%09d" % (b"-" if entry.mtime_ns < 0 else b"", seconds, nanoseconds)
    for key, number, digits in ((b"uid", entry.uid, 7), (b"gid", entry.gid, 7), (b"size", size, 11)):
        if number >= 8**digits:
            records[key] = b"%d" % number
    for key_text, value in entry.xattrs:
        escaped = key_text.replace("%", "%25").replace("=", "%3D")  # as GNU tar does
        records[(_XATTR + escaped).encode("utf-8", "surrogateescape")] = value
    return records


def _record(key: bytes, value: bytes) -> bytes:
    rest = len(key) + len(value) + 3
    total = rest + len(str(rest))
    total = rest + len(str(total))
    return b"%d %b=%b\n" % (total, key, value)


def _block(entry: Entry, name: bytes, size: int, flag: bytes | None = None) -> bytes:
    major, minor = entry.device
    block = _USTAR.pack(
        name[:100],
        b"%07o" % (entry.mode & 0o7777),
        _octal(entry.uid, 7),
        _octal(entry.gid, 7),
        _octal(size, 11),
        _octal(max(entry.mtime_ns // 1_000_000_000, 0), 11),
        b" " * 8,
        flag or _TYPES[entry.kind],
        entry.target[:100],
        _MAGIC,
        b"",
        b"",
        b"%07o" % major,
        b"%07o" % minor,
        b"",
    )
    return block[:148] + b"%06o\0 " % sum(block) + block[156:]


def _octal(number: int, digits: int) -> bytes:
    return b"%0*o" % (digits, number if number < 8**digits else 0)  # a PAX record says what does not fit


def _map(entry: Entry) -> bytes:
    runs = list(entry.data or ())
    if not runs or sum(runs[-1]) < entry.size:
        runs.append((entry.size, 0))  # the hole at the end
    text = b"%d\n" % len(runs) + b"".join(b"%d\n%d\n" % run for run in runs)
    return text + padding(len(text))


# --------------------------------------------------------------------------------------------------- reading
def members(stream: Gunzip) -> Iterator[tuple[Entry, Slice | None]]:
    """Every member in its order, a file with its content (valid until the next step; for a sparse one its runs of
    data), up to the end of the stream.

    Paths are relative and stay below the root, folders precede what lies in them, no name comes twice, hard links
    name a file that came before: else ``Hostile``. Anything malformed or cut short is ``Damaged``.
    """
    seen = _Seen()
    while (block := stream.exactly(BLOCK)).count(0) != BLOCK:
        records: dict[bytes, bytes] = {}
        if block[156:157] == _EXTENDED:
            size = _parsed_octal(block[124:136])
            _verify(block)
            if size > _LARGEST_EXTENDED:
                raise errors.Hostile(f"a header of {size} bytes")
            records = _parsed_records(stream.exactly(size))
            stream.skip(-size % BLOCK)
            block = stream.exactly(BLOCK)
        _verify(block)
        entry, size = _entry(block, records)
        if records.get(b"GNU.sparse.major") == b"1":
            entry, map_size = _sparse(entry, records, stream)
            if map_size + stored_size(entry) != size:
                raise errors.Damaged(f"the map of the sparse file {names.shown(entry.path)} does not fit its size")
            size -= map_size
        seen.check(entry)
        if entry.kind == "file":
            content = Slice(stream, size)
            yield entry, content
            content.pass_over()
            stream.skip(-size % BLOCK)
        else:
            yield entry, None
    tail = stream.read(_LONGEST_TAIL + 1)
    if len(tail) < BLOCK or len(tail) > _LONGEST_TAIL or tail.count(0) != len(tail):
        raise errors.Damaged("there are bytes behind the end of the archive, or the end is missing")


class _Seen:
    def __init__(self) -> None:
        self._folders: set[bytes] = set()
        self._others: set[bytes] = set()
        self._files: set[bytes] = set()

    def check(self, entry: Entry) -> None:
        path = names.safe(entry.path)
        if path in self._folders or path in self._files or path in self._others:
            raise errors.Hostile(f"the archive holds {names.shown(path)} twice")
        if path:
            parent = path.rpartition(b"/")[0]
            if parent not in self._folders and (parent or self._folders):
                raise errors.Hostile(f"the archive holds {names.shown(path)} without its folder")
        if entry.kind == "hardlink" and entry.target not in self._files:
            raise errors.Hostile(f"{names.shown(path)} is a hard link to something that is no file of the archive")
        where = {"dir": self._folders, "file": self._files}.get(entry.kind, self._others)
        where.add(path)


def _verify(block: bytes) -> None:
    if block[257:265] != _MAGIC or _parsed_octal(block[148:156]) != sum(block) - sum(block[148:156]) + 8 * 32:
        raise errors.Damaged("a header of the archive is damaged or of a kind that this program does not write")


def _entry(block: bytes, records: dict[bytes, bytes]) -> tuple[Entry, int]:
    field = _USTAR.unpack(block)
    kind = _KINDS.get(field[7])
    if kind is None or field[14].strip(b"\0"):
        raise errors.Damaged("a member of the archive is of a kind that this program does not write")
    path = records.get(b"path", field[0].rstrip(b"\0"))
    target = records.get(b"linkpath", field[8].rstrip(b"\0"))
    if kind == "dir":
        path = b"" if path == b"./" else path.removesuffix(b"/")
    size = _parsed(records, b"size", field[4])
    if kind != "file" and size:
        raise errors.Damaged("a member of the archive that is no file has content")
    entry = Entry(
        path=path,
        kind=kind,
        mode=_parsed_octal(field[1]) & 0o7777,
        uid=_parsed(records, b"uid", field[2]),
        gid=_parsed(records, b"gid", field[3]),
        mtime_ns=_parsed_mtime(records[b"mtime"]) if b"mtime" in records else _parsed_octal(field[5]) * 1_000_000_000,
        size=size,
        target=target if kind in ("symlink", "hardlink") else b"",
        xattrs=tuple(_xattrs(records)),
        device=(_parsed_octal(field[12]), _parsed_octal(field[13])) if kind in ("char", "block") else (0, 0),
    )
    return entry, size


def _sparse(entry: Entry, records: dict[bytes, bytes], stream: Gunzip) -> tuple[Entry, int]:
    """The entry with its runs of data, and the bytes that their map took."""
    text = b""
    numbers: list[int] = []
    wanted = 1
    map_size = 0
    while len(numbers) < wanted:
        text += stream.exactly(BLOCK)
        map_size += BLOCK
        *lines, text = text.split(b"\n")
        if len(text) > BLOCK:
            raise errors.Damaged("the map of a sparse file cannot be read")
        for line in lines:
            numbers.append(_number(line))
            wanted = 1 + 2 * numbers[0]
            if numbers[0] > MOST_RUNS + 1:
                raise errors.Hostile("a sparse file with more pieces than any real one")
            if len(numbers) == wanted:
                break
    runs = [(numbers[i], numbers[i + 1]) for i in range(1, wanted, 2)]
    size = _number(records.get(b"GNU.sparse.realsize", b""))
    at = 0
    for offset, length in runs:
        if offset < at or offset + length > size:
            raise errors.Damaged("the map of a sparse file contradicts itself")
        at = offset + length
    data = tuple(run for run in runs if run[1])
    return replace(entry, path=records.get(b"GNU.sparse.name", b""), size=size, data=data), map_size


def _parsed_records(body: bytes) -> dict[bytes, bytes]:
    records: dict[bytes, bytes] = {}
    at = 0
    while at < len(body):
        space = body.find(b" ", at, at + 12)
        end = at + _number(body[at:space] if space > at else b"")
        key, equals, value = body[space + 1 : end - 1].partition(b"=")
        if not equals or end > len(body) or body[end - 1 : end] != b"\n" or key in records:
            raise errors.Damaged("an extended header of the archive is damaged")
        records[key] = value
        at = end
    return records


def _xattrs(records: dict[bytes, bytes]) -> Iterator[tuple[str, bytes]]:
    for key, value in records.items():
        text = key.decode("utf-8", "surrogateescape")
        if text.startswith(_XATTR):
            yield text.removeprefix(_XATTR).replace("%3D", "=").replace("%25", "%"), value


def _parsed(records: dict[bytes, bytes], key: bytes, field: bytes) -> int:
    return _number(records[key]) if key in records else _parsed_octal(field)


def _parsed_octal(field: bytes) -> int:
    digits = field.strip(b" \0") or b"0"
    if not _OCTAL.fullmatch(digits):
        raise errors.Damaged("a number in the archive cannot be read")
    return int(digits, 8)


def _parsed_mtime(text: bytes) -> int:
    if not (found := _MTIME.fullmatch(text)):
        raise errors.Damaged("a time in the archive cannot be read")
    nanoseconds = int(found[2]) * 1_000_000_000 + int((found[3] or b"").ljust(9, b"0"))
    return -nanoseconds if found[1] else nanoseconds


def _number(text: bytes) -> int:
    if not _NUMBER.fullmatch(text):
        raise errors.Damaged("a number in the archive cannot be read")
    return int(text)
