"""One archive from beginning to end: written, published, read back, restored by hand."""

from __future__ import annotations

import gzip
import io
import stat
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import redis
from msgspec.structs import replace

from cosmos_coherence import errors, manifests
from cosmos_coherence.archive import gzipped, names, sums
from cosmos_coherence.archive.manifest import read_manifest
from cosmos_coherence.archive.reader import ArchiveReader
from cosmos_coherence.archive.verify import verify_archive
from cosmos_coherence.archive.writer import ArchiveWriter
from cosmos_coherence.copied import Copied
from cosmos_coherence.drivers.embedded import find_redis
from cosmos_coherence.model import Entry, Fingerprint, Manifest, Part, TreePrint
from support.waiting import eventually
from unit.archive.building import ID, RDB, ROOT, SQL, fill, make_archive, manifest


def test_what_was_written_is_read_back(tmp_path: Path) -> None:
    backups, spool = tmp_path / "backups", tmp_path / "spool"
    path = make_archive(backups)
    with ArchiveReader.open_archive(path, spool) as reader:
        assert stat.S_IMODE(spool.stat().st_mode) == 0o700
        assert reader.manifest == read_manifest(path) == verify_archive(path)
        assert reader.names() == (
            "configs",
            "database.sql",
            "databases/db/a/b ü.sql",
            "globals.sql",
            "redis/dump.rdb",
            "volumes/shop_uploads",
        )
        for name, content in (("database.sql", SQL), ("databases/db/a/b ü.sql", SQL), ("redis/dump.rdb", RDB)):
            with reader.open(name) as stream:
                assert stream.read() == content
        uploads = [(e, c.read() if c else b"") for e, c in reader.tree("volumes/shop_uploads")]
        assert [(e.path, e.mtime_ns, c) for e, c in uploads if e.kind == "file"] == [
            (b"note", 1_700_000_000_123_456_789, b"hello")
        ]
        assert uploads[-1][0].target == b"/etc/passwd"
        configs = [(e.path, e.kind, e.mode, e.mtime_ns, c.read() if c else b"") for e, c in reader.tree("configs")]
        assert configs == [
            (b"", "dir", 0o755, 0, b""),
            (b"conf", "dir", 0o750, 0, b""),
            (b".env", "file", 0o600, 1_700_000_000_000_000_001, b"SECRET=1\n"),
            (b"link", "symlink", 0o777, 0, b""),
        ]
        for absent in ("volumes/other", "files/x"):
            with pytest.raises(errors.NotFound):
                next(reader.tree(absent))
        with pytest.raises(errors.NotFound), reader.open("databases/db/other.sql"):
            pass
    assert not spool.exists()


def test_only_the_archive_its_manifest_and_the_latest_remain(tmp_path: Path) -> None:
    path = make_archive(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == [f"{ID}.json", f"{ID}.tar.gz", "latest.tar.gz"]
    assert {stat.S_IMODE(p.stat().st_mode) for p in tmp_path.iterdir()} == {0o600}
    assert (tmp_path / "latest.tar.gz").samefile(path)
    assert not (tmp_path / "latest.tar.gz").is_symlink()
    make_archive(tmp_path, backup_id="20240102_120000", safety=True)
    assert (tmp_path / "safety-20240102_120000.tar.gz").exists()
    assert (tmp_path / "latest.tar.gz").samefile(path)
    newer = make_archive(tmp_path, backup_id="20240103_120000")
    assert (tmp_path / "latest.tar.gz").samefile(newer)


def test_an_archive_is_never_overwritten(tmp_path: Path) -> None:
    before = make_archive(tmp_path).read_bytes()
    with pytest.raises(errors.Refused, match="exists already"):
        make_archive(tmp_path)
    assert (tmp_path / f"{ID}.tar.gz").read_bytes() == before
    ArchiveWriter(tmp_path, "20240105_000000")._pool.shutdown()
    with pytest.raises(errors.Refused, match="left behind"):
        ArchiveWriter(tmp_path, "20240105_000000")


def test_an_aborted_archive_leaves_nothing(tmp_path: Path) -> None:
    writer = ArchiveWriter(tmp_path, ID)
    fill(writer)
    writer.tree("volumes/unfinished").add(Entry(b"f", "file"), io.BytesIO(b"1"))
    writer.abort()
    writer.abort()
    assert list(tmp_path.iterdir()) == []


def test_a_stream_left_with_an_exception_is_discarded(tmp_path: Path) -> None:
    writer = ArchiveWriter(tmp_path, ID)
    with pytest.raises(RuntimeError), writer.stream("database.sql") as stream:
        stream.write(bytes(5_000_000))
        raise RuntimeError
    with writer.stream("database.sql") as stream:
        stream.write(SQL)
    writer.pack(manifest(Part("postgres/db", "postgres", (stream.file(),))))
    path = writer.publish()
    with ArchiveReader.open_archive(path, tmp_path / "spool") as reader, reader.open("database.sql") as plain:
        assert plain.read() == SQL


@pytest.mark.parametrize("size", [0, 1, gzipped.MEMBER, 5 * gzipped.MEMBER + 3])
def test_streams_of_any_size(tmp_path: Path, size: int) -> None:
    content = (b"0123456789abcde\n" * (size // 16 + 1))[:size]
    writer = ArchiveWriter(tmp_path, ID)
    with writer.stream("database.sql") as stream:
        for at in range(0, size, 300_000):
            stream.write(memoryview(content)[at : at + 300_000])
    assert gzip.decompress((writer.spool / "database.sql.gz").read_bytes()) == content
    writer.pack(manifest(Part("postgres/db", "postgres", (stream.file(),))))
    path = writer.publish()
    with ArchiveReader.open_archive(path, tmp_path / "spool") as reader, reader.open("database.sql") as plain:
        assert b"".join(iter(lambda: plain.read(70_000), b"")) == content


def test_files_of_the_manifest_that_were_never_stored_are_a_fault(tmp_path: Path) -> None:
    writer = ArchiveWriter(tmp_path, ID)
    try:
        whole = fill(writer)
        changed = replace(whole.parts[1], files=(replace(whole.parts[1].files[0], size=1),))
        with pytest.raises(AssertionError):
            writer.pack(manifest(changed))
    finally:
        writer.abort()
    assert list(tmp_path.iterdir()) == []


def test_by_hand_with_tar_gunzip_and_sha256sum(tmp_path: Path) -> None:
    path = make_archive(tmp_path)
    subprocess.run(["gunzip", "-t", path], check=True)
    subprocess.run(["tar", "-xzpf", path, "-C", tmp_path], check=True)
    folder = tmp_path / ID
    subprocess.run(["sha256sum", "--quiet", "--strict", "-c", "SHA256SUMS"], cwd=folder, check=True)
    listed = {line.split("  ", 1)[1] for line in (folder / "SHA256SUMS").read_text().splitlines()}
    there = {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file() and not p.is_symlink()}
    assert listed == there - {"SHA256SUMS"}
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert gzip.decompress((folder / "database.sql.gz").read_bytes()) == SQL
    assert gzip.decompress((folder / "databases/db/a%2Fb%20%C3%BC.sql.gz").read_bytes()) == SQL
    assert (folder / "redis/dump.rdb").samefile(folder / "redis/appendonlydir/appendonly.aof.1.base.rdb")
    assert (folder / "configs/.env").read_bytes() == b"SECRET=1\n"
    assert (folder / "configs/.env").stat().st_mtime_ns == 1_700_000_000_000_000_001
    assert (folder / "configs/link").readlink() == Path(".env")
    assert manifests.decode((folder / "manifest.json").read_bytes()) == manifests.decode(
        (tmp_path / f"{ID}.json").read_bytes()
    )
    with tarfile.open(path) as tar:
        assert [member.name for member in tar][:2] == [ID, f"{ID}/manifest.json"]
    readme = (folder / "README.txt").read_text()
    commands = [line.strip() for line in readme.splitlines() if line.startswith("    ")]
    script = "set -n\n" + "\n".join(commands)
    subprocess.run(["bash", "-n"], input=script, text=True, check=True)
    for needed in (
        "gunzip -c globals.sql.gz",
        "gunzip -c databases/db/a%2Fb%20%C3%BC.sql.gz | $PSQL -1 -d 'a/b ü'",
        "psql -U cosmos",
        "redis/appendonlydir",
        "--xattrs --xattrs-include='*' --numeric-owner -p",
        "docker volume create shop_uploads",
    ):
        assert needed in readme


@contextmanager
def _redis(folder: Path, *options: str) -> Iterator[redis.Redis]:
    with tempfile.TemporaryDirectory() as place:
        socket = f"{place}/redis"
        found = find_redis(prefer="system")  # not the wheel's, which is older
        assert found is not None
        command = [
            str(found.server),
            "--port",
            "0",
            "--unixsocket",
            socket,
            "--dir",
            str(folder),
            "--save",
            "",
            *options,
        ]
        server = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        client = redis.Redis(unix_socket_path=socket)
        try:
            assert eventually(lambda: Path(socket).exists() and _loaded(client))
            yield client
        finally:
            client.close()
            server.terminate()
            server.wait(30)


def _loaded(client: redis.Redis) -> bool:
    try:
        return bool(client.ping())
    except redis.RedisError:
        return False


@pytest.mark.redis
def test_redis_loads_the_aof_folder_built_from_the_dump(tmp_path: Path) -> None:
    made, data = tmp_path / "made", tmp_path / "data"
    made.mkdir()
    data.mkdir()
    with _redis(made) as client:
        client.mset({f"key:{n}": f"value {n}" for n in range(300)})
        client.save()
    writer = ArchiveWriter(tmp_path / "backups", ID)
    with writer.stream("redis/dump.rdb") as stream:
        stream.write((made / "dump.rdb").read_bytes())
    writer.pack(manifest(Part("redis/redis", "redis", (stream.file(),), service="redis")))
    path = writer.publish()
    subprocess.run(["tar", "-xzf", path, "-C", data, "--strip-components=2", f"{ID}/redis"], check=True)
    (data / "dump.rdb").unlink()  # what the AOF folder holds must suffice
    with _redis(data, "--appendonly", "yes") as client:
        assert client.dbsize() == 300
        assert client.get("key:299") == b"value 299"
        client.set("later", "1")
    with _redis(data, "--appendonly", "yes") as client:
        assert client.dbsize() == 301


def test_several_redis_servers_each_get_their_folder(tmp_path: Path) -> None:
    writer = ArchiveWriter(tmp_path, ID)
    files = []
    for service in ("cache", "queue"):
        with writer.stream(f"redis/{service}/dump.rdb") as stream:
            stream.write(service.encode())
        files.append(stream.file())
    writer.pack(manifest(*(Part(f"redis/{f.path.split('/')[1]}", "redis", (f,)) for f in files)))
    path = writer.publish()
    verify_archive(path)
    with tarfile.open(path) as tar:
        base = tar.extractfile(f"{ID}/redis/queue/appendonlydir/appendonly.aof.1.base.rdb")
        assert base is not None
        assert base.read() == b"queue"


def test_hard_links_and_odd_names_in_the_configuration(tmp_path: Path) -> None:
    writer = ArchiveWriter(tmp_path, ID)
    tree = writer.tree("configs")
    odd = b"back\\slash\nline\xff"
    for name in (b"dropped", odd):
        tree.add(Entry(name, "file", size=99), io.BytesIO(b"text"))
    tree.drop(b"dropped")
    file = tree.finish(map(Copied.of, [ROOT, Entry(b"also", "hardlink", target=odd), Entry(odd, "file", 0o600)]))
    writer.pack(manifest(Part("config", "config", (file,))))
    path = writer.publish()
    with ArchiveReader.open_archive(path, tmp_path / "spool") as reader:
        found = {e.path: (e.kind, c.read()) for e, c in reader.tree("configs") if c}
    assert found == {b"also": ("file", b"text"), odd: ("file", b"text")}
    subprocess.run(["tar", "-xzf", path, "-C", tmp_path], check=True)
    subprocess.run(["sha256sum", "--quiet", "--strict", "-c", "SHA256SUMS"], cwd=tmp_path / ID, check=True)


def test_a_pipe_is_no_configuration(tmp_path: Path) -> None:
    writer = ArchiveWriter(tmp_path, ID)
    try:
        with pytest.raises(errors.CaptureFailed, match="no file, folder or link"):
            writer.tree("configs").finish(map(Copied.of, [ROOT, Entry(b"p", "fifo")]))
    finally:
        writer.abort()


@pytest.mark.parametrize("name", ["", "/etc/x", "a/../b", "a//b", "volumes/x", "configs", "configs/x", "./a"])
def test_names_that_no_stream_has(name: str) -> None:
    with pytest.raises(errors.Refused):
        names.stream_file(name)


@pytest.mark.parametrize("name", ["", "volumes", "volumes/", "volumes/..", "database.sql", "configs/x", "/volumes/x"])
def test_names_that_no_tree_has(name: str) -> None:
    with pytest.raises(errors.Refused):
        names.tree_file(name)


@pytest.mark.parametrize("database", ["..", "a/b", "../../x", "%2F", "ünïcode", "new\nline", "\udcff", "-rf", " "])
def test_any_name_of_a_database_is_kept(database: str) -> None:
    name = f"databases/db/{database}.sql"
    stored = names.stream_file(name)
    assert names.logical(stored) == name
    assert stored.count("/") == 2
    assert stored.isascii()


def test_sums_are_strict() -> None:
    listed = {b"a b": "0" * 64, b"x\\y\nz": "1" * 64}
    text = sums.encode(listed)
    assert sums.decode(text) == listed
    for broken in (text[:-1], text + b"\n", text.replace(b"  ", b" *"), b"../x", text.upper(), text + text):
        with pytest.raises(errors.Damaged):
            sums.decode(broken)


def test_the_manifest_is_strict() -> None:
    whole = manifest(Part("a", "volume", fingerprint=Fingerprint(tree=TreePrint(1, 2, 3, 4, "d"))))
    assert manifests.decode(manifests.encode(whole)) == whole
    for other in (1, 3):
        with pytest.raises(errors.Unsupported, match=f"format {other}"):
            manifests.decode(manifests.encode(replace(whole, format=other)).replace(b'"parts"', b'"shares"'))
    for broken in (
        b"",
        b"[]",
        b"{}",
        b'{"format":2}',
        manifests.encode(whole)[:-3],
        b"[" * 100_000,
        b'{"format":"2"}',
        b"\xff",
    ):
        with pytest.raises(errors.Damaged):
            manifests.decode(broken)
    with pytest.raises(errors.Damaged):
        manifests.decode(manifests.encode(replace(whole, format=0)))
    with pytest.raises(errors.Damaged, match="more than any real one"):
        manifests.decode(bytes(64 * 1024 * 1024 + 1))


def test_a_manifest_from_later_may_say_more() -> None:
    text = manifests.encode(manifest()).replace(b'"id"', b'"colour": "blue", "id"')
    found: Manifest = manifests.decode(text)
    assert found == manifest()
