"""The demo is the product in one minute; and a demo that cannot fail would show nothing."""

import json
import os

import pytest

from cosmos_coherence.cli import demo as verbs
from cosmos_coherence.drivers import embedded
from cosmos_coherence.drivers.embedded import DATABASE
from cosmos_coherence.drivers.local import LocalRuntime
from cosmos_coherence.flow import demo
from support.program import as_ordinary_user, cosmos


def one_byte(runtime):
    path = runtime.stack().volume("files").path / "ballast" / "odd names" / "~"
    content = bytearray(path.read_bytes())
    content[3] ^= 1
    times = path.stat()
    path.write_bytes(content)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def sql(statement):
    def meddle(runtime):
        with runtime.run("db", ["psql", "-qX", "-v", "ON_ERROR_STOP=1", "-d", DATABASE, "-c", statement]):
            pass

    return meddle


def redis(*words):
    def meddle(runtime):
        with runtime.run("redis", ["redis-cli", *words]):
            pass

    return meddle


def test_equal():
    found = demo.demo()
    assert found.faults == ()
    assert (found.status, found.exit_status) == ("equal", 0)
    assert found.rows > 20_000
    assert found.keys > 5_000
    assert found.files > 300
    assert found.written_after > 0
    assert 0 < found.pause_ms < 1000


@pytest.mark.parametrize(
    ("meddle", "named"),
    [
        pytest.param(one_byte, "file", id="one byte of a file"),
        pytest.param(sql("UPDATE ballast.orders SET quantity = quantity + 1 WHERE id = 77"), "table", id="one row"),
        pytest.param(
            sql("DELETE FROM sequence_log WHERE writer = 0 AND k = 5"), "rows of writer 0", id="one of the sequence"
        ),
        pytest.param(redis("SET", "ballast:11", "x"), "key", id="one key"),
        pytest.param(redis("PERSIST", "ballast:1"), "key", id="one expiry"),
    ],
)
def test_different_when_what_was_restored_is_tampered_with(meddle, named):
    found = demo.demo(meddle=meddle)
    assert (found.status, found.exit_status) == ("different", 1)
    assert any(named in fault for fault in found.faults), found.faults


def test_without_redis_it_says_what_was_not_shown(monkeypatch, capsys):
    monkeypatch.setattr(embedded, "find_redis", lambda prefer=None: None)
    assert verbs.demo(keep=None, as_json=True) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["status"], found["keys"], found["faults"]) == ("equal", 0, [])
    assert "Redis" in found["not_shown"][0]


def test_keep_leaves_a_stack_to_play_with(roomy):
    folder = roomy / "kept"
    try:
        assert cosmos("demo", "--keep", str(folder)).returncode == 0
        shown = json.loads(cosmos("-C", str(folder), "status", "--json").stdout)
        assert {s["name"] for s in shown["stack"]["services"] if s["state"] == "running"} == {"db", "redis", "writer"}
        again = cosmos("-C", str(folder), "backup", "--json")
        assert (again.returncode, json.loads(again.stdout)["status"]) == (0, "done")
    finally:
        LocalRuntime(folder).destroy()


@pytest.mark.skipif(os.geteuid() != 0, reason="it becomes another user by itself")
def test_as_an_ordinary_user(roomy):
    found = as_ordinary_user(roomy, "demo", "--json")
    assert found.returncode == 0, found.stderr
    assert json.loads(found.stdout)["status"] == "equal"
