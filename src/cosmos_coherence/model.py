"""The frozen values that every layer speaks in.

Nothing here does any work: a value says what a stack is, what is to be captured and what came of it. Sizes are
bytes, times are nanoseconds since the epoch (``*_ns``), RFC 3339 text in UTC (``*_at``) or milliseconds (``*_ms``).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import msgspec

ServiceState = Literal["running", "paused", "restarting", "exited", "created", "missing"]
Health = Literal["healthy", "unhealthy", "starting"]
EntryKind = Literal["file", "dir", "symlink", "hardlink", "fifo", "char", "block"]


# ------------------------------------------------------------------------------------------------- the stack
class Mount(msgspec.Struct, frozen=True):
    """One mount of a service: a named volume, a folder of the host, or memory."""

    kind: Literal["volume", "bind", "tmpfs"]
    source: str
    """Full volume name, or absolute path on the host, or empty for memory."""
    target: str
    """Absolute path inside the service."""
    writable: bool = True
    anonymous: bool = False
    """The volume has no name of its own (64 hex digits given by the engine)."""


class Port(msgspec.Struct, frozen=True):
    """A TCP port of a service that is open on the host."""

    address: str
    """Where on the host: ``127.0.0.1``, ``0.0.0.0`` for everywhere."""
    published: int
    """Its number on the host."""
    target: int
    """Its number inside the service."""


class Service(msgspec.Struct, frozen=True):
    """One running or stopped copy of a service: one container, or one local process."""

    name: str
    container: str
    """Container name (docker) or the service's own name (process)."""
    image: str = ""
    digest: str = ""
    """Image by digest, or its id when it was never pushed."""
    command: tuple[str, ...] = ()
    labels: Mapping[str, str] = msgspec.field(default_factory=dict)
    mounts: tuple[Mount, ...] = ()
    state: ServiceState = "running"
    health: Health | None = None
    depends_on: tuple[str, ...] = ()
    project: str = ""
    """The Compose project it belongs to; differs from the stack's for a neighbour."""
    addresses: tuple[str, ...] = ()
    """Its addresses on the stack's networks, to tell its connections from foreign ones."""
    ports: tuple[Port, ...] = ()


class Volume(msgspec.Struct, frozen=True):
    """A named volume of the stack."""

    name: str
    """Full name, as the engine lists it: ``cosmos-coherence_api-cache``."""
    short: str
    """Its name in the Compose file: ``api-cache``."""
    driver: str = "local"
    options: Mapping[str, str] = msgspec.field(default_factory=dict)
    labels: Mapping[str, str] = msgspec.field(default_factory=dict)
    path: Path | None = None
    """Where its files lie; None when they cannot be reached from here."""
    exists: bool = True


class Stack(msgspec.Struct, frozen=True):
    """A Compose project (or a folder of local processes) as it was found."""

    project: str
    runtime: Literal["docker", "process"]
    directory: Path
    """The project's folder."""
    config_files: tuple[Path, ...] = ()
    """The Compose files that were in use, in their order."""
    services: tuple[Service, ...] = ()
    volumes: tuple[Volume, ...] = ()
    neighbours: tuple[Service, ...] = ()
    """Containers outside the project that mount one of its volumes, or can write to a folder that it writes to."""
    networks: tuple[str, ...] = ()
    program: str = ""
    """The container that this program itself runs in, where the engine knows it."""

    def service(self, name: str) -> Service | None:
        """The first copy of the service of that name."""
        return next((s for s in self.services if s.name == name), None)

    def volume(self, name: str) -> Volume | None:
        """The volume of that full or short name."""
        return next((v for v in self.volumes if name in (v.name, v.short)), None)


# ------------------------------------------------------------------------------------------- what is captured
SourceKind = Literal["postgres", "redis", "volume", "files", "sqlite", "config"]


class SourceRef(msgspec.Struct, frozen=True):
    """One thing to capture, before anything was asked of it."""

    kind: SourceKind
    part: str
    """Name of its share in a backup: ``postgres/db``, ``redis/redis``, ``volumes/api-cache``, ``config``."""
    service: str = ""
    """The service that serves it (postgres, redis)."""
    volume: str = ""
    """Full name of the volume (volume), or of the volume its engine keeps its data in (postgres, redis)."""
    path: Path | None = None
    """Folder on the host (files, config), the database itself (sqlite), or the volume's files."""
    exclude: tuple[str, ...] = ()
    """Patterns, relative to the root, that are left out."""


class Gap(msgspec.Struct, frozen=True):
    """Something a backup does not hold, named."""

    what: str
    """``volume cosmos-coherence_x``, ``database db/extra``, ``anonymous volume of api at /tmp/x``."""
    why: str
    size: int | None = None
    chosen: bool = False
    """Left out by the user's own label or setting: shown, and not a fault."""


class Entry(msgspec.Struct, frozen=True):
    """One name in a file tree. Paths are bytes, relative, without ``..``; the root is ``b""``."""

    path: bytes
    kind: EntryKind
    mode: int = 0o644
    uid: int = 0
    gid: int = 0
    mtime_ns: int = 0
    size: int = 0
    target: bytes = b""
    """Where a symlink points, or the path of the file a hard link shares."""
    xattrs: tuple[tuple[str, bytes], ...] = ()
    device: tuple[int, int] = (0, 0)
    data: tuple[tuple[int, int], ...] | None = None
    """For a sparse file: its (offset, length) runs of data; None for a file without holes."""


# --------------------------------------------------------------------------------------------- the manifest
class DatabasePrint(msgspec.Struct, frozen=True):
    """What one database must restore to."""

    tables: Mapping[str, int] = msgspec.field(default_factory=dict)
    """Rows by ``schema.table``."""
    sequences: Mapping[str, int] = msgspec.field(default_factory=dict)
    """Last value by ``schema.sequence``; a sequence that was never called is left out."""


class TreePrint(msgspec.Struct, frozen=True):
    """What a file tree must restore to."""

    files: int = 0
    directories: int = 0
    others: int = 0
    size: int = 0
    """Sum of the file sizes, each hard-linked file once."""
    digest: str = ""
    """SHA-256 over every name with its metadata and content hash, in byte order of the paths."""


class Fingerprint(msgspec.Struct, frozen=True):
    """What a part must restore to; only the fields of its kind are filled."""

    databases: Mapping[str, DatabasePrint] = msgspec.field(default_factory=dict)
    roles: tuple[str, ...] = ()
    keys: Mapping[str, int] = msgspec.field(default_factory=dict)
    """Keys without an expiry, by logical database (``"0"``)."""
    expiring_keys: Mapping[str, int] = msgspec.field(default_factory=dict)
    """Keys with an expiry: an upper bound, since they go by themselves."""
    tree: TreePrint | None = None


class PartFile(msgspec.Struct, frozen=True):
    """One file of a part inside an archive."""

    path: str
    size: int
    sha256: str
    plain_size: int = 0
    """Bytes before compression."""


class Part(msgspec.Struct, frozen=True):
    """One source's share of a backup."""

    name: str
    kind: SourceKind
    files: tuple[PartFile, ...] = ()
    service: str = ""
    volume: str = ""
    anchored_at: str = ""
    version: str = ""
    """Server version, where there is a server."""
    details: Mapping[str, str] = msgspec.field(default_factory=dict)
    fingerprint: Fingerprint = msgspec.field(default_factory=Fingerprint)


class VolumeRecord(msgspec.Struct, frozen=True):
    """How to create a lost volume again."""

    name: str
    short: str
    driver: str = "local"
    options: Mapping[str, str] = msgspec.field(default_factory=dict)
    labels: Mapping[str, str] = msgspec.field(default_factory=dict)


class ServiceRecord(msgspec.Struct, frozen=True):
    """What ran when the backup was made."""

    name: str
    image: str = ""
    digest: str = ""


class Manifest(msgspec.Struct, frozen=True):
    """Everything about one backup; ``manifest.json``. Format 2."""

    id: str
    """UTC second in which the run began, ``YYYYMMDD_HHMMSS``; the name of the archive."""
    project: str
    runtime: str
    instant: str
    """The named moment, RFC 3339 with microseconds, UTC."""
    pause_ms: float
    created_by: str
    format: int = 2
    complete: bool = True
    missing: tuple[Gap, ...] = ()
    parts: tuple[Part, ...] = ()
    volumes: tuple[VolumeRecord, ...] = ()
    services: tuple[ServiceRecord, ...] = ()
    config_files: tuple[str, ...] = ()
    """The Compose files in use, relative to the project's folder, in their order."""
    held: tuple[str, ...] = ()
    """Containers that stood still at the instant."""
    quiet_ms: Mapping[str, float] = msgspec.field(default_factory=dict)
    """Services that were stopped, or held by a command of their own, and for how long; not part of ``pause_ms``."""
    safety: bool = False
    """Made by a restore before it overwrote anything."""
    tags: tuple[str, ...] = ()

    def part(self, name: str) -> Part | None:
        """The part of that name."""
        return next((p for p in self.parts if p.name == name), None)


# -------------------------------------------------------------------------------------------------- the cut
class Quiet(msgspec.Struct, frozen=True):
    """A service that is held by more than a freeze: it is stopped, or commands of its own run around the cut."""

    service: str
    before: str = ""
    """Run in each of its copies before the hold (shell text); empty for none."""
    after: str = ""
    """Run in each of them after the release, whatever happened."""
    stop: bool = False


HoldMeans = Literal["cgroup1", "cgroup2", "engine", "signal"]


class HoldTarget(msgspec.Struct, frozen=True):
    """One container or process that is to stand still, with all that is needed to let go of it again.

    A watchdog that knows nothing but this value can release it: ``cgroup1`` writes ``THAWED`` to
    ``where/freezer.state``, ``cgroup2`` writes ``0`` to ``where/cgroup.freeze``, ``engine`` asks the engine behind the
    unix socket ``where`` to unpause ``id``, ``signal`` sends SIGCONT to the process group ``id`` whose leader started
    at clock tick ``birth`` (a recycled process id is left alone).
    """

    means: HoldMeans
    name: str
    where: str = ""
    id: str = ""
    birth: int = 0


class Measurement(msgspec.Struct, frozen=True):
    """One number about one thing at one moment."""

    taken: float
    """Seconds since the epoch, UTC."""
    subject: str
    """What was measured: ``volume:<full name>``, ``disk:<path>``, ``repository``, ``backup``, ``service:<name>``,
    ``certificate:<name>``, ``run:<verb>``, ``check:<name>``."""
    name: str
    """Which number, with its unit: ``bytes``, ``files``, ``free_bytes``, ``age_seconds``, ``days_left``, ``ok``."""
    value: float
