"""Text as Go writes it, against what the real Go program wrote and against itself."""

from __future__ import annotations

import json
import stat

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cosmos_coherence.repository import gotext


@given(st.binary(max_size=40))
def test_any_name_comes_back(name: bytes) -> None:
    assert gotext.unquote(gotext.quote(name)) == name
    assert gotext.unquote(json.loads(gotext.quoted_name(name))) == name


@given(st.text(max_size=40))
def test_a_json_string_is_one(text: str) -> None:
    written = gotext.json_string(text)
    assert json.loads(written) == "".join("\ufffd" if "\ud800" <= c <= "\udfff" else c for c in text)
    assert not set(written) & set("<>&\u2028\u2029")


@pytest.mark.parametrize(
    ("name", "written"),
    [
        (b"plain-1.txt", '"plain-1.txt"'),
        (b"\x1b[31m", r'"\\x1b[31m"'),
        (b"new\nline", r'"new\\nline"'),
        (b"\xff\xfe not utf-8", r'"\\xff\\xfe not utf-8"'),
        (b"q'uo\"te\\", r'"q' "'" r'uo\\\"te\\\\"'),
        ("<&>\u2028 ü 漢".encode(), r'"\u003c\u0026\u003e\\u2028 ü 漢"'),
        (b"\x7f", r'"\\x7f"'),
        (b"\xed\xa0\x80", r'"\\xed\\xa0\\x80"'),
        ("\U0001f600\u00ad\U000e0001".encode(), '"\U0001f600' r'\\u00ad\\U000e0001"'),
    ],
)
def test_names_as_the_real_one_writes_them(name: bytes, written: str) -> None:
    assert gotext.quoted_name(name) == written


@pytest.mark.parametrize(
    "text", ["\\", "\\q", "\\x1", "\\u12", "\\U00110000", "\\ud800", "\\777", 'a"b', "a\nb", "\ud800"]
)
def test_what_is_no_go_string_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        gotext.unquote(text)


@given(st.integers(-62135596800 * 10**9, 253402300799 * 10**9 + 999_999_999))
def test_a_time_comes_back(ns: int) -> None:
    assert gotext.parse_time(gotext.format_time(ns)) == ns


def test_times_as_the_real_one_writes_them() -> None:
    assert gotext.format_time(1_600_000_000_123_456_790) == "2020-09-13T12:26:40.12345679Z"
    assert gotext.format_time(0) == "1970-01-01T00:00:00Z"
    assert gotext.format_time(-1) == "1969-12-31T23:59:59.999999999Z"
    assert gotext.format_time(1 << 80) == "9999-12-31T23:59:59.999999999Z"
    assert gotext.format_time(-(1 << 80)) == gotext.NO_TIME
    assert gotext.parse_time("2014-12-22T14:47:59.9+01:00") == gotext.parse_time("2014-12-22T13:47:59.9Z")
    assert gotext.parse_time("0000-12-31T00:00:00Z") == gotext.parse_time(gotext.NO_TIME) - 86400 * 10**9
    right = ("2014-12-22T14:47:59.9+01:00", gotext.NO_TIME, "2014-01-01T00:00:00.123456789Z", "2014-01-01T00:00:00.5Z")
    gotext.check_times(right)
    for wrong in (
        "", "now", "2014-13-01T00:00:00Z", "2014-01-01T00:00:00", "2014-01-01 00:00:00Z", "2014-01-01T00:00:00.5",
        "2014-01-01T00:00:00.5Z\n", "2014-01-01T00:00:00Z\nZ", "2014-01-01T00:00:00.1234567890Z",
        "2014-01-01T00:00:00.123456789ZZ", "2014-01-01T00:00:00.12345678\u0663Z", "2014-02-29T00:00:00.123456789Z",
    ):  # fmt: skip
        with pytest.raises(ValueError):
            gotext.parse_time(wrong)
        with pytest.raises(ValueError):
            gotext.check_times((*right, wrong, gotext.NO_TIME))


@given(
    st.sampled_from(
        [stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK, stat.S_IFBLK, stat.S_IFCHR, stat.S_IFIFO, stat.S_IFSOCK]
    ),
    st.integers(0, 0o7777),
)
def test_permissions_survive(kind: int, bits: int) -> None:
    assert gotext.permissions(gotext.go_mode(kind | bits)) == bits
