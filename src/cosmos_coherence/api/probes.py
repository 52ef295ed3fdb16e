"""What ``/health`` asks: the database, the cache and the disk. No detail ever repeats an address or a password."""

from __future__ import annotations

import redis
from sqlalchemy import Engine, text

from cosmos_coherence import errors
from cosmos_coherence.health import checks, disk
from cosmos_coherence.history.database import opened
from cosmos_coherence.settings import ServeSettings

_REDIS_S = 2.0
PROGRESS_KEY = "cosmos:progress"
_PROGRESS_LIMIT = 4096


def probes(settings: ServeSettings, engine: Engine) -> dict[str, checks.Check]:
    """The three checks, by name."""
    return {
        "database": lambda: database(engine),
        "cache": lambda: cache(settings.redis_url),
        "disk": lambda: disk.check_disk(settings.data_directory, settings.min_free),
    }


def database(engine: Engine) -> checks.CheckResult:
    """It answers a query. ``ServiceDown`` otherwise."""
    with opened(engine) as connection:
        connection.execute(text("SELECT 1"))
    return checks.CheckResult("database", "ok", "answers")


def cache(url: str) -> checks.CheckResult:
    """It answers a ping. ``ServiceDown`` otherwise."""
    _ask(url, "PING")
    return checks.CheckResult("cache", "ok", "answers")


def progress(url: str) -> str:
    """What the run under way last said of itself; empty when none does. ``ServiceDown`` when the cache is down."""
    said = _ask(url, "GETRANGE", PROGRESS_KEY, 0, _PROGRESS_LIMIT)
    return said.decode("utf-8", "replace") if isinstance(said, bytes) else ""


def _ask(url: str, *command: str | int) -> object:
    try:
        with redis.Redis.from_url(url, socket_timeout=_REDIS_S, socket_connect_timeout=_REDIS_S) as client:
            return client.execute_command(*command)
    except (redis.RedisError, ValueError) as error:
        raise errors.ServiceDown("the cache does not answer or refuses us") from error
