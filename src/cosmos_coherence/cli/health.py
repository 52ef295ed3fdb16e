"""The verb ``health``: it loads little, so that it takes no longer than what it asks."""

from __future__ import annotations

import functools

from cosmos_coherence.cli import context, healing, render
from cosmos_coherence.flow import health as checking


def health(*, as_json: bool) -> int:
    """Run the checks; 1 when one of them fails."""
    settings = context.settings()
    opened = functools.cache(lambda: context.runtime(settings))
    answers = checking.answers(opened, settings.health.limit)
    if answers:
        healing.first(settings, opened())
    found = checking.check_stack(opened, settings, backups=context.backups(settings))
    if answers and (state := opened().found_state_directory()):
        from cosmos_coherence.flow import alarm

        found = found.and_also(alarm.check_notifiers(alarm.known(state)))
    return render.checks(found, json_wanted=as_json)
