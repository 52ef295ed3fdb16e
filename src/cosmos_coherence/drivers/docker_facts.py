"""From the engine's words on containers and volumes to the values of the model.

Labels are written by whoever made the container, so that whatever becomes part of a path or a command is checked.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, get_args

from cosmos_coherence.model import Health, Mount, Port, Service, ServiceState, Volume

Facts = Mapping[str, Any]
"""What the engine says of one thing."""

PROJECT = "com.docker.compose.project"
SERVICE = "com.docker.compose.service"
NUMBER = "com.docker.compose.container-number"
ONE_OFF = "com.docker.compose.oneoff"
VOLUME = "com.docker.compose.volume"
DIRECTORY = "com.docker.compose.project.working_dir"
FILES = "com.docker.compose.project.config_files"
DEPENDS_ON = "com.docker.compose.depends_on"
ROLE = "cosmos.role"
"""Label of our own containers: ``run`` or ``watchdog``."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
_DELETED = 2
_SCRATCH = re.compile(
    r"^/(?:(?:var/)?(?:tmp|run|lock|cache)|proc|sys|dev|root/\.cache)(?:/|$)"
    r"|^/(?:etc/(?:hostname|hosts|resolv\.conf|mtab)|sbin/docker-init|\.dockerenv)$|\.pyc$|/__pycache__(?:/|$)"
)
"""What programs leave lying about in a container and nobody misses, and what the engine puts there itself."""
_SYSTEM = ("/dev", "/etc", "/lib", "/proc", "/run", "/sys", "/usr", "/var/run")
_ANONYMOUS = re.compile(r"[0-9a-f]{64}")


def labels_of(facts: Facts) -> Mapping[str, str]:
    """The labels of a container (listed or inspected) or of a volume."""
    return facts.get("Labels") or (facts.get("Config") or {}).get("Labels") or {}


def is_of(facts: Facts, project: str) -> bool:
    """Whether a container belongs to the project's services; one that ``compose run`` made does not."""
    labels = labels_of(facts)
    return labels.get(PROJECT) == project and labels.get(ONE_OFF, "False").lower() != "true"


def name_of(facts: Facts) -> str:
    """The container's name."""
    names = [facts["Name"]] if facts.get("Name") else facts.get("Names") or ["/"]
    return str(min(names, key=lambda name: name.count("/"))).lstrip("/")  # the others are links to it


def service_name(facts: Facts) -> str:
    """The service a container belongs to, or its own name when it belongs to none."""
    label = labels_of(facts).get(SERVICE, "")
    return label if _NAME.fullmatch(label) else name_of(facts)


def number_of(facts: Facts) -> int:
    """Which copy of its service it is."""
    number = labels_of(facts).get(NUMBER, "")
    return int(number) if number.isdecimal() else 1


def conditions_of(facts: Facts) -> dict[str, str]:
    """What the service of a container depends on, and until when it waits for that: ``service_healthy``, ..."""
    found = {}
    for item in labels_of(facts).get(DEPENDS_ON, "").split(","):
        name, _, condition = item.strip().partition(":")
        if _NAME.fullmatch(name):
            found[name] = condition.split(":", 1)[0] or "service_started"
    return found


def state_of(facts: Facts) -> ServiceState:
    """The state of an inspected container."""
    status = facts["State"].get("Status", "exited")
    return status if status in get_args(ServiceState) else "exited"  # removing, dead


def health_of(facts: Facts) -> Health | None:
    """Its health, None without a health check."""
    health = (facts["State"].get("Health") or {}).get("Status")
    return health if health in get_args(Health) else None


def service_of(facts: Facts, digest: Callable[[str, str], str]) -> Service:
    """An inspected container. ``digest(image id, image name)`` tells the digest of an image."""
    config, networks = facts["Config"], (facts["NetworkSettings"].get("Networks") or {}).values()
    addresses = (n.get(key) or "" for n in networks for key in ("IPAddress", "GlobalIPv6Address"))
    return Service(
        name=service_name(facts),
        container=name_of(facts),
        image=str(config.get("Image") or ""),
        digest=digest(str(facts.get("Image") or ""), str(config.get("Image") or "")),
        command=tuple(str(word) for word in (facts.get("Path"), *(facts.get("Args") or ())) if word),
        labels=dict(labels_of(facts)),
        mounts=tuple(_mounts(facts)),
        state=state_of(facts),
        health=health_of(facts),
        depends_on=tuple(sorted(conditions_of(facts))),
        project=labels_of(facts).get(PROJECT, ""),
        addresses=tuple(address for address in addresses if address),
        ports=tuple(_ports(facts)),
    )


def _ports(facts: Facts) -> Iterable[Port]:
    for target, bindings in sorted((facts["NetworkSettings"].get("Ports") or {}).items()):
        number, _, protocol = str(target).partition("/")
        for binding in bindings or () if protocol == "tcp" else ():
            yield Port(str(binding.get("HostIp") or "0.0.0.0"), int(binding["HostPort"]), int(number))  # noqa: S104


def _mounts(facts: Facts) -> Iterable[Mount]:
    for mount in sorted(facts.get("Mounts") or (), key=lambda m: str(m.get("Destination"))):
        writable, target = bool(mount.get("RW")), str(mount.get("Destination"))
        if mount.get("Type") == "volume":
            name = str(mount.get("Name"))
            yield Mount("volume", name, target, writable, anonymous=bool(_ANONYMOUS.fullmatch(name)))
        elif mount.get("Type") == "bind":
            yield Mount("bind", str(mount.get("Source")), target, writable)
        elif mount.get("Type") == "tmpfs":
            yield Mount("tmpfs", "", target, writable)
    for target in facts["HostConfig"].get("Tmpfs") or {}:
        yield Mount("tmpfs", "", str(target))


def volumes_in(facts: Facts) -> set[str]:
    """The full names of the volumes that a container mounts."""
    return {str(m["Name"]) for m in facts.get("Mounts") or () if m.get("Type") == "volume" and m.get("Name")}


def folders_in(containers: Iterable[Facts]) -> set[Path]:
    """The folders of the host that any of these containers can write to; what the system runs on is left out."""
    sources = {Path(str(m["Source"])) for c in containers for m in c.get("Mounts") or () if _writable_bind(m)}
    return {s for s in sources if s.suffix != ".sock" and not any(s.is_relative_to(top) for top in _SYSTEM)}


def shares(facts: Facts, folders: Iterable[Path]) -> bool:
    """Whether a container can write to one of the folders, to something inside it, or to all around it."""
    own = [Path(str(m["Source"])) for m in facts.get("Mounts") or () if _writable_bind(m)]
    return any(s.is_relative_to(folder) or folder.is_relative_to(s) for s in own for folder in folders)


def _writable_bind(mount: Facts) -> bool:
    return bool(mount.get("Type") == "bind" and mount.get("RW") and mount.get("Source"))


def is_anonymous(facts: Facts) -> bool:
    """Whether a volume has no name of its own and no project claims it."""
    return bool(_ANONYMOUS.fullmatch(str(facts["Name"]))) and PROJECT not in labels_of(facts)


def volume_of(facts: Facts, project: str, path: Path | None) -> Volume:
    """An inspected volume, whose files lie at ``path``."""
    name, labels = str(facts["Name"]), labels_of(facts)
    return Volume(
        name=name,
        short=_short(name, labels, project),
        driver=str(facts.get("Driver") or "local"),
        options=dict(facts.get("Options") or {}),
        labels=dict(labels),
        path=path,
    )


def _short(name: str, labels: Mapping[str, str], project: str) -> str:
    """Its name in the project's Compose file. A volume of somebody else keeps its full name, which cannot be mistaken
    for one of the project's own."""
    label = labels.get(VOLUME, "")
    if labels.get(PROJECT, project) != project:
        return name
    if _NAME.fullmatch(label):
        return label
    return name.removeprefix(f"{project}_") or name


def volumes_of(project: str, volumes: Sequence[Facts], containers: Sequence[Facts]) -> list[Facts]:
    """The volumes that belong to a project: by label, because its containers mount them, or by their name.

    A volume that was made by hand has no labels. One whose name only looks like the project's, but which is labelled
    or used by another one alone (``shop_test_data`` for ``shop``), is not ours.
    """
    mounted = {name for c in containers if is_of(c, project) for name in volumes_in(c)}
    users: dict[str, set[str]] = {}
    for container in containers:
        for name in volumes_in(container):
            users.setdefault(name, set()).add(labels_of(container).get(PROJECT, ""))
    found = []
    for volume in volumes:
        name, owner = str(volume["Name"]), labels_of(volume).get(PROJECT, "")
        others = users.get(name, set()) - {project, ""}
        by_name = name.startswith(f"{project}_") and not owner and not (others and others == users.get(name))
        if owner == project or name in mounted or by_name:
            found.append(volume)
    return found


def left_in_layer(changes: Sequence[Facts], inspected: Facts) -> tuple[str, ...]:
    """What a container has written outside of its mounts, but for what programs leave lying about."""
    mounts = [mount.target for mount in _mounts(inspected)]
    changed = (str(change["Path"]) for change in changes if change["Kind"] != _DELETED)
    paths = sorted(changed, key=lambda path: path.split("/"))
    leaves = (path for path, after in pairwise([*paths, ""]) if not after.startswith(f"{path}/"))
    return tuple(
        path
        for path in leaves
        if not _SCRATCH.search(path) and not any(m == path or m.startswith(f"{path}/") for m in mounts)
    )
