"""Which service is PostgreSQL, Redis or Valkey, and which only uses files.

The order of belief: the label ``cosmos.kind``, the image's name, what the service's own data folder holds.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Literal, get_args

from cosmos_coherence import errors
from cosmos_coherence.model import Mount, Service, Stack

EngineKind = Literal["postgres", "redis", "none"]

_IMAGES: tuple[tuple[EngineKind, re.Pattern[str]], ...] = (
    ("postgres", re.compile(r"^(postgres|postgresql|postgis|timescaledb(-ha)?|pgvector|pgautoupgrade)$")),
    ("redis", re.compile(r"^(redis|valkey|redis-stack|redis-stack-server)$")),
)
_DATA_FOLDERS = {
    "postgres": re.compile(r"^/(var/lib/postgresql(/.*)?|bitnami/postgresql(/.*)?|pgdata(/.*)?)$"),
    "redis": re.compile(r"^(/data|/var/lib/(redis|valkey)|/bitnami/(redis|valkey)/data)$"),
}


def image_name(image: str) -> str:
    """The last word of an image reference, without registry, tag and digest: ``x/postgres:15`` gives ``postgres``."""
    return image.split("@", 1)[0].rsplit("/", 1)[-1].split(":", 1)[0].lower()


def classify(service: Service, *, holds: Callable[[Path], str], stack: Stack) -> EngineKind:
    """The engine this service runs, or ``none``.

    ``holds(folder)`` says what a data folder looks like. Raises ``ConfigurationError`` for a label with another value.
    """
    label = service.labels.get("cosmos.kind", "")
    if label:
        if label not in get_args(EngineKind):
            allowed = ", ".join(get_args(EngineKind))
            raise errors.ConfigurationError(
                f"label cosmos.kind={label!r} of service {service.name} is not one of {allowed}"
            )
        return label  # type: ignore[return-value]
    name = image_name(service.image)
    for kind, pattern in _IMAGES:
        if pattern.match(name):
            return kind
    for mount in service.mounts:
        volume = stack.volume(mount.source) if mount.kind == "volume" else None
        if mount.writable and volume and volume.path and holds(volume.path) in ("postgres", "redis"):
            kind_found = holds(volume.path)
            if _DATA_FOLDERS[kind_found].match(mount.target):
                return kind_found  # type: ignore[return-value]
    return "none"


def data_mount(service: Service, kind: EngineKind) -> Mount | None:
    """The mount in which the service's engine keeps its data."""
    folder = _DATA_FOLDERS.get(kind)
    return next((m for m in service.mounts if folder and folder.match(m.target)), None)
