"""``README.txt``: how to restore an archive by hand, with nothing but tar, gunzip, psql and Docker."""

from __future__ import annotations

import shlex
from collections.abc import Iterator

from cosmos_coherence.archive import names
from cosmos_coherence.model import Manifest, Part, VolumeRecord


def text(manifest: Manifest) -> str:
    """The page, with the real names of this backup in its commands."""
    return "\n".join(_lines(manifest)) + "\n"


def _lines(manifest: Manifest) -> Iterator[str]:
    yield f"Backup {manifest.id} of {manifest.project}: its state at {manifest.instant} (UTC)."
    yield f"Made by {manifest.created_by}."
    if not manifest.complete:
        yield "It is INCOMPLETE; manifest.json names what is missing."
    yield _INTRODUCTION.format(id=manifest.id)
    volumes = {record.name: record for record in manifest.volumes}
    for part in manifest.parts:
        if part.kind == "postgres":
            yield from _postgres(part, manifest)
        elif part.kind == "redis":
            yield from _redis(part)
        elif part.kind == "sqlite":
            yield from _sqlite(part)
        elif part.kind in ("volume", "files"):
            yield from _tree(part, volumes.get(part.volume))
        else:
            yield _CONFIGURATION
    yield _END


_INTRODUCTION = """
Everything here is plain tar, gzip, SQL and RDB. `cosmos restore` does all of the steps below by itself.
The archive holds passwords and keys: keep it private.

Unpack and check it (bash, GNU tar):

    umask 077
    tar -xzpf {id}.tar.gz
    cd {id}
    sha256sum -c SHA256SUMS

In what follows COMPOSE is `docker compose` in the project's folder, and commands run in the folder just unpacked:

    COMPOSE="docker compose --project-directory /path/to/the/project"
"""

_UNPACK = "tar --delay-directory-restore --xattrs --xattrs-include='*' --numeric-owner -p -xzf"

_CONFIGURATION = """
== Configuration (configs/)

The Compose files, `.env` files and what they refer to, as they lay in the project's folder. Put back what you need:

    cp -a configs/. /path/to/the/project/
"""


_END = """
== At the end

    $COMPOSE up -d
"""


def _postgres(part: Part, manifest: Manifest) -> Iterator[str]:
    service = shlex.quote(part.service)
    user = shlex.quote(part.details.get("user", "postgres"))
    yield f"\n== PostgreSQL, service {part.service} {part.version}".rstrip()
    yield "\nStop what uses the database, start the server alone, wait until it answers:\n"
    yield "    $COMPOSE stop"
    yield f"    $COMPOSE up -d --wait --no-deps {service}"
    yield f'    PSQL="$COMPOSE exec -T {service} psql -U {user} -v ON_ERROR_STOP=1"'
    for file in part.files:
        name = names.logical(file.path)
        if name.endswith("globals.sql"):
            yield "\nRoles and tablespaces first. Errors about roles that exist already are expected:\n"
            yield f"    gunzip -c {shlex.quote(file.path)} | $PSQL -v ON_ERROR_STOP=0 -d postgres"
    for file in part.files:
        name = names.logical(file.path)
        if name.endswith("globals.sql"):
            continue
        database = part.details.get("database", "") if name == "database.sql" else name.split("/", 2)[-1]
        yield from _database(database.removesuffix(".sql") or "DATABASE", file.path)


def _database(database: str, path: str) -> Iterator[str]:
    rename = f"ALTER DATABASE {_identifier(database)} RENAME TO {_identifier(database + '.old')};"
    create = f"CREATE DATABASE {_identifier(database)} TEMPLATE template0;"
    yield f"\nDatabase {database}: always into a new, empty one, since onto an existing one the rows would be doubled."
    yield "Move the old one aside if there is one:\n"
    yield f"    echo {shlex.quote(rename)} | $PSQL -d template1"
    yield "\nThen:\n"
    yield f"    echo {shlex.quote(create)} | $PSQL -d template1"
    yield f"    gunzip -c {shlex.quote(path)} | $PSQL -1 -d {shlex.quote(database)}"


def _identifier(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _redis(part: Part) -> Iterator[str]:
    service = shlex.quote(part.service)
    for file in filter(lambda f: names.is_redis_dump(f.path), part.files):
        folder = shlex.quote(names.aof_base(file.path).rpartition("/")[0])
        chown = 'chown -R "$(stat -c %u:%g /data)" /data'
        owner = f"$COMPOSE run --rm --no-deps -T --user root --entrypoint sh {service} -c {shlex.quote(chown)}"
        yield f"\n== Redis or Valkey, service {part.service} {part.version}".rstrip()
        yield "\nWith AOF on (`appendonly yes`), version 7 or later: a copied dump.rdb would be ignored, so replace the"
        yield "folder of the AOF.\n"
        yield f"    $COMPOSE stop {service}"
        yield f"    $COMPOSE run --rm --no-deps -T --entrypoint rm {service} -rf /data/appendonlydir /data/dump.rdb"
        yield f"    $COMPOSE cp {folder} {service}:/data/"
        yield f"    {owner}"
        yield f"    $COMPOSE start {service}"
        yield "\nWithout AOF (with AOF before version 7, copy the dump as /data/appendonly.aof instead):\n"
        yield f"    $COMPOSE stop {service}"
        yield f"    $COMPOSE cp {shlex.quote(file.path)} {service}:/data/dump.rdb"
        yield f"    {owner}"
        yield f"    $COMPOSE start {service}"


def _sqlite(part: Part) -> Iterator[str]:
    place = part.details.get("path", "/the/database")
    old = " ".join(shlex.quote(place + ending) for ending in ("", "-wal", "-journal", "-shm"))
    yield f"\n== SQLite database {place}\n"
    yield "As root, with GNU tar; everything that uses it is stopped. What lies beside the old one must go with it:\n"
    yield f"    rm -f {old}"
    for file in part.files:
        folder = shlex.quote(place.rpartition("/")[0] or ".")
        yield f"    {_UNPACK} {shlex.quote(file.path)} --no-overwrite-dir -C {folder}"


def _tree(part: Part, record: VolumeRecord | None) -> Iterator[str]:
    for file in part.files:
        path = shlex.quote(file.path)
        if part.kind == "files":
            target = shlex.quote(part.details.get("path", "/the/folder"))
            yield f"\n== Folder {part.details.get('path', part.name)}\n"
            yield "As root, with GNU tar, into an empty folder; everything that uses it is stopped:\n"
            yield f"    {_UNPACK} {path} -C {target}"
            continue
        volume = shlex.quote(part.volume)
        create = ["docker", "volume", "create"]
        if record is not None:
            create += ["--driver", record.driver]
            create += [a for k, v in sorted(record.options.items()) for a in ("--opt", f"{k}={v}")]
            create += [a for k, v in sorted(record.labels.items()) for a in ("--label", f"{k}={v}")]
        yield f"\n== Volume {part.volume}\n"
        yield "Everything that uses it is stopped. Create it if lost, empty it, fill it (any image with GNU tar):\n"
        yield f"    {shlex.join([*create, part.volume])}"
        yield f"    docker run --rm -v {volume}:/target debian:bookworm-slim find /target -mindepth 1 -delete"
        yield f'    docker run --rm -v {volume}:/target -v "$PWD:/backup:ro" debian:bookworm-slim \\'
        yield f"        {_UNPACK} /backup/{path} -C /target"
