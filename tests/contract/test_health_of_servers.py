"""What health finds on real servers: answering, hanging, out of connections, out of memory, unable to save."""

from __future__ import annotations

import os
import signal
import time

import pytest
from msgspec.structs import replace

from cosmos_coherence.flow import health
from cosmos_coherence.settings import HealthSettings, Settings
from support.local_servers import Server, postgres_server, redis_server
from support.waiting import eventually


class Found:
    """One server as the only service of a stack."""

    def __init__(self, server: Server, kind: str) -> None:
        self.server, self.kind = server, kind
        self.run = server.run

    def stack(self, *, declared=True):
        stack = self.server.stack()
        return replace(stack, services=tuple(replace(s, labels={"cosmos.kind": self.kind}) for s in stack.services))


def ask(server: Server, kind: str, tmp_path, *, limit_s: float = 30.0):
    settings = Settings(health=HealthSettings(limit=limit_s, volume_warn=1, volume_fail=1))
    found = health.check_stack(lambda: Found(server, kind), settings, backups=tmp_path)
    what = {"postgres": "database", "redis": "cache"}[kind]
    return found, next((check for check in found.checks if check.name.startswith(what)), None)


@pytest.mark.postgres
def test_a_database(tmp_path):
    with postgres_server(15, max_connections="8", superuser_reserved_connections="3") as server:
        found, check = ask(server, "postgres", tmp_path)
        assert (check.outcome, check.detail) == ("ok", "answers, 0 of 5 connections used")
        numbers = {(m.subject, m.name): m.value for m in health.measurements(found)}
        assert numbers["service:db", "connections_most"] == 5
        assert numbers["check:database db", "ok"] == 1
        assert numbers["check:backup age", "ok"] == 0
        assert all(m.taken == found.taken > time.time() - 60 for m in health.measurements(found))

        sessions = [server.session() for _ in range(4)]
        assert eventually(lambda: ask(server, "postgres", tmp_path)[1].detail == "answers, 4 of 5 connections used")
        assert ask(server, "postgres", tmp_path)[1].outcome == "ok", "80 percent is the limit itself"
        sessions += [server.session() for _ in range(4)]
        _, full = ask(server, "postgres", tmp_path)
        assert full.outcome == "fail"
        assert "too many clients" in full.detail or "reserved" in full.detail
        for session in sessions:
            session.kill()

        os.kill(server.pid, signal.SIGSTOP)
        try:
            _, hung = ask(server, "postgres", tmp_path, limit_s=0.5)
        finally:
            os.kill(server.pid, signal.SIGCONT)
        assert (hung.outcome, hung.detail) == ("fail", "no answer within 0.5 s")

        server.kill()
        gone, check = ask(server, "postgres", tmp_path)
        assert check is None
        assert gone.checks[0].detail == "exited"


@pytest.mark.redis
def test_a_cache(tmp_path):
    with redis_server("7.0") as server:
        _, check = ask(server, "redis", tmp_path)
        assert check.outcome == "ok"
        assert check.detail.startswith("answers, ")
        assert [n.name for n in check.numbers] == ["memory_bytes"]

        server.cli("CONFIG", "SET", "maxmemory", "1mb")
        _, full = ask(server, "redis", tmp_path)
        assert full.outcome in ("warn", "fail")
        assert "then writes are refused" in full.detail
        server.cli("CONFIG", "SET", "maxmemory-policy", "allkeys-lru")
        assert ask(server, "redis", tmp_path)[1].outcome == "ok"
        server.cli("CONFIG", "SET", "maxmemory", "0")

        server.data.chmod(0o500)
        try:
            server.cli("BGSAVE")
            assert eventually(lambda: "the last save failed" in ask(server, "redis", tmp_path)[1].detail)
            _, check = ask(server, "redis", tmp_path)
            assert check.outcome == "fail"
            assert check.detail.endswith("refuses writes")
        finally:
            server.data.chmod(0o700)

        os.kill(server.pid, signal.SIGSTOP)
        try:
            _, hung = ask(server, "redis", tmp_path, limit_s=0.5)
        finally:
            os.kill(server.pid, signal.SIGCONT)
        assert (hung.outcome, hung.detail) == ("fail", "no answer within 0.5 s")
