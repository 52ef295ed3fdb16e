"""How each writer of a stack is held for the cut, and who can write all the same."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Literal, get_args

import msgspec

from cosmos_coherence import errors
from cosmos_coherence.model import Gap, Quiet, Service, SourceRef, Stack

HoldWay = Literal["freeze", "hook", "stop", "never"]
"""``cosmos.hold``: frozen, as everybody without the label is; only by its own hook; stopped; left running."""

WAY, BEFORE, AFTER = "cosmos.hold", "cosmos.hold.before", "cosmos.hold.after"


class Holding(msgspec.Struct, frozen=True):
    """Who is held, and by what."""

    freeze: tuple[Service, ...]
    """Running copies that are to stand still. One that is to be stopped is here as long as it runs."""
    quiet: tuple[Quiet, ...]
    """Services that are stopped, or have hooks."""


def holding(stack: Stack, engines: Collection[str], *, volume: str = "") -> Holding:
    """Read the labels of the stack; ``engines`` are its database servers, which are anchored and never held. With
    ``volume`` (its full name) only those who can write to that one are held.

    A container outside the stack is frozen whatever its labels ask for, but for ``cosmos.hold=never``. Raises
    ``ConfigurationError`` naming every label that makes no sense.
    """
    faults = sorted({fault for service in stack.services for fault in _faults(service, service.name in engines)})
    if faults:
        raise errors.ConfigurationError(f"the labels are wrong: {'; '.join(faults)}", remedy="Mend the labels named.")
    concerned = [s for s in stack.services if not volume or mounts(s, volume)]
    ours = [s for s in concerned if s.name not in engines and way(s) in ("freeze", "stop")]
    guests = [s for s in stack.neighbours if way(s) != "never" and (not volume or mounts(s, volume))]
    quiet: dict[str, Quiet] = {}
    for service in concerned:
        before, after, stop = service.labels.get(BEFORE, ""), service.labels.get(AFTER, ""), way(service) == "stop"
        if service.state == "running" and (before or after or stop):
            quiet.setdefault(service.name, Quiet(service.name, before, after, stop))
    return Holding(
        freeze=tuple(s for s in (*ours, *guests) if s.state == "running" and s.container != stack.program),
        quiet=tuple(quiet[name] for name in sorted(quiet)),
    )


def outside(
    stack: Stack, sources: Sequence[SourceRef], *, engines: Collection[str], held: Collection[str]
) -> tuple[Gap, ...]:
    """A gap for each container that can write to files of these sources and is not ``held`` (names of containers).

    A service with a hook of its own counts as held by that. Database servers and this program do not count.
    """
    found = []
    for service in (*stack.services, *stack.neighbours):
        ours = service in stack.services
        if service.state not in ("running", "restarting") or service.container in (*held, stack.program):
            continue
        if ours and (service.name in engines or way(service) == "hook"):
            continue
        if parts := sorted({ref.part for ref in sources if _can_write(service, ref)}):
            where = f"container {service.container}" + ("" if ours else " from outside the stack")
            found.append(
                Gap(f"what {where} writes to {', '.join(parts)}", f"the instant is not its own: {_why(service)}")
            )
    return tuple(found)


def way(service: Service) -> str:
    """How the service asks to be held."""
    return service.labels.get(WAY, "freeze")


def _faults(service: Service, engine: bool) -> Iterator[str]:
    """What is wrong with the labels of one service, a clause each."""
    name, asked = service.name, way(service)
    hooks = [label for label in (BEFORE, AFTER) if service.labels.get(label)]
    if asked not in get_args(HoldWay):
        yield f"{WAY}={asked!r} of service {name} is not one of {', '.join(get_args(HoldWay))}"
    elif engine and WAY in service.labels and asked in ("freeze", "stop"):
        yield f"{WAY}={asked} of service {name}: a database server is anchored, it cannot be held"
    elif asked == "hook" and not service.labels.get(BEFORE):
        yield f"{WAY}=hook of service {name} needs {BEFORE}"
    elif asked in ("stop", "never") and hooks:
        yield f"{hooks[0]} of service {name} does not go with {WAY}={asked}"


def _why(service: Service) -> str:
    if way(service) == "never":
        return f"it is left running by {WAY}=never; mount it there read-only, or let it be held"
    return f"it is {service.state} and was not held"


def mounts(service: Service, volume: str) -> bool:
    """Whether a service can write to the volume of that full name."""
    return any(m.kind == "volume" and m.source == volume and m.writable for m in service.mounts)


def _can_write(service: Service, ref: SourceRef) -> bool:
    if ref.kind == "volume":
        return mounts(service, ref.volume)
    if ref.kind not in ("files", "sqlite") or ref.path is None:
        return False
    folders = [Path(m.source) for m in service.mounts if m.kind == "bind" and m.writable]
    return any(ref.path.is_relative_to(folder) or folder.is_relative_to(ref.path) for folder in folders)
