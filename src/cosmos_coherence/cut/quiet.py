"""Services that are held by more than a freeze: commands of their own run around the cut, or they are stopped for it.

What has to be undone is in the journal before any of it begins, so that after a crash the next run undoes it.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

import msgspec

from cosmos_coherence import errors, interruption
from cosmos_coherence.cut.journal import Handle, Journal, QuietRecord
from cosmos_coherence.drivers.runtime import Child, Runtime
from cosmos_coherence.model import Quiet

HOOK_S = 60.0
"""How long a command of a service may take."""
_REMEDY = "Run the command by hand in the service and see why: docker exec CONTAINER sh -c '...'"


@contextlib.contextmanager
def quieted(
    runtime: Runtime,
    services: Sequence[Quiet],
    *,
    journal: Journal,
    run: str,
    tell: Callable[[str], None],
    hook_s: float = HOOK_S,
) -> Iterator[Mapping[str, float]]:
    """Make these services quiet: first each ``before``, in all running copies, then the stops. Afterwards, however it
    ends, what was stopped is started again and each ``after`` is run. Copies that do not run stay as they are.

    Gives a mapping that is filled at the end: how many milliseconds each service was quiet. Raises ``CommandFailed``
    for a ``before`` that failed or did not end within ``hook_s`` seconds; what fails afterwards is told, and stays in
    the journal for the next run.
    """
    quiet_ms: dict[str, float] = {}
    if not services:
        yield quiet_ms
        return
    running = _running(runtime)
    there = [service for service in services if running.get(service.service)]
    stops = {s.service: running[s.service] for s in there if s.stop}
    note = journal.open(QuietRecord(run, {s.service: s.after for s in there if s.after}, stops))
    began: dict[str, float] = {}
    try:
        for service in there:
            if service.before:
                began[service.service] = time.monotonic()
                _in_each(runtime, service.service, running[service.service], "before", service.before, hook_s)
        began |= dict.fromkeys(stops, time.monotonic())
        runtime.stop(list(stops), containers=[name for names in stops.values() for name in names])
        yield quiet_ms
    finally:
        for fault in _undone(runtime, note, hook_s)[1]:
            tell(f"{fault}; the next run tries again")
        ended = time.monotonic()
        quiet_ms.update({name: round((ended - since) * 1000, 3) for name, since in began.items()})


def quiet_leftovers(runtime: Runtime, journal: Journal, *, hook_s: float = HOOK_S) -> Iterator[str]:
    """Undo what earlier runs left quiet, and say in sentences what was done. The caller holds the run lock."""
    for note in journal.pending(QuietRecord):
        done, faults = _undone(runtime, note, hook_s)
        yield from (f"{sentence}, for run {note.record.run}, which had ended before" for sentence in done)
        yield from faults


def _undone(runtime: Runtime, note: Handle[QuietRecord], hook_s: float) -> tuple[list[str], list[str]]:
    """Undo what the record names, and close it; what could not be undone stays in it. What was done, and what failed,
    in clauses."""
    done: list[str] = []
    faults: list[str] = []
    stopped, after = dict(note.record.stopped), dict(note.record.after)
    if names := ", ".join(sorted(stopped)):
        try:
            _start(runtime, stopped)
            stopped.clear()
            done.append(f"started {names} again")
        except errors.CosmosError as error:
            faults.append(f"{names} could not be started again: {error.message}")
    for service, command in note.record.after.items():
        try:
            _run_after(runtime, service, command, hook_s)
            del after[service]
            done.append(f"ran cosmos.hold.after of {service}")
        except errors.CosmosError as error:
            faults.append(error.message)
    if stopped or after:
        note.update(msgspec.structs.replace(note.record, stopped=stopped, after=after))
    else:
        note.close()
    return done, faults


def _start(runtime: Runtime, stopped: Mapping[str, Sequence[str]]) -> None:
    """Start the copies that ran before, where they still exist."""
    there = {s.container for s in runtime.stack().services if s.state != "missing"}
    copies = {service: [name for name in names if name in there] for service, names in stopped.items()}
    services = [service for service, names in copies.items() if names]
    if services:
        runtime.start(services, containers=[name for service in services for name in copies[service]])


def _run_after(runtime: Runtime, service: str, command: str, hook_s: float) -> None:
    """In every copy that runs now: one may have been made anew. A service that the stack no longer has is done."""
    if runtime.stack().service(service) is None:
        return
    copies = _running(runtime).get(service)
    if not copies:
        raise errors.ServiceDown(f"cosmos.hold.after of {service} could not be run: the service does not run")
    _in_each(runtime, service, copies, "after", command, hook_s)


def _running(runtime: Runtime) -> dict[str, tuple[str, ...]]:
    """The running copies of each service."""
    found: dict[str, tuple[str, ...]] = {}
    for copy in runtime.stack().services:
        if copy.state == "running":
            found[copy.name] = (*found.get(copy.name, ()), copy.container)
    return found


def _in_each(runtime: Runtime, service: str, copies: Sequence[str], which: str, command: str, hook_s: float) -> None:
    """Run the command in all copies. The first failure is raised when all have been tried."""
    faults: list[errors.CommandFailed] = []
    for copy in copies:
        try:
            _await(runtime.run(service, ["sh", "-c", command], container=copy), hook_s)
        except errors.CosmosError as error:
            faults.append(
                errors.CommandFailed(f"cosmos.hold.{which} of {service} failed: {error.message}", remedy=_REMEDY)
            )
    if faults:
        raise faults[0]


def _await(child: Child, hook_s: float) -> None:
    """The end of a command, which is killed when it takes longer."""
    failed: list[BaseException] = []

    def wait() -> None:
        try:
            child.wait()
        except BaseException as error:  # noqa: BLE001 - told by the caller's thread
            failed.append(error)

    waiting = interruption.Thread(target=wait, name="hook", daemon=True)
    try:
        waiting.start()
        waiting.join(hook_s)
    except BaseException:  # Ctrl-C
        child.kill()
        raise
    if waiting.is_alive():
        child.kill()
        raise errors.CommandFailed(f"it did not end within {hook_s:g} s")
    if failed:
        raise failed[0]
