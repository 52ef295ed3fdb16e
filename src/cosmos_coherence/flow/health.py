"""Is the stack well, and is its backup young enough."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

from cosmos_coherence import errors
from cosmos_coherence.drivers.runtime import Runtime
from cosmos_coherence.flow import inventory
from cosmos_coherence.health import checks
from cosmos_coherence.model import Stack
from cosmos_coherence.settings import Settings


def check_stack(open_runtime: Callable[[], Runtime], settings: Settings, *, backups: Path) -> checks.Health:
    """All checks, each with its own outcome. An engine that does not answer is a failed check, no error."""
    results: list[checks.CheckResult] = []
    stack: Stack | None = None
    try:
        stack = open_runtime().stack()
    except errors.CosmosError as error:
        results.append(checks.CheckResult("engine", "fail", error.message, 0.0))
    else:
        results += [*checks.check_services(stack), *checks.check_volumes(stack)]
    results.append(checks.check_disk(backups, settings.backup.min_free))
    try:
        project = settings.stack.project or (stack.project if stack else None)
        last = inventory.newest(settings, backups, project=project, complete=True)
    except errors.CosmosError as error:
        results.append(checks.CheckResult("repository", "fail", error.message, 0.0))
    else:
        made_s = datetime.fromisoformat(last.manifest.instant).timestamp() if last else None
        results.append(checks.check_backup_age(made_s, now_s=time.time()))
    return checks.Health(checks.worst(results), tuple(results))
