"""The archive restores without us: tar, gunzip, psql and redis-server, as its README.txt says, and nothing else."""

from __future__ import annotations

import gzip
import os
import shutil
import subprocess
import time

import pytest

from cosmos_coherence.drivers.embedded import DATABASE, find_redis
from cosmos_coherence.sources import tree_print
from support.embedded_stack import embedded_stack


@pytest.fixture(scope="module")
def stack():
    with embedded_stack(writer=False) as made:
        yield made


@pytest.fixture(scope="module")
def unpacked(stack, tmp_path_factory):
    report = stack.backup()
    assert report.status == "done", report.failure
    folder = tmp_path_factory.mktemp("by-hand")
    subprocess.run(["tar", "-xzf", report.path, "-C", folder, "--strip-components=1"], check=True)
    return folder


def psql(stack, database, *argv, stdin=b""):
    command = ["psql", "-XAtq", "-v", "ON_ERROR_STOP=1", "-d", database, *argv]
    with stack.runtime.run("db", command, stdin=True) as child:
        child.stdin.write(stdin)
        child.stdin.close()
        return child.stdout.read().decode()


def test_checksums(unpacked):
    subprocess.run(["sha256sum", "--quiet", "-c", "SHA256SUMS"], cwd=unpacked, check=True)
    assert "psql" in (unpacked / "README.txt").read_text()


def test_database(stack, unpacked):
    """Into a new, empty database; every row of every table is compared as text."""
    subprocess.run(["gunzip", "-k", "database.sql.gz"], cwd=unpacked, check=True)
    psql(stack, DATABASE, "-c", "CREATE DATABASE by_hand")
    psql(stack, "by_hand", stdin=(unpacked / "database.sql").read_bytes())
    tables = psql(
        stack,
        DATABASE,
        "-c",
        "SELECT format('%I.%I', schemaname, tablename) FROM pg_tables WHERE schemaname = 'ballast'",
    )
    assert len(tables.splitlines()) > 5
    for table in tables.splitlines():
        rows = f'COPY (SELECT t.* FROM {table} t ORDER BY t::text COLLATE "C") TO STDOUT'
        assert psql(stack, "by_hand", "-c", rows) == psql(stack, DATABASE, "-c", rows), table
    sequences = "SELECT schemaname, sequencename, last_value FROM pg_sequences ORDER BY 1, 2"
    assert psql(stack, "by_hand", "-c", sequences) == psql(stack, DATABASE, "-c", sequences)
    assert b"CREATE ROLE" in gzip.decompress((unpacked / "globals.sql.gz").read_bytes())


def entries(root):
    return {e.path: (e, digest) for e, digest in tree_print.hashed_tree(root)}


def test_volume(stack, unpacked, tmp_path):
    """GNU tar brings every file back with owner, mode, times in ns, links, holes and attributes."""
    archive = unpacked / "volumes" / "cosmos-demo_files.tar.gz"
    subprocess.run(["gunzip", "-t", archive], check=True)
    target = tmp_path / "files"
    target.mkdir()
    options = ["--numeric-owner", "-p", "--delay-directory-restore", "--xattrs", "--xattrs-include=*"]
    subprocess.run(["tar", "-xzf", archive, "-C", target, *options], check=True)
    live = stack.runtime.stack().volume("files").path
    assert entries(target) == entries(live)


@pytest.mark.parametrize("aof", ["no", "yes"])
def test_redis(stack, unpacked, tmp_path, aof):
    """Without AOF the dump is enough; with AOF the folder that was built from it loads."""
    binaries = find_redis(prefer="system")
    if binaries is None:
        pytest.skip("no Redis of this system")
    shutil.copy2(unpacked / "redis" / "dump.rdb", tmp_path)
    shutil.copytree(unpacked / "redis" / "appendonlydir", tmp_path / "appendonlydir")
    socket = tmp_path / "s"
    server = subprocess.Popen(
        [binaries.server, "--port", "0", "--unixsocket", socket, "--dir", tmp_path, "--appendonly", aof, "--save", ""],
        stdout=subprocess.DEVNULL,
    )
    try:
        client = [str(binaries.client), "-s", str(socket)]
        environment = {k: v for k, v in os.environ.items() if k != "REDISCLI_AUTH"}
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            answer = subprocess.run([*client, "ping"], capture_output=True, text=True, env=environment)
            if answer.stdout.strip() == "PONG":
                break
            time.sleep(0.1)
        counts = [
            subprocess.run([*client, "-n", str(n), "dbsize"], capture_output=True, text=True).stdout for n in (0, 1)
        ]
        with stack.runtime.run("redis", ["sh", "-c", "redis-cli -n 0 dbsize; redis-cli -n 1 dbsize"]) as child:
            assert "".join(counts).split() == child.stdout.read().decode().split()
        assert int(counts[0].split()[-1]) > 4000
    finally:
        server.terminate()
        server.wait(20)
