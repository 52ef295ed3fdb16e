"""Do the services run, and what do they say of themselves."""

from __future__ import annotations

from cosmos_coherence.health.checks import CheckResult, Number, Outcome
from cosmos_coherence.model import Service, Stack


def check_services(stack: Stack) -> tuple[CheckResult, ...]:
    """Every service runs and none is unhealthy; one that is still starting is a warning.

    Each copy of a service that has several is a check of its own.
    """
    if not stack.services:
        return (CheckResult("services", "fail", "no service is there"),)
    names = [service.name for service in stack.services]
    return tuple(_check(service, several=names.count(service.name) > 1) for service in stack.services)


def _check(service: Service, *, several: bool) -> CheckResult:
    outcome, detail = _judged(service)
    up = Number(f"service:{service.container if several else service.name}", "up", float(service.state == "running"))
    return CheckResult(f"service {service.container if several else service.name}", outcome, detail, numbers=(up,))


def _judged(service: Service) -> tuple[Outcome, str]:
    if service.state != "running":
        return "fail", service.state
    if service.health == "unhealthy":
        return "fail", "running, unhealthy"
    return ("warn" if service.health == "starting" else "ok"), service.health or "running"
