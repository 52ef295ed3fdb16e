"""The numbers for Prometheus, made anew for every request from the history and the checks.

What comes from names of volumes, services and reports is hostile: it is cut and cleaned, and there are at most
``SERIES`` of each number.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Final

import msgspec
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.samples import Sample

from cosmos_coherence.health.checks import Health
from cosmos_coherence.history.record import RunRecord
from cosmos_coherence.history.runs import Count
from cosmos_coherence.history.segments import plain
from cosmos_coherence.model import Measurement

SERIES: Final = 200
"""How many series of one number are shown at most; how many were left out is a number itself."""
STALE_S: Final = 86400.0
"""A measurement that is older is not shown: what it was of may be gone."""
_LABEL: Final = 160
_DAY_S: Final = 86400.0


class _Shown(msgspec.Struct, frozen=True):
    """How a measurement is shown."""

    metric: str
    help: str
    label: str = ""
    """Name of the label that says of what; empty where there is only one."""
    value: Callable[[Measurement], float] = lambda measured: measured.value


_MEASURED: Final = {
    ("volume", "bytes"): _Shown("cosmos_volume_bytes", "Bytes that the volume takes on its disk", "volume"),
    ("volume", "files"): _Shown("cosmos_volume_files", "Files in the volume", "volume"),
    ("volume", "free_bytes"): _Shown("cosmos_volume_free_bytes", "Free bytes on the disk of the volume", "volume"),
    ("disk", "size_bytes"): _Shown("cosmos_disk_size_bytes", "Size of the disk", "disk"),
    ("disk", "free_bytes"): _Shown("cosmos_disk_free_bytes", "Free bytes on the disk", "disk"),
    ("disk", "used_ratio"): _Shown("cosmos_disk_used_ratio", "Share of the disk in use", "disk"),
    ("disk", "used_inodes_ratio"): _Shown("cosmos_disk_used_inodes_ratio", "Share of the inodes in use", "disk"),
    ("disk", "days_until_full"): _Shown(
        "cosmos_disk_until_full_seconds", "When the disk is full as it grows now", "disk", lambda m: m.value * _DAY_S
    ),
    ("disk", "days_until_full_low"): _Shown(
        "cosmos_disk_until_full_low_seconds", "The same, at the earliest", "disk", lambda m: m.value * _DAY_S
    ),
    ("repository", "bytes"): _Shown("cosmos_repository_bytes", "Bytes of data in the repository"),
    ("repository", "snapshots_count"): _Shown("cosmos_repository_snapshots", "Backups in the repository"),
    ("backup", "complete_count"): _Shown("cosmos_backups_complete", "Complete backups that are there"),
    ("backup", "age_seconds"): _Shown(
        "cosmos_backup_newest_complete_timestamp_seconds",
        "Instant of the newest complete backup that is there",
        value=lambda m: m.taken - m.value,
    ),
    ("certificate", "days_left"): _Shown(
        "cosmos_certificate_expiry_timestamp_seconds",
        "When the certificate ends",
        "certificate",
        lambda m: m.taken + m.value * _DAY_S,
    ),
    ("check", "ok"): _Shown(
        "cosmos_stack_check_ok",
        "1 when the check found nothing amiss, 0 when it failed",
        "check",
    ),
    ("alarm", "firing"): _Shown("cosmos_alarm_firing", "1 while the alarm lasts", "alarm"),
    ("alarms", "firing_count"): _Shown("cosmos_alarms_firing", "Alarms that last"),
    ("notifier", "failing_seconds"): _Shown(
        "cosmos_notifier_failing_seconds",
        "For how long the notifier has taken no message, 0 when it does",
        "notifier",
    ),
    ("spool", "dropped_segments"): _Shown(
        "cosmos_measurements_dropped_segments", "Rounds of measuring that were lost when the spool was last full"
    ),
}


def text(
    health: Health,
    data: Path,
    counts: Iterable[Count],
    latest: Iterable[RunRecord],
    *,
    measured: Iterable[Measurement] = (),
    project: str = "",
) -> bytes:
    """The exposition in Prometheus' text format. Without a history only the checks and the disk are there."""
    families = [*_of_health(health), *_of_disk(data), *_of_runs(counts, list(latest))]
    return _written([*families, *_of_measurements(measured, project, time.time())], project)


def of_host(
    project: str, measured: Iterable[Measurement], counts: Iterable[Count], latest: Iterable[RunRecord]
) -> bytes:
    """The same of one stack for node_exporter's files, which may lie beside those of other stacks."""
    return _written([*_of_runs(counts, list(latest)), *_of_measurements(measured, project, time.time())], project)


def _written(families: list[Metric], project: str) -> bytes:
    left_out = sum(map(_bound, families))
    told = GaugeMetricFamily("cosmos_series_left_out", "Series that were too many to be shown", labels=["project"])
    told.add_metric([plain(project, _LABEL)], left_out)
    families.append(told)
    registry = CollectorRegistry()
    registry.register(_Collector([family for family in families if family.samples]))
    return generate_latest(registry)


def _bound(family: Metric) -> int:
    """Clean the labels, and take out what is there twice then or is one too many; how many went."""
    kept: dict[tuple[str, ...], Sample] = {}
    for sample in family.samples:
        labels = {name: plain(value, _LABEL) if value else "" for name, value in sample.labels.items()}
        kept.setdefault((sample.name, *labels.values()), sample._replace(labels=labels))
    left_out = len(family.samples) - min(len(kept), SERIES)
    family.samples = list(kept.values())[:SERIES]
    return left_out


class _Collector:
    def __init__(self, families: list[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterator[Metric]:
        return iter(self._families)


def _of_measurements(measured: Iterable[Measurement], project: str, now: float) -> list[Metric]:
    found = list(measured)
    families: dict[str, GaugeMetricFamily] = {}
    for each in found:
        kind, _, what = each.subject.partition(":")
        shown = _MEASURED.get((kind, each.name))
        if shown is None or now - each.taken > STALE_S:
            continue
        labels = ["project", *([shown.label] if shown.label else [])]
        family = families.setdefault(shown.metric, GaugeMetricFamily(shown.metric, shown.help, labels=labels))
        family.add_metric([project, *([what] if shown.label else [])], shown.value(each))
    if found:
        taken = GaugeMetricFamily(
            "cosmos_measured_timestamp_seconds", "When something was last measured", labels=["project"]
        )
        taken.add_metric([project], max(each.taken for each in found))
        families["measured"] = taken
    return list(families.values())


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
