"""The numbers for Prometheus, made anew for every request from the history and the checks."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from cosmos_coherence.health.checks import Health
from cosmos_coherence.history.record import RunRecord
from cosmos_coherence.history.runs import Count


def text(health: Health, data: Path, counts: Iterable[Count], latest: Iterable[RunRecord]) -> bytes:
    """The exposition in Prometheus' text format. Without a history only the checks and the disk are there."""
    registry = CollectorRegistry()
    registry.register(_Collector([*_of_health(health), *_of_disk(data), *_of_runs(counts, list(latest))]))
    return generate_latest(registry)


class _Collector:
    def __init__(self, families: list[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterator[Metric]:
        return iter(self._families)


def _of_health(health: Health) -> list[Metric]:
    up = GaugeMetricFamily("cosmos_check_ok", "1 when the check found nothing amiss", labels=["check"])
    took = GaugeMetricFamily("cosmos_check_seconds", "How long the check took", labels=["check"])
    for check in health.checks:
        up.add_metric([check.name], float(check.outcome == "ok"))
        took.add_metric([check.name], check.ms / 1000)
    return [up, took]


def _of_disk(data: Path) -> list[Metric]:
    try:
        usage = shutil.disk_usage(data)
    except OSError:
        return []
    free = GaugeMetricFamily("cosmos_data_disk_free_bytes", "Free bytes on the disk of the data", value=usage.free)
    size = GaugeMetricFamily("cosmos_data_disk_bytes", "Size of the disk of the data", value=usage.total)
    return [free, size]


def _of_runs(counts: Iterable[Count], latest: list[RunRecord]) -> list[Metric]:
    total = CounterMetricFamily("cosmos_runs", "Finished runs", labels=["project", "verb", "status"])
    for count in counts:
        total.add_metric([count.project, count.verb, count.status], count.runs)
    ended = GaugeMetricFamily(
        "cosmos_run_ended_timestamp_seconds",
        "End of the newest run that ended so",
        labels=["project", "verb", "status"],
    )
    for run in latest:
        ended.add_metric([run.project, run.verb, run.status], run.ended.timestamp())
    backups = [run for run in latest if run.verb == "backup"]
    return [total, ended, *_of_backups(backups)]


def _of_backups(backups: list[RunRecord]) -> list[Metric]:
    good = GaugeMetricFamily(
        "cosmos_backup_last_good_timestamp_seconds", "End of the newest complete backup", labels=["project"]
    )
    result = GaugeMetricFamily(
        "cosmos_backup_last_exit_status", "Exit status of the newest backup run", labels=["project"]
    )
    pause = GaugeMetricFamily(
        "cosmos_backup_pause_seconds",
        "How long the writers of the newest complete backup stood still",
        labels=["project"],
    )
    size = GaugeMetricFamily("cosmos_backup_bytes", "Size of the newest complete archive", labels=["project"])
    for run in backups:
        if run.status == "done":
            good.add_metric([run.project], run.ended.timestamp())
            size.add_metric([run.project], run.size)
            if run.pause_ms is not None:
                pause.add_metric([run.project], run.pause_ms / 1000)
    newest: dict[str, RunRecord] = {}
    for run in sorted(backups, key=lambda run: run.ended):
        newest[run.project] = run
    for project, run in newest.items():
        result.add_metric([project], run.exit_status)
    return [good, result, pause, size]
