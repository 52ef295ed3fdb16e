"""The one declaration of settings: ``cosmos.toml``, environment ``COSMOS_*``, and the options of a call.

This is the only module that reads the environment. Everything below the fronts receives values. All faults are
reported together, each with its path.
"""

from __future__ import annotations

import os
import re
import shlex
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from msgspec import Meta

from cosmos_coherence import errors, tables
from cosmos_coherence.tables import Table, Written

_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}


def seconds(text: object) -> float:
    """``1s``, ``250ms``, ``7d`` or a bare number of seconds, as seconds. ``ValueError`` for anything else."""
    if isinstance(text, int | float) and not isinstance(text, bool):
        return float(text)
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(ms|s|m|h|d|w)\s*", str(text))
    if not found:
        raise ValueError("a duration is written like 500ms, 1s, 10m, 12h or 7d")
    return float(found[1]) * _UNITS[found[2]]


Duration = Annotated[float, Written(seconds)]


def words(value: object) -> object:
    """A line, which is all that the environment can hold, as the words that a shell would make of it."""
    return tuple(shlex.split(value)) if isinstance(value, str) else value


Command = Annotated[tuple[str, ...], Written(words)]


def share(text: object) -> float:
    """``1%``, ``all`` or a number from 0 to 1, as a number. ``ValueError`` for anything else."""
    if text == "all":
        return 1.0
    try:
        found = float(str(text).removesuffix("%")) / (100 if str(text).endswith("%") else 1)
    except ValueError:
        found = -1.0
    if not 0 <= found <= 1:
        raise ValueError(f"{text} is no share: it is written like 1%, 0.05 or all")
    return found


Share = Annotated[float, Written(share)]


class StackSettings(Table, frozen=True):
    """``[stack]``: which stack, and what runs it."""

    project: str = ""
    """Compose project; empty means the one of this folder."""
    runtime: Literal["docker", "process"] = "docker"
    directory: Path = Path()


class SourceSettings(Table, frozen=True):
    """``[[source]]``: what discovery cannot know."""

    kind: Literal["postgres", "redis", "volume", "files", "sqlite"]
    name: Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")]
    path: Path | None = None
    service: str = ""
    exclude: tuple[str, ...] = ()


class CutSettings(Table, frozen=True):
    """``[cut]``: how long the writers may stand still."""

    max_pause: Duration = 1.0
    attempts: Annotated[int, Meta(ge=1, le=20)] = 3


class BackupSettings(Table, frozen=True):
    """``[backup]``: where archives lie and what the run may use of the machine."""

    directory: Path = Path("backups")
    archive: bool = False
    """Whether an archive is made as well when backups go to a repository."""
    workers: Annotated[int, Meta(ge=1, le=64)] = 2
    nice: Annotated[int, Meta(ge=0, le=19)] = 10
    idle_io: bool = True
    min_free: Annotated[int, Meta(ge=0)] = 256 * 1024 * 1024
    """Bytes that must stay free on the disk of the archives."""


class RepositorySettings(Table, frozen=True):
    """``[repository]``: where backups are kept deduplicated and encrypted. Without a URL, archives are all there is.

    Secrets are named, not written: each is the first line of a file, or what a command prints.
    """

    url: str = ""
    """A path, ``s3://bucket/prefix``, ``sftp://user@host/path``, ``rest:https://host/path``."""
    password_file: Path | None = None
    password_command: Command = ()
    s3_key_id: str = ""
    s3_secret_file: Path | None = None
    s3_endpoint: str = ""
    """``https://host[:port]``; Amazon's own when empty."""
    s3_region: str = "us-east-1"
    sftp_key: Path | None = None
    sftp_known_hosts: Path | None = None
    rest_user: str = ""
    rest_password_file: Path | None = None
    ca: Path | None = None
    """Certificates of an authority that the machine does not know."""
    upload_limit: Annotated[int, Meta(gt=0)] | None = None
    download_limit: Annotated[int, Meta(gt=0)] | None = None
    """Bytes per second."""


class RetentionSettings(Table, frozen=True):
    """``[retention]``: how long backups are kept."""

    keep_within: Duration = 7 * 86400.0


class ScheduleSettings(Table, frozen=True):
    """``[schedule]``: what the agent does when, in cron form; ``off`` is never."""

    backup: str = "0 2 * * *"
    forget: str = "off"
    """Beside the removal of what is too old after every good backup."""
    prune: str = "off"
    check: str = "30 4 * * *"
    measure: str = "*/15 * * * *"
    timezone: str = "UTC"
    """The zone of all these expressions."""
    jitter: Duration = 0.0
    """Each job of each host begins later than its expression says by an amount of its own, at most this."""
    check_data: Share = 0.01
    """Share of the repository's data that a check reads."""


class HistorySettings(Table, frozen=True):
    """``[history]``: how long measurements are kept, and how closely."""

    every: Duration = 2 * 86400.0
    """Every measurement that is younger than this."""
    hourly: Duration = 30 * 86400.0
    """Then, up to this age, of each hour the last, the lowest and the highest."""
    daily: Duration = 730 * 86400.0
    """Then the same of each day, and nothing older."""
    spool: Annotated[int, Meta(ge=1024 * 1024)] = 64 * 1024 * 1024
    """Bytes of measurements that may wait while the database is down; beyond it the oldest go."""

    def __post_init__(self) -> None:
        if not self.every <= self.hourly <= self.daily:
            raise ValueError("every, hourly and daily must grow in this order")


class AlarmSettings(Table, frozen=True):
    """``[alarms]``: what is an alarm."""

    usage: Annotated[float, Meta(gt=0.05, le=1.0)] = 0.80
    """Share of a disk in use."""
    days_left: Annotated[float, Meta(gt=0)] = 7.0
    """Days until a disk is full."""
    backup_age: Duration = 26 * 3600.0
    """Of the newest complete backup."""
    proof_age: Duration = 0.0
    """Of the newest proof; 0 for no such alarm."""
    certificate_days: Annotated[float, Meta(gt=0)] = 14.0
    repeat: Annotated[Duration, Meta(ge=3600.0)] = 24 * 3600.0
    """An alarm that lasts is told again after this, never sooner."""


class NotifySettings(Table, frozen=True):
    """``[notify]``: who is told. Addresses are secrets: each lies in a file."""

    urls_file: Path | None = None
    """One apprise URL a line; lines that begin with ``#`` are passed over."""
    ping_url_file: Path | None = None
    """The first line is an URL that is asked after each backup, ``/fail`` appended when it is not good."""
    limit: Annotated[Duration, Meta(gt=0, le=120.0)] = 20.0
    """How long a notifier may take."""


Fullness = Annotated[float, Meta(gt=0, le=1)]


class HealthSettings(Table, frozen=True):
    """``[health]``: what is asked besides what the stack says of itself, and from when on a finding is one."""

    limit: Annotated[Duration, Meta(gt=0)] = 5.0
    """How long a check may take."""
    urls: Command = ()
    """Further addresses that have to answer: ``https://shop.example.org/health``."""
    volume_warn: Fullness = 0.80
    volume_fail: Fullness = 0.95
    """How full a volume, its disk, or the inodes of that may be."""
    certificate_warn: Duration = 21 * 86400.0
    certificate_fail: Duration = 3 * 86400.0
    """What must be left of a certificate."""
    backup_warn: Duration = 26 * 3600.0
    backup_fail: Duration = 52 * 3600.0
    """How old the newest complete backup may be; a daily one is late after 26 hours."""
    proof_warn: Duration = 35 * 86400.0


class AuditSettings(Table, frozen=True):
    """``[audit]``: which rules are known and left as they are."""

    ignore: Command = ()
    """Ids of rules; they are shown as ignored."""


class Settings(Table, frozen=True):
    """All settings. Nothing is needed for the reference stack."""

    stack: StackSettings = StackSettings()
    source: tuple[SourceSettings, ...] = ()
    cut: CutSettings = CutSettings()
    backup: BackupSettings = BackupSettings()
    repository: RepositorySettings = RepositorySettings()
    retention: RetentionSettings = RetentionSettings()
    schedule: ScheduleSettings = ScheduleSettings()
    history: HistorySettings = HistorySettings()
    alarms: AlarmSettings = AlarmSettings()
    notify: NotifySettings = NotifySettings()
    health: HealthSettings = HealthSettings()
    audit: AuditSettings = AuditSettings()
    image: str = "cosmos-coherence:latest"
    """Image of this program, for the times it has to run beside the volumes."""
    docker_host: str = ""
    state_directory: Path | None = None


_PLAIN = {"COSMOS_IMAGE": ("image",), "DOCKER_HOST": ("docker_host",), "COSMOS_STATE_DIRECTORY": ("state_directory",),
          "COSMOS_PROJECT": ("stack", "project"), "COSMOS_RUNTIME": ("stack", "runtime"),
          "COMPOSE_PROJECT_NAME": ("stack", "project"),
          "COSMOS_NOTIFY_URLS_FILE": ("notify", "urls_file"),
          "COSMOS_NOTIFY_PING_URL_FILE": ("notify", "ping_url_file")}  # fmt: skip


def repository_password(environ: Mapping[str, str] | None = None) -> str | None:
    """``COSMOS_REPOSITORY_PASSWORD``; everywhere else a password lies in a file or is printed by a command."""
    return (os.environ if environ is None else environ).get("COSMOS_REPOSITORY_PASSWORD")


def ssh_agent(environ: Mapping[str, str] | None = None) -> Path | None:
    """The socket of the user's SSH agent."""
    found = (os.environ if environ is None else environ).get("SSH_AUTH_SOCK")
    return Path(found) if found else None


def environment() -> Mapping[str, str]:
    """The process's environment, for the driver that starts other programs."""
    return dict(os.environ)


def load(folder: Path, *, file: Path | None = None, environ: Mapping[str, str] | None = None, **given: Any) -> Settings:
    """Read ``cosmos.toml`` of ``folder`` (or ``file``), then the environment, then ``given`` (dotted by ``__``).

    ``COSMOS_CUT__MAX_PAUSE=2s`` sets ``cut.max_pause``. Raises ``ConfigurationError`` naming every fault.
    """
    environ = os.environ if environ is None else environ
    path = file or folder / "cosmos.toml"
    data: dict[str, Any] = {}
    if path.exists() or file is not None:
        try:
            data = tomllib.loads(path.read_text("utf-8"))
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise errors.ConfigurationError(f"{path} cannot be read: {error}") from error
    for name, value in sorted(environ.items()):
        if name in _PLAIN and value:
            _put(data, _PLAIN[name], value)
        elif name.startswith("COSMOS_") and "__" in name:
            _put(data, tuple(name.removeprefix("COSMOS_").lower().split("__")), value)
    for name, value in given.items():
        if value is not None:
            _put(data, tuple(name.split("__")), value)
    data.setdefault("stack", {})
    if isinstance(data["stack"], dict):
        data["stack"]["directory"] = (folder / data["stack"].get("directory", "")).resolve()
    try:
        return tables.read(Settings, data)
    except tables.Wrong as error:
        raise errors.ConfigurationError(f"the settings are wrong: {error}") from error


def _put(data: dict[str, Any], path: tuple[str, ...], value: Any) -> None:
    for step in path[:-1]:
        below = data.setdefault(step, {})
        if not isinstance(below, dict):
            return
        data = below
    data[path[-1]] = value


class ServeSettings(Table, frozen=True):
    """What the served parts need to reach the stack's own stores and each other; never read from ``cosmos.toml``."""

    database_url: str = ""
    """``postgresql+psycopg://user@host:port/name`` without a password; empty where no history database is served."""
    database_password_file: Path | None = None
    project: str = ""
    """The stack that the measurements in the history are of."""
    redis_url: str = ""
    api_url: str = "http://127.0.0.1:8000"
    """Where the dashboard asks."""
    cache_directory: Path = Path("data/cache")
    data_directory: Path = Path("data")
    min_free: Annotated[int, Meta(ge=0)] = 256 * 1024 * 1024
    """Bytes below which the disk of the data directory counts as full."""


def load_serve(environ: Mapping[str, str] | None = None) -> ServeSettings:
    """Read ``COSMOS_DATABASE_URL``, ``COSMOS_REDIS_URL`` and so on. ``ConfigurationError`` names every fault."""
    environ = os.environ if environ is None else environ
    names = {name: f"COSMOS_{name.upper()}" for name in tables.names(ServeSettings)}
    try:
        return tables.read(ServeSettings, {k: environ[v] for k, v in names.items() if environ.get(v)})
    except tables.Wrong as error:
        faults = "; ".join(f"{names[path[0]]}: {fault}" for path, fault in error.faults)
        raise errors.ConfigurationError(f"the settings are wrong: {faults}") from error
