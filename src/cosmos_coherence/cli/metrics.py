"""``cosmos metrics``."""

from __future__ import annotations

from pathlib import Path

import typer

from cosmos_coherence import errors
from cosmos_coherence.cli import beside, context, healing, render
from cosmos_coherence.drivers.runtime import Runtime
from cosmos_coherence.flow import alarm, history, measure
from cosmos_coherence.settings import Settings, load_serve
from cosmos_coherence.storage import local


def metrics(*, textfile: Path | None, measure_now: bool, quiet: bool, as_json: bool) -> int:
    """The newest measurements in Prometheus' text format, on standard output, as a file for node_exporter, or not at
    all when it is ``quiet``."""
    settings = context.settings()
    runtime = context.runtime(settings)
    file = textfile.absolute() if textfile else None
    if (status := beside.volumes(runtime, settings, paths=(file.parent,) if file else ())) is not None:
        return status
    healing.first(settings, runtime)
    if measure_now:
        _measure(settings, runtime)
    if quiet and file is None:
        return 0
    state = runtime.found_state_directory()
    newest = history.latest(state, load_serve()) if state else ()
    if as_json:
        render.as_json(newest)
        return 0
    try:
        from cosmos_coherence.api import metrics as exposition
    except ModuleNotFoundError as error:
        raise errors.ConfigurationError(
            "metrics need the extra `serve`", remedy="pip install 'cosmos-coherence[serve]'"
        ) from error
    counts, latest = history.finished(state, load_serve()) if state else ((), ())
    project = context.project(settings) or runtime.stack().project
    text = exposition.of_host(project, newest, counts, latest)
    if file is None:
        typer.echo(text.decode(), nl=False)
    else:
        local.write_atomically(file, text, 0o644)
    return 0


def _measure(settings: Settings, runtime: Runtime) -> None:
    serving = load_serve()
    measured = measure.measure(runtime, settings, serving, directory=context.backups(settings))
    watched = alarm.watch(runtime, settings, measured=measured)
    history.fill(runtime.state_directory(), serving, settings.history)  # where it cannot, the agent will, or the next
    for note in (*measured.notes, *watched.notes):
        typer.echo(note, err=True)
