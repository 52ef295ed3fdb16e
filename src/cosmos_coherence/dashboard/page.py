"""The page as text, from what the API said."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib import resources
from itertools import islice

from jinja2 import Environment, PackageLoader, select_autoescape

from cosmos_coherence.dashboard.source import Overview
from cosmos_coherence.history.record import RunRecord

REFRESH_S = 30
_BACKUPS = 7
_WORDS: Mapping[str, str] = {"ok": "well", "warn": "look", "fail": "failed"}

_ENVIRONMENT = Environment(
    loader=PackageLoader("cosmos_coherence.dashboard"), autoescape=select_autoescape(default=True), trim_blocks=True
)
_STYLE = resources.files("cosmos_coherence.dashboard").joinpath("templates/page.css").read_text("utf-8")
_STYLE_HASH = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()

_POLICY = (
    f"default-src 'none'; style-src 'sha256-{_STYLE_HASH}'; img-src data:; frame-ancestors 'none'; base-uri 'none'"
)
HEADERS: Mapping[str, str] = {
    "Content-Security-Policy": _POLICY,
    "Cache-Control": "no-store",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
"""Sent with the page: nothing from outside, no script, no frame."""


def render(overview: Overview | None, *, live: bool, now: datetime) -> str:
    """The page. ``live`` is false when the API did not answer and ``overview`` is the last one it gave."""
    runs = overview.runs.runs if overview and overview.runs else ()
    backups = list(islice((run for run in runs if run.verb == "backup" and run.backup), _BACKUPS))
    good = next((run for run in backups if run.status == "done"), None)
    return _ENVIRONMENT.get_template("page.html").render(
        overview=overview, live=live, now=now, runs=runs, backups=backups, good=good, style=_STYLE, refresh=REFRESH_S,
        words=_WORDS, verdict=_verdict(overview, live=live, newest=next(iter(_of_verb(runs, "backup")), None)),
    )  # fmt: skip


def age(text: str, now: datetime) -> str:
    """How long ago that was, in the unit a person would use."""
    past = max(0.0, (now - datetime.fromisoformat(text).astimezone(UTC)).total_seconds())
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if past >= 2 * length:
            return f"{past / length:.0f} {unit} ago"
    return f"{past:.0f} s ago"


def size(count: int) -> str:
    """Bytes in the unit a person would use."""
    amount = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if amount < 1024:
            return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1024
    return f"{amount:.1f} TiB"


def _of_verb(runs: tuple[RunRecord, ...], verb: str) -> list[RunRecord]:
    return [run for run in runs if run.verb == verb]


def _verdict(overview: Overview | None, *, live: bool, newest: RunRecord | None) -> tuple[str, str]:
    if overview is None or not live:
        return "fail", "The API does not answer."
    if overview.health.outcome != "ok":
        names = ", ".join(check.name for check in overview.health.checks if check.outcome != "ok")
        return overview.health.outcome, f"Not well: {names}."
    if newest is None:
        return "warn", "There is no backup yet."
    if newest.status != "done":
        return ("warn" if newest.status == "incomplete" else "fail"), f"The last backup ended {newest.status}."
    return "ok", "All is well."


_ENVIRONMENT.filters["age"] = age
_ENVIRONMENT.filters["size"] = size
