"""Redis and Valkey servers of other kinds and in other states: what comes back from them, and what they are left in."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cosmos_coherence import errors
from cosmos_coherence.sources.redis import RedisSource, remove_leftovers, restore_settings
from cosmos_coherence.sources.redis_restore import RedisRestorer
from support.capturing import anchor
from support.local_servers import ACCOUNT, PASSWORD, REDIS, Redis, redis_server
from support.memory_parts import MemoryReader, MemorySink
from support.redis_cases import REF, backup, contents, fill, leftovers, names, quiet, restore, restorer, source

pytestmark = pytest.mark.redis

SAVES = ["save 3600 1", "save 300 100"]
RIGHTS = "+echo +info +time +bgsave +config|get +config|set +client|list +client|setname +client|pause +client|unpause"
"""As docs/protect-your-stack.md lists them."""


@pytest.fixture(params=REDIS)
def version(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def server(version: str) -> Iterator[Redis]:
    with redis_server(version, aof=True, config=SAVES) as started:
        yield started


@contextmanager
def unwritable(folder: Path) -> Iterator[None]:
    """The server cannot save: what a full disk does to it too."""
    folder.chmod(0o500)
    try:
        yield
    finally:
        folder.chmod(0o700)


def writes(server: Redis) -> bool:
    answer = server.cli("SET", "probe", "x")
    assert answer == b"OK" or answer.startswith(b"MISCONF"), answer
    return answer == b"OK"


# ------------------------------------------------------------------------------------------------------ expiries
def test_expiries_come_back_to_the_millisecond(server: Redis) -> None:
    moment = int(time.time() * 1000) + 5_000_000
    server.cli("SET", "later", "x")
    server.cli("PEXPIREAT", "later", str(moment))
    server.cli("-n", "3", "SET", "soon", "x", "PX", "1")
    by_field = server.version.startswith("8")
    if by_field:
        server.cli("HSET", "hash", "stays", "x", "goes", "y")
        server.cli("HPEXPIREAT", "hash", str(moment), "FIELDS", "1", "goes")
    part, reader = backup(server)
    server.cli("FLUSHALL")
    restore(part, reader, server)
    if server.release >= (7, 0):
        assert server.cli("PEXPIRETIME", "later") == str(moment).encode()
    left = int(server.cli("PTTL", "later"))
    assert abs(moment - time.time() * 1000 - left) < 60_000
    assert server.cli("-n", "3", "GET", "soon") == b""
    if by_field:
        assert server.cli("HPEXPIRETIME", "hash", "FIELDS", "2", "stays", "goes") == f"-1\n{moment}".encode()


# ------------------------------------------------------------------------------------------------------ saves
def test_a_save_that_runs_is_waited_out_on_every_version(server: Redis) -> None:
    server.cli("SET", "a", "x")
    server.cli("CONFIG", "SET", "rdb-key-save-delay", "300000")
    server.cli("BGSAVE")
    part, reader = backup(server)
    server.cli("CONFIG", "SET", "rdb-key-save-delay", "0")
    assert part.fingerprint.keys == {"0": 1}
    restore(part, reader, server)
    assert server.cli("GET", "a") == b"x"


def test_a_save_that_cannot_be_written_leaves_a_server_that_takes_writes(server: Redis) -> None:
    before = quiet(server)
    assert writes(server)
    with source(server) as captured:
        values = captured.settings_to_restore()
        captured.prepare(MemorySink())
        with unwritable(server.data):
            anchor(captured)
            with pytest.raises(errors.CaptureFailed, match="the save failed"):
                captured.capture(MemorySink())
            captured.close()
            assert writes(server)
            with pytest.raises(errors.CommandFailed, match="cannot save"):
                restore_settings(server, "redis", values)
            assert writes(server)
    restore_settings(server, "redis", values)
    assert quiet(server) == before
    assert writes(server)
    part, reader = backup(server)
    restore(part, reader, server)


def test_a_save_that_failed_where_we_may_not_change_the_settings_is_made_good(server: Redis) -> None:
    assert writes(server)
    server.work = server.data
    server.cli("ACL", "SETUSER", "default", "-config")
    with source(server) as captured:
        captured.prepare(MemorySink())
        with unwritable(server.data):
            anchor(captured)
            with pytest.raises(errors.CaptureFailed, match="the save failed"):
                captured.capture(MemorySink())
            assert not writes(server), "there was nothing to make good"
    assert writes(server)


def test_a_server_that_already_refuses_writes_is_captured_and_takes_them_again(server: Redis) -> None:
    assert writes(server)
    with unwritable(server.data):
        server.cli("BGSAVE")
        while writes(server):
            time.sleep(0.02)
    part, reader = backup(server)
    assert writes(server)
    restore(part, reader, server)
    assert server.cli("GET", "probe") == b"x"


# ------------------------------------------------------------------------------------------------------ files
def test_a_server_that_never_saves_is_not_left_a_dump(version: str) -> None:
    with redis_server(version, config=['save ""']) as server:
        fill(server)
        before = contents(server)
        part, reader = backup(server)
        assert names(server) == []
        server.restart()
        assert server.cli("DBSIZE") == b"0", "it began with what the backup had it save"
        restore(part, reader, server)
        assert contents(server) == before
        backup(server)
        assert names(server) == ["dump.rdb"], "this one it had before"


def test_a_dump_that_a_killed_run_had_made_goes_with_its_leftovers() -> None:
    with redis_server("7.0", config=['save ""']) as server:
        server.cli("SET", "a", "x")
        for newer in (False, True):
            server.cli("SAVE")
            os.link(server.data / "dump.rdb", server.data / ".cosmos-dead.only.rdb")
            if newer:
                server.cli("SAVE")
            remove_leftovers(server, "redis")
            assert names(server) == (["dump.rdb"] if newer else [])


def test_a_multi_part_aof_under_names_of_its_own(version: str) -> None:
    config = ["appendfilename journal.aof", *(['appenddirname "log"'] if version != "6.2" else [])]
    with redis_server(version, aof=True, config=[*SAVES, *config]) as server:
        fill(server)
        server.cli("BGREWRITEAOF")
        server.cli("SET", "text", "value ü")  # in a further part
        before = contents(server)
        part, reader = backup(server)
        server.cli("FLUSHALL")
        restore(part, reader, server)
        assert contents(server) == before
        assert "appendonlydir" not in names(server)
        if version == "6.2":
            assert "journal.aof" in names(server)
        else:
            assert "journal.aof.manifest" in {path.name for path in (server.data / "log").iterdir()}
        server.cli("SET", "after", "the restore")
        server.restart()
        assert server.cli("GET", "after") == b"the restore"


def test_users_kept_beside_the_data_are_named() -> None:
    for folder, gaps in (("data", ["users of redis in"]), ("tools", [])):
        with redis_server("7.0") as server:
            file = server.folder / folder / "users.acl"
            file.write_text("user default on nopass ~* &* +@all\n")
            server.kill()
            config = server.folder / "redis.conf"
            lines = [line for line in config.read_text().splitlines() if not line.startswith("requirepass")]
            config.write_text("\n".join([*lines, f"aclfile {file}", ""]))
            server.start()
            with source(server) as captured:
                captured.prepare(MemorySink())
                anchor(captured)
                captured.capture(MemorySink())
                assert [gap.what.rpartition(" ")[0] for gap in captured.gaps] == gaps


# ------------------------------------------------------------------------------------------------------ rights
def test_a_user_with_the_rights_that_are_documented(version: str) -> None:
    user = f"user backup on {json.dumps('>' + PASSWORD)} resetkeys -@all {RIGHTS}"
    with redis_server(version, aof=True, config=[*SAVES, user]) as server:
        fill(server)
        before = contents(server)
        settings = quiet(server)
        server.environment["REDIS_USERNAME"] = "backup"
        part, reader = backup(server)
        assert "saves" not in part.details
        assert quiet(server) == settings
        restore(part, reader, server)
        assert contents(server) == before
        for right in ("echo", "info", "time", "bgsave"):
            server.cli("ACL", "SETUSER", "backup", f"-{right}")
            with pytest.raises(errors.AccessDenied, match=right):
                backup(server)
            server.cli("ACL", "SETUSER", "backup", f"+{right}")
        with source(server) as captured:
            captured.prepare(MemorySink())
            rest = captured.anchor()
            assert rest, "the fork was waited for"
            rest()
            server.cli("ACL", "SETUSER", "backup", "-client|pause" if version != "6.2" else "-client")
            server.cli("ACL", "SETUSER", "backup", "+client|list", "+client|setname")
            captured.prepare(MemorySink())
            assert captured.anchor() is None, "this user may not keep writes waiting"
            assert captured.capture(MemorySink()).fingerprint == part.fingerprint
        server.cli("ACL", "SETUSER", "backup", "-config|set" if version != "6.2" else "-config")
        server.work = server.data
        part, _ = backup(server)
        assert "could start by themselves" in part.details["saves"]


# ------------------------------------------------------------------------------------------------------ tls
@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An authority, ``redis`` signed by it for both ends, and another authority."""
    folder = tmp_path_factory.mktemp("tls")

    def openssl(*words: str) -> None:
        subprocess.run(["openssl", *words], cwd=folder, check=True, capture_output=True)

    for name in ("ca", "other"):
        openssl("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", f"/CN={name}",
                "-keyout", f"{name}.key", "-out", f"{name}.crt")  # fmt: skip
    openssl("req", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=redis", "-keyout", "redis.key", "-out", "redis.csr")
    openssl("x509", "-req", "-in", "redis.csr", "-CA", "ca.crt", "-CAkey", "ca.key", "-CAcreateserial",
            "-days", "2", "-out", "redis.crt")  # fmt: skip
    return folder


@pytest.mark.parametrize("version", [version for version in REDIS if version != "6.2"])  # the wheel's knows no TLS
def test_a_server_that_takes_tls_only(version: str, certificates: Path) -> None:
    port = free_port()
    with redis_server(version, aof=True) as server:
        server.kill()
        mine = server.folder / "tls"
        shutil.copytree(certificates, mine)
        for path in (mine, *mine.iterdir()):
            path.chmod(0o700 if path.is_dir() else 0o600)
            if ACCOUNT:
                shutil.chown(path, ACCOUNT)
        server.start("--tls-port", str(port), "--bind", "127.0.0.1", "--tls-cert-file", f"{mine}/redis.crt",
                     "--tls-key-file", f"{mine}/redis.key", "--tls-ca-cert-file", f"{mine}/ca.crt")  # fmt: skip
        fill(server)
        before = contents(server)
        socket_only = dict(server.environment)
        server.environment |= {"REDIS_SOCKET": "none", "REDIS_PORT_NUMBER": str(port)}
        with source(server) as captured, pytest.raises(errors.ServiceDown) as plain:
            captured.prepare(MemorySink())
        assert "TLS" in plain.value.remedy
        server.environment |= {"REDIS_TLS_ENABLED": "yes", "REDIS_TLS_CERT_FILE": f"{mine}/redis.crt",
                               "REDIS_TLS_KEY_FILE": f"{mine}/redis.key"}  # fmt: skip
        with_tls = dict(server.environment)
        for authority in ("ca.crt", ""):  # without one, whoever answers on the service's own loopback is believed
            server.environment = with_tls | {"REDIS_TLS_CA_FILE": f"{mine}/{authority}" if authority else ""}
            part, reader = backup(server)
        server.environment = with_tls | {"REDIS_TLS_CA_FILE": f"{mine}/other.crt"}
        with source(server) as captured, pytest.raises(errors.ServiceDown):
            captured.prepare(MemorySink())
        server.environment = socket_only
        server.cli("FLUSHALL")
        server.environment = with_tls
        back = restorer(part, server)
        back.stage(reader)
        server.environment = socket_only
        server.stop()
        back.swap()
        server.start("--tls-port", str(port), "--bind", "127.0.0.1", "--tls-cert-file", f"{mine}/redis.crt",
                     "--tls-key-file", f"{mine}/redis.key", "--tls-ca-cert-file", f"{mine}/ca.crt")  # fmt: skip
        server.environment = with_tls
        back.verify()
        back.finish()
        server.environment = socket_only
        assert contents(server) == before


# ------------------------------------------------------------------------------------------------------ refused
def free_port() -> int:
    """Below 50,000, since a cluster's node takes the one 10,000 above too."""
    for port in range(20_000 + os.getpid() % 20_000, 50_000):
        with socket.socket() as first, socket.socket() as second:
            try:
                first.bind(("127.0.0.1", port))
                second.bind(("127.0.0.1", port + 10_000))
            except OSError:
                continue
            return port
    raise AssertionError("no port is free")


Config = Callable[[], list[str]]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (lambda: ["replicaof 127.0.0.1 9"], r"redis is a replica of 127\.0\.0\.1:9"),
        (lambda: ["cluster-enabled yes", f"port {free_port()}", "bind 127.0.0.1"], "redis runs as cluster"),
    ],
    ids=["replica", "cluster"],
)
def test_a_replica_and_a_node_of_a_cluster_are_refused(version: str, config: Config, message: str) -> None:
    with redis_server(version) as ordinary:
        part, reader = backup(ordinary)
    with redis_server(version, config=[*SAVES, *config()]) as server:
        before, settings = names(server), quiet(server)
        with source(server) as captured, pytest.raises(errors.Unsupported, match=message):
            captured.prepare(MemorySink())
        with pytest.raises(errors.Unsupported, match=message):
            RedisRestorer(part, server, "redis", server.data, "run").stage(MemoryReader(reader.streams))
        assert (names(server), quiet(server)) == (before, settings)
        assert leftovers(server.data) == []
        RedisSource(REF, server, "run").close()
