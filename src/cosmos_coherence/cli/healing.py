"""What every verb that looks at the stack does first: heal what a killed run left."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from cosmos_coherence import errors
from cosmos_coherence.cli import context
from cosmos_coherence.cut.journal import anything_pending
from cosmos_coherence.drivers.runtime import Runtime
from cosmos_coherence.settings import Settings

if TYPE_CHECKING:
    from cosmos_coherence.flow.recover import Reachable


def first(settings: Settings, runtime: Runtime | None = None) -> None:
    """Heal, and say on standard error what was done; one listing of a folder when there is nothing to heal.

    Whatever keeps it from healing is a sentence at most, and the verb goes on.
    """
    try:
        runtime = runtime or context.runtime(settings)
        state = runtime.found_state_directory()
        if state is None or not anything_pending(state):
            return
        reach = _reach(runtime)
    except errors.CosmosError:
        return  # the verb meets the same, and says so
    from cosmos_coherence.flow import backup, recover

    recover.heal_first(runtime, state, run=backup.new_run(), backups=context.backups(settings), reach=reach, tell=_tell)


def _reach(runtime: Runtime) -> Reachable:
    from cosmos_coherence.drivers import container, docker

    if not isinstance(runtime, docker.DockerRuntime) or not container.needs_container(runtime):
        return "volumes"
    return "nothing" if runtime.reach.own_id else "writers"


def _tell(sentence: str) -> None:
    typer.echo(f"healed first: {sentence}", err=True)
