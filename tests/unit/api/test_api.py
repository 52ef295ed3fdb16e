"""The API with a real PostgreSQL and a real Redis behind it."""

from __future__ import annotations

import contextlib
import json
import time

import pytest
import redis
from msgspec import structs
from prometheus_client.parser import text_string_to_metric_families

from cosmos_coherence import errors
from cosmos_coherence.api.app import create_app
from cosmos_coherence.history import database, measurements, runs
from cosmos_coherence.model import Measurement
from cosmos_coherence.settings import ServeSettings, load_serve
from support import serving, stores

pytestmark = [pytest.mark.postgres, pytest.mark.redis]


@pytest.fixture(scope="module")
def postgres():
    with stores.postgres() as found:
        yield found


@pytest.fixture(scope="module")
def redis_url():
    with stores.redis() as found:
        yield found


@pytest.fixture
def settings(postgres, redis_url, tmp_path):
    (tmp_path / "cache").mkdir()
    return ServeSettings(
        database_url=postgres.database(), database_password_file=postgres.password_file, redis_url=redis_url,
        cache_directory=tmp_path / "cache", data_directory=tmp_path,
    )  # fmt: skip


@pytest.fixture
def client():
    """Serves the API with these settings until the test has ended."""
    with contextlib.ExitStack() as served:
        yield lambda settings: served.enter_context(serving.served(create_app(settings)))


def report(run="r1", **fields) -> bytes:
    base = {
        "project": "p", "run": run, "verb": "backup", "status": "done", "exit_status": 0, "backup": run, "size": 4096,
        "started_at": "2026-01-01T00:00:00+00:00", "ended_at": "2026-01-01T00:00:10+00:00", "pause_ms": 25.0,
    }  # fmt: skip
    return json.dumps(base | fields).encode()


def kept(settings, *reports: bytes) -> None:
    engine = database.connect(settings)
    database.migrate(engine)
    runs.add(engine, reports)


def outcomes(answer):
    return {check["name"]: check["outcome"] for check in answer.json()["checks"]}


def down(settings, **fields):
    return structs.replace(settings, **fields)


def test_health_says_ok_for_all_three(client, settings):
    answer = client(settings).get("/health")
    assert answer.status_code == 200
    assert outcomes(answer) == {"database": "ok", "cache": "ok", "disk": "ok"}
    assert all(check["ms"] >= 0 for check in answer.json()["checks"])


def test_health_names_what_is_down(client, settings):
    port = stores.free_port()
    nobody = f"postgresql+psycopg://cosmos@127.0.0.1:{port}/x"
    for fields, name in [
        ({"database_url": nobody}, "database"),
        ({"redis_url": f"redis://127.0.0.1:{port}/0"}, "cache"),
        ({"redis_url": ""}, "cache"),
        ({"min_free": 2**62}, "disk"),
    ]:
        answer = client(down(settings, **fields)).get("/health")
        assert answer.status_code == 503
        assert [n for n, outcome in outcomes(answer).items() if outcome == "fail"] == [name]


def test_health_never_tells_a_secret(client, settings, tmp_path):
    secret = tmp_path / "password"
    secret.write_text("battery-staple")
    wrong = down(settings, database_password_file=secret, redis_url="redis://:tr0ubador@127.0.0.1:1/0")
    for path in ("/health", "/metrics", "/runs", "/progress"):
        body = client(wrong).get(path).text
        assert "battery" not in body
        assert "tr0ubador" not in body


def test_the_password_must_be_there_at_the_start(settings, tmp_path):
    with pytest.raises(errors.ConfigurationError):
        create_app(down(settings, database_password_file=tmp_path / "none"))


def test_metrics_parse_and_tell_of_the_runs(client, settings):
    kept(settings, report(), report("r2", status="failed", exit_status=1, ended_at="2026-01-02T00:00:00+00:00"))
    text = client(settings).get("/metrics").text
    samples = {
        (s.name, *sorted(s.labels.items())): s.value for f in text_string_to_metric_families(text) for s in f.samples
    }
    project = ("project", "p")
    assert samples["cosmos_runs_total", project, ("status", "failed"), ("verb", "backup")] == 1
    assert samples["cosmos_backup_last_good_timestamp_seconds", project] == 1767225610
    assert samples["cosmos_backup_last_exit_status", project] == 1
    assert samples["cosmos_backup_pause_seconds", project] == 0.025
    assert samples["cosmos_backup_bytes", project] == 4096
    assert samples["cosmos_check_ok", ("check", "database")] == 1


def test_metrics_tell_what_was_measured(client, settings):
    kept(settings)
    found = [
        Measurement(time.time(), "volume:shop_x", "bytes", 77.0),
        Measurement(time.time(), "alarms", "firing_count", 2),
    ]
    measurements.add(database.connect(settings), found)
    text = client(down(settings, project="shop")).get("/metrics").text
    assert 'cosmos_volume_bytes{project="shop",volume="shop_x"} 77.0' in text
    assert 'cosmos_alarms_firing{project="shop"} 2.0' in text


def test_metrics_answer_with_the_database_down(client, settings):
    nobody = f"postgresql+psycopg://cosmos@127.0.0.1:{stores.free_port()}/x"
    answer = client(down(settings, database_url=nobody)).get("/metrics")
    assert answer.status_code == 200
    assert 'cosmos_check_ok{check="database"} 0.0' in answer.text
    assert not [line for line in answer.text.splitlines() if line.startswith(("cosmos_backup", "cosmos_run"))]


def test_runs_come_from_the_history_and_from_the_cache_while_it_is_down(client, settings):
    kept(settings, report(), report("r2", ended_at="2026-01-02T00:00:00+00:00"))
    first = client(settings).get("/runs").json()
    assert [run["run"] for run in first["runs"]] == ["r2", "r1"]
    assert [run["run"] for run in client(settings).get("/runs", params={"limit": 1}).json()["runs"]] == ["r2"]
    nobody = f"postgresql+psycopg://cosmos@127.0.0.1:{stores.free_port()}/x"
    cached = client(down(settings, database_url=nobody)).get("/runs")
    assert cached.status_code == 200
    assert [run["run"] for run in cached.json()["runs"]] == ["r2"]
    (settings.cache_directory / "runs.json").write_text("{")
    answer = client(down(settings, database_url=nobody)).get("/runs")
    assert (answer.status_code, answer.json()["code"]) == (503, "service-down")


def test_a_cache_that_cannot_be_written_is_no_fault(client, settings, tmp_path):
    kept(settings, report())
    assert client(down(settings, cache_directory=tmp_path / "none")).get("/runs").status_code == 200


def test_progress_is_what_the_run_said(client, settings, redis_url):
    assert client(settings).get("/progress").json() == {"progress": ""}
    with redis.Redis.from_url(redis_url) as cache:
        cache.set("cosmos:progress", "<b>capture</b> " + "x" * 100000)
        try:
            said = client(settings).get("/progress").json()["progress"]
        finally:
            cache.delete("cosmos:progress")
    assert said.startswith("<b>capture</b> ")
    assert len(said) < 5000


def test_wrong_calls_are_refused(client, settings):
    assert client(settings).get("/runs", params={"limit": 0}).status_code == 422
    assert client(settings).get("/none").status_code == 404
    assert client(settings).get("/health", headers={"Host": "evil.example"}).status_code == 400


def test_the_settings_come_from_the_environment():
    found = load_serve(
        {"COSMOS_REDIS_URL": "redis://r:1/0", "COSMOS_MIN_FREE": "7", "OTHER": "x", "COSMOS_API_URL": ""}
    )
    assert (found.redis_url, found.min_free) == ("redis://r:1/0", 7)
    with pytest.raises(errors.ConfigurationError, match="COSMOS_MIN_FREE"):
        load_serve({"COSMOS_MIN_FREE": "much"})
