"""Is the stack well, and is its backup young enough: all checks of the stack, its stores, disks and backups.

What a single check needs is loaded by it, beside the others, so that the first of them is asked soon.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from functools import partial
from pathlib import Path

from cosmos_coherence import errors
from cosmos_coherence.discover.classify import classify
from cosmos_coherence.drivers.runtime import Runtime
from cosmos_coherence.health import age, cache, certificates, checks, database, disk, endpoints, services
from cosmos_coherence.health.checks import Check, CheckResult, Health
from cosmos_coherence.model import Measurement, Service, Stack, Volume
from cosmos_coherence.settings import Settings
from cosmos_coherence.volumes.usage import measure_tree

_RUN = "health"
_OK = {"ok": 1.0, "warn": 0.5, "fail": 0.0}


def answers(open_runtime: Callable[[], Runtime], limit_s: float) -> bool:
    """Whether whatever runs the stack says anything within ``limit_s`` seconds."""
    try:
        checks.within(limit_s, lambda: open_runtime().found_state_directory())
    except (errors.CosmosError, TimeoutError):
        return False
    return True


def check_stack(open_runtime: Callable[[], Runtime], settings: Settings, *, backups: Path) -> Health:
    """All checks, each with its own outcome, within twice ``health.limit``.

    An engine that does not answer is a failed check, no error, and the disk and the backups are looked at all the same.
    """
    limit = settings.health.limit
    results: list[CheckResult] = []
    asked: dict[str, Check] = {}
    project = settings.stack.project
    try:
        runtime, stack = checks.within(limit, lambda: _opened(open_runtime))
    except errors.CosmosError as error:
        results.append(CheckResult("engine", "fail", error.message))
    except TimeoutError:
        results.append(CheckResult("engine", "fail", f"no answer within {limit:g} s", limit * 1000))
    else:
        results += services.check_services(stack)
        asked, project = dict(_of_stack(runtime, stack, settings)), stack.project
    asked |= dict(_of_backups(settings, backups, project))
    found = checks.run(asked, limit_s=limit)
    results += found.checks
    return Health(checks.worst(results), tuple(results), found.taken)


def measurements(health: Health) -> tuple[Measurement, ...]:
    """What the checks found as numbers: ``ok`` of ``check:<name>`` is 1, 0.5 for a warning and 0 for a failure; besides
    whatever they measured."""
    found = [Measurement(health.taken, f"check:{check.name}", "ok", _OK[check.outcome]) for check in health.checks]
    found += [Measurement(health.taken, n.subject, n.name, n.value) for check in health.checks for n in check.numbers]
    return tuple(found)


def _opened(open_runtime: Callable[[], Runtime]) -> tuple[Runtime, Stack]:
    runtime = open_runtime()
    return runtime, runtime.stack(declared=False)


def _of_stack(runtime: Runtime, stack: Stack, settings: Settings) -> Iterator[tuple[str, Check]]:
    given = settings.health
    limits = disk.Limits(given.volume_warn, given.volume_fail)
    patience = certificates.Patience(given.certificate_warn, given.certificate_fail)
    if stack.runtime == "docker":
        yield "missing", partial(_missing, runtime)
    yield "schedule", partial(_schedule, runtime)
    yield from endpoints.checks_of(stack, given.urls, given.limit).items()
    for service in stack.services:
        yield from _of_server(runtime, stack, service)
    for endpoint in endpoints.tls_of(stack, given.urls):
        yield f"certificate {endpoint.host}", partial(_served, endpoint, patience, given.limit)
    for volume in stack.volumes:
        yield f"volume {volume.short}", partial(_volume, volume, runtime, limits, given.limit)
        yield f"certificates {volume.short}", partial(_certificates, volume, patience)


def _missing(runtime: Runtime) -> CheckResult | None:
    """What the Compose files declare and is not there; it takes Compose to tell, so it is asked beside the others."""
    stack = runtime.stack()
    lost = [f"service {s.name}" for s in stack.services if s.state == "missing"]
    lost += [f"volume {v.short}" for v in stack.volumes if not v.exists]
    return CheckResult("", "fail", ", ".join(lost)) if lost else None


def _schedule(runtime: Runtime) -> CheckResult | None:
    """How the jobs of the schedule ended last; a failure that matters is one of the backup's age, too."""
    from cosmos_coherence.history.ledger import FILE, Ledger

    state = runtime.found_state_directory()
    if state is None or not os.access(state / FILE, os.R_OK | os.W_OK):
        return None
    jobs = [job for job in Ledger(state).states().values() if job.started]
    amiss = [job for job in jobs if job.outcome in ("failed", "incomplete")]  # what was cut off is made up for
    said = ", ".join(f"{job.name} {job.summary}" for job in amiss or jobs)
    return CheckResult("", "warn" if amiss else "ok", said) if jobs else None


def _served(endpoint: endpoints.Endpoint, patience: certificates.Patience, limit_s: float) -> CheckResult:
    return certificates.check_served(endpoint, patience, now_s=time.time(), limit_s=limit_s)


def _certificates(volume: Volume, patience: certificates.Patience) -> CheckResult | None:
    return certificates.check_volume(volume, patience, now_s=time.time())


def _volume(volume: Volume, runtime: Runtime, limits: disk.Limits, limit_s: float) -> CheckResult:
    local = volume.driver == "local" and not volume.options
    place = _disk_of(runtime) if volume.path is None and local else None
    return disk.check_volume(volume, limits, disk=place, size=lambda p: measure_tree(p).bytes, limit_s=limit_s)


def _of_server(runtime: Runtime, stack: Stack, service: Service) -> Iterator[tuple[str, Check]]:
    """One that does not run has a failed check already."""
    if service.state != "running":
        return
    try:
        kind = classify(service, holds=_holds, stack=stack)
    except errors.ConfigurationError as error:
        sentence = error.message
        yield f"kind {service.name}", lambda: CheckResult("", "fail", sentence)
        return
    if kind == "postgres":
        yield f"database {service.name}", lambda: _database(runtime, service.name)
    elif kind == "redis":
        yield f"cache {service.name}", lambda: _cache(runtime, service.name)


def _holds(folder: Path) -> str:
    from cosmos_coherence.sources.tree_scan import looks_like_database

    return looks_like_database(folder)


def _database(runtime: Runtime, service: str) -> CheckResult:
    from cosmos_coherence.sources.postgres_session import CONTROL, Session

    with Session(runtime, service, CONTROL, _RUN) as session:
        return database.check_database(service, session.json)


def _cache(runtime: Runtime, service: str) -> CheckResult:
    from cosmos_coherence.sources.redis_session import Session

    with Session(runtime, service, _RUN) as session:
        return cache.check_cache(service, lambda: "".join(session.ask("PING")), session.info)


def _disk_of(runtime: Runtime) -> Path | None:
    """Where the engine keeps its volumes, when that is on this machine: its disk is theirs, even where nobody but root
    may look into them."""
    from cosmos_coherence.drivers.docker import DockerRuntime

    if not isinstance(runtime, DockerRuntime) or not runtime.engine.socket_path or runtime.reach.own_id:
        return None
    root = Path(str(runtime.engine.ask("info")["DockerRootDir"]))
    with contextlib.suppress(OSError):
        return root if root.is_dir() else None
    return None


def _of_backups(settings: Settings, backups: Path, project: str) -> Iterator[tuple[str, Check]]:
    given = settings.health
    limits = disk.Limits(given.volume_warn, given.volume_fail)
    yield "disk", lambda: disk.check_fullness(backups, limits, min_free=settings.backup.min_free)

    def backup_age() -> CheckResult:
        from cosmos_coherence.flow import inventory

        last = inventory.newest(settings, backups, project=project or None, complete=True)
        made_s = datetime.fromisoformat(last.manifest.instant).timestamp() if last else None
        return age.check_backup_age(made_s, now_s=time.time(), warn_s=given.backup_warn, fail_s=given.backup_fail)

    yield "backup age", backup_age
    yield "proof age", lambda: age.check_proof_age(None, now_s=time.time(), warn_s=given.proof_warn)
