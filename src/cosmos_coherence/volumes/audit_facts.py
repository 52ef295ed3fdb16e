"""What the rules of the audit look at: plain values, gathered before any rule is asked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import msgspec

from cosmos_coherence.model import Mount, Volume

Profile = Literal["development", "production"]


class ServiceFacts(msgspec.Struct, frozen=True):
    """One container of the stack, or of a neighbour that shares something with it."""

    name: str
    container: str
    image: str = ""
    data_volume: str = ""
    """Full name of the volume in which a database server keeps its data."""
    created: bool = True
    """There is a container; else most of what follows is not known."""
    user: str = ""
    """As configured; empty is root."""
    process_users: frozenset[str] | None = None
    """By number; None when that cannot be told."""
    read_only_root: bool = False
    privileged: bool = False
    log_driver: str = ""
    log_options: Mapping[str, str] = msgspec.field(default_factory=dict)
    mounts: tuple[Mount, ...] = ()
    secrets: tuple[str, ...] = ()
    """Where secrets stand in its environment: never the secrets themselves."""
    image_secrets: tuple[str, ...] | None = None
    """The same of its image; None when the image is gone."""
    accepted: frozenset[str] = frozenset()
    """Rules that its owner knows it breaks."""
    reason: str = ""


class DiskFacts(msgspec.Struct, frozen=True):
    """What the engine's volumes lie on."""

    name: str
    encrypted: bool | None = None
    rotational: bool | None = None


class AgeFacts(msgspec.Struct, frozen=True):
    """How old something is, in seconds; None: there is none. ``unknown`` says why that cannot be told."""

    age_s: float | None = None
    most_s: float = 0.0
    unknown: str = ""


class Facts(msgspec.Struct, frozen=True):
    """A stack and the machine below it."""

    profile: Profile
    services: tuple[ServiceFacts, ...] = ()
    neighbours: tuple[ServiceFacts, ...] = ()
    volumes: tuple[Volume, ...] = ()
    modes: Mapping[str, int] = msgspec.field(default_factory=dict)
    """Permission bits of the root of each volume that can be reached, by full name."""
    disk: DiskFacts | None = None
    backup: AgeFacts = AgeFacts()
    drill: AgeFacts = AgeFacts()
    engine_root: str = ""
    """Where the engine keeps everything."""
