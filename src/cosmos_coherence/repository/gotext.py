"""Text as Go's libraries write it: quoted strings, JSON strings, times and file modes.

Trees are named by the hash of their JSON, so equal folders are equal blobs only when every byte comes out as restic's
does. The rules are those of the Go documentation: ``strconv.Quote``, ``encoding/json``, ``time.RFC3339Nano``,
``io/fs.FileMode``.
"""

from __future__ import annotations

import re
import stat
from collections.abc import Collection
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Final

# ------------------------------------------------------------------------------------------------- strings
_PLAIN_NAME: Final = re.compile(rb"[ !#-%'-;=?-\[\]-~]*").fullmatch
"""ASCII that neither quoting nor JSON touches."""

_QUOTED: Final = {7: r"\a", 8: r"\b", 9: r"\t", 10: r"\n", 11: r"\v", 12: r"\f", 13: r"\r", 34: r"\"", 92: r"\\"}
_JSON_SPECIAL: Final = re.compile('[\x00-\x1f"\\\\<>&\u2028\u2029\ud800-\udfff]')
_JSON_SHORT: Final = {"\b": r"\b", "\f": r"\f", "\n": r"\n", "\r": r"\r", "\t": r"\t", '"': r"\"", "\\": r"\\"}
_ESCAPE: Final = re.compile(
    rb"""\\(?:([abfnrtv\\"'])|x([0-9a-fA-F]{2})|([0-7]{3})|u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8})|(.?))""", re.DOTALL
)
_UNQUOTED: Final = dict(zip(b"abfnrtv\\\"'", b"\a\b\f\n\r\t\v\\\"'", strict=True))


def quoted_name(name: bytes) -> str:
    """A file name as a JSON string of a Go string, with the quotation marks of JSON."""
    if _PLAIN_NAME(name):
        return f'"{name.decode("ascii")}"'
    return json_string(quote(name))


def quote(name: bytes) -> str:
    """Any bytes as the inside of a Go string literal."""
    if _PLAIN_NAME(name):
        return name.decode("ascii")
    return "".join(map(_quote, name.decode("utf-8", "surrogateescape")))


def unquote(text: str) -> bytes:
    """What a Go string literal stands for, given its inside. Raises ``ValueError``."""
    data = text.encode("utf-8")  # a lone surrogate is a UnicodeEncodeError, which is a ValueError
    if b"\n" in data or re.search(rb'(?<!\\)(?:\\\\)*"', data):
        raise ValueError("not a quoted string")
    return _ESCAPE.sub(_unescape, data) if b"\\" in data else data


def json_string(text: str | bytes) -> str:
    """A JSON string as Go writes it. Bytes that are not UTF-8 become the replacement character."""
    if isinstance(text, bytes):
        text = text.decode("utf-8", "surrogateescape")
    return f'"{_JSON_SPECIAL.sub(_json_escape, text)}"'


def _quote(char: str) -> str:
    code = ord(char)
    if code in _QUOTED:
        return _QUOTED[code]
    if char.isprintable():
        return char
    if 0xDC80 <= code <= 0xDCFF:
        return f"\\x{code - 0xDC00:02x}"
    if code < 0x80:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def _json_escape(match: re.Match[str]) -> str:
    char = match[0]
    if 0xD800 <= ord(char) <= 0xDFFF:
        return r"\ufffd"
    return _JSON_SHORT.get(char) or f"\\u{ord(char):04x}"


def _unescape(match: re.Match[bytes]) -> bytes:
    short, byte, octal, four, eight, wrong = match.groups()
    if short:
        return bytes([_UNQUOTED[short[0]]])
    if byte:
        return bytes([int(byte, 16)])
    if octal:
        return bytes([int(octal, 8)])  # above 0o377 a ValueError
    if wrong is not None:
        raise ValueError("an escape that Go does not know")
    code = int(four or eight, 16)
    if code > 0x10FFFF:
        raise ValueError("not a character")
    return chr(code).encode("utf-8")  # a surrogate is a UnicodeEncodeError


# --------------------------------------------------------------------------------------------------- times
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_FIRST: Final = -62135596800
_LAST: Final = 253402300799
_TIME: Final = re.compile(
    r"(\d{4})-(\d\d)-(\d\d)T(\d\d):(\d\d):(\d\d)(?:\.(\d{1,9}))?(?:Z|([+-])(\d\d):(\d\d))", re.ASCII
).fullmatch
_RESTS: Final = re.compile(r"(?:(?:\.\d{1,9})?Z\n)*", re.ASCII).fullmatch
"""What follows the seconds of times in UTC, one a line."""
NO_TIME: Final = "0001-01-01T00:00:00Z"
"""What Go writes for a time that was never set."""


def format_time(ns: int) -> str:
    """A time as RFC 3339 in UTC with as many digits as it takes; outside the years 1 to 9999 the nearest inside."""
    seconds, rest = divmod(ns, 1_000_000_000)
    if 0 <= seconds <= _LAST and rest:
        if rest % 10:
            return f"{_format_second(seconds)}.{rest:09d}Z"
        return f"{_format_second(seconds)}.{rest:09d}".rstrip("0") + "Z"
    if not _FIRST <= seconds <= _LAST:
        seconds, rest = (_FIRST, 0) if seconds < _FIRST else (_LAST, 999_999_999)
    whole = _format_second(seconds)
    return f"{whole}.{rest:09d}".rstrip("0") + "Z" if rest else f"{whole}Z"


def parse_time(text: str) -> int:
    """Nanoseconds since the epoch of an RFC 3339 time. Raises ``ValueError``."""
    if text[29:] == "Z" and text[19] == "." and text.isascii() and (fraction := text[20:29]).isdigit():  # most are so
        return _parse_second(text[:19]) + int(fraction)
    return _parse_any(text)


def check_times(texts: Collection[str]) -> None:
    """``ValueError`` unless ``parse_time`` takes each of them; faster than to parse them."""
    for second in {text[:19] for text in texts}:
        _parse_second(second)
    rest = "".join([text[19:] + "\n" for text in texts])
    if rest.count("\n") != len(texts) or _RESTS(rest) is None:
        for text in texts:
            parse_time(text)


@lru_cache(maxsize=1 << 16)
def _parse_second(text: str) -> int:
    """Files of one tree share many of their seconds."""
    return _parse_any(text + "Z")


def _parse_any(text: str) -> int:
    match = _TIME(text)
    if match is None:
        raise ValueError(f"not a time: {text[:40]!r}")
    year, month, day, hour, minute, second, fraction, sign, off_hours, off_minutes = match.groups()
    # Go has a year 0, a leap year, and datetime has not: it lies four years, one of them leap, before year 4.
    days = datetime(int(year) or 4, int(month), int(day), tzinfo=UTC).toordinal() - _EPOCH.toordinal()
    if not int(year):
        days -= 4 * 365 + 1
    seconds = ((days * 24 + int(hour)) * 60 + int(minute)) * 60 + int(second)
    if sign:
        offset = int(off_hours) * 3600 + int(off_minutes) * 60
        seconds -= offset if sign == "+" else -offset
    return seconds * 1_000_000_000 + int((fraction or "").ljust(9, "0"))


@lru_cache(maxsize=4096)
def _format_second(seconds: int) -> str:
    return (_EPOCH + timedelta(seconds=seconds)).strftime("%Y-%m-%dT%H:%M:%S").rjust(19, "0")


# --------------------------------------------------------------------------------------------------- modes
_KIND_BITS: Final = {
    stat.S_IFREG: 0,
    stat.S_IFDIR: 1 << 31,
    stat.S_IFLNK: 1 << 27,
    stat.S_IFBLK: 1 << 26,
    stat.S_IFCHR: 1 << 26 | 1 << 21,
    stat.S_IFIFO: 1 << 25,
    stat.S_IFSOCK: 1 << 24,
}
_SPECIAL: Final = ((stat.S_ISUID, 1 << 23), (stat.S_ISGID, 1 << 22), (stat.S_ISVTX, 1 << 20))


@lru_cache(maxsize=4096)
def go_mode(mode: int) -> int:
    """``st_mode`` in Go's bits."""
    special = sum(bit for unix, bit in _SPECIAL if mode & unix)
    return _KIND_BITS[stat.S_IFMT(mode)] | special | mode & 0o777


@lru_cache(maxsize=4096)
def permissions(mode: int) -> int:
    """The permission bits of a mode in Go's bits, set-id and sticky included, as ``chmod`` takes them."""
    return mode & 0o777 | sum(unix for unix, bit in _SPECIAL if mode & bit)
