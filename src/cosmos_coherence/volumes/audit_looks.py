"""How each rule of the audit looks at the facts. Nothing is asked here, and nothing is judged."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import PurePosixPath

import msgspec
from msgspec.structs import replace

from cosmos_coherence.model import Mount
from cosmos_coherence.volumes.audit_facts import AgeFacts, Facts, ServiceFacts

_ROOT = re.compile(r"(?:|0|root)(?::.*)?")
_CONFIG_FOLDERS = frozenset({"etc", "config", "configs", "conf", "conf.d", "configuration", "secrets"})
_CONFIG_FILES = (".conf", ".cnf", ".ini", ".toml", ".yaml", ".yml", ".json", ".env", ".properties", ".xml", ".cfg")
_SOCKETS = re.compile(r"(?:docker|containerd|podman|balena|crio)[\w.-]*\.sock$")
_COMPOSE_SECRETS = "/run/secrets/"
"""Mounted there by Compose itself, which leaves no choice."""
_ROTATING = {"local", "none", "journald", "syslog", "gelf", "fluentd", "awslogs", "splunk", "gcplogs", "logentries"}
"""Log drivers that keep no file of their own that grows without end."""
_WEB = re.compile(r"(?:^|[/_-])(?:nginx|httpd|apache2?|caddy|traefik|haproxy|envoy)(?:[_:@-]|$)")
_SERVED = re.compile(
    r"^/(?:etc/(?:letsencrypt|nginx|ssl|pki|traefik|haproxy)|certificates|certs|ssl|var/www|srv/www"
    r"|usr/share/(?:nginx|caddy)|usr/local/apache2/htdocs)(?:/|$)"
)
_NETWORK = re.compile(r"nfs|cifs|smb|ceph|gluster|sshfs|9p", re.IGNORECASE)
_DAY_S = 86400.0


class Finding(msgspec.Struct, frozen=True):
    """One thing that breaks a rule, or that could not be seen."""

    subject: str
    """``service api``, ``volume x``, ``host``, ``backups``."""
    detail: str
    container: str = ""
    known: bool = True
    accepted: str = ""
    """Why its owner leaves it so; empty when nobody said that."""

    def accept(self, reason: str) -> Finding:
        """The same, accepted."""
        return replace(self, accepted=reason)


# ------------------------------------------------------------------------------------------------------- services
def root_processes(facts: Facts) -> Iterator[Finding]:
    """Whoever runs as root at this moment."""
    for service in _created(facts):
        if service.process_users is None:
            if _ROOT.fullmatch(service.user):
                yield _of(service, "it is started as root; whether it stays so cannot be seen from here", known=False)
        elif "0" in service.process_users:
            yield _of(service, "a process of it is root")
    for service in facts.services:
        if not service.created:
            yield _of(service, "it has no container", known=False)


def root_users(facts: Facts) -> Iterator[Finding]:
    """Whoever is configured to start as root."""
    return (_of(s, "it is started as root") for s in _created(facts) if _ROOT.fullmatch(s.user))


def writable_roots(facts: Facts) -> Iterator[Finding]:
    """Whoever can change what came with its image."""
    return (_of(s, "its root file system is writable") for s in _created(facts) if not s.read_only_root)


def privileged(facts: Facts) -> Iterator[Finding]:
    """Whoever has the host's rights."""
    return (_of(s, "it is privileged or may administer the system") for s in _created(facts) if s.privileged)


def endless_logs(facts: Facts) -> Iterator[Finding]:
    """Whoever's log grows until the disk is full."""
    for service in _created(facts):
        if service.log_driver in _ROTATING or service.log_options.get("max-size", "-1") not in ("", "-1"):
            continue
        yield _of(service, f"its log ({service.log_driver or 'json-file'}) grows without end")


def secrets_in_environments(facts: Facts) -> Iterator[Finding]:
    """Whoever shows a secret to everybody that may inspect it."""
    return (_of(service, place) for service in _created(facts) for place in service.secrets)


def secrets_in_images(facts: Facts) -> Iterator[Finding]:
    """Whoever carries one in the image."""
    for service in _created(facts):
        if service.image_secrets is None:
            yield _of(service, "its image is gone", known=False)
        for place in service.image_secrets or ():
            yield _of(service, f"image {service.image}, {place}")


# --------------------------------------------------------------------------------------------------------- mounts
def writable_configuration(facts: Facts) -> Iterator[Finding]:
    """Configuration that the service itself could change."""
    for service, mount in _binds(facts):
        if mount.writable and is_configuration(mount):
            yield _of(service, f"{mount.target} is writable")


def other_mounts(facts: Facts) -> Iterator[Finding]:
    """Data anywhere else than in a named volume."""
    for service, mount in _binds(facts):
        if mount.writable and not is_configuration(mount) and not _is_socket(mount):
            yield _of(service, f"{mount.target} is a folder of the host")
    for service in facts.services:
        for mount in service.mounts:
            if mount.kind == "volume" and mount.anonymous:
                yield _of(service, f"{mount.target} is an anonymous volume, which nobody finds again")


def engine_sockets(facts: Facts) -> Iterator[Finding]:
    """Whoever controls the engine, and so the host."""
    for service, mount in _binds(facts):
        if _is_socket(mount):
            yield _of(service, f"{mount.target} is the socket of the engine")


def many_writers(facts: Facts) -> Iterator[Finding]:
    """Mounts that need not be writable: of a web server, and those beside another service that writes."""
    writers: dict[str, dict[str, ServiceFacts]] = {}
    for service in facts.services:
        for mount in service.mounts:
            if mount.kind != "volume" or not mount.writable or mount.anonymous:
                continue
            if _WEB.search(service.image) and _SERVED.match(mount.target):
                yield _of(service, f"{mount.target} is only read by a web server")
            else:
                writers.setdefault(mount.source, {})[service.name] = service
    for volume, services in sorted(writers.items()):
        if len(services) > 1:
            yield Finding(f"volume {volume}", f"{', '.join(sorted(services))} can all write to it")


def needless_mounts(facts: Facts) -> Iterator[Finding]:
    """The data of a database in other hands, volumes in those of strangers, and mounts that show every volume."""
    owners = {service.data_volume: service.name for service in facts.services if service.data_volume}
    for service in facts.services:
        for mount in service.mounts:
            if mount.kind == "volume" and owners.get(mount.source, service.name) != service.name:
                yield _of(service, f"mounts {mount.source}, which holds the data of {owners[mount.source]}")
            if mount.kind == "bind" and _shows_all(mount, facts.engine_root):
                yield _of(service, f"{mount.target} shows it every volume of the engine")
    own = {volume.name for volume in facts.volumes}
    for guest in facts.neighbours:
        for mount in guest.mounts:
            if mount.kind == "volume" and mount.source in own:
                yield Finding(f"volume {mount.source}", f"container {guest.container} outside of the stack mounts it")


def foreign_drivers(facts: Facts) -> Iterator[Finding]:
    """Volumes that lie elsewhere."""
    for volume in facts.volumes:
        kind = volume.options.get("type", "")
        if volume.driver != "local":
            yield Finding(f"volume {volume.name}", f"its driver is {volume.driver}")
        elif _NETWORK.search(kind):
            yield Finding(f"volume {volume.name}", f"it lies on {kind}")


def open_volumes(facts: Facts) -> Iterator[Finding]:
    """Volumes that everybody can write to."""
    for volume in facts.volumes:
        mode = facts.modes.get(volume.name)
        if mode is None:
            if volume.exists:
                yield Finding(f"volume {volume.name}", "its files cannot be seen from here", known=False)
        elif mode & 0o002 and not mode & 0o1000:
            yield Finding(f"volume {volume.name}", f"its root has mode {mode:04o}")


# ----------------------------------------------------------------------------------------------- machine, backups
def plain_disk(facts: Facts) -> Iterator[Finding]:
    """Nothing encrypts what is written."""
    if facts.disk is None or facts.disk.encrypted is None:
        yield Finding("host", "the disk below the engine's data cannot be seen from here", known=False)
    elif not facts.disk.encrypted:
        yield Finding("host", f"{facts.disk.name}: no encryption below the engine's data")


def rotating_disk(facts: Facts) -> Iterator[Finding]:
    """A disk that has to seek."""
    if facts.disk is None or facts.disk.rotational is None:
        yield Finding("host", "what kind of disk it is cannot be seen from here", known=False)
    elif facts.disk.rotational:
        yield Finding("host", f"{facts.disk.name}: the disk rotates")


def old_backup(facts: Facts) -> Iterator[Finding]:
    """None, or one that is too old."""
    return _aged(facts.backup, "there is no complete backup", "the newest complete backup")


def old_drill(facts: Facts) -> Iterator[Finding]:
    """Never, or too long ago."""
    return _aged(facts.drill, "never", "the last drill")


def is_configuration(mount: Mount) -> bool:
    """Whether a mount looks like configuration rather than data."""
    target = PurePosixPath(mount.target)
    return not _CONFIG_FOLDERS.isdisjoint(target.parts) or target.suffix.lower() in _CONFIG_FILES


def _aged(found: AgeFacts, none: str, what: str) -> Iterator[Finding]:
    if found.unknown:
        yield Finding("backups", found.unknown, known=False)
    elif found.age_s is None:
        yield Finding("backups", none)
    elif found.age_s > found.most_s:
        age, most = found.age_s / _DAY_S, found.most_s / _DAY_S
        yield Finding("backups", f"{what} is {age:.1f} days old, {most:.1f} at most")


def _created(facts: Facts) -> Iterator[ServiceFacts]:
    return (service for service in facts.services if service.created)


def _binds(facts: Facts) -> Iterator[tuple[ServiceFacts, Mount]]:
    for service in facts.services:
        for mount in service.mounts:
            if mount.kind == "bind" and not mount.target.startswith(_COMPOSE_SECRETS):
                yield service, mount


def _is_socket(mount: Mount) -> bool:
    return bool(_SOCKETS.search(mount.source) or _SOCKETS.search(mount.target))


def _shows_all(mount: Mount, engine_root: str) -> bool:
    source = PurePosixPath(mount.source)
    volumes = PurePosixPath(engine_root, "volumes") if engine_root else None
    return source == PurePosixPath("/") or bool(volumes and (volumes.is_relative_to(source)))


def _of(service: ServiceFacts, detail: str, *, known: bool = True) -> Finding:
    return Finding(f"service {service.name}", detail, service.container, known)
