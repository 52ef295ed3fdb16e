"""Redis and Valkey servers filled, backed up, restored and compared, for the tests of their source."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

from cosmos_coherence.model import Part, SourceRef
from cosmos_coherence.sources import redis_session
from cosmos_coherence.sources.redis import RedisSource
from cosmos_coherence.sources.redis_restore import RedisRestorer
from support.capturing import Step, capture, nothing
from support.local_servers import PASSWORD, Redis
from support.memory_parts import MemoryReader

REF = SourceRef("redis", "redis/redis", service="redis", volume="x_redis")
DUMP = "redis/dump.rdb"
BINARY = bytes(range(256)) + b"\r\n\xff"
SAVE = "3600 1 300 100"
READ = {
    "string": "GET {}", "list": "LRANGE {} 0 -1", "set": "SORT {} ALPHA", "zset": "ZRANGE {} 0 -1 WITHSCORES",
    "hash": "HGETALL {}", "stream": "XRANGE {} - +",
}  # fmt: skip


def fill(server: Redis) -> None:
    """Keys of every type, with and without an expiry, in three logical databases."""
    for command in (
        ["SET", "text", "value ü"],
        ["SET", 'odd key \\ "quoted" ü', "x"],
        ["RPUSH", "list", "a", "b", "a"],
        ["SADD", "set", "a", "b"],
        ["ZADD", "sorted", "1.5", "a", "-2", "b"],
        ["HSET", "hash", "field", "value"],
        ["XADD", "stream", "1-1", "field", "value"],
        ["PFADD", "hll", "a", "b"],
        ["SETBIT", "bits", "1000", "1"],
        ["SET", "later", "x", "EX", "5000"],
        ["-n", "3", "MSET", "a", "1", "b", "2"],
        ["-n", "15", "SET", "only", "x", "EX", "5000"],
    ):
        server.cli(*command)
    server.output(server.client, "-x", "SET", "binary", stdin=BINARY, environment={"REDISCLI_AUTH": PASSWORD})
    server.output(server.client, stdin=b"".join(b"SET n:%d %d\n" % (n, n) for n in range(500)),
                  environment={"REDISCLI_AUTH": PASSWORD})  # fmt: skip


def contents(server: Redis) -> dict[str, bytes]:
    """Every key of every logical database with its value, and when it expires where the server can tell."""
    return {database: database_contents(server, database) for database in ("0", "3", "15")}


def database_contents(server: Redis, database: str) -> bytes:
    def ask(commands: list[str]) -> bytes:
        environment = {"REDISCLI_AUTH": PASSWORD}
        argv = [server.client, "-n", database, "--no-raw"]
        return server.output(*argv, stdin="\n".join(commands).encode(), environment=environment)

    keys = sorted(server.cli("-n", database, "KEYS", "*").decode().splitlines())
    names = [f'"{key}"' for key in (key.replace("\\", "\\\\").replace('"', '\\"') for key in keys)]
    kinds = ask([f"TYPE {name}" for name in names]).decode().split()
    values = ask([READ[kind].format(name) for name, kind in zip(names, kinds, strict=True)])
    expiries = ask([f"EXPIRETIME {name}" for name in names]) if server.release >= (7, 0) else b""
    return "\n".join(names).encode() + values + expiries


def keyspace(server: Redis) -> dict[str, tuple[int, int]]:
    """Keys without and with an expiry."""
    return redis_session.keyspace(server.cli("INFO", "keyspace").decode().splitlines())


@contextmanager
def source(server: Redis, run: str = "") -> Iterator[RedisSource]:
    opened = RedisSource(REF, server, run or uuid4().hex[:12], primary=True)
    try:
        yield opened
    finally:
        opened.close()


def backup(server: Redis, *, prepared: Step = nothing, anchored: Step = nothing) -> tuple[Part, MemoryReader]:
    with source(server) as captured:
        part, sink = capture(captured, prepared=prepared, anchored=anchored)
    return part, sink.reader()


def restorer(part: Part, server: Redis, run: str = "") -> RedisRestorer:
    return RedisRestorer(part, server, "redis", server.data, run or uuid4().hex[:12])


def restore(part: Part, reader: MemoryReader, server: Redis) -> None:
    back = restorer(part, server)
    back.stage(reader)
    server.stop()
    back.swap()
    server.start()
    back.verify()
    back.finish()
    assert leftovers(server.data) == []


def leftovers(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if "cosmos" in path.name]


def names(server: Redis) -> list[str]:
    return sorted(path.name for path in server.data.iterdir())


def quiet(server: Redis) -> tuple[bytes, bytes]:
    return server.cli("CONFIG", "GET", "save"), server.cli("CONFIG", "GET", "auto-aof-rewrite-percentage")
