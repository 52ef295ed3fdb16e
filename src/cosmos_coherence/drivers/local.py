"""The ``process`` runtime: a stack of plain local processes in one folder, described by its ``stack.json``.

Below the folder lie ``volumes/<short name>``, ``logs/<service>.log``, ``run/<service>.pid`` and the state directory
``.cosmos``. A service runs as a process group of its own and outlives the program that started it. A pid file names
a process by id, birth and boot, so that another one that got the same id later is never taken for ours.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import pwd
import re
import shutil
import signal
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

from cosmos_coherence import errors
from cosmos_coherence.drivers import process, stackfile
from cosmos_coherence.drivers.process import Facts, LocalChild
from cosmos_coherence.drivers.stackfile import MountSpec, ServiceSpec, StackSpec
from cosmos_coherence.model import HoldTarget, Mount, Service, ServiceState, Stack, Volume, VolumeRecord

_POLL_S = 0.02
_PROBE_TIMEOUT_S = 10.0


class LocalRuntime:
    """The stack in ``folder``; keeps the promises of ``drivers.runtime.Runtime``. Its file is read anew each time.

    ``alone`` is the name of a project that has no such file, and no service: nothing but folders that settings name.
    """

    kind = "process"

    def __init__(self, folder: Path, *, alone: str = "") -> None:
        self.folder = folder.resolve()
        self._alone = StackSpec(project=alone, services=()) if alone else None

    def stack(self, *, declared: bool = True) -> Stack:
        """See ``Runtime``. Health is not asked for here, only by ``wait_ready``."""
        spec = self._read()
        labels = {short: volume.labels for short, volume in spec.volumes.items()}
        folders = self.folder / "volumes"
        found = [p.name for p in folders.iterdir() if p.is_dir() and p.name[0] != "."] if folders.is_dir() else []
        return Stack(
            project=spec.project,
            runtime="process",
            directory=self.folder,
            config_files=() if self._alone else (self.folder / stackfile.FILE_NAME,),
            services=tuple(self._service(service, spec.project) for service in spec.services),
            volumes=tuple(
                self._volume(spec.project, short, labels.get(short, {})) for short in sorted({*labels, *found})
            ),
        )

    def _read(self) -> StackSpec:
        return self._alone or stackfile.read(self.folder)

    def state_directory(self) -> Path:
        """See ``Runtime``."""
        return self._made(".cosmos", 0o700)

    def found_state_directory(self) -> Path | None:
        """See ``Runtime``."""
        path = self.folder / ".cosmos"
        return path if path.is_dir() else None

    def run(
        self,
        service: str,
        argv: Sequence[str],
        *,
        stdin: bool = False,
        environment: Mapping[str, str] | None = None,
        user: str = "",
        container: str = "",
    ) -> LocalChild:
        """See ``Runtime``. A service has one copy. The command has the environment, folder and user of the service."""
        spec = self._spec(service)
        state = self._state(spec)
        if state != "running":
            raise self._down(service, f"is {state}")
        return process.start(
            argv,
            stdin=stdin,
            environment={**spec.environment, **(environment or {})},
            cwd=spec.cwd or self.folder,
            user=user or spec.user or None,
        )

    def hold_targets(self, services: Sequence[Service]) -> tuple[HoldTarget, ...]:
        """See ``Runtime``. One that somebody has stopped already is left to whoever did it."""
        found = ((s.container, self._facts(s.name)) for s in services)
        return tuple(
            HoldTarget(means="signal", name=name, id=str(facts.group), birth=facts.birth)
            for name, facts in found
            if facts and facts.state != "T"
        )

    def stop(self, services: Sequence[str], *, timeout_s: float = 30.0, containers: Collection[str] = ()) -> None:
        """See ``Runtime``. Each gets its own stop signal and, when its time is over, SIGKILL with its whole group."""
        for spec in reversed(self._ordered(services)):
            facts = self._facts(spec.name)
            if facts is None:
                continue
            _signal(facts, signal.Signals[spec.stop_signal], group=False)
            _signal(facts, signal.SIGCONT, group=True)  # one that stands still hears nothing
            if not self._ended(spec.name, timeout_s):
                _signal(facts, signal.SIGKILL, group=True)
                if not self._ended(spec.name, timeout_s):
                    raise errors.CommandFailed(f"service {spec.name} cannot be ended: process {facts.group} hangs")

    def start(self, services: Sequence[str], *, containers: Collection[str] = ()) -> None:
        """See ``Runtime``. What a service depends on is awaited first, if it runs."""
        for spec in self._ordered(services):
            state = self._state(spec)
            if state == "paused":
                raise self._down(spec.name, "is paused")
            if state == "running":
                continue
            self.wait_ready([d for d in spec.depends_on if self._facts(d)])
            lost = [m.volume for m in spec.volumes if m.volume and not self._source(m).is_dir()]
            if lost:
                raise self._down(spec.name, f"cannot start: there is no volume {', '.join(lost)}")
            process.start_detached(
                spec.argv,
                log=self._log(spec.name),
                note=functools.partial(self._remember, spec.name),
                environment=spec.environment,
                cwd=spec.cwd or self.folder,
                user=spec.user or None,
            )

    def wait_ready(self, services: Sequence[str], *, timeout_s: float = 120.0, crashes: int = 0) -> None:
        """See ``Runtime``. One that has ended is not waited for: nobody starts it again."""
        deadline = time.monotonic() + timeout_s
        for spec in self._ordered(services):
            while True:
                state = self._state(spec)
                if state in ("exited", "created"):
                    raise self._down(spec.name, f"is {state}", ended=True)
                if state == "running" and self._answers(spec):
                    break
                if time.monotonic() > deadline:
                    raise self._down(spec.name, f"is {state} but not ready after {timeout_s:g} s")
                time.sleep(_POLL_S)

    def create(self) -> None:
        """See ``Runtime``."""
        for short in self._read().volumes:
            self._make_volume(short)

    def create_volume(self, record: VolumeRecord) -> Volume:
        """See ``Runtime``. ``ConfigurationError`` for a name that cannot be a volume of this stack."""
        spec = self._read()
        short = record.name.removeprefix(f"{spec.project}_")
        if short == record.name or not re.fullmatch(stackfile.NAME_PATTERN, short):
            raise errors.ConfigurationError(
                f"{record.name!r} is no volume of this stack",
                remedy=f"The volumes of a stack of local processes are called {spec.project}_<name>.",
            )
        self._make_volume(short)
        known = spec.volumes.get(short)
        return self._volume(spec.project, short, known.labels if known else {})

    def remove_volume(self, name: str) -> None:
        """See ``Runtime``. A service that is stopped does not use its volumes."""
        volume = self.stack().volume(name)
        if volume is None or volume.path is None or not volume.exists:
            raise errors.NotFound(f"there is no volume {name}")
        if users := self.volume_users().get(volume.name):
            raise errors.Refused(f"volume {name} is in use by {', '.join(users)}", remedy="Stop what uses it first.")
        gone = volume.path.with_name(f".{volume.short}.removed")
        with on_disk():
            if gone.exists():
                shutil.rmtree(gone)
            volume.path.rename(gone)
            shutil.rmtree(gone)

    def volume_users(self) -> Mapping[str, tuple[str, ...]]:
        """See ``Runtime``. Only what runs uses anything."""
        found: dict[str, tuple[str, ...]] = {}
        for service in self.stack().services:
            for mount in service.mounts if service.state in ("running", "paused") else ():
                if mount.kind == "volume":
                    found[mount.source] = (*found.get(mount.source, ()), service.container)
        return found

    def anonymous_volumes(self) -> tuple[Volume, ...]:
        """See ``Runtime``: all have names."""
        return ()

    def user_of(self, service: str, target: str) -> tuple[int, int]:
        """See ``Runtime``."""
        if not (name := self._spec(service).user):
            return os.geteuid(), os.getegid()
        try:
            known = pwd.getpwnam(name)
        except KeyError:
            raise errors.NotFound(f"there is no user {name}", remedy=f"Mend {stackfile.FILE_NAME}.") from None
        return known.pw_uid, known.pw_gid

    def destroy(self) -> None:
        """Stop everything and delete the volumes with all that is in them. For the demo, which brings it back."""
        self.stop([s.name for s in self._read().services], timeout_s=10.0)
        with on_disk():
            for folder in sorted(self._made("volumes").iterdir()):
                shutil.rmtree(folder)

    def referenced_files(self) -> tuple[Path, ...]:
        """See ``Runtime``: nothing beyond ``stack.json`` and ``configs/``, which every stack's configuration has."""
        return ()

    def layer_changes(self) -> Mapping[str, tuple[str, ...]]:
        """See ``Runtime``: a local process has no layer of its own."""
        return {}

    def watchdog_pipes(self) -> tuple[BinaryIO, BinaryIO] | None:
        """See ``Runtime``: beside the program."""
        return None

    # ------------------------------------------------------------------------------------------------ values
    def _service(self, spec: ServiceSpec, project: str) -> Service:
        return Service(
            name=spec.name,
            container=spec.name,
            image=spec.image,
            command=spec.argv,
            labels=spec.labels,
            mounts=tuple(self._mount(project, mount) for mount in spec.volumes),
            state=self._state(spec),
            depends_on=spec.depends_on,
            project=project,
        )

    def _mount(self, project: str, spec: MountSpec) -> Mount:
        source = self._source(spec)
        if spec.volume:
            return Mount("volume", f"{project}_{spec.volume}", spec.target or str(source))
        return Mount("bind", str(source), spec.target or str(source))

    def _source(self, spec: MountSpec) -> Path:
        return spec.path or self.folder / "volumes" / str(spec.volume)

    def _volume(self, project: str, short: str, labels: Mapping[str, str]) -> Volume:
        path = self.folder / "volumes" / short
        return Volume(name=f"{project}_{short}", short=short, labels=labels, path=path, exists=path.is_dir())

    def _spec(self, name: str) -> ServiceSpec:
        return self._ordered([name])[0]

    def _ordered(self, names: Iterable[str]) -> list[ServiceSpec]:
        """The services of these names, dependencies first."""
        spec = self._read()
        wanted = set(names)
        for unknown in sorted(wanted - {s.name for s in spec.services}):
            raise errors.NotFound(f"stack {spec.project} has no service {unknown}")
        return [s for s in stackfile.in_order(spec.services) if s.name in wanted]

    # --------------------------------------------------------------------------------------------- processes
    def _state(self, spec: ServiceSpec) -> ServiceState:
        facts = self._facts(spec.name)
        if facts is None:
            return "exited" if self._pid_file(spec.name).exists() else "created"
        return "paused" if facts.state == "T" else "running"

    def _facts(self, name: str) -> Facts | None:
        """Of the service's process if it lives; an id that was given to another process since then is not it."""
        try:
            pid, birth, boot = self._pid_file(name).read_text("ascii").split()
            facts = process.facts(int(pid))
        except (FileNotFoundError, ValueError):  # never started, or killed while it was being noted
            return None
        return facts if facts and facts.birth == int(birth) and boot == _boot() else None

    def _remember(self, name: str, pid: int) -> None:
        facts = process.facts(pid)
        new = self._pid_file(name).with_suffix(".new")
        with on_disk():
            new.write_text(f"{pid} {facts.birth if facts else 0} {_boot()}\n", "ascii")
            new.replace(self._pid_file(name))

    def _ended(self, name: str, timeout_s: float) -> bool:
        deadline = time.monotonic() + timeout_s
        while self._facts(name):
            if time.monotonic() > deadline:
                return False
            time.sleep(_POLL_S)
        return True

    def _answers(self, spec: ServiceSpec) -> bool:
        if not spec.ready:
            return True
        try:
            process.run(
                spec.ready,
                environment=spec.environment,
                cwd=spec.cwd or self.folder,
                user=spec.user or None,
                timeout_s=_PROBE_TIMEOUT_S,
            )
        except errors.CommandFailed:
            return False
        return True

    def _down(self, name: str, outcome: str, *, ended: bool = False) -> errors.ServiceDown:
        remedy = f"Look at its log, {self._log(name)}, then start it again."
        return errors.ServiceDown(f"service {name} {outcome}", ended=ended, remedy=remedy)

    # ------------------------------------------------------------------------------------------------- files
    def _make_volume(self, short: str) -> None:
        """An empty folder that belongs to the first service which uses it; one that is there stays as it is."""
        path = self._made("volumes", 0o711) / short
        if path.is_dir():
            return
        users = [s.user for s in self._read().services if any(m.volume == short for m in s.volumes)]
        with on_disk():
            path.mkdir(mode=0o700)
            if users and users[0] and os.geteuid() == 0:
                owner = pwd.getpwnam(users[0])
                os.chown(path, owner.pw_uid, owner.pw_gid)

    def _pid_file(self, name: str) -> Path:
        return self._made("run", 0o700) / f"{name}.pid"

    def _log(self, name: str) -> Path:
        return self._made("logs", 0o700) / f"{name}.log"

    def _made(self, name: str, mode: int = 0o711) -> Path:
        path = self.folder / name
        if not path.is_dir():
            with on_disk():
                path.mkdir(mode=mode, exist_ok=True)
        return path


def _signal(facts: Facts, number: signal.Signals, *, group: bool) -> None:
    """To the leader or to its whole group; the leader was seen alive a moment ago, or has not been reaped since."""
    try:
        (os.killpg if group else os.kill)(facts.group, number)
    except ProcessLookupError:
        pass
    except PermissionError as error:
        raise errors.CommandFailed(
            f"process {facts.group} belongs to another user",
            remedy="Run as the user who started the stack, or as root.",
        ) from error


def _boot() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()


@contextlib.contextmanager
def on_disk() -> Iterator[None]:
    """Turn what the file system refuses into ``NoRoom`` or ``ConfigurationError``."""
    try:
        yield
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise errors.NoRoom(f"no room for {error.filename}") from error
        raise errors.ConfigurationError(f"{error.filename}: {error.strerror}") from error
