"""The demo's proof: what is in the stores is read with other means than those that restored it, and compared."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TypeVar

import msgspec

from cosmos_coherence.drivers.embedded import DATABASE
from cosmos_coherence.drivers.local import LocalRuntime
from cosmos_coherence.flow import demo_writer
from cosmos_coherence.sources import tree_print

_KEY_DIGESTS = """
local lines, cursor = {}, '0'
repeat
  local found = redis.call('SCAN', cursor, 'COUNT', 1000)
  cursor = found[1]
  for _, key in ipairs(found[2]) do
    local kind = redis.call('TYPE', key).ok
    local value
    if kind == 'string' then value = {redis.call('GET', key)}
    elseif kind == 'list' then value = redis.call('LRANGE', key, 0, -1)
    elseif kind == 'set' then value = redis.call('SMEMBERS', key); table.sort(value)
    elseif kind == 'zset' then value = redis.call('ZRANGE', key, 0, -1, 'WITHSCORES')
    elseif kind == 'hash' then
      local flat = redis.call('HGETALL', key)
      value = {}
      for i = 1, #flat, 2 do value[#value + 1] = #flat[i] .. ':' .. flat[i] .. flat[i + 1] end
      table.sort(value)
    else
      value = {cjson.encode(redis.call('XRANGE', key, '-', '+'))}
    end
    local parts = {kind, redis.call('PTTL', key) > 0 and 'expires' or 'stays'}
    for _, item in ipairs(value) do parts[#parts + 1] = #item .. ':' .. item end
    lines[#lines + 1] = redis.sha1hex(key) .. ' ' .. redis.sha1hex(table.concat(parts, ' '))
  end
until cursor == '0'
return lines
"""
"""One line for each key: hash of its name, hash of its type, whether it expires, and its content in a fixed order."""


N = TypeVar("N", str, bytes)


class Ballast(msgspec.Struct, frozen=True):
    """What does not change while the demo runs: a digest for each table, key and file."""

    tables: Mapping[str, str]
    rows: int
    keys: Mapping[str, str]
    files: Mapping[bytes, str]


class Proof(msgspec.Struct, frozen=True):
    """What was found, and everything that is not as it must be."""

    rows: int
    keys: int
    files: int
    bytes: int
    written_after: int
    faults: tuple[str, ...]


def ballast(runtime: LocalRuntime) -> Ballast:
    """Read all of it; before the writer has begun."""
    tables, rows = _tables(runtime)
    keys = {**_keys(runtime, 0), **_keys(runtime, 1)} if runtime.stack().service("redis") else {}
    return Ballast(tables, rows, keys, _files(runtime))


def reached(runtime: LocalRuntime) -> Mapping[int, int]:
    """The last ``k`` of each writer in the database."""
    answer = _psql(runtime, f"SELECT writer, max(k) FROM {demo_writer.TABLE} GROUP BY writer ORDER BY writer")
    return {int(writer): int(k) for writer, k in (line.split(b"|") for line in answer.splitlines())}


def compare(runtime: LocalRuntime, before: Ballast, written: Mapping[int, int]) -> Proof:
    """Row by row, key by key, byte by byte; and the three stores agree on one instant for every writer.

    ``written``: how far each writer had come before the disaster.
    """
    faults: list[str] = []
    tables, rows = _tables(runtime)
    faults += _unequal("table", before.tables, tables)
    files = _files(runtime)
    faults += _unequal("file", before.files, files)
    has_redis = runtime.stack().service("redis") is not None
    first, second = (_keys(runtime, 0), _keys(runtime, 1)) if has_redis else ({}, {})
    keys = {**first, **second}

    last = reached(runtime)
    sequence_rows, expected_keys = 0, dict(before.keys)
    faults += [f"writer {writer} is gone" for writer in written if writer not in last]
    for writer, in_database in last.items():
        faults += _rows_of(runtime, writer, in_database)
        sequence_rows += in_database
        in_file, line_faults = _lines_of(runtime, writer)
        faults += line_faults
        in_redis = _last_in_redis(runtime, writer) if has_redis else in_file
        if not (in_database >= in_redis >= in_file and in_database - in_file <= 1):
            faults.append(
                f"writer {writer}: the stores are from different moments: database {in_database}, "
                f"cache {in_redis}, file {in_file}"
            )
        if has_redis:
            expected_keys |= _sequence_keys(runtime, writer, in_redis)
    # a crash between the two commands of one write may leave the entry without the counter
    spare = {_name(demo_writer.entry_key(w, _last_in_redis(runtime, w) + 1)) for w in last} if has_redis else set()
    found_keys = {k: v for k, v in keys.items() if k in expected_keys or k not in spare}
    faults += _unequal("key", expected_keys, found_keys)
    size = sum(p.stat().st_size for p in _root(runtime).rglob("*") if p.is_file() and not p.is_symlink())
    return Proof(
        rows=rows + sequence_rows,
        keys=len(keys),
        files=len(files) + len(last),
        bytes=size,
        written_after=sum(written.values()) - sum(last.values()),
        faults=tuple(faults),
    )


# ------------------------------------------------------------------------------------------------------- the stores
def _psql(runtime: LocalRuntime, statement: str) -> bytes:
    argv = ["psql", "--no-psqlrc", "--quiet", "--no-align", "--tuples-only", "--set=ON_ERROR_STOP=1"]
    with runtime.run("db", [*argv, f"--dbname={DATABASE}", f"--command={statement}"]) as child:
        return child.stdout.read()


def _tables(runtime: LocalRuntime) -> tuple[dict[str, str], int]:
    listed = _psql(
        runtime,
        "SELECT format('%I.%I', schemaname, tablename) FROM pg_tables WHERE schemaname = 'ballast' ORDER BY 1",
    )
    digests, rows = {}, 0
    for name in listed.decode().splitlines():
        content = _psql(runtime, f'COPY (SELECT t.* FROM {name} t ORDER BY t::text COLLATE "C") TO STDOUT')
        digests[name] = hashlib.sha256(content).hexdigest()
        rows += content.count(b"\n")
    return digests, rows


def _rows_of(runtime: LocalRuntime, writer: int, last: int) -> Iterator[str]:
    content = _psql(
        runtime, f"COPY (SELECT k, payload FROM {demo_writer.TABLE} WHERE writer = {writer} ORDER BY k) TO STDOUT"
    )
    expected = b"".join(b"%d\t%s\n" % (k, demo_writer.payload(writer, k).encode()) for k in range(1, last + 1))
    if content != expected:
        yield f"rows of writer {writer} differ"


def _keys(runtime: LocalRuntime, number: int) -> dict[str, str]:
    with runtime.run("redis", ["redis-cli", "--raw", "-n", str(number), "EVAL", _KEY_DIGESTS, "0"]) as child:
        lines = child.stdout.read().decode().split("\n")
    return dict(line.split(" ", 1) for line in lines if " " in line)


def _last_in_redis(runtime: LocalRuntime, writer: int) -> int:
    with runtime.run("redis", ["redis-cli", "--raw", "GET", demo_writer.counter_key(writer)]) as child:
        return int(child.stdout.read().strip() or 0)


def _sequence_keys(runtime: LocalRuntime, writer: int, last: int) -> dict[str, str]:
    expected = {
        _name(demo_writer.entry_key(writer, k)): _text(demo_writer.payload(writer, k)) for k in range(1, last + 1)
    }
    return expected | {_name(demo_writer.counter_key(writer)): _text(str(last))}


def _name(key: str) -> str:
    return hashlib.sha1(key.encode(), usedforsecurity=False).hexdigest()


def _text(value: str) -> str:
    return hashlib.sha1(f"string stays {len(value)}:{value}".encode(), usedforsecurity=False).hexdigest()


def _lines_of(runtime: LocalRuntime, writer: int) -> tuple[int, list[str]]:
    content = (_root(runtime) / demo_writer.log_name(writer)).read_bytes()
    last = content.count(b"\n")
    expected = b"".join(demo_writer.log_line(writer, k) for k in range(1, last + 1))
    return last, [] if content == expected else [f"lines of writer {writer} differ"]


def _files(runtime: LocalRuntime) -> dict[bytes, str]:
    return {
        e.path: tree_print.line_digest(e, digest) for e, digest in tree_print.hashed_tree(_root(runtime) / "ballast")
    }


def _root(runtime: LocalRuntime) -> Path:
    volume = runtime.stack().volume("files")
    assert volume and volume.path
    return volume.path


def _unequal(what: str, expected: Mapping[N, str], found: Mapping[N, str]) -> list[str]:
    names = {name for name, _ in expected.items() ^ found.items()}
    shown = ", ".join(sorted(str(n) for n in names)[:5])
    return [f"{len(names)} {what}s differ: {shown}"] if names else []
