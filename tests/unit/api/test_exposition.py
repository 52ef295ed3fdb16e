"""What Prometheus, its promtool, node_exporter and Grafana get from us."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from cosmos_coherence.api import metrics
from cosmos_coherence.health.checks import CheckResult, Health
from cosmos_coherence.history import record
from cosmos_coherence.history.runs import Count
from cosmos_coherence.model import Measurement

ROOT = Path(__file__).parents[3]
CONFIGS = ROOT / "configs"
NOW = time.time()
HOSTILE = [
    'a"b',
    "a\\b",
    "a\nb",
    "a\rb",
    "\x00",
    "{x=1}",
    "é漢",
    "\udcff",
    "x" * 5000,
    "",
    " ",
    "\u2028",
    "#",
    "a\\\nb",
]
REPORT = json.dumps(
    {
        "project": "shop", "run": "r1", "verb": "backup", "status": "done", "exit_status": 0, "size": 9,
        "pause_ms": 5.0,
        "started_at": "2026-01-01T00:00:00+00:00", "ended_at": "2026-01-01T00:00:10+00:00",
    }
).encode()  # fmt: skip


@pytest.fixture(scope="module")
def promtool() -> str:
    ours = ROOT / ".tools" / "promtool" / "promtool"
    program = str(ours) if ours.exists() else shutil.which("promtool")
    if program is None:
        pytest.skip("no promtool: `tests/support/get-promtool.sh`")
    return program


def every_measurement(*names: str) -> list[Measurement]:
    """One of each kind that is shown, of each of these names."""
    return [
        Measurement(NOW, kind if not shown.label else f"{kind}:{name}", number, 1.5)
        for (kind, number), shown in metrics._MEASURED.items()
        for name in names
    ]


def everything(*names: str) -> bytes:
    health = Health("warn", tuple(CheckResult(name, "warn", "", 3.0) for name in ("database", *names)))
    counts = [Count(name or "shop", "backup", "done", 3) for name in names]
    return metrics.text(health, ROOT, counts, [record.read(REPORT)], measured=every_measurement(*names), project="shop")


def samples(text: bytes):
    return [sample for family in text_string_to_metric_families(text.decode()) for sample in family.samples]


def test_promtool_finds_nothing(promtool):
    for text in (everything("one", *HOSTILE), metrics.of_host("shop", every_measurement("a"), (), ())):
        done = subprocess.run([promtool, "check", "metrics"], input=text, capture_output=True)
        assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def test_promtool_likes_the_alert_rules_and_they_fire_when_they_should(promtool, tmp_path):
    rules = CONFIGS / "prometheus"
    for words in (["check", "rules", "alerts.yml"], ["test", "rules", "alerts-test.yml"]):
        done = subprocess.run([promtool, *words], cwd=rules, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    for name in ("alerts.yml", "alerts-test.yml"):
        (tmp_path / name).write_text((rules / name).read_text().replace("> 26 * 3600", "> 30 * 3600"))
    done = subprocess.run([promtool, "test", "rules", "alerts-test.yml"], cwd=tmp_path, capture_output=True)
    assert done.returncode != 0, "the test of the rules cannot fail"


def told() -> set[str]:
    return {sample.name for sample in samples(everything("a"))}


def named(text: str) -> set[str]:
    return set(re.findall(r"\bcosmos_[a-z_]+\b", text))


def test_every_query_of_the_dashboard_and_the_rules_is_answered():
    dashboard = json.loads((CONFIGS / "grafana/dashboard.json").read_text())
    queries = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    queries += [each["definition"] for each in dashboard["templating"]["list"] if "definition" in each]
    assert len(queries) > 15
    assert all(named(query) for query in queries)
    assert named(" ".join(queries)) <= told()
    expressions = re.findall(r"expr: (.*)", (CONFIGS / "prometheus/alerts.yml").read_text())
    assert len(expressions) == 10
    assert named(" ".join(expressions)) <= told()
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])


def test_the_manual_tells_of_every_metric_and_of_no_other():
    page = (ROOT / "docs/monitoring.md").read_text()
    assert named(page) - {"cosmos_coherence"} == told()


def test_hostile_names_stay_labels():
    found = samples(everything(*HOSTILE))
    volumes = [s.labels["volume"] for s in found if s.name == "cosmos_volume_bytes"]
    assert len(volumes) == len(set(volumes)) == len(HOSTILE)
    assert all(len(name) <= 160 for name in volumes)
    assert "a\\b" in volumes
    assert 'a"b' in volumes
    assert {name for s in found for name in s.labels} <= {
        "check", "project", "verb", "status", "volume", "disk", "certificate", "alarm", "notifier",
    }  # fmt: skip


def test_series_are_bounded_and_it_is_said():
    measured = [Measurement(NOW, f"volume:{n}", "bytes", 1.0) for n in range(5000)]
    text = metrics.of_host("shop", measured, [Count(f"p{n}", "backup", "done", 1) for n in range(300)], ())
    assert len(text) < 100_000
    left_out = next(s.value for s in samples(text) if s.name == "cosmos_series_left_out")
    assert left_out == 4800 + 100


def test_what_is_old_is_not_shown_but_its_age_is():
    text = metrics.of_host("shop", [Measurement(NOW - 90_000, "volume:a", "bytes", 1.0)], (), ())
    names = {sample.name: sample.value for sample in samples(text)}
    assert "cosmos_volume_bytes" not in names
    assert names["cosmos_measured_timestamp_seconds"] == pytest.approx(NOW - 90_000)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.text(max_size=40), max_size=8))
def test_any_name_gives_an_exposition_that_parses(names):
    found = samples(everything(*names))
    assert len([s for s in found if s.name == "cosmos_volume_bytes"]) == len(set(names))


def test_two_stacks_of_one_host_do_not_get_into_each_others_way():
    one, two = (samples(metrics.of_host(p, every_measurement("a"), (), ())) for p in ("one", "two"))
    series = [{(s.name, *sorted(s.labels.items())) for s in found} for found in (one, two)]
    assert not series[0] & series[1]
