"""What the page shows, asked from the API, or from the cache volume while the API does not answer."""

from __future__ import annotations

import contextlib
import urllib.error
import urllib.request
from datetime import UTC, datetime
from http.client import HTTPException
from pathlib import Path
from typing import TypeVar

import msgspec

from cosmos_coherence import errors
from cosmos_coherence.health.checks import Health
from cosmos_coherence.history.runs import RunList
from cosmos_coherence.storage import local

_LIMIT_S, _LIMIT_BYTES = 8.0, 8 * 1024 * 1024
_FILE = "overview.json"
T = TypeVar("T")


class Overview(msgspec.Struct, frozen=True):
    """Everything on the page, and when it was asked."""

    asked_at: str
    health: Health
    runs: RunList | None
    """None when the history could not be read."""


def ask(api_url: str) -> Overview:
    """The state of this moment. ``ServiceDown`` when the API does not answer or answers something else."""
    health = _get(f"{api_url}/health", Health)
    runs: RunList | None = None
    with contextlib.suppress(errors.ServiceDown):
        runs = _get(f"{api_url}/runs", RunList)
    return Overview(datetime.now(UTC).isoformat(timespec="seconds"), health, runs)


def keep(cache: Path, overview: Overview) -> None:
    """Remember it for the time that the API does not answer; a cache that cannot be written is no reason to fail."""
    with contextlib.suppress(OSError, errors.CosmosError):
        local.write_atomically(cache / _FILE, msgspec.json.encode(overview))


def kept(cache: Path) -> Overview | None:
    """What was remembered last, if anything."""
    try:
        return msgspec.json.decode((cache / _FILE).read_bytes(), type=Overview)
    except (OSError, msgspec.MsgspecError):
        return None


def _get(url: str, shape: type[T]) -> T:
    if not url.startswith(("http://", "https://")):
        raise errors.ConfigurationError(f"COSMOS_API_URL must be an http address, not {url}")
    try:
        with urllib.request.urlopen(url, timeout=_LIMIT_S) as answer:  # noqa: S310  the scheme is checked above
            body = answer.read(_LIMIT_BYTES)
    except urllib.error.HTTPError as refusal:
        with refusal:
            body = refusal.read(_LIMIT_BYTES)  # /health answers 503 with its findings
    except (OSError, HTTPException) as error:
        raise errors.ServiceDown("the API does not answer") from error
    try:
        return msgspec.json.decode(body, type=shape)
    except msgspec.MsgspecError as error:
        raise errors.ServiceDown("the API answers something that is no answer") from error
