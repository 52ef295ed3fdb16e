"""Does a PostgreSQL server answer a question, and how many more can connect."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from cosmos_coherence.health.checks import CheckResult, Number, graded

WARN, FAIL = 0.80, 0.95
"""Shares of the connections that ordinary users may make."""

_QUESTION: Final = """\
SELECT pg_catalog.json_build_object(
    'used', (SELECT pg_catalog.count(*) FROM pg_catalog.pg_stat_activity
             WHERE backend_type = 'client backend' AND pid <> pg_catalog.pg_backend_pid()),
    'most', pg_catalog.current_setting('max_connections')::int
            - pg_catalog.current_setting('superuser_reserved_connections')::int
            - coalesce(pg_catalog.current_setting('reserved_connections', true)::int, 0),
    'recovering', pg_catalog.pg_is_in_recovery());
"""


def check_database(service: str, ask: Callable[[str], Any]) -> CheckResult:
    """It answers a query, and connections are left. ``ask`` gives the JSON value that a statement selects, and raises
    when the server does not answer."""
    found: Mapping[str, Any] = ask(_QUESTION)
    used, most = int(found["used"]), max(1, int(found["most"]))
    said = f"answers, {used} of {most} connections used"
    if found["recovering"]:
        said += ", takes no writes: it follows another server or is being recovered"
    subject = f"service:{service}"
    return CheckResult(
        f"database {service}",
        graded(used / most, warn=WARN, fail=FAIL),
        said,
        numbers=(Number(subject, "connections", used), Number(subject, "connections_most", most)),
    )
