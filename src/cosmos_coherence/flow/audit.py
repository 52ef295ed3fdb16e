"""Gather the facts that the rules of the audit look at, and have them judged."""

from __future__ import annotations

import contextlib
import re
import stat
import time
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from pathlib import Path

import msgspec

from cosmos_coherence import errors
from cosmos_coherence.discover.classify import classify, data_mount
from cosmos_coherence.drivers import disks, docker_inspect
from cosmos_coherence.drivers.docker import DockerRuntime
from cosmos_coherence.drivers.docker_facts import Facts as Inspected
from cosmos_coherence.drivers.runtime import Runtime
from cosmos_coherence.flow import inventory
from cosmos_coherence.model import Service, Stack, Volume
from cosmos_coherence.settings import Settings
from cosmos_coherence.sources.tree_scan import looks_like_database
from cosmos_coherence.volumes import audit, secret_names
from cosmos_coherence.volumes.audit_facts import AgeFacts, DiskFacts, Facts, Profile, ServiceFacts

ACCEPT, REASON = "cosmos.audit.accept", "cosmos.audit.reason"
"""Labels of a service: the rules that it is known to break (``non-root-user, engine-socket``), and why."""

_DEVELOPMENT = re.compile(r"(?:^|[._-])(?:override|dev|devel|development|local|test)(?:[._-]|$)")
_PRODUCTION = re.compile(r"(?:^|[._-])(?:prod|production|live)(?:[._-]|$)")
_REASON_SHOWN = 200
_MIGHTY = frozenset({"ALL", "SYS_ADMIN", "CAP_SYS_ADMIN"})


class Audit(msgspec.Struct, frozen=True):
    """What came of all rules."""

    project: str
    profile: Profile
    config_files: tuple[str, ...]
    """The Compose files in use, relative to the project's folder where they lie below it."""
    rules: tuple[audit.Judged, ...]


def audit_stack(runtime: Runtime, settings: Settings, *, backups: Path, profile: Profile | None) -> Audit:
    """Judge the stack as it is now. ``profile``: None takes the one that the Compose files in use say.

    ``NotFound`` without a stack, ``ConfigurationError`` when a label or setting names what is no rule.
    """
    stack = runtime.stack()
    chosen = profile or profile_of(stack.config_files)
    docker = runtime if isinstance(runtime, DockerRuntime) else None
    facts = Facts(
        profile=chosen,
        services=tuple(_service(service, stack, docker) for service in stack.services),
        neighbours=tuple(ServiceFacts(n.name, n.container, mounts=n.mounts) for n in stack.neighbours),
        volumes=stack.volumes,
        modes=_modes(stack.volumes),
        disk=_disk(stack, docker),
        backup=_backup(settings, backups, stack.project),
        drill=AgeFacts(most_s=settings.health.proof_warn),
        engine_root=_engine_root(docker) if docker else "",
    )
    files = tuple(_relative(file, stack.directory) for file in stack.config_files)
    return Audit(stack.project, chosen, files, audit.judge(facts, settings.audit.ignore))


def profile_of(files: Sequence[Path]) -> Profile:
    """``production``, which is the stricter one, unless a file is called an override or a development's and none is
    called production's."""
    names = [file.name.lower() for file in files]
    if any(_PRODUCTION.search(name) for name in names):
        return "production"
    return "development" if any(_DEVELOPMENT.search(name) for name in names) else "production"


def _service(service: Service, stack: Stack, docker: DockerRuntime | None) -> ServiceFacts:
    accepted = frozenset(service.labels.get(ACCEPT, "").replace(",", " ").split())
    reason = "".join(c for c in service.labels.get(REASON, "") if c.isprintable())[:_REASON_SHOWN]
    found = (
        docker_inspect.container(docker.engine, service.container) if docker and service.state != "missing" else None
    )
    if docker is None or found is None:
        return ServiceFacts(
            service.name, service.container, service.image, created=False, mounts=service.mounts, accepted=accepted,
            reason=reason, data_volume=_data_volume(service, stack),
        )  # fmt: skip
    config, host = found["Config"], found["HostConfig"]
    log = host.get("LogConfig") or {}
    image, image_secrets = _image(docker, found)
    return ServiceFacts(
        name=service.name,
        container=service.container,
        image=service.image,
        data_volume=_data_volume(service, stack),
        user=str(config.get("User") or ""),
        process_users=docker_inspect.users_of_processes(docker.engine, found["Id"]),
        read_only_root=bool(host.get("ReadonlyRootfs")),
        privileged=bool(host.get("Privileged")) or not _MIGHTY.isdisjoint(host.get("CapAdd") or ()),
        log_driver=str(log.get("Type") or ""),
        log_options={str(k): str(v) for k, v in (log.get("Config") or {}).items()},
        mounts=service.mounts,
        secrets=(*secret_names.in_environment(_own(config, image)), *secret_names.in_labels(service.labels)),
        image_secrets=image_secrets,
        accepted=accepted,
        reason=reason,
    )  # fmt: skip


def _image(docker: DockerRuntime, found: Inspected) -> tuple[Sequence[str], tuple[str, ...] | None]:
    """The environment of its image, and where secrets stand in that."""
    known = docker_inspect.image(docker.engine, str(found["Image"]))
    if known is None:
        return (), None
    config = known[0].get("Config") or {}
    environment: Sequence[str] = config.get("Env") or ()
    labels: Mapping[str, str] = config.get("Labels") or {}
    places = (
        *secret_names.in_environment(environment), *secret_names.in_labels(labels), *secret_names.in_history(known[1]),
    )  # fmt: skip
    return environment, places


def _own(config: Inspected, image: Iterable[str]) -> list[str]:
    """The variables that the container does not have from its image, where they are told of once."""
    given = set(image)
    return [variable for variable in config.get("Env") or () if variable not in given]


def _data_volume(service: Service, stack: Stack) -> str:
    try:
        kind = classify(service, holds=looks_like_database, stack=stack)
    except errors.ConfigurationError:
        return ""
    mount = data_mount(service, kind)
    return mount.source if mount and mount.kind == "volume" else ""


def _modes(volumes: Iterable[Volume]) -> Mapping[str, int]:
    found = {}
    for volume in volumes:
        if volume.path is not None:
            with contextlib.suppress(OSError):
                found[volume.name] = stat.S_IMODE(volume.path.stat().st_mode)
    return found


def _disk(stack: Stack, docker: DockerRuntime | None) -> DiskFacts | None:
    """Of the engine's root where that is on this machine, else of a volume that can be reached from here."""
    places = [
        volume.path for volume in stack.volumes if volume.path and volume.driver == "local" and not volume.options
    ]
    if docker is None:
        places.append(stack.directory)
    elif docker.engine.socket_path and not docker.reach.own_id and (root := Path(_engine_root(docker))).is_dir():
        places.insert(0, root)
    if not places:
        return None
    found = disks.below(places[0].resolve())
    return DiskFacts(found.name, found.encrypted, found.rotational)


def _engine_root(docker: DockerRuntime) -> str:
    return str(docker.engine.ask("info")["DockerRootDir"])


def _backup(settings: Settings, backups: Path, project: str) -> AgeFacts:
    try:
        last = inventory.newest(settings, backups, project=project, complete=True)
    except errors.CosmosError as error:
        return AgeFacts(unknown=error.message)
    age = time.time() - datetime.fromisoformat(last.manifest.instant).timestamp() if last else None
    return AgeFacts(age, settings.health.backup_fail)


def _relative(file: Path, folder: Path) -> str:
    return str(file.relative_to(folder)) if file.is_relative_to(folder) else str(file)
