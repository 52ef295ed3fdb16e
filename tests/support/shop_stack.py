"""A stack that is not ours, on a real engine: PostgreSQL 15, Redis 7 with AOF, and a writer that never stops.

The writer puts the same growing sequence into the database, the cache and a file of a volume, one after another; so
the three stores of a backup are from one instant exactly when none of them is ahead of its order by more than one.

Whenever its container starts, the writer waits at a gate. So whatever a restore brings back can be read before the
writer runs and completes the stores that are behind, which would hide a skew.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from cosmos_coherence.flow import demo_writer
from support import docker_stack, trees
from support.program import SOURCE
from support.waiting import eventually

ROOT = SOURCE.parent
PROGRAM_IMAGE = "cosmos-coherence:latest"
WRITER_IMAGE = "cosmos-test-writer:latest"
WRITERS = 4
PASSWORD = "not-a-secret-1f9"
_DOCKERFILE = f"""
FROM python:3.11-slim
RUN apt-get update -qq && apt-get install -y -qq --no-install-recommends postgresql-client >/dev/null
COPY --from={PROGRAM_IMAGE} /opt/cosmos /opt/cosmos
ENV PATH=/opt/cosmos/bin:/usr/local/bin:/usr/bin:/bin
"""
_COMPOSE = """
name: {project}
services:
  db:
    image: ${{POSTGRES_IMAGE:-postgres:15}}
    environment: {{POSTGRES_USER: shop, POSTGRES_DB: shop, POSTGRES_PASSWORD_FILE: /run/secrets/password}}
    secrets: [password]
    volumes: ["pg:/var/lib/postgresql/data"]
    healthcheck:
      {{test: ["CMD", "pg_isready", "-q", "-h", "127.0.0.1", "-U", "shop"], interval: 1s, retries: 60}}
  cache:
    image: redis:7
    command: ["redis-server", "--appendonly", "yes"]
    volumes: ["kv:/data"]
    healthcheck: {{test: ["CMD-SHELL", "redis-cli ping | grep -q PONG"], interval: 1s, retries: 60}}
  writer:
    image: {writer}
    init: true
    command:
      - sh
      - -c
      - |
        export PGPASSWORD="$$(cat /run/secrets/password)"
        until [ -e /gate/open ]; do sleep 0.05; done
        exec python3 -m cosmos_coherence.flow.demo_writer --folder /files --writers {writers} --rate {rate}
    environment: {{PGHOST: db, PGUSER: shop, PGDATABASE: shop, REDIS_HOST: cache, REDIS_PORT: "6379"}}
    secrets: [password]
    tmpfs: [/gate]
    volumes: ["files:/files", "./uploads:/uploads"]
    depends_on: {{db: {{condition: service_healthy}}, cache: {{condition: service_healthy}}}}
volumes: {{pg: {{}}, kv: {{}}, files: {{}}}}
secrets: {{password: {{file: ./secrets/password}}}}
"""
_SEED = """
CREATE ROLE clerk LOGIN PASSWORD 'x';
CREATE DATABASE ledger OWNER clerk;
\\c ledger
SET ROLE clerk;
CREATE TABLE entry (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, body jsonb, stored bytea);
INSERT INTO entry (body, stored)
  SELECT jsonb_build_object('n', n, 'text', repeat('ü' || n, 20)), decode(md5(n::text), 'hex')
  FROM generate_series(1, 20000) n;
CREATE VIEW big AS SELECT count(*) FROM entry;
"""
_KEY_SUMS = """
local read = {
  string = function(key) return {redis.call('GET', key)} end,
  list = function(key) return redis.call('LRANGE', key, 0, -1) end,
  set = function(key) return redis.call('SORT', key, 'ALPHA') end,
  zset = function(key) return redis.call('ZRANGE', key, 0, -1, 'WITHSCORES') end,
  hash = function(key)
    local fields = redis.call('HKEYS', key)
    table.sort(fields)
    return {table.concat(fields, ','), unpack(redis.call('HMGET', key, unpack(fields)))}
  end,
  stream = function(key) return {cjson.encode(redis.call('XRANGE', key, '-', '+'))} end,
}
local lines = {}
for _, key in ipairs(redis.call('KEYS', '*')) do
  local kind = redis.call('TYPE', key).ok
  local content = redis.sha1hex(table.concat(read[kind](key), ','))
  lines[#lines + 1] = table.concat({key, kind, content, redis.call('PEXPIRETIME', key)}, ' ')
end
table.sort(lines)
return lines
"""


@dataclass(frozen=True)
class Found:
    """How far the stores have come with one writer."""

    database: int
    cache: int
    file: int

    @property
    def of_one_instant(self) -> bool:
        return self.database >= self.cache >= self.file and self.database - self.file <= 1


@dataclass(frozen=True)
class ShopStack:
    """The stack in a folder, and the engine that its commands talk to."""

    folder: Path
    project: str
    environment: Mapping[str, str] = field(default_factory=dict)

    def run(self, *argv: str, check: bool = True, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
        """A command in the folder."""
        done = subprocess.run(
            argv,
            cwd=self.folder,
            env={**os.environ, **self.environment},
            capture_output=True,
            text=True,
            timeout=240,
            **({"stdin": subprocess.DEVNULL} if stdin is None else {"input": stdin}),
        )
        if check and done.returncode:
            raise AssertionError(f"{' '.join(argv)} ended with {done.returncode}\n{done.stdout}\n{done.stderr}")
        return done

    def compose(self, *argv: str, stdin: str | None = None) -> str:
        """What ``docker compose`` says."""
        return self.run("docker", "compose", *argv, stdin=stdin).stdout

    def cosmos(self, *argv: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """The program, as a person in this folder calls it."""
        return self.run(sys.executable, "-m", "cosmos_coherence.cli.main", *argv, check=check)

    def write(self, *, up: bool = True) -> None:
        """Bring it up, let the writer write, and return when it does."""
        if up:
            self.compose("up", "-d", "--wait")
        before = sum(self.reached().values())
        self.compose("exec", "-T", "writer", "touch", "/gate/open")
        assert eventually(lambda: sum(self.reached().values()) > before + 200, within_s=120)

    def sql(self, statement: str, database: str = "shop") -> str:
        """The rows that a statement answers."""
        argv = ("exec", "-T", "db", "psql", "-XAtq", "-v", "ON_ERROR_STOP=1", "-U", "shop", database)
        return self.compose(*argv, stdin=statement).rstrip("\n")

    def redis(self, *words: str, stdin: str | None = None) -> str:
        """What ``redis-cli`` says."""
        return self.compose("exec", "-T", "cache", "redis-cli", *words, stdin=stdin).rstrip("\n")

    def volume(self, name: str) -> Path:
        """Where the files of a volume are."""
        found = self.run("docker", "volume", "inspect", "-f", "{{.Mountpoint}}", f"{self.project}_{name}").stdout
        return Path(found.strip())

    def reached(self) -> dict[int, int]:
        """How far each writer has come in the database."""
        if not self.sql(f"SELECT to_regclass('{demo_writer.TABLE}')"):
            return {}
        rows = self.sql(f"SELECT writer, max(k) FROM {demo_writer.TABLE} GROUP BY writer").splitlines()
        return {int(writer): int(k) for writer, k in (row.split("|") for row in rows)}

    def sequences(self) -> dict[int, Found]:
        """Row by row, key by key, line by line; a value that is not what its number says fails here."""
        table = self.sql(f"SELECT writer, k, payload FROM {demo_writer.TABLE} ORDER BY writer, k").splitlines()
        names = self.redis("--scan", "--pattern", "seq:*").splitlines()
        values = self.redis(stdin="".join(f"GET {name}\n" for name in names)).splitlines()
        keys = dict(zip(names, values, strict=True))
        found, expected = {}, {}
        for writer in range(WRITERS):
            rows = [row.split("|", 1)[1] for row in table if row.startswith(f"{writer}|")]
            assert rows == [f"{k}|{demo_writer.payload(writer, k)}" for k in range(1, len(rows) + 1)], "a row"
            in_cache = int(keys[demo_writer.counter_key(writer)])
            expected[demo_writer.counter_key(writer)] = str(in_cache)
            for k in range(1, in_cache + 1):
                expected[demo_writer.entry_key(writer, k)] = demo_writer.payload(writer, k)
            # between the two commands of one write the entry is there without the counter
            spare = demo_writer.entry_key(writer, in_cache + 1)
            assert keys.pop(spare, demo_writer.payload(writer, in_cache + 1)) == demo_writer.payload(
                writer, in_cache + 1
            )
            lines = (self.volume("files") / demo_writer.log_name(writer)).read_bytes()
            in_file = lines.count(b"\n")
            assert lines == b"".join(demo_writer.log_line(writer, k) for k in range(1, in_file + 1)), "a line"
            found[writer] = Found(len(rows), in_cache, in_file)
        assert keys == expected, "keys"
        return found

    def standing(self) -> dict[str, Any]:
        """Everything that the writer does not touch, read without the program under test."""
        dump = self.compose("exec", "-T", "db", "pg_dumpall", "-U", "shop", "--exclude-database=shop")
        files = trees.looks(self.volume("files"))
        for writer in range(WRITERS):
            files.pop(demo_writer.log_name(writer).encode(), None)
        return {
            "ledger and roles": [line for line in dump.splitlines() if not re.match(_OF_THIS_SERVER, line)],
            "keys": self.redis("-n", "1", "EVAL", _KEY_SUMS, "0").splitlines(),
            "files": files,
            "uploads": trees.looks(self.folder / "uploads"),
        }

    def configuration(self) -> dict[str, tuple[int, str]]:
        """Mode and sum of each of the project's own files."""
        names = [p for p in self.folder.rglob("*") if p.is_file() and p.relative_to(self.folder).parts[0] not in _DATA]
        return {
            str(p.relative_to(self.folder)): (p.stat().st_mode, hashlib.sha256(p.read_bytes()).hexdigest())
            for p in names
        }

    def seed(self) -> None:
        """Put in what the writer does not touch."""
        self.sql(_SEED)
        words = [f"SET plain:{n} {'v' * n}" for n in range(300)]
        words += [f"RPUSH list {n}" for n in range(200)] + [f"HSET hash f{n} {n}" for n in range(200)]
        words += ["ZADD sorted 1.5 a 2.5 b", "SADD set a b c", "XADD stream 1-1 field value", "SET mortal x EX 99999"]
        self.redis("-n", "1", stdin="".join(f"{word}\n" for word in words))
        tree = self.volume("files") / "tree"
        tree.mkdir()
        trees.odd_tree(tree)
        (self.folder / "uploads" / "picture").write_bytes(os.urandom(20_000_000))

    def on(self, host: str, folder: Path) -> ShopStack:
        """The same project in another folder, on another engine."""
        return ShopStack(folder, self.project, {**self.environment, "DOCKER_HOST": host})


_DATA = ("uploads", "backups")
_OF_THIS_SERVER = r"\\(un)?restrict |ALTER ROLE shop "
"""A dump's own token, and the role that every new server gets with a salt of its own."""


def lay_out(folder: Path, project: str, *, rate: int = 50) -> None:
    """The project's files."""
    (folder / "uploads").mkdir()
    (folder / "secrets").mkdir()
    (folder / "secrets").chmod(0o700)
    (folder / "secrets" / "password").write_text(PASSWORD)
    (folder / ".env").write_text("POSTGRES_IMAGE=postgres:15\n")
    (folder / ".env").chmod(0o600)
    text = _COMPOSE.format(project=project, writer=WRITER_IMAGE, writers=WRITERS, rate=rate)
    (folder / "compose.yaml").write_text(text)


@contextlib.contextmanager
def shop_stack(*, environment: Mapping[str, str] | None = None) -> Iterator[ShopStack]:
    """Up, healthy and seeded, the gate still closed; everything that it made is gone afterwards."""
    folder = Path(tempfile.mkdtemp(prefix="cosmos-shop-", dir="/var/tmp"))
    project = f"cosmos-test-shop-{uuid.uuid4().hex[:8]}"
    clean = {"DOCKER_BUILDKIT": "0", "DOCKER_HOST": docker_stack.HOST, "PYTHONPATH": str(SOURCE)}
    stack = ShopStack(folder, project, {**clean, **(environment or {})})
    try:
        writer_image(stack)
        lay_out(folder, project)
        stack.compose("up", "-d", "--wait")
        stack.seed()
        yield stack
    finally:
        stack.run("docker", "compose", "-p", project, "down", "-v", "--timeout", "2", check=False)
        stack.run("docker", "volume", "rm", f"{project}_cosmos-state", check=False)
        shutil.rmtree(folder, ignore_errors=True)


def writer_image(stack: ShopStack) -> None:
    """See that the writer's image is there and of this source; quick when nothing has changed."""
    if stack.run("docker", "image", "inspect", PROGRAM_IMAGE, check=False).returncode:
        stack.run("docker", "build", "-q", "--network", "host", "-t", PROGRAM_IMAGE, str(ROOT))
    stack.run("docker", "build", "-q", "--network", "host", "-t", WRITER_IMAGE, "-", stdin=_DOCKERFILE)


def one_round(shop: ShopStack) -> float:
    """Backup while the writer writes, ``down -v``, restore, compare while it waits; the pause in milliseconds."""
    standing = shop.standing()
    began = shop.reached()
    saved = json.loads(shop.cosmos("backup", "--json").stdout)
    assert saved["status"] == "done"
    ended = shop.reached()
    assert sum(ended.values()) > sum(began.values()), "nobody wrote meanwhile"
    shop.compose("down", "-v", "--timeout", "2")
    (shop.folder / "uploads" / "picture").unlink()

    restored = json.loads(shop.cosmos("restore", saved["backup"], "--yes", "--json").stdout)
    assert restored["status"] == "done"
    found = shop.sequences()
    assert all(one.of_one_instant for one in found.values()), found
    assert all(began[w] <= found[w].database <= ended[w] for w in found), (began, found, ended)
    assert shop.standing() == standing
    states = json.loads(shop.run("docker", "compose", "ps", "--format", "json", "writer").stdout.splitlines()[0])
    assert states["State"] == "running"

    manifest = json.loads(shop.cosmos("show", saved["backup"], "--json").stdout)
    assert manifest["pause_ms"] == pytest.approx(saved["pause_ms"], abs=0.01)
    assert manifest["held"] == [f"{shop.project}-writer-1"]
    return float(manifest["pause_ms"])
