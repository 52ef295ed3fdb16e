"""Who is woken, and when: measurements and reports become alarms, and alarms become messages.

What is known of alarms lies in the state directory, together with the messages that somebody has not got yet: they are
written before they are sent and taken out after, so that a kill at worst repeats one and never loses one. Nothing here
ever fails a backup or the agent: a notifier that does not answer is remembered, shown, and tried again.
"""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
from msgspec.structs import replace

from cosmos_coherence import errors
from cosmos_coherence.drivers.runtime import Runtime
from cosmos_coherence.flow.events import Report
from cosmos_coherence.flow.measured import Measured, keep
from cosmos_coherence.flow.remember import measurements_of
from cosmos_coherence.health import alarms, notifiers
from cosmos_coherence.health.checks import CheckResult
from cosmos_coherence.health.notifiers import Address, Tone
from cosmos_coherence.health.rules import rules
from cosmos_coherence.model import Measurement
from cosmos_coherence.settings import NotifySettings, Settings
from cosmos_coherence.storage import local

FOLDER = "alarms"
_FILE = "state.json"
_TOGETHER = 5
"""More messages than this at once go out as one."""
_SHOWN = 20
_LONGEST_QUEUE = 100
_TONES: dict[alarms.Kind, Tone] = {"raised": "failure", "still": "warning", "resolved": "success"}


class Notifier(msgspec.Struct, frozen=True):
    """How it went with one notifier. Times are seconds since the epoch."""

    name: str
    told: float | None = None
    """When it last took a message."""
    failing_since: float | None = None
    why: str = ""


class Outgoing(msgspec.Struct, frozen=True):
    """A message, and who has not got it yet."""

    title: str
    body: str
    tone: Tone
    waiting: tuple[str, ...]
    key: str = ""
    """Of a message that a newer one takes the place of."""


class Record(msgspec.Struct, frozen=True):
    """What lies in the state directory."""

    state: alarms.State = msgspec.field(default_factory=alarms.State)
    outgoing: tuple[Outgoing, ...] = ()
    notifiers: tuple[Notifier, ...] = ()


class Watched(msgspec.Struct, frozen=True):
    """What came of one look."""

    messages: tuple[alarms.Message, ...] = ()
    failing: tuple[Notifier, ...] = ()
    notes: tuple[str, ...] = ()


def watch(
    runtime: Runtime,
    settings: Settings,
    *,
    measured: Measured | None = None,
    report: Report | None = None,
    now: Callable[[], float] = time.time,
) -> Watched:
    """Look whether there is an alarm in what was measured, or in how a run ended, and tell whoever is to be told.

    To be called after each round of measuring and after each run. Never raises for what the catalogue knows, and takes
    no longer than three times ``notify.limit``. Where the state directory cannot be reached, as with the engine down,
    what is wrong with a run is told all the same.
    """
    found = list(measured.measurements if measured else ())
    details, notes = dict(measured.details if measured else {}), list[str]()
    if report and _counts(report):
        found += measurements_of(report)
        details[f"run:{report.verb}"] = _reason(report)
    try:
        addresses, ping_url = _addresses(settings)
        names: tuple[str, ...] | None = (*addresses, *([notifiers.PING] if ping_url else []))
    except errors.CosmosError as error:
        addresses, ping_url, names = {}, "", None
        notes.append(error.message)
    pinged = _pinged(ping_url, report, settings.notify)
    try:
        state: Path | None = runtime.state_directory()
    except errors.CosmosError:
        state = None

    def save(record: Record) -> None:
        try:
            _save(state, record)
        except errors.CosmosError as error:  # better told again than not at all
            if (said := f"what is known of alarms cannot be kept: {error.message}") not in notes:
                notes.append(said)

    try:
        with _record(state, notes) as before:
            record = _current(before, names)
            if pinged is not None:
                record = _after(record, notifiers.PING, pinged, now())
            found += _of_notifiers(record, now())
            after, messages = alarms.step(
                rules(settings.alarms), record.state, found, now(), repeat=settings.alarms.repeat, details=details
            )
            project = settings.stack.project or (report.project if report else "") or settings.stack.directory.name
            record = replace(record, state=after, outgoing=_queue(record, messages, project))
            save(record)
            record = _deliver(record, addresses, settings.notify, now, save)
    except errors.CosmosError as error:
        return Watched(notes=(*notes, f"alarms could not be looked at: {error.message}"))
    failing = tuple(each for each in record.notifiers if each.failing_since is not None)
    if state:
        notes += keep(state, settings, _as_measurements(record, messages, now()))
    notes += [f"the notifier {each.name} does not take messages: {each.why}" for each in failing]
    return Watched(messages, failing, tuple(notes))


def tell_of_a_test(settings: Settings) -> dict[str, str]:
    """Send a message to every notifier that only says that it works; by name, why that failed, empty where it did not.

    Raises as ``notifiers.read``, and ``NotFound`` when nobody is to be told.
    """
    addresses, _ = _addresses(settings)
    if not addresses:
        raise errors.NotFound(
            "nobody is to be told of alarms", remedy="Write addresses into a file and name it as `notify.urls_file`."
        )
    title = f"{settings.stack.project or settings.stack.directory.name} on {socket.gethostname()}: this is a test"
    return notifiers.send(addresses, title, "Alarms will look like this.", "info", limit_s=settings.notify.limit)


def known(state: Path | None) -> Record:
    """What is known of alarms and notifiers; nothing where there is no state yet or it cannot be read."""
    if state is None:
        return Record()
    with contextlib.suppress(OSError, msgspec.MsgspecError, RecursionError):
        return msgspec.json.decode((state / FOLDER / _FILE).read_bytes(), type=Record)
    return Record()


def sentences(record: Record, settings: Settings) -> tuple[str, ...]:
    """Each raised alarm in words."""
    by_name = {rule.name: rule for rule in rules(settings.alarms)}
    return tuple(
        alarms.sentence(by_name[episode.rule], episode) if episode.rule in by_name else episode.subject
        for episode in record.state.raised
    )


def check_notifiers(record: Record) -> tuple[CheckResult, ...]:
    """Each notifier took its last message; one that did not is a warning."""
    return tuple(
        CheckResult(f"notifier {each.name}", "warn", f"fails since {alarms.moment(each.failing_since)}: {each.why}")
        if each.failing_since is not None
        else CheckResult(f"notifier {each.name}", "ok", "" if each.told is None else alarms.moment(each.told))
        for each in record.notifiers
    )


def places(settings: Settings) -> tuple[Path, ...]:
    """The files that name who is told, as far as they are there."""
    named = (settings.notify.urls_file, settings.notify.ping_url_file)
    found = [settings.stack.directory / path for path in named if path is not None]
    return tuple(path for path in found if path.is_file())


# --------------------------------------------------------------------------------------------------------- the record
@contextmanager
def _record(state: Path | None, notes: list[str]) -> Iterator[Record]:
    """What is known; one program at a time. Without a state directory nothing is."""
    if state is None:
        yield Record()
        return
    file = state / FOLDER / _FILE
    with local.alone(file.parent):
        try:
            found = msgspec.json.decode(file.read_bytes(), type=Record)
        except FileNotFoundError:
            found = Record()
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            found = Record()
            notes.append("what was known of alarms is damaged and was set aside: those that last are told again")
            with contextlib.suppress(OSError):
                file.rename(file.with_suffix(".damaged"))
        except OSError as error:
            raise errors.CosmosError(f"{file} cannot be read: {error.strerror}") from error
        yield found


def _save(state: Path | None, record: Record) -> None:
    if state is not None:
        local.write_atomically(state / FOLDER / _FILE, msgspec.json.encode(record))


def _current(record: Record, names: tuple[str, ...] | None) -> Record:
    """With the notifiers that are named now; None when that is not known. What waits for one that is gone, as when the
    lines of the file have moved, goes to those that are new."""
    if names is None:
        return record
    before = {each.name: each for each in record.notifiers}
    new = tuple(name for name in names if name not in before and name != notifiers.PING)
    waiting = [
        replace(out, waiting=tuple(name for name in out.waiting if name in names) or new) for out in record.outgoing
    ]
    return replace(
        record,
        notifiers=tuple(before.get(name) or Notifier(name) for name in names),
        outgoing=tuple(out for out in waiting if out.waiting),
    )


def _after(record: Record, name: str, why: str, now: float) -> Record:
    """With what a notifier answered; empty for well."""

    def changed(each: Notifier) -> Notifier:
        if each.name != name:
            return each
        if not why:
            return Notifier(name, told=now)
        return replace(each, failing_since=now if each.failing_since is None else each.failing_since, why=why)

    return replace(record, notifiers=tuple(map(changed, record.notifiers)))


# ------------------------------------------------------------------------------------------------------------ sending
def _queue(record: Record, messages: tuple[alarms.Message, ...], project: str) -> tuple[Outgoing, ...]:
    before = record.outgoing
    everybody = tuple(each.name for each in record.notifiers if each.name != notifiers.PING)
    if not everybody or not messages:
        return before
    head = f"{project} on {socket.gethostname()}"
    if len(messages) > _TOGETHER:
        tone: Tone = "success" if all(message.kind == "resolved" for message in messages) else "failure"
        lines = [f"- {message.title}" for message in messages[:_SHOWN]]
        if len(messages) > _SHOWN:
            lines.append(f"- and {len(messages) - _SHOWN} more")
        lines.append("`cosmos alarms` shows all, `cosmos health` all checks.")
        return (*before, Outgoing(f"{head}: {len(messages)} alarms changed", "\n".join(lines), tone, everybody))
    new = [
        Outgoing(
            f"{head}: {message.title}", message.body, _TONES[message.kind], everybody,
            key=f"{message.rule} {message.subject}" if message.kind == "still" else "",
        )
        for message in messages
    ]  # fmt: skip
    newer = {out.key for out in new if out.key}
    return (*(out for out in before if out.key not in newer), *new)[-_LONGEST_QUEUE:]


def _deliver(
    record: Record,
    addresses: dict[str, Address],
    settings: NotifySettings,
    now: Callable[[], float],
    save: Callable[[Record], None],
) -> Record:
    """Send what waits, oldest first. Who does not take a message is asked again at the next look."""
    deadline, failed = time.monotonic() + 2 * settings.limit, set[str]()
    for number, outgoing in enumerate(record.outgoing):
        asked = {name: addresses[name] for name in outgoing.waiting if name in addresses and name not in failed}
        left = min(settings.limit, deadline - time.monotonic())
        if not asked or left <= 0:
            continue
        for name, why in notifiers.send(asked, outgoing.title, outgoing.body, outgoing.tone, limit_s=left).items():
            record = _after(record, name, why, now())
            if why:
                failed.add(name)
        still = tuple(name for name in outgoing.waiting if name not in asked or name in failed)
        queue = list(record.outgoing)
        queue[number] = replace(outgoing, waiting=still)
        record = replace(record, outgoing=tuple(queue))
        save(replace(record, outgoing=tuple(out for out in queue if out.waiting)))
    return replace(record, outgoing=tuple(out for out in record.outgoing if out.waiting))


def _pinged(url: str, report: Report | None, settings: NotifySettings) -> str | None:
    """Why the watcher could not be told of a backup, empty when it was; None when there was nothing to tell."""
    if not url or report is None or report.verb != "backup" or not _counts(report):
        return None
    return notifiers.ping(url, good=report.exit_status == 0, limit_s=settings.limit)


def _counts(report: Report) -> bool:
    """A plan is no run, and who interrupts one knows of it."""
    return report.status != "planned" and report.exit_status != errors.Interrupted.exit_status


def _addresses(settings: Settings) -> tuple[dict[str, Address], str]:
    folder = settings.stack.directory

    def below(path: Path | None) -> Path | None:
        return None if path is None else folder / path

    found = notifiers.read(below(settings.notify.urls_file))
    return {each.name: each for each in found}, notifiers.ping_url(below(settings.notify.ping_url_file))


# -------------------------------------------------------------------------------------------------------------- words
def _reason(report: Report) -> str:
    if report.failure:
        return f"{report.failure.message}. {report.failure.remedy}"
    missing = [f"{gap.what}: {gap.why}" for gap in report.missing if not gap.chosen]
    return f"The backup is incomplete: {'; '.join(missing)}" if missing else ""


def _of_notifiers(record: Record, now: float) -> Iterator[Measurement]:
    for each in record.notifiers:
        failing = 0.0 if each.failing_since is None else max(0.0, now - each.failing_since)
        yield Measurement(now, f"notifier:{each.name}", "failing_seconds", failing)


def _as_measurements(record: Record, messages: tuple[alarms.Message, ...], now: float) -> tuple[Measurement, ...]:
    over = {(each.rule, each.subject) for each in messages if each.kind == "resolved"}
    firing = {(each.rule, each.subject) for each in record.state.raised}
    return (
        *(Measurement(now, f"alarm:{rule} {subject}", "firing", 1.0) for rule, subject in sorted(firing)),
        *(Measurement(now, f"alarm:{rule} {subject}", "firing", 0.0) for rule, subject in sorted(over - firing)),
        Measurement(now, "alarms", "firing_count", float(len(firing))),
        *_of_notifiers(record, now),
    )
