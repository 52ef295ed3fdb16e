"""What runs a stack: the Docker engine, or plain local processes. One protocol for both."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Protocol

from cosmos_coherence.model import HoldTarget, Service, Stack, Volume, VolumeRecord


class Child(Protocol):
    """A command that runs in a service, or on this machine.

    Its standard error is drained all the time, so that it never blocks, and the last 8 KiB are kept. As a context
    manager it waits on a normal exit (and raises as ``wait`` does) and kills on an exception.
    """

    @property
    def stdin(self) -> BinaryIO:
        """Write end; closing it is end of file for the command. Only there when asked for."""
        ...

    @property
    def stdout(self) -> BinaryIO:
        """Read end, buffered; supports ``read``, ``readline`` and iteration."""
        ...

    @property
    def stderr_tail(self) -> str:
        """The last of what the command said on standard error so far."""
        ...

    def wait(self) -> None:
        """Close standard input, read what is left, await the exit status.

        Raises ``errors.CommandFailed`` with status and stderr when the status is not 0 or the connection broke, so that
        a command that died half way can never look like a short stream.
        """
        ...

    def kill(self) -> None:
        """End the command and everything it started; harmless when it has ended."""
        ...

    def __enter__(self) -> Child: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class Runtime(Protocol):
    """The door to a running stack. Calls raise only errors of the catalogue."""

    @property
    def kind(self) -> str:
        """``docker`` or ``process``."""
        ...

    def stack(self, *, declared: bool = True) -> Stack:
        """The stack as it is now, asked anew each time. ``NotFound`` when nothing of it exists. Without ``declared``,
        services and volumes that are missing may be left out, which is quicker."""
        ...

    def state_directory(self) -> Path:
        """The one folder for journal and run lock that host, container and agent share; made (mode 0700) if missing."""
        ...

    def found_state_directory(self) -> Path | None:
        """The same for a call that only looks: None where there is none yet, or where it cannot be reached."""
        ...

    def run(
        self,
        service: str,
        argv: Sequence[str],
        *,
        stdin: bool = False,
        environment: Mapping[str, str] | None = None,
        user: str = "",
        container: str = "",
    ) -> Child:
        """Start a command inside a running service, in the copy of this name if one is given. ``ServiceDown`` when it
        does not run or is paused."""
        ...

    def hold_targets(self, services: Sequence[Service]) -> tuple[HoldTarget, ...]:
        """How each of these running copies can be made to stand still; copies that do not run are left out."""
        ...

    def stop(self, services: Sequence[str], *, timeout_s: float = 30.0, containers: Collection[str] = ()) -> None:
        """Stop services in dependency order, dependents first; those already stopped are fine. Of their copies all, or
        only those of these names."""
        ...

    def start(self, services: Sequence[str], *, containers: Collection[str] = ()) -> None:
        """Start stopped services in dependency order; those that run are fine. Does not wait for health. Of their
        copies all, or only those of these names."""
        ...

    def wait_ready(self, services: Sequence[str], *, timeout_s: float = 120.0, crashes: int = 0) -> None:
        """Return when each service runs, and is healthy where it has a health check. ``ServiceDown`` names the first
        that is not in time, or, unless ``crashes`` is 0, that was started again so often because it had ended."""
        ...

    def create(self) -> None:
        """Create what is missing of the stack (networks, volumes, containers) without starting any service."""
        ...

    def create_volume(self, record: VolumeRecord) -> Volume:
        """Create a lost volume again with its driver, options and labels; one that exists is returned as it is."""
        ...

    def remove_volume(self, name: str) -> None:
        """Remove a volume, by its full name, with all that is in it. ``Refused`` while a container uses it,
        ``NotFound`` when there is none."""
        ...

    def volume_users(self) -> Mapping[str, tuple[str, ...]]:
        """By full name of a volume, the containers that mount it: of any project, running or not."""
        ...

    def anonymous_volumes(self) -> tuple[Volume, ...]:
        """Volumes without a name of their own that no container uses and no project claims."""
        ...

    def user_of(self, service: str, target: str) -> tuple[int, int]:
        """Owner and group of what the service writes at ``target``: the user that it runs as; where that is root, which
        many images leave for another one when they start, the owner of ``target`` in its image.

        ``ServiceDown`` without a container, ``NotFound`` for a user that the image does not know."""
        ...

    def referenced_files(self) -> tuple[Path, ...]:
        """Files and folders of the host that the stack's definition refers to: secrets, configs, read-only mounts."""
        ...

    def layer_changes(self) -> Mapping[str, tuple[str, ...]]:
        """By container, what was written outside of every mount and so is gone with the container; may be costly."""
        ...

    def watchdog_pipes(self) -> tuple[BinaryIO, BinaryIO] | None:
        """Where this program itself runs in a container: standard input and output of a watchdog started in another
        container, which does not die with ours. None: it may be started beside the program."""
        ...
