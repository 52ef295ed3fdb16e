"""Docker Compose, through its command line: what the files of a project say, and creating what is missing.

Compose has no library. Its files are only ever interpreted by itself; what is read here are its own JSON and the few
lines that name a project.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from cosmos_coherence import errors, settings
from cosmos_coherence.drivers import process
from cosmos_coherence.model import Mount, Service, VolumeRecord

_STANDARD = ("compose.yaml", "compose.yml", "docker-compose.yaml", "docker-compose.yml")
_PROJECT = re.compile(r"[a-z0-9][a-z0-9_-]*")
_CONFIG_S = 60.0


class Definition(msgspec.Struct, frozen=True):
    """What the Compose files of a project say, without the environment of its services, which holds secrets."""

    services: tuple[Service, ...]
    """Each as one copy in state ``missing``."""
    volumes: tuple[VolumeRecord, ...]
    """Those that Compose makes itself and some service uses."""
    files: tuple[Path, ...]
    """Secrets, configs and read-only mounts."""


def files_of(directory: Path) -> tuple[Path, ...]:
    """The Compose files that ``docker compose`` would use in this folder: ``COMPOSE_FILE``, else the standard names
    with their override. None when there are none."""
    chosen = _variable(directory, "COMPOSE_FILE")
    if chosen:
        separator = _variable(directory, "COMPOSE_PATH_SEPARATOR") or ":"
        return tuple((directory / name).resolve() for name in chosen.split(separator) if name)
    for name in _STANDARD:
        if (directory / name).is_file():
            stem = "compose" if name.startswith("compose") else "docker-compose"
            overrides = (directory / f"{stem}.override{suffix}" for suffix in (".yaml", ".yml"))
            return (directory / name, *[f for f in overrides if f.is_file()][:1])
    return ()


def project_of(directory: Path, files: Sequence[Path] | None = None) -> str:
    """The name of the project that Compose would give these files, or the standard ones, of this folder.

    Raises ``ConfigurationError`` when none can be made of it.
    """
    given = _variable(directory, "COMPOSE_PROJECT_NAME")
    name = given or _named(files or files_of(directory)) or re.sub(r"[^a-z0-9_-]", "", directory.resolve().name.lower())
    name = name if given else name.lstrip("_-")
    if not _PROJECT.fullmatch(name):
        raise errors.ConfigurationError(
            f"no Compose project can be called {name!r}", remedy="Name the project with --project."
        )
    return name


def read(project: str, directory: Path, files: Sequence[Path], *, docker_host: str = "") -> Definition:
    """What the files say. Raises ``ConfigurationError`` when Compose cannot make sense of them, ``Unsupported`` when
    there is no Compose v2 here."""
    try:
        said = _compose(project, directory, files, ["config", "--format", "json"], docker_host=docker_host)
        found = json.loads(said)
    except (errors.CommandFailed, ValueError) as error:
        raise errors.ConfigurationError(
            f"the Compose files of {project} cannot be read: {_last_line(error)}",
            remedy="`docker compose config` shows what is wrong.",
        ) from error
    declared: Mapping[str, Any] = found.get("volumes") or {}
    names = {short: str((v or {}).get("name") or f"{project}_{short}") for short, v in declared.items()}
    services = tuple(_service(project, name, s, names) for name, s in sorted((found.get("services") or {}).items()))
    volumes = tuple(_volume(names[s], s, v or {}) for s, v in declared.items() if not (v or {}).get("external"))
    kept = [v["file"] for kind in ("secrets", "configs") for v in (found.get(kind) or {}).values() if v.get("file")]
    kept += [m.source for s in services for m in s.mounts if m.kind == "bind" and not m.writable]
    return Definition(services, volumes, tuple(sorted({Path(file) for file in kept})))


def version(*, docker_host: str = "") -> str:
    """The version of Compose here. Raises ``Unsupported`` when there is none, or only version 1."""
    environment = {**settings.environment(), **({"DOCKER_HOST": docker_host} if docker_host else {})}
    _require_version_2(environment)
    said = process.run(["docker", "compose", "version", "--short"], environment=environment, timeout_s=_CONFIG_S)
    return said.decode("utf-8", "replace").strip()


def create(project: str, directory: Path, files: Sequence[Path], *, docker_host: str = "") -> None:
    """Create networks, volumes and containers that are missing; what is there stays as it is.

    Raises ``CommandFailed`` with Compose's own words, and ``Unsupported`` when there is no Compose v2 here.
    """
    try:
        _compose(project, directory, files, ["create", "--no-recreate"], docker_host=docker_host)
    except errors.CommandFailed as error:
        raise errors.CommandFailed(
            f"the containers of {project} cannot be created: {_last_line(error)}",
            status=error.status,
            stderr=error.stderr,
            remedy="If an image is missing, pull or build it (`docker compose build`); then run the command again.",
        ) from error


def _compose(project: str, directory: Path, files: Sequence[Path], verb: list[str], *, docker_host: str) -> bytes:
    call = ["docker", "compose", "--project-name", project, "--project-directory", str(directory), "--ansi", "never"]
    for file in files:
        call += ["--file", str(file)]
    # All of the user's environment: the files may refer to any of it.
    environment = {**settings.environment(), **({"DOCKER_HOST": docker_host} if docker_host else {})}
    try:
        limit = _CONFIG_S if verb[0] == "config" else None
        return process.run([*call, *verb], environment=environment, cwd=directory, timeout_s=limit)
    except errors.CommandFailed:
        _require_version_2(environment)
        raise


def _require_version_2(environment: Mapping[str, str]) -> None:
    """Raise ``Unsupported`` when that is why a call failed."""
    try:
        version = process.run(["docker", "compose", "version", "--short"], environment=environment, timeout_s=_CONFIG_S)
        if not version.strip().startswith((b"1.", b"v1.")):
            return
        old = True
    except errors.CommandFailed:
        old = _there_is(["docker-compose", "version", "--short"], environment)
    remedy = "Install the Compose plugin of Docker, version 2 or later, so that `docker compose version` answers."
    if old:
        raise errors.Unsupported("docker-compose version 1 is not supported", remedy=remedy)
    raise errors.Unsupported("`docker compose` is not installed", remedy=remedy)


def _there_is(call: list[str], environment: Mapping[str, str]) -> bool:
    try:
        process.run(call, environment=environment, timeout_s=_CONFIG_S)
    except errors.CommandFailed:
        return False
    return True


def _service(project: str, name: str, said: Mapping[str, Any], volumes: Mapping[str, str]) -> Service:
    command = said.get("command") or ()
    mounts = [_mount(mount, volumes) for mount in said.get("volumes") or () if mount.get("type") in ("volume", "bind")]
    mounts += [Mount("tmpfs", "", str(target).split(":", 1)[0]) for target in said.get("tmpfs") or ()]
    return Service(
        name=name,
        container=str(said.get("container_name") or f"{project}-{name}-1"),
        image=str(said.get("image") or f"{project}-{name}"),
        command=(command,) if isinstance(command, str) else tuple(map(str, command)),
        labels={str(key): str(value) for key, value in (said.get("labels") or {}).items()},
        mounts=tuple(mounts),
        state="missing",
        depends_on=tuple(sorted(said.get("depends_on") or ())),
        project=project,
    )


def _mount(said: Mapping[str, Any], volumes: Mapping[str, str]) -> Mount:
    source, target, writable = str(said.get("source") or ""), str(said["target"]), not said.get("read_only")
    if said["type"] == "bind":
        return Mount("bind", source, target, writable=writable)
    return Mount("volume", volumes.get(source, source), target, writable=writable, anonymous=not source)


def _volume(name: str, short: str, said: Mapping[str, Any]) -> VolumeRecord:
    options = {str(key): str(value) for key, value in (said.get("driver_opts") or {}).items()}
    labels = {str(key): str(value) for key, value in (said.get("labels") or {}).items()}
    return VolumeRecord(name, short, driver=str(said.get("driver") or "local"), options=options, labels=labels)


def _named(files: Sequence[Path]) -> str:
    """What the last of the files that has a top-level ``name:`` calls the project."""
    name = ""
    for file in files:
        for line in _lines(file):
            if found := re.match(r"""name:\s*(['"]?)([a-z0-9][a-z0-9_-]*)\1\s*(#.*)?$""", line):
                name = found[2]
    return name


def _variable(directory: Path, name: str) -> str:
    """A variable of the environment, or of the folder's ``.env``, which Compose reads as well."""
    value = settings.environment().get(name, "")
    for line in [] if value else _lines(directory / ".env"):
        if found := re.match(rf"\s*(?:export\s+)?{name}\s*=\s*(['\"]?)(.*?)\1\s*$", line):
            value = found[2]
    return value


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text("utf-8", "replace").splitlines()
    except OSError:
        return []


def _last_line(error: Exception) -> str:
    said = error.stderr if isinstance(error, errors.CommandFailed) and error.stderr else str(error)
    return said.strip().rsplit("\n", 1)[-1].strip()
