"""``cosmos alarms``."""

from __future__ import annotations

import typer

from cosmos_coherence import errors
from cosmos_coherence.cli import beside, context, healing, render
from cosmos_coherence.flow import alarm
from cosmos_coherence.health.alarms import moment
from cosmos_coherence.settings import Settings


def alarms(what: str, *, as_json: bool) -> int:
    """What is raised and how the notifiers do; with ``test``, a message to each of them, and 1 when one fails."""
    settings = context.settings()
    if what == "test":
        return _test(settings, as_json=as_json)
    if what:
        raise errors.UsageError(f"alarms have nothing by the name {what}", remedy="`cosmos alarms test`.")
    runtime = context.runtime(settings)
    if (status := beside.volumes(runtime, settings)) is not None:
        return status
    healing.first(settings, runtime)
    record = alarm.known(runtime.found_state_directory())
    sentences = alarm.sentences(record, settings)
    if as_json:
        raised = [
            {"rule": e.rule, "subject": e.subject, "since": e.since, "told": e.told, "value": e.value, "what": sentence}
            for e, sentence in zip(record.state.raised, sentences, strict=True)
        ]
        render.as_json({"alarms": raised, "notifiers": record.notifiers, "waiting": len(record.outgoing)})
        return 0
    for episode, sentence in zip(record.state.raised, sentences, strict=True):
        typer.echo(f"{sentence}, since {moment(episode.since)}")
    if not record.state.raised:
        typer.echo("no alarm is raised")
    for each in record.notifiers:
        if each.failing_since is not None:
            typer.echo(f"notifier {each.name}: fails since {moment(each.failing_since)}: {each.why}")
        else:
            last = "not needed yet" if each.told is None else f"last told {moment(each.told)}"
            typer.echo(f"notifier {each.name}: {last}")
    if record.outgoing:
        typer.echo(f"{len(record.outgoing)} messages wait for a notifier that fails")
    return 0


def _test(settings: Settings, *, as_json: bool) -> int:
    answers = alarm.tell_of_a_test(settings)
    failed = [name for name, why in answers.items() if why]
    if as_json:
        render.as_json({"status": "failed" if failed else "done", "notifiers": answers})
    else:
        for name, why in answers.items():
            typer.echo(f"notifier {name}: {why or 'told'}")
    return errors.CosmosError.exit_status if failed else 0
