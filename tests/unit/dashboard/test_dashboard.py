"""The page, asked from a small HTTP server that plays what the API would answer."""

from __future__ import annotations

import contextlib
import re
import threading
from datetime import UTC, datetime, timedelta
from html.parser import HTMLParser
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import msgspec
import pytest

from cosmos_coherence.dashboard import page, source
from cosmos_coherence.dashboard.app import create_app
from cosmos_coherence.health.checks import CheckResult, Health
from cosmos_coherence.history.record import FailureText, PartSizes, RunRecord
from cosmos_coherence.history.runs import RunList
from cosmos_coherence.model import Gap, PartFile
from cosmos_coherence.settings import ServeSettings
from support import serving, stores

NOW = datetime(2026, 1, 2, tzinfo=UTC)
WELL = Health("ok", (CheckResult("database", "ok", "answers", 1.0),))
BACKUP = RunRecord(
    "shop", "20260101_020000", "backup", "done", 0, "2026-01-01T02:00:00+00:00", "2026-01-01T02:00:09+00:00",
    seconds=9.0, backup="20260101_020000", size=5 * 2**20, pause_ms=21.4,
    parts=(PartSizes("volumes/uploads", "volume", (PartFile("v", 2048, ""),)),),
)  # fmt: skip


@contextlib.contextmanager
def api(answers):
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            status, body = answers.get(self.path, (404, b"{}"))
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def answers(health=WELL, runs=(BACKUP,), status=200):
    listed = RunList(datetime.now(UTC).isoformat(), tuple(runs))
    return {"/health": (status, msgspec.json.encode(health)), "/runs": (200, msgspec.json.encode(listed))}


def shown(url, cache) -> str:
    app = create_app(ServeSettings(api_url=url, cache_directory=cache))
    with serving.served(app) as client:
        answer = client.get("/")
    assert answer.status_code == 200
    return answer.text


def render(health=WELL, runs=(BACKUP,), *, live=True) -> str:
    overview = source.Overview(NOW.isoformat(), health, RunList(NOW.isoformat(), tuple(runs)))
    return page.render(overview, live=live, now=NOW)


def test_the_page_shows_the_state_and_the_last_backup(tmp_path):
    with api(answers()) as url:
        text = shown(url, tmp_path)
    for expected in ("All is well.", "database", "20260101_020000", "5.0 MiB", "21 ms", "volumes/uploads", "2.0 KiB"):
        assert expected in text


def test_what_fails_is_said_in_words(tmp_path):
    health = Health("fail", (CheckResult("database", "fail", "does not answer", 2.0), *WELL.checks))
    with api(answers(health, status=503)) as url:
        text = shown(url, tmp_path)
    assert "Not well: database." in text
    assert "does not answer" in text


@pytest.mark.parametrize(("runs", "verdict"), [((), "There is no backup yet."), ((BACKUP,), "All is well.")])
def test_the_verdict_speaks_of_the_backups(runs, verdict):
    assert f">{verdict}</p>" in render(runs=runs)


def test_an_incomplete_or_failed_backup_is_never_well():
    failed = RunRecord(
        "shop", "r2", "backup", "failed", 1, "2026-01-01T03:00:00+00:00", "2026-01-01T03:00:01+00:00",
        failure=FailureText("capture-failed", "the dump ended early"),
    )  # fmt: skip
    text = render(runs=(failed, BACKUP))
    assert "The last backup ended failed." in text
    assert "the dump ended early" in text
    gap = Gap("volume shop_films", "unreachable")
    incomplete = RunRecord(
        "shop", "r3", "backup", "incomplete", 3, "2026-01-01T03:00:00+00:00", "2026-01-01T03:00:01+00:00",
        backup="20260101_030000", missing=(gap,),
    )  # fmt: skip
    text = render(runs=(incomplete, BACKUP))
    assert "The last backup ended incomplete." in text
    assert "volume shop_films" in text
    assert "Last complete backup: <strong>20260101_020000</strong>" in text


def test_without_the_api_the_last_page_known_is_shown_with_its_age(tmp_path):
    with api(answers()) as url:
        shown(url, tmp_path)
    text = shown(f"http://127.0.0.1:{stores.free_port()}", tmp_path)
    assert "The API does not answer." in text
    assert "the last one known" in text
    assert "20260101_020000" in text


@pytest.mark.parametrize("kept", [None, b"", b'{"asked_at": 1}'])
def test_without_the_api_and_without_anything_kept_there_is_a_page(tmp_path, kept):
    if kept is not None:
        (tmp_path / "overview.json").write_bytes(kept)
    text = shown(f"http://127.0.0.1:{stores.free_port()}", tmp_path)
    assert "The API does not answer." in text
    assert "Nothing is known yet." in text


@pytest.mark.parametrize("body", [b"<html>", b"[]", b'{"outcome": "fine"}'])
def test_an_answer_that_is_none_counts_as_none(tmp_path, body):
    with api({"/health": (200, body)}) as url:
        assert "The API does not answer." in shown(url, tmp_path)


def test_a_history_that_cannot_be_read_is_told(tmp_path):
    with api({"/health": answers()["/health"], "/runs": (503, b'{"code": "service-down"}')}) as url:
        assert "The history cannot be read." in shown(url, tmp_path)


def test_names_cannot_write_into_the_page():
    evil = "<script>alert(1)</script>"
    run = RunRecord(
        evil, evil, evil, evil, 1, BACKUP.started_at, BACKUP.ended_at, backup=evil,
        failure=FailureText("x", evil), missing=(Gap(evil, evil),), parts=(PartSizes(evil, "volume"),),
    )  # fmt: skip
    text = render(Health("fail", (CheckResult(evil, "fail", evil),)), (run,))
    assert "<script" not in text


def test_the_page_asks_for_nothing_outside_and_can_be_read_aloud(tmp_path):
    with api(answers()) as url:
        app = create_app(ServeSettings(api_url=url, cache_directory=tmp_path))
        with serving.served(app) as client:
            answer = client.get("/")
    text = answer.text
    assert not re.search(r"(?:src|href)=(?![\"']?data:)", text)
    assert "url(" not in text
    policy = answer.headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'none'")
    tags = _Tags()
    tags.feed(text)
    assert tags.counts["html lang=en"] == 1
    assert tags.counts["h1"] == 1
    assert tags.counts["main"] == 1
    assert tags.unscoped == 0
    assert not tags.open


class _Tags(HTMLParser):
    def __init__(self):
        super().__init__()
        self.counts, self.unscoped, self.open = {}, 0, []

    def handle_starttag(self, tag, attrs):
        if tag == "html":
            tag_key = f"html lang={dict(attrs).get('lang')}"
            self.counts[tag_key] = self.counts.get(tag_key, 0) + 1
        self.counts[tag] = self.counts.get(tag, 0) + 1
        self.unscoped += tag == "th" and "scope" not in dict(attrs)
        if tag not in ("meta", "link", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


@pytest.mark.parametrize(
    ("past", "said"),
    [
        (5, "5 s ago"),
        (119, "119 s ago"),
        (3600, "60 min ago"),
        (3 * 3600, "3 h ago"),
        (10**6, "12 d ago"),
        (-5, "0 s ago"),
    ],
)
def test_ages(past, said):
    assert page.age((NOW - timedelta(seconds=past)).isoformat(), NOW) == said


@pytest.mark.parametrize(("count", "said"), [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (3 * 2**40, "3.0 TiB")])
def test_sizes(count, said):
    assert page.size(count) == said


def test_strangers_are_refused_and_health_asks_nobody(tmp_path):
    app = create_app(ServeSettings(api_url="http://127.0.0.1:1", cache_directory=tmp_path))
    with serving.served(app) as dashboard:
        assert dashboard.get("/health").text == "ok"
        assert dashboard.get("/", headers={"Host": "evil.example"}).status_code == 400
