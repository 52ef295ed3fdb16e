"""Where the engine is, as far as that is known without the SDK, and what it answers."""

from __future__ import annotations

import json

import pytest

from cosmos_coherence import errors
from cosmos_coherence.drivers import engine_calls
from cosmos_coherence.drivers.engine import Engine
from support.answering import says, unix_answering

DEFAULT = "/var/run/docker.sock"


@pytest.mark.parametrize(
    ("host", "environment", "config", "socket"),
    [
        ("", {}, None, DEFAULT),
        ("", {}, {}, DEFAULT),
        ("", {}, {"currentContext": "default"}, DEFAULT),
        ("", {}, {"currentContext": "remote"}, ""),
        ("", {}, "not json", ""),
        ("", {"DOCKER_CONTEXT": "remote"}, None, ""),
        ("", {"DOCKER_HOST": "unix:///run/x.sock", "DOCKER_CONTEXT": "remote"}, None, "/run/x.sock"),
        ("unix:///a.sock", {"DOCKER_HOST": "tcp://h:1"}, None, "/a.sock"),
        ("", {"DOCKER_HOST": "tcp://h:1"}, None, ""),
        ("ssh://h", {}, None, ""),
    ],
)
def test_where_the_engine_is(monkeypatch, tmp_path, host, environment, config, socket):
    for name in ("DOCKER_HOST", "DOCKER_CONTEXT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    if config is not None:
        (tmp_path / "config.json").write_text(config if isinstance(config, str) else json.dumps(config))
    assert engine_calls.socket_of(host) == socket


@pytest.mark.parametrize(
    ("answer", "error", "said"),
    [
        (says("404 Not Found", body=b'{"message": "no such thing"}'), errors.NotFound, "no such thing"),
        (says("409 Conflict", body=b'{"message": "is paused."}'), errors.Refused, "is paused"),
        (says("403 Forbidden", body=b"<html>"), errors.EngineForbidden, "Forbidden"),
        (says("500 Oops", body=b"[1]"), errors.CommandFailed, "Oops"),
        (lambda door, _: door.sendall(b"SSH-2.0\r\n"), errors.EngineUnavailable, "does not answer"),
    ],
)
def test_errors_are_those_of_the_catalogue(tmp_path, answer, error, said):
    with unix_answering(answer, tmp_path / "sock") as path, pytest.raises(error, match=said):
        Engine(f"unix://{path}").ask("info")
    with pytest.raises(errors.EngineUnavailable):
        Engine(f"unix://{tmp_path}/none").ask("info")


def test_names_are_part_of_a_path_and_nothing_else():
    for name in ("x?force=1", "x#y", "x y", "x\r\ny", "../volumes/x"):
        call = engine_calls.prepared("inspect_container", (name,), {})
        assert call.path.startswith("/containers/")
        assert call.path.count("/") == 3
        assert not set(call.path) & set("?#\r\n ")
    assert engine_calls.prepared("inspect_image", ("host:5000/a/b:1@sha256:0",), {}).path.startswith(
        "/images/host:5000/a/b:1"
    )
    assert engine_calls.prepared("remove_container", ("x",), {}) is None
