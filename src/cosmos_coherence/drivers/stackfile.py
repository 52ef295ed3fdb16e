"""``stack.json``: what a stack of plain local processes consists of, checked as a whole before any of it is used."""

from __future__ import annotations

import graphlib
import os
import signal
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta

from cosmos_coherence import errors, tables
from cosmos_coherence.tables import Table, Written

FILE_NAME = "stack.json"

NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,99}$"
Name = Annotated[str, Meta(pattern=NAME_PATTERN)]


def _known_signal(name: object) -> object:
    if name not in signal.Signals.__members__:
        raise ValueError(f"{name} is not a signal of this system")
    return name


class MountSpec(Table, frozen=True):
    """A volume of the stack by its short name, or a folder of the machine, that a service uses."""

    volume: Name | None = None
    path: Path | None = None
    target: Annotated[str, Meta(pattern=r"^(/.*)?$")] = ""
    """The path by which discovery knows what lies there, as in a container of the service's image; empty: the real
    path, which is what the process itself sees in any case."""


class ServiceSpec(Table, frozen=True):
    """One process: what is run, in which surroundings, and how it is asked to be ready and to stop."""

    name: Name
    argv: Annotated[tuple[str, ...], Meta(min_length=1)]
    image: str = ""
    """What a container of it would run (``postgres``), by which discovery recognises it."""
    cwd: Path | None = None
    environment: dict[str, str] = msgspec.field(default_factory=dict)
    """Also that of every command run in the service."""
    volumes: tuple[MountSpec, ...] = ()
    depends_on: tuple[Name, ...] = ()
    labels: dict[str, str] = msgspec.field(default_factory=dict)
    ready: tuple[str, ...] = ()
    """A command run in the service that succeeds when it is ready; none: running is enough."""
    stop_signal: Annotated[str, Written(_known_signal)] = "SIGTERM"
    user: str = ""


class VolumeSpec(Table, frozen=True):
    """A volume of the stack; its files lie in ``volumes/<short name>``."""

    labels: dict[str, str] = msgspec.field(default_factory=dict)


class StackSpec(Table, frozen=True):
    """The whole file."""

    project: Name
    services: tuple[ServiceSpec, ...]
    volumes: dict[Name, VolumeSpec] = msgspec.field(default_factory=dict)


def read(folder: Path) -> StackSpec:
    """Read and check ``folder/stack.json``.

    Raises ``NotFound`` when there is none, ``ConfigurationError`` naming every fault of one that is wrong or that
    somebody else could have written, since it says what is run.
    """
    path = folder / FILE_NAME
    try:
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            data = file.read()
    except FileNotFoundError as error:
        raise errors.NotFound(f"there is no stack in {folder}: it has no {FILE_NAME}") from error
    except OSError as error:
        raise errors.ConfigurationError(f"{path} cannot be read: {error.strerror}") from error
    if status.st_uid not in (0, os.geteuid()) or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise errors.ConfigurationError(
            f"{path} can be written by others, and it says which programs are run",
            remedy=f"Make it yours: chown {os.geteuid()} {path} && chmod 600 {path}",
        )
    try:
        spec = tables.read(StackSpec, msgspec.json.decode(data))
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, tables.Wrong) as error:
        raise errors.ConfigurationError(f"{path} is wrong: {error}") from error
    if faults := list(_contradictions(spec)):
        raise errors.ConfigurationError(f"{path} is wrong: {'; '.join(faults)}")
    return spec


def write(folder: Path, spec: StackSpec) -> None:
    """Write ``folder/stack.json`` (mode 0600: it may hold passwords), whole or not at all."""
    new = folder / f".{FILE_NAME}.new"
    new.unlink(missing_ok=True)
    new.touch(mode=0o600, exist_ok=False)
    with new.open("w", encoding="utf-8") as file:
        file.write(msgspec.json.format(msgspec.json.encode(spec, enc_hook=str), indent=2).decode() + "\n")
        file.flush()
        os.fsync(file.fileno())
    new.replace(folder / FILE_NAME)


def in_order(services: Sequence[ServiceSpec]) -> list[ServiceSpec]:
    """Dependencies first; a dependency that is not among ``services`` does not count."""
    by_name = {s.name: s for s in services}
    graph = {s.name: [d for d in s.depends_on if d in by_name] for s in services}
    return [by_name[name] for name in graphlib.TopologicalSorter(graph).static_order()]


def _contradictions(spec: StackSpec) -> Iterator[str]:
    names = [s.name for s in spec.services]
    for name in sorted({n for n in names if names.count(n) > 1}):
        yield f"services: {name} is there twice"
    for service in spec.services:
        for wanted in service.depends_on:
            if wanted not in names:
                yield f"services.{service.name}.depends_on: there is no service {wanted}"
        for mount in service.volumes:
            if (mount.volume is None) == (mount.path is None):
                yield f"services.{service.name}.volumes: an entry names either a volume or a path"
            elif mount.volume is not None and mount.volume not in spec.volumes:
                yield f"services.{service.name}.volumes: there is no volume {mount.volume}"
            elif mount.path is not None and not mount.path.is_absolute():
                yield f"services.{service.name}.volumes: {mount.path} is not absolute"
    try:
        in_order(spec.services)
    except graphlib.CycleError as error:
        yield f"services: {' -> '.join(error.args[1])} wait for each other"
