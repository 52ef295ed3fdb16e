"""The ``docker`` runtime: a Compose project on a Docker engine."""

from __future__ import annotations

import contextlib
import re
import threading
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO

from cosmos_coherence import errors
from cosmos_coherence.drivers import (
    cgroup,
    compose,
    docker_exec,
    docker_facts,
    docker_order,
    docker_user,
    docker_volumes,
)
from cosmos_coherence.drivers.compose import Definition, project_of
from cosmos_coherence.drivers.docker_facts import Facts
from cosmos_coherence.drivers.engine import Engine
from cosmos_coherence.drivers.reach import Reach, private_folder
from cosmos_coherence.interruption import uninterrupted
from cosmos_coherence.model import HoldTarget, Service, Stack, Volume, VolumeRecord

__all__ = ["STATE_VOLUME", "DockerRuntime", "project_of"]

STATE_VOLUME = "cosmos-state"
_POLL_S = 0.05
_AT_ONCE = 8
_DEPENDENCY_S = 120.0


class DockerRuntime:
    """The Compose project ``project``; keeps the promises of ``drivers.runtime.Runtime``.

    ``config_files``: the Compose files that make the stack; None takes those that its containers were made from, else
    those of ``directory``. ``image`` is this program's own, for the times it has to run beside the volumes.
    """

    kind = "docker"

    def __init__(
        self,
        project: str,
        *,
        directory: Path | None = None,
        config_files: tuple[Path, ...] | None = None,
        docker_host: str = "",
        image: str = "",
        state_directory: Path | None = None,
    ) -> None:
        self.project, self.image = project, image
        self.engine = Engine(docker_host)
        self.reach = Reach(self.engine)
        self._docker_host = docker_host
        self._directory = directory.resolve() if directory else None
        self._config_files = config_files
        self.chosen_state_directory = state_directory
        self._read: tuple[object, Definition] | None = None
        self._reading = threading.Lock()

    def stack(self, *, declared: bool = True) -> Stack:
        """See ``Runtime``. A project of which nothing but its Compose files, or its volumes, is left is found, too."""
        listed = self.engine.ask("containers", all=True)
        own = [c for c in listed if docker_facts.is_of(c, self.project)]
        volumes = docker_facts.volumes_of(self.project, self.engine.ask("volumes")["Volumes"] or [], listed)
        directory, files = self._origin(own)
        definition = self._definition(directory, files, needed=not own) if files and (declared or not own) else None
        if not own and not volumes and definition is None:
            known = self.projects()
            raise errors.NotFound(
                f"there is no stack {self.project}",
                remedy=f"The engine runs: {', '.join(known)}." if known else "The engine runs no Compose project.",
            )
        names = {v["Name"] for v in volumes}
        folders = docker_facts.folders_in(own)
        guests = [c for c in listed if c not in own and self._is_neighbour(c, names, folders)]
        services = self._services(self._inspected(own))
        there = {s.name for s in services}
        known_volumes = [docker_facts.volume_of(v, self.project, self.reach.volume(v)) for v in volumes]
        if definition:
            known_volumes = [docker_volumes.labelled(v, definition.volumes) for v in known_volumes]
            services += [s for s in definition.services if s.name not in there]
            known_volumes += [docker_volumes.lost(v) for v in definition.volumes if v.name not in names]
        return Stack(
            project=self.project,
            runtime="docker",
            directory=directory,
            config_files=files,
            services=tuple(services),
            volumes=tuple(sorted(known_volumes, key=lambda v: v.name)),
            neighbours=tuple(self._services(self._inspected(guests))),
            networks=tuple(sorted({n for c in own for n in c["NetworkSettings"]["Networks"]})),
            program=next((docker_facts.name_of(c) for c in listed if c["Id"] == self.reach.own_id), ""),
        )

    def projects(self) -> tuple[str, ...]:
        """All Compose projects of the engine that have a container, sorted."""
        listed = self.engine.ask("containers", all=True)
        return tuple(sorted({p for c in listed if (p := docker_facts.labels_of(c).get(docker_facts.PROJECT))}))

    def state_directory(self) -> Path:
        """See ``Runtime``: the folder of the settings, else the volume ``<project>_cosmos-state``, which Compose takes
        for its own. ``Refused`` where that cannot be reached from here."""
        if self.chosen_state_directory:
            return private_folder(self.chosen_state_directory)
        name = f"{self.project}_{STATE_VOLUME}"
        labels = {docker_facts.PROJECT: self.project, docker_facts.VOLUME: STATE_VOLUME}
        # Creating one that exists returns it as it is.
        path = self.reach.volume(self.engine.ask("create_volume", name, driver="local", labels=labels))
        if path is None:
            raise errors.Refused(
                f"the journal in volume {name} cannot be reached from here",
                remedy="Run as root on the machine of the engine, or let it run in a container there: `make images`.",
            )
        return private_folder(path)

    def found_state_directory(self) -> Path | None:
        """See ``Runtime``. Raises as ``Engine.ask`` does when the engine cannot be asked."""
        if self.chosen_state_directory:
            return self.chosen_state_directory if self.chosen_state_directory.is_dir() else None
        try:
            return self.reach.volume(self.engine.ask("inspect_volume", f"{self.project}_{STATE_VOLUME}"))
        except errors.NotFound:
            return None

    def run(
        self,
        service: str,
        argv: Sequence[str],
        *,
        stdin: bool = False,
        environment: Mapping[str, str] | None = None,
        user: str = "",
        container: str = "",
    ) -> docker_exec.ExecChild:
        """See ``Runtime``. The command has the environment and folder of the service. Of several copies the first that
        runs is taken, unless one is named."""
        copies = self._copies(self._own(), [service], only=[container] if container else ())[service]
        running = [c for c in copies if c["State"] == "running"]
        if not running:
            raise _down(service, f"is {copies[0]['State']}")
        try:
            return docker_exec.start(
                self.engine, running[0]["Id"], argv, name=service, stdin=stdin, environment=environment, user=user
            )
        except (errors.Refused, errors.NotFound) as error:  # stopped or paused in this moment
            raise _down(service, "does not run") from error

    def hold_targets(self, services: Sequence[Service]) -> tuple[HoldTarget, ...]:
        """See ``Runtime``. The freezer of the container's control group where that can be written, else the engine.

        Left out: what somebody else has paused, what is labelled ``cosmos.hold=never``, and the container that this
        program runs in. ``Unsupported`` when the engine could only be asked over the network.
        """
        found = []
        for facts in self._inspected([{"Id": s.container} for s in services]):
            state, labels = facts["State"], docker_facts.labels_of(facts)
            if not state["Running"] or state["Paused"] or labels.get("cosmos.hold") == "never":
                continue
            if facts["Id"] == self.reach.own_id:
                continue
            name = docker_facts.name_of(facts)
            target = cgroup.freezer_of(facts["Id"], state["Pid"], name)
            if target is None and not self.engine.socket_path:
                raise errors.Unsupported(f"containers cannot be held through {self.engine.host}")
            found.append(target or HoldTarget("engine", name, where=self.engine.socket_path, id=facts["Id"]))
        return tuple(found)

    def stop(self, services: Sequence[str], *, timeout_s: float = 30.0, containers: Collection[str] = ()) -> None:
        """See ``Runtime``. What is left after ``timeout_s`` is killed by the engine."""
        own = self._own()
        copies = self._copies(own, services, missing=True, only=containers)
        for level in reversed(docker_order.levels(own, copies)):
            up = [c for name in level for c in copies[name] if c["State"] not in ("exited", "created", "dead")]
            _each(lambda c: self.engine.ask("stop", c["Id"], timeout=round(timeout_s)), up)

    def start(self, services: Sequence[str], *, containers: Collection[str] = ()) -> None:
        """See ``Runtime``. What a service depends on is awaited as its Compose file says, if it runs by then."""
        own = self._own()
        copies = self._copies(own, services, only=containers)
        for level in docker_order.levels(own, copies):
            stopped = [c for name in level for c in copies[name] if c["State"] != "running"]
            for container in stopped:
                if container["State"] == "paused":
                    raise _down(docker_facts.service_name(container), "is paused")
                self._await_dependencies(container)
            _each(self._start, stopped)

    def wait_ready(self, services: Sequence[str], *, timeout_s: float = 120.0, crashes: int = 0) -> None:
        """See ``Runtime``. One that has ended for good is not waited for; a job whose end others await is ready when it
        has ended well."""
        deadline = time.monotonic() + timeout_s
        own = self._own()
        jobs = docker_order.jobs(own)
        for name, copies in self._copies(own, services).items():
            for copy in copies:
                restarts = 0
                while wait := docker_order.not_ready(facts := self._inspect(copy), job=name in jobs):
                    restarts = max(restarts, facts.get("RestartCount", 0))
                    if wait.final or (crashes and restarts >= crashes):
                        raise _down(name, wait.why, ended=True)
                    if time.monotonic() > deadline:
                        raise _down(name, f"{wait.why} after {timeout_s:g} s")
                    time.sleep(_POLL_S)

    def create(self) -> None:
        """See ``Runtime``. Images that are missing are pulled or built, as Compose does."""
        directory, files = self._origin(self._own())
        if not files:
            raise errors.NotFound(f"there are no Compose files of {self.project} in {directory}")
        compose.create(self.project, directory, files, docker_host=self._docker_host)

    def create_volume(self, record: VolumeRecord) -> Volume:
        """See ``Runtime``. ``Refused`` for one that would lie in a folder of the host, unless the Compose files say so:
        a record may come from an archive, and archives are not trusted that far."""
        facts = docker_volumes.created(self.engine, record, declares=self._declares)
        return docker_facts.volume_of(facts, self.project, self.reach.volume(facts))

    def remove_volume(self, name: str) -> None:
        """See ``Runtime``."""
        self.engine.ask("remove_volume", name)

    def volume_users(self) -> Mapping[str, tuple[str, ...]]:
        """See ``Runtime``."""
        return docker_volumes.users(self.engine)

    def anonymous_volumes(self) -> tuple[Volume, ...]:
        """See ``Runtime``."""
        return docker_volumes.anonymous(self.engine, self.project, self.reach)

    def user_of(self, service: str, target: str) -> tuple[int, int]:
        """See ``Runtime``."""
        container = self._inspect(self._copies(self._own(), [service])[service][0])
        return docker_user.user_of(self.engine, container, target)

    def referenced_files(self) -> tuple[Path, ...]:
        """See ``Runtime``. Without Compose, what the containers mount read-only."""
        own = self._own()
        directory, files = self._origin(own)
        definition = self._definition(directory, files, needed=False) if files else None
        mounts = (m for s in self._services(self._inspected(own)) for m in s.mounts)
        found = {Path(m.source) for m in mounts if m.kind == "bind" and not m.writable}
        return tuple(sorted(found | set(definition.files if definition else ())))

    def layer_changes(self) -> Mapping[str, tuple[str, ...]]:
        """See ``Runtime``. Scratch folders, mount points and services labelled ``cosmos.exclude=true`` are left out."""
        found = {}
        for container in self._inspected(self._own()):
            if docker_facts.labels_of(container).get("cosmos.exclude", "").lower() != "true":
                changes = self.engine.ask("diff", container["Id"]) or ()
                found[docker_facts.name_of(container)] = docker_facts.left_in_layer(changes, container)
        return {name: paths for name, paths in sorted(found.items()) if paths}

    def watchdog_pipes(self) -> tuple[BinaryIO, BinaryIO] | None:
        """See ``Runtime``."""
        if not self.reach.own_id:
            return None
        from cosmos_coherence.drivers.container import start_watchdog_container  # it needs what is declared here

        own = self.engine.ask("inspect_container", self.reach.own_id)
        return start_watchdog_container(self, str(own["Image"]))

    # ------------------------------------------------------------------------------------------ what is known
    def _inspect(self, listed: Facts) -> Facts:
        facts: Facts = self.engine.ask("inspect_container", listed["Id"])
        return facts

    def _inspected(self, listed: Iterable[Facts]) -> list[Facts]:
        found = []
        for one in listed:
            with contextlib.suppress(errors.NotFound):  # removed since it was listed
                found.append(self._inspect(one))
        return found

    def _services(self, inspected: Iterable[Facts]) -> list[Service]:
        digests: dict[tuple[str, str], str] = {}

        def digest(image: str, name: str) -> str:
            if (image, name) not in digests:
                digests[image, name] = self._digest(image, name)
            return digests[image, name]

        ordered = sorted(inspected, key=lambda f: (docker_facts.service_name(f), docker_facts.number_of(f)))
        return [docker_facts.service_of(facts, digest) for facts in ordered]

    def _digest(self, image: str, name: str) -> str:
        try:
            digests = self.engine.ask("inspect_image", image).get("RepoDigests") or ()
        except errors.NotFound:
            return image
        repository = re.sub(r"(@.*|:[^/:]*)$", "", name)
        return str(next((d for d in digests if d.startswith(f"{repository}@")), digests[0] if digests else image))

    def _is_neighbour(self, listed: Facts, volumes: set[str], folders: set[Path]) -> bool:
        if docker_facts.labels_of(listed).get(docker_facts.ROLE) in ("run", "watchdog"):
            return False  # this program, which takes the run lock before it writes
        if docker_facts.labels_of(listed).get(docker_facts.PROJECT) == self.project:
            return bool(listed["State"] == "running")  # `compose run`: it writes to the services, if not to a volume
        return bool(docker_facts.volumes_in(listed) & volumes) or docker_facts.shares(listed, folders)

    def _origin(self, own: Sequence[Facts]) -> tuple[Path, tuple[Path, ...]]:
        """The project's folder and Compose files: as given, as its newest container says, as the folder has them."""
        directory = self._directory or Path.cwd()
        if self._config_files is not None:
            return directory, self._config_files
        for container in sorted(own, key=lambda c: -c["Created"]):
            labels = docker_facts.labels_of(container)
            where, files = Path(labels.get(docker_facts.DIRECTORY, "")), labels.get(docker_facts.FILES, "")
            if where.is_absolute() and files:
                return where, tuple(where / name for name in files.split(","))
        files_here = compose.files_of(directory)
        if files_here and (own or project_of(directory, files_here) == self.project):
            return directory, files_here
        return directory, ()

    def _definition(self, directory: Path, files: tuple[Path, ...], *, needed: bool) -> Definition | None:
        """What the Compose files say. Unless that is ``needed``, a missing file or a missing Compose is no fault."""
        if not all(file.is_file() for file in files):
            if needed and self._config_files is not None:
                lost = ", ".join(str(f) for f in files if not f.is_file())
                raise errors.NotFound(f"there is no Compose file {lost}", remedy="Name them with --file.")
            return None
        state = tuple((str(f), f.stat().st_mtime_ns) for f in (*files, directory / ".env") if f.exists())
        with self._reading:
            if self._read is None or self._read[0] != state:
                try:
                    found = compose.read(self.project, directory, files, docker_host=self._docker_host)
                except (errors.ConfigurationError, errors.Unsupported):
                    if needed:
                        raise
                    return None
                self._read = state, found
            return self._read[1]

    def _declares(self, record: VolumeRecord) -> bool:
        own = self._own()
        directory, files = self._origin(own)
        definition = self._definition(directory, files, needed=False) if files else None
        declared = definition.volumes if definition else ()
        return any((v.name, v.driver, v.options) == (record.name, record.driver, record.options) for v in declared)

    # ------------------------------------------------------------------------------------------ stop and start
    def _own(self) -> list[Any]:
        """The listed containers of the project, in the order of their numbers."""
        listed = self.engine.ask("containers", all=True)
        return sorted((c for c in listed if docker_facts.is_of(c, self.project)), key=docker_facts.number_of)

    def _copies(
        self, own: Sequence[Facts], services: Sequence[str], *, missing: bool = False, only: Collection[str] = ()
    ) -> dict[str, list[Facts]]:
        """The containers of each of these services, or ``only`` those of these names.

        ``NotFound`` for a service the stack does not have, and ``ServiceDown`` for one without a container, unless
        those may be ``missing``.
        """
        chosen = [c for c in own if not only or docker_facts.name_of(c) in only]
        found = {name: [c for c in chosen if docker_facts.service_name(c) == name] for name in services}
        lost = [name for name in services if not found[name]]
        known = {s.name for s in self.stack().services} if lost else set()
        for name in lost:
            if name not in known:
                raise errors.NotFound(f"stack {self.project} has no service {name}")
            if not missing:
                raise _down(name, "has no container")
        return found

    def _await_dependencies(self, container: Facts) -> None:
        for name, condition in docker_facts.conditions_of(container).items():
            states = {c["State"] for c in self._own() if docker_facts.service_name(c) == name}
            if condition != "service_started" and "running" in states:
                self.wait_ready([name], timeout_s=_DEPENDENCY_S)

    def _start(self, container: Facts) -> None:
        try:
            self.engine.ask("start", container["Id"])
        except (errors.CommandFailed, errors.Refused, errors.NotFound) as error:
            raise _down(docker_facts.service_name(container), f"cannot start: {error.message}") from error


def _each(act: Callable[[Facts], object], containers: Sequence[Facts]) -> None:
    """Act on all at once; the first error is raised when all have been tried."""
    with ThreadPoolExecutor(max_workers=_AT_ONCE) as pool, uninterrupted():
        tried = [pool.submit(act, container) for container in containers]
    for one in tried:
        one.result()


def _down(service: str, outcome: str, *, ended: bool = False) -> errors.ServiceDown:
    return errors.ServiceDown(f"service {service} {outcome}", ended=ended)
