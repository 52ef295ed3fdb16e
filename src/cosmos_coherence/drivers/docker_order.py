"""In which order containers start and stop, and when one is ready."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import msgspec

from cosmos_coherence.drivers import docker_facts
from cosmos_coherence.drivers.docker_facts import Facts


def levels(containers: Sequence[Facts], wanted: Collection[str]) -> list[list[str]]:
    """The wanted services in groups, each of which depends on nothing but earlier groups, be it through others."""
    needs: dict[str, set[str]] = {name: set() for name in wanted}
    for container in containers:
        needs.setdefault(docker_facts.service_name(container), set()).update(docker_facts.conditions_of(container))
    left, found = set(needs), []
    while left:
        # Labels that go round in a circle are no order; what is left then goes at once.
        level = {name for name in left if not needs[name] & (left - {name})} or set(left)
        found.append(sorted(level & set(wanted)))
        left -= level
    return [level for level in found if level]


def jobs(containers: Sequence[Facts]) -> set[str]:
    """The services whose end others wait for."""
    waits = [wait for container in containers for wait in docker_facts.conditions_of(container).items()]
    return {name for name, condition in waits if condition == "service_completed_successfully"}


class Wait(msgspec.Struct, frozen=True):
    """Why a container is not ready, and whether that can still change by itself."""

    why: str
    final: bool = False


def not_ready(inspected: Facts, *, job: bool) -> Wait | None:
    """None when it runs, and is healthy where it has a health check; for a job, when it has ended well."""
    state, health = docker_facts.state_of(inspected), docker_facts.health_of(inspected)
    if job and state == "exited":
        status = inspected["State"]["ExitCode"]
        return Wait(f"has ended with status {status}", final=True) if status else None
    if state == "running" and not job:
        return Wait(f"is {health}") if health not in (None, "healthy") else None
    policy = (inspected["HostConfig"].get("RestartPolicy") or {}).get("Name") or "no"
    return Wait(f"is {state}", final=state in ("created", "exited") and policy == "no")
