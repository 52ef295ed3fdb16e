"""The instant of a backup: copy beforehand, hold, anchor, release; again when the budget did not suffice."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from cosmos_coherence import errors
from cosmos_coherence.cut.hold import Cut, take_cut
from cosmos_coherence.cut.journal import Journal
from cosmos_coherence.cut.quiet import quieted
from cosmos_coherence.discover import foreign
from cosmos_coherence.discover.holding import holding, outside
from cosmos_coherence.drivers.runtime import Runtime
from cosmos_coherence.flow.events import Held, Story
from cosmos_coherence.flow.watch import watchdog_for
from cosmos_coherence.flow.workers import gently
from cosmos_coherence.model import Gap, Service
from cosmos_coherence.parts import Sink
from cosmos_coherence.settings import Settings
from cosmos_coherence.sources.base import Source

_HEALTH_BACK_S = 30.0


class Instant(msgspec.Struct, frozen=True):
    """One instant that was taken, and for whom it does not hold."""

    cut: Cut
    outside: tuple[Gap, ...]
    """Who could write to what is captured and was not held."""
    quiet_ms: Mapping[str, float]
    """How long each service was stopped, or held by its own hook."""


class _Asked(msgspec.Struct, frozen=True):
    """All that one attempt needs."""

    runtime: Runtime
    settings: Settings
    story: Story
    journal: Journal
    opened: Sequence[Source]
    writer: Sink
    engines: frozenset[str]
    volume: str


def one_instant(
    runtime: Runtime,
    settings: Settings,
    story: Story,
    journal: Journal,
    opened: Sequence[Source],
    writer: Sink,
    *,
    engines: frozenset[str],
    volume: str = "",
) -> Instant:
    """Anchor the opened sources at one instant. ``engines`` are the database servers. With ``volume`` only those who
    can write to that one stand still.

    Each attempt begins with the copying. Raises ``CutFailed`` with what was measured in every attempt when the last of
    ``cut.attempts`` has failed, and ``CommandFailed`` when a hook did.
    """
    asked = _Asked(runtime, settings, story, journal, opened, writer, engines, volume)
    quiet = holding(runtime.stack(), engines, volume=volume).quiet
    failed: list[str] = []
    while True:
        story.begin("prepare")
        _copy_beforehand(asked)
        try:
            with quieted(runtime, quiet, journal=journal, run=story.run, tell=story.note) as quiet_ms:
                if quiet:
                    _copy_beforehand(asked)  # what a hook or a stop has written would be read in the pause
                cut, gaps, held = _attempt(asked)
        except errors.CutFailed as error:
            failed.append(f"attempt {len(failed) + 1}: {error.message}")
            if len(failed) < settings.cut.attempts:
                story.note(failed[-1])
                continue
            if len(failed) == 1:
                raise
            raise errors.CutFailed("; ".join(failed), remedy=error.remedy) from error
        for service, ms in quiet_ms.items():
            stopped = any(q.service == service and q.stop for q in quiet)
            story.note(f"{service} was {'stopped' if stopped else 'held by its own hook'} for {ms:,.0f} ms")
        _await_health(runtime, held, story)
        return Instant(cut, gaps, quiet_ms)


def _attempt(asked: _Asked) -> tuple[Cut, tuple[Gap, ...], tuple[Service, ...]]:
    """One hold; what it cost, for whom it does not hold, and who stood still."""
    with watchdog_for(asked.runtime) as watchdog:  # it gets ready while the sessions are opened
        for source in asked.opened:
            if source.ref.service:  # last, since a session holds locks while it waits
                source.prepare(asked.writer)
        # Looked at again: the copying may have taken hours, and whoever has come up since can write.
        stack = asked.runtime.stack()
        freeze = holding(stack, asked.engines, volume=asked.volume).freeze
        targets = asked.runtime.hold_targets(freeze)
        gaps = (
            *foreign.writers(stack, freeze, {s.ref.part: s.clients() for s in asked.opened}),
            *outside(
                stack,
                [source.ref for source in asked.opened],
                engines=asked.engines,
                held={target.name for target in targets},
            ),
        )
        asked.story.begin("hold", f"{len(targets)} writers")
        cut = take_cut(
            targets,
            {source.ref.part: source.anchor for source in asked.opened},
            journal=asked.journal,
            watchdog=watchdog,
            run=asked.story.run,
            max_pause_s=asked.settings.cut.max_pause,
            step=asked.story.cut,
        )
    asked.story.tell(Held(cut.pause_ms, len(cut.held)))
    return cut, gaps, tuple(s for s in freeze if s.project in ("", stack.project))


def _copy_beforehand(asked: _Asked) -> None:
    """Files first, since copying them takes long."""
    files = [source for source in asked.opened if not source.ref.service]
    gently(asked.settings, lambda source: source.prepare(asked.writer), files)


def _await_health(runtime: Runtime, held: Sequence[Service], story: Story) -> None:
    """A health check that met the hold has failed: wait until it is green, so that nobody restarts the service."""
    try:
        runtime.wait_ready(sorted({s.name for s in held if s.health == "healthy"}), timeout_s=_HEALTH_BACK_S)
    except errors.ServiceDown as error:
        story.note(f"after the hold: {error.message}")
