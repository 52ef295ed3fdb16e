"""``cosmos serve``."""

from __future__ import annotations

import signal
import sys
import threading
from pathlib import Path

import typer

from cosmos_coherence import errors
from cosmos_coherence.cli import beside, context, healing, render

_PORTS = {"api": 8000, "dashboard": 8050}


def serve(what: str, *, host: str, port: int | None, reload: bool) -> int:
    """Run one of the long-lived parts until it is told to stop."""
    if what == "agent":
        return _agent()
    if what not in _PORTS:
        raise errors.UsageError(f"there is nothing to serve by the name {what}", remedy="api, dashboard or agent.")
    try:
        import uvicorn
    except ImportError as error:
        raise errors.ConfigurationError(
            "the web parts are not installed", remedy="pip install 'cosmos-coherence[serve]'"
        ) from error
    uvicorn.run(
        f"cosmos_coherence.{what}.app:from_environment",
        factory=True,
        host=host,
        port=port or _PORTS[what],
        reload=reload,
        reload_dirs=["src"] if reload and Path("src").is_dir() else None,
        timeout_graceful_shutdown=2,
        access_log=False,
    )
    return 0


def _agent() -> int:
    from cosmos_coherence.agent import loop
    from cosmos_coherence.agent.job import backup_job, drain_history
    from cosmos_coherence.cut.journal import anything_pending
    from cosmos_coherence.settings import load_serve

    settings = context.settings()
    serving = load_serve()
    runtime = context.runtime(settings)
    state = runtime.state_directory()
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    typer.echo(f"agent of {settings.stack.project}: next backup {loop.next_due(settings.schedule, loop.utc_now())}")

    def elsewhere(*verb: str) -> bool:
        stack = runtime.stack()
        call = ("--directory", str(stack.directory), "--project", stack.project, *verb)
        return beside.volumes(runtime, settings, arguments=call) is not None

    def job() -> None:
        try:
            if not elsewhere("backup", "--json"):
                render.report(backup_job(runtime, settings, context.backups(settings)), json_wanted=True)
        except errors.CosmosError as error:
            typer.echo(f"error: {error.message}", err=True)
        if why := drain_history(state, serving, settings):
            typer.echo(f"history waits in the spool: {why}", err=True)
        sys.stdout.flush()

    try:
        if anything_pending(state) and not elsewhere("recover"):
            healing.first(settings, runtime)
    except errors.CosmosError as error:
        typer.echo(f"leftovers wait for the next backup: {error.message}", err=True)
    loop.run(settings.schedule, state, job, stop=stop)
    return 0
