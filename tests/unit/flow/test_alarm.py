"""Alarms told to a real HTTP server through apprise, and a watcher that is pinged."""

from __future__ import annotations

import io
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import textwrap
from datetime import UTC, datetime
from pathlib import Path

import pytest
from msgspec.structs import replace

from cosmos_coherence import errors, settings
from cosmos_coherence.drivers.local import LocalRuntime
from cosmos_coherence.flow import alarm, health, measure
from cosmos_coherence.flow.events import Report, Story
from cosmos_coherence.flow.measured import Measured
from cosmos_coherence.flow.remember import MEASUREMENTS, SPOOL
from cosmos_coherence.health.checks import CheckResult
from cosmos_coherence.history import segments
from cosmos_coherence.history.ledger import Ledger
from cosmos_coherence.model import Gap, Measurement, Stack, Volume
from cosmos_coherence.settings import ServeSettings, Settings
from cosmos_coherence.volumes.forecast import Forecast, Range
from support import stores
from support.listening import listening

NOW = 1_800_000_000.0
HOUR, DAY = 3600.0, 86400.0
SECRET = "tok3n-right-Horse"


@pytest.fixture
def server():
    with listening() as found:
        yield found


@pytest.fixture
def runtime(tmp_path):
    return LocalRuntime(tmp_path, alone="shop")


@pytest.fixture
def configured(tmp_path):
    """Settings with these addresses, each in its file."""

    def configure(*urls: str, ping: str = "", **notify: object) -> Settings:
        (tmp_path / "secrets").mkdir(exist_ok=True)
        given: dict[str, object] = {"notify__limit": 20.0, "stack__project": "shop", "stack__runtime": "process"}
        if urls:
            (tmp_path / "secrets/notify-urls").write_text("# who is told\n" + "\n".join(urls) + "\n")
            given["notify__urls_file"] = "secrets/notify-urls"
        if ping:
            (tmp_path / "secrets/ping").write_text(ping + "\n")
            given["notify__ping_url_file"] = "secrets/ping"
        return settings.load(tmp_path, environ={}, **(given | {f"notify__{k}": v for k, v in notify.items()}))

    return configure


def full(ratio: float, at: float = NOW) -> Measured:
    return Measured((Measurement(at, "disk:/srv", "used_ratio", ratio),))


def ended(**fields: object) -> Report:
    return replace(Story(verb="backup", run="r1", project="shop").report("done"), **fields)  # type: ignore[arg-type]


FAILED = {"status": "failed", "exit_status": 1}


def state_of(runtime) -> alarm.Record:
    return alarm.known(runtime.state_directory())


# ------------------------------------------------------------------------------------------------------- who is told
def test_an_alarm_is_told_once_again_after_a_day_and_when_it_is_over(runtime, configured, server):
    found = configured(server.url("/take"), server.url("/other"))
    for hours, ratio in ((0, 0.91), (1, 0.92), (23, 0.93), (24, 0.94), (30, 0.5), (31, 0.5)):
        at = NOW + hours * HOUR
        watched = alarm.watch(runtime, found, measured=full(ratio, at), now=lambda at=at: at)
        assert watched.notes == ()
    head = f"shop on {socket.gethostname()}: "
    assert server.titles() == server.titles("/other")
    assert server.titles() == [
        f"{head}alarm: the disk of /srv is 91% full",
        f"{head}still alarm: the disk of /srv is 94% full",
        f"{head}over: the disk of /srv has room again, it is 50% full",
    ]
    first = next(said for _, path, said in server.got if path == "/take")
    assert "`cosmos volume usage`" in first["message"]
    assert "2027-01-15 08:00 UTC" in first["message"]
    assert state_of(runtime).outgoing == ()


def test_inodes_and_the_limit_of_a_volume_are_alarms_like_a_full_disk(runtime, configured, server):
    found = configured(server.url("/take"))
    for hours, ratio in ((0, 0.79), (1, 0.85), (2, 0.76), (3, 0.7)):
        at = NOW + hours * HOUR
        measured = Measured((Measurement(at, "disk:/srv", "used_inodes_ratio", ratio),
                             Measurement(at, "volume:shop_data", "used_limit_ratio", ratio)))  # fmt: skip
        alarm.watch(runtime, found, measured=measured, now=lambda at=at: at)
    said = [title.partition(": ")[2] for title in server.titles()]
    assert said == [
        "alarm: 85% of the inodes of the disk of /srv are used: no file can be made when they are gone",
        "alarm: the volume shop_data holds 85% of what its label `cosmos.limit` allows",
        "over: the disk of /srv has inodes again, 70% are used",
        "over: the volume shop_data has room again, it holds 70% of what it may",
    ]


def test_how_full_a_volume_is_by_its_own_limit_is_measured(tmp_path):
    for name in ("limited", "free", "wrong"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_bytes(b"x" * 8192)

    def volume(name: str, **labels: str) -> Volume:
        return Volume(name=f"shop_{name}", short=name, exists=True, path=tmp_path / name, labels=labels)

    limits = {"cosmos.limit": "1MiB"}, {"cosmos.limit": "much"}
    stack = Stack("shop", tmp_path, "process", volumes=(
        volume("limited", **limits[0]), volume("free"), volume("wrong", **limits[1])))  # fmt: skip
    notes: list[str] = []
    found = {(subject, name): value for subject, name, value in measure._of_volumes(stack, None, notes)}
    used = {subject: value for (subject, name), value in found.items() if name == "used_limit_ratio"}
    assert used == {"volume:shop_limited": found["volume:shop_limited", "bytes"] / 2**20}
    assert used["volume:shop_limited"] > 0
    assert [note for note in notes if "cosmos.limit" in note], notes


def test_health_says_how_the_jobs_of_the_schedule_ended(stack, runtime):
    def schedule() -> CheckResult | None:
        found = health.check_stack(lambda: runtime, settings.load(stack, environ={}), backups=stack / "backups")
        return next((each for each in found.checks if each.name == "schedule"), None)

    assert schedule() is None
    ledger, at = Ledger(runtime.state_directory()), datetime(2026, 1, 2, 3, 4, tzinfo=UTC)
    for job in ("backup", "check"):
        ledger.begin(job, at, since=at)
        ledger.end(job, at, "done")
    said = schedule()
    assert said
    assert (said.outcome, said.detail) == ("ok", "backup done 2026-01-02 03:04 UTC, check done 2026-01-02 03:04 UTC")
    ledger.begin("check", at, since=at)
    ledger.end("check", at, "failed", said="two packs are damaged")
    said = schedule()
    assert said
    assert (said.outcome, said.detail) == ("warn", "check failed 2026-01-02 03:04 UTC: two packs are damaged")


def test_nobody_is_told_and_nothing_fails_without_addresses(runtime, configured):
    watched = alarm.watch(runtime, configured(), measured=full(0.9), now=lambda: NOW)
    assert [m.kind for m in watched.messages] == ["raised"]
    assert watched.failing == ()
    assert [e.rule for e in state_of(runtime).state.raised] == ["disk-full"]


def test_many_at_once_go_out_as_one(runtime, configured, server):
    several = Measured(tuple(Measurement(NOW, f"disk:/{n}", "used_ratio", 0.9) for n in range(30)))
    alarm.watch(runtime, configured(server.url("/take")), measured=several, now=lambda: NOW)
    assert len(server.got) == 1
    assert server.titles()[0].endswith("30 alarms changed")
    assert "and 10 more" in server.got[0][2]["message"]


# -------------------------------------------------------------------------------------------- a notifier that is bad
def broken_notifiers(server) -> dict[str, str]:
    free = stores.free_port()
    return {
        server.url(f"/hang/{SECRET}"): "no answer within|does not answer",
        server.url(f"/refuse/{SECRET}"): "answers 500",
        f"json://me:{SECRET}@127.0.0.1:{free}/": "does not answer, or refuses",
        f"nonsense://{SECRET}": "no address that apprise knows",
        SECRET: "no address that apprise knows",
    }


def test_one_that_hangs_refuses_or_is_none_keeps_nothing_from_the_others(runtime, configured, server, capfd):
    bad = broken_notifiers(server)
    found = configured(*bad, server.url("/take"), limit=2.0)
    logged = io.StringIO()  # whatever a program that has logging turned on would see
    handler, root = logging.StreamHandler(logged), logging.getLogger()
    before = root.level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    try:
        watched = alarm.watch(runtime, found, measured=full(0.9), now=lambda: NOW)
    finally:
        root.removeHandler(handler)
        root.setLevel(before)
    assert len(server.titles()) == 1
    assert len(watched.failing) == len(bad)
    for each, why in zip(watched.failing, bad.values(), strict=True):
        assert any(part in each.why for part in why.split("|")), each
        assert each.failing_since == NOW
    everything = "".join(capfd.readouterr()) + logged.getvalue() + repr(watched) + repr(found)
    everything += "".join(p.read_text() for p in runtime.state_directory().rglob("*.json"))
    assert SECRET not in everything
    assert "the secret of the server" not in everything


def test_what_was_not_taken_is_sent_later_and_to_nobody_twice(runtime, configured, server):
    server.broken.add("/moody")
    found = configured(server.url("/take"), server.url("/moody"))
    alarm.watch(runtime, found, measured=full(0.9), now=lambda: NOW)
    (failing,) = alarm.watch(runtime, found, measured=full(0.5, NOW + 60), now=lambda: NOW + 60).failing
    assert (failing.name, failing.failing_since) == ("json-3", NOW)
    assert [c.outcome for c in alarm.check_notifiers(state_of(runtime))] == ["ok", "warn"]
    assert len(state_of(runtime).outgoing) == 2
    server.broken.clear()
    assert alarm.watch(runtime, found, now=lambda: NOW + 120).failing == ()
    assert len(server.titles("/moody")) == len(server.titles()) == 2
    assert [c.outcome for c in alarm.check_notifiers(state_of(runtime))] == ["ok", "ok"]


def test_a_notifier_that_fails_for_long_is_an_alarm_of_its_own(runtime, configured, server):
    server.broken.add("/moody")
    found = configured(server.url("/take"), server.url("/moody"))
    for minutes in (0, 30, 61):
        alarm.watch(runtime, found, measured=full(0.9), now=lambda at=NOW + 60 * minutes: at)
    assert "the notifier json-3 has not taken a message for 61 min" in server.titles()[-1]


def test_messages_that_nobody_took_repeat_only_their_newest(runtime, configured, server):
    server.broken.add("/moody")
    found = configured(server.url("/moody"))
    for days in range(5):
        at = NOW + days * DAY
        alarm.watch(runtime, found, measured=full(0.9, at), now=lambda at=at: at)
    queued = [out.title for out in state_of(runtime).outgoing if "disk" in out.title]
    assert len(queued) == 2  # that it began, and that it lasts


def test_addresses_that_cannot_be_read_are_said_and_messages_wait(runtime, configured, server, tmp_path):
    found = configured(server.url("/take"))
    alarm.watch(runtime, found, now=lambda: NOW)
    file = tmp_path / "secrets/notify-urls"
    content = file.read_text()
    file.unlink()
    watched = alarm.watch(runtime, found, measured=full(0.9), now=lambda: NOW)
    assert "are missing" in watched.notes[0]
    file.write_text("\n\n" + content)  # the line moved, and with it the name
    alarm.watch(runtime, found, now=lambda: NOW + 60)
    assert len(server.titles()) == 1


# ------------------------------------------------------------------------------------------------------ runs and ping
def test_a_run_that_failed_is_told_with_its_reason_and_one_that_went_well_ends_it(runtime, configured, server):
    found = configured(server.url("/take"), ping=server.url("/ping/x?rid=1", "http"))
    story = Story(verb="backup", run="r1", project="shop")
    failed = story.failed(errors.NoRoom("no room while writing /backups"))
    alarm.watch(runtime, found, report=failed)
    alarm.watch(runtime, found, report=replace(failed, ended_at="2099-01-01T00:00:00+00:00"))
    alarm.watch(runtime, found, report=ended(ended_at="2099-01-01T00:01:00+00:00"))
    assert [t.partition(": ")[2][:34] for t in server.titles()] == [
        "alarm: the backup did not go well ", "over: the backup went well again",
    ]  # fmt: skip
    assert "no room while writing /backups" in server.got[1][2]["message"]
    pings = [path for method, path, _ in server.got if method == "GET"]
    assert pings == ["/ping/x/fail?rid=1", "/ping/x/fail?rid=1", "/ping/x?rid=1"]


def test_an_incomplete_backup_is_not_a_good_one(runtime, configured, server):
    found = configured(server.url("/take"), ping=server.url("/ping", "http"))
    report = ended(status="incomplete", exit_status=3, missing=(Gap("volume x", "nobody captures it"),))
    alarm.watch(runtime, found, report=report)
    assert "volume x: nobody captures it" in server.got[-1][2]["message"]
    assert server.got[0][1] == "/ping/fail"


def test_a_plan_and_an_interruption_are_told_to_nobody(runtime, configured, server):
    found = configured(server.url("/take"), ping=server.url("/ping", "http"))
    alarm.watch(runtime, found, report=ended(status="planned"))
    alarm.watch(runtime, found, report=ended(status="failed", exit_status=130))
    alarm.watch(runtime, found, report=ended(verb="restore", **FAILED))
    assert [method for method, _, _ in server.got] == ["POST"]


def test_a_watcher_that_does_not_answer_is_remembered_and_tried_again(runtime, configured, server):
    server.broken.add("/ping")
    found = configured(ping=server.url("/ping", "http"))
    (failing,) = alarm.watch(runtime, found, report=ended(), now=lambda: NOW).failing
    assert (failing.name, failing.why) == ("ping", "it answers 500")
    (failing,) = alarm.watch(runtime, configured(ping=server.url("/hang", "http"), limit=0.5), report=ended()).failing
    assert "answer" in failing.why
    free = stores.free_port()
    (failing,) = alarm.watch(runtime, configured(ping=f"http://127.0.0.1:{free}/{SECRET}"), report=ended()).failing
    assert failing.why == "the connection is refused"
    assert failing.failing_since == NOW
    server.broken.clear()
    assert alarm.watch(runtime, configured(ping=server.url("/ping", "http")), report=ended()).failing == ()


def test_an_address_of_a_watcher_that_is_none(runtime, configured, tmp_path):
    watched = alarm.watch(runtime, configured(ping=f"file:///{SECRET}"), report=ended())
    assert "no address of a watcher" in watched.notes[0]
    assert SECRET not in repr(watched)


def test_without_a_state_directory_a_failed_run_is_told_all_the_same(configured, server, tmp_path):
    class Down(LocalRuntime):
        def state_directory(self) -> Path:
            raise errors.EngineUnavailable("the engine does not answer")

    alarm.watch(Down(tmp_path, alone="shop"), configured(server.url("/take")), report=ended(**FAILED))
    assert len(server.titles()) == 1


# -------------------------------------------------------------------------------------------------- kills and damage
CALL = """
import os, signal, sys
from pathlib import Path
from cosmos_coherence import settings
from cosmos_coherence.drivers.local import LocalRuntime
from cosmos_coherence.flow import alarm
from cosmos_coherence.flow.measured import Measured
from cosmos_coherence.health import notifiers
from cosmos_coherence.model import Measurement
folder, strike = Path(sys.argv[1]), sys.argv[2]
found = settings.load(folder, environ={{}}, stack__project="shop", stack__runtime="process",
                      notify__urls_file="secrets/notify-urls")
def struck(plain, where):
    def call(*args, **kwargs):
        if where == strike: os.kill(os.getpid(), signal.SIGKILL)
        answer = plain(*args, **kwargs)
        if "after " + where == strike: os.kill(os.getpid(), signal.SIGKILL)
        return answer
    return call
notifiers.send = struck(notifiers.send, "send")
alarm._save = struck(alarm._save, "save")
measured = Measured((Measurement({at}, "disk:/srv", "used_ratio", 0.9),))
alarm.watch(LocalRuntime(folder, alone="shop"), found, measured=measured, now=lambda: {at})
"""


@pytest.mark.parametrize(
    ("strike", "told"), [("save", 1), ("after save", 1), ("send", 1), ("after send", 2), ("never", 1)]
)
def test_a_kill_repeats_at_most_one_message_and_loses_none(runtime, configured, server, tmp_path, strike, told):
    found = configured(server.url("/take"))
    code = textwrap.dedent(CALL.format(at=NOW))
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path), strike], capture_output=True, text=True)
    assert done.returncode == (-signal.SIGKILL if strike != "never" else 0), done.stderr
    for at in (NOW + 60, NOW + 120):
        alarm.watch(runtime, found, measured=full(0.9, at), now=lambda at=at: at)
    assert len(server.titles()) == told


def test_a_damaged_record_is_set_aside_and_said(runtime, configured, server):
    found = configured(server.url("/take"))
    alarm.watch(runtime, found, measured=full(0.9), now=lambda: NOW)
    file = runtime.state_directory() / "alarms" / "state.json"
    for bad in (b"{", b"\xff", b"[" * 100_000, b'{"state": 3}'):
        file.write_bytes(bad)
        watched = alarm.watch(runtime, found, measured=full(0.9), now=lambda: NOW)
        assert "set aside" in watched.notes[0]
        assert file.with_suffix(".damaged").read_bytes() == bad
    assert alarm.watch(runtime, found, now=lambda: NOW).notes == ()


def test_a_record_that_cannot_be_written_keeps_nobody_asleep(runtime, configured, server, monkeypatch):
    def full_disk(*_: object) -> None:
        raise errors.NoRoom("no room while writing")

    monkeypatch.setattr(alarm, "_save", full_disk)
    watched = alarm.watch(runtime, configured(server.url("/take")), measured=full(0.99), now=lambda: NOW)
    assert len(server.titles()) == 1
    assert "cannot be kept" in watched.notes[0]


def test_what_is_raised_and_who_fails_is_measured(runtime, configured, server):
    server.broken.add("/moody")
    found = configured(server.url("/moody"))
    alarm.watch(runtime, found, measured=full(0.9), now=lambda: NOW)
    alarm.watch(runtime, found, measured=full(0.5, NOW + 60), now=lambda: NOW + 60)
    kept = list(segments.read(runtime.state_directory() / SPOOL / MEASUREMENTS))
    assert [m.value for m in kept if m.subject == "alarm:disk-full disk:/srv"] == [1.0, 0.0]
    assert [m.value for m in kept if m.name == "firing_count"] == [1.0, 0.0]
    assert [m.value for m in kept if m.subject == "notifier:json-2"] == [0.0, 60.0]


# ------------------------------------------------------------------------------------------------------ the measuring
@pytest.fixture
def stack(tmp_path):
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "a").write_bytes(b"x" * 10_000)
    (tmp_path / "backups").mkdir()
    toml = f'[[source]]\nkind = "files"\nname = "files"\npath = "{tmp_path}/files"\n[stack]\nproject = "shop"\n'
    (tmp_path / "cosmos.toml").write_text(toml + 'runtime = "process"\n')
    return tmp_path


def test_measuring_puts_numbers_into_the_spool(stack, runtime, monkeypatch):
    found = settings.load(stack, environ={})
    seen: list[int] = []

    def foresee(series, free):
        seen.append(len(series))
        return Forecast(len(series), 1.0, full=Range(5.0, 3.0, None))

    monkeypatch.setattr(measure.forecast, "foresee", foresee)
    for at in (NOW, NOW + 60):
        measured = measure.measure(runtime, found, ServeSettings(), directory=stack / "backups", now=lambda at=at: at)
    numbers = {(m.subject.partition(":")[0], m.name): m.value for m in measured.measurements}
    assert numbers["backup", "complete_count"] == 0
    assert 0 < numbers["disk", "used_ratio"] <= 1
    assert numbers["disk", "free_bytes"] > 0
    assert (numbers["disk", "days_until_full"], numbers["disk", "days_until_full_high"]) == (5.0, 3650.0)
    assert numbers["check", "ok"] in (0.0, 0.5, 1.0)
    assert max(seen) == 2, "the second round sees the first"
    kept = list(segments.read(runtime.state_directory() / SPOOL / MEASUREMENTS))
    assert set(measured.measurements) <= set(kept)


def test_the_command_for_cron_alone_measures_tells_and_writes_a_file(stack, server):
    (stack / "urls").write_text(server.url("/take") + "\n")
    environ = {**os.environ, "COSMOS_NOTIFY_URLS_FILE": "urls", "COSMOS_ALARMS__USAGE": "0.051"}
    environ.pop("COSMOS_DATABASE_URL", None)

    def cosmos(*words: str) -> subprocess.CompletedProcess[str]:
        program = Path(sys.executable).with_name("cosmos")
        return subprocess.run(
            [program, "-C", str(stack), *words], env=environ, capture_output=True, text=True, umask=0o077
        )

    target = stack / "node.prom"
    done = cosmos("metrics", "--measure", "--textfile", str(target))
    assert done.returncode == 0, done.stderr
    assert target.stat().st_mode & 0o777 == 0o644
    text = target.read_text()
    assert 'cosmos_backups_complete{project="shop"} 0.0' in text
    assert "cosmos_disk_used_ratio" in text
    assert server.titles(), "the disk is more than a twentieth full"
    listed = json.loads(cosmos("alarms", "--json").stdout)
    assert "disk-full" in [each["rule"] for each in listed["alarms"]]
    assert [each["name"] for each in listed["notifiers"]] == ["json-1"]
    before = len(server.got)
    tested = cosmos("alarms", "test")
    assert (tested.returncode, tested.stdout.strip()) == (0, "notifier json-1: told")
    assert len(server.got) == before + 1
    server.broken.add("/take")
    refused = cosmos("alarms", "test")
    assert (refused.returncode, refused.stdout.strip()) == (1, "notifier json-1: it answers 500")


def test_a_backup_from_cron_tells_how_it_ended(stack, server):
    (stack / "urls").write_text(server.url("/take") + "\n")
    (stack / "ping").write_text(server.url("/ping", "http") + "\n")
    environ = {**os.environ, "COSMOS_NOTIFY_URLS_FILE": "urls", "COSMOS_NOTIFY_PING_URL_FILE": "ping"}

    def cosmos(*words: str, **more: str) -> int:
        program = Path(sys.executable).with_name("cosmos")
        done = subprocess.run([program, "-C", str(stack), *words], env=environ | more, capture_output=True, text=True)
        return done.returncode

    assert cosmos("backup") == 0
    assert [path for _, path, _ in server.got] == ["/ping"]
    assert cosmos("backup", COSMOS_BACKUP__MIN_FREE=str(2**62)) == 7
    assert [path for _, path, _ in server.got] == ["/ping", "/ping/fail", "/take"]
    assert "did not go well (exit status 7)" in server.titles()[0]
    assert cosmos("backup", "--only", "config") in (0, 3, 4)
    assert len(server.got) == 3, "a part is no backup"
    server.broken |= {"/take", "/ping"}
    assert cosmos("backup") == 0, "a notifier that fails never fails a backup"
    done = subprocess.run([Path(sys.executable).with_name("cosmos"), "-C", str(stack), "health", "--json"],
                          env=environ, capture_output=True, text=True)  # fmt: skip
    failing = {c["name"]: c["outcome"] for c in json.loads(done.stdout)["checks"] if c["name"].startswith("notifier")}
    assert failing == {"notifier json-1": "warn", "notifier ping": "warn"}
