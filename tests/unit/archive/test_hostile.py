"""Files that somebody made to harm: each is refused before anything of it is used."""

from __future__ import annotations

import gzip
import io
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from msgspec.structs import replace

from cosmos_coherence import errors
from cosmos_coherence.archive import names, tarformat, unpack
from cosmos_coherence.archive.gzipped import Gunzip, compress
from cosmos_coherence.archive.manifest import read_manifest
from cosmos_coherence.archive.reader import ArchiveReader
from cosmos_coherence.archive.verify import verify_archive
from cosmos_coherence.model import Entry
from unit.archive.building import ROOT, Forge, make_archive, member, packed_tar

_HASH = "0" * 64


def _refused(file: Path, tmp_path: Path) -> errors.CosmosError:
    """The error of opening the file, after which nothing may have been written anywhere."""
    spool = tmp_path / "spool"
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(errors.CosmosError) as caught:
        ArchiveReader.open_archive(file, spool)
    assert sorted(tmp_path.rglob("*")) == before
    with pytest.raises(errors.CosmosError) as again:
        verify_archive(file)
    assert type(again.value) is type(caught.value)
    return caught.value


def test_the_forge_itself_makes_archives_that_are_read(tmp_path: Path) -> None:
    forge = Forge().file("README.txt", b"", declare=False).file("database.sql.gz", gzip.compress(b"1"))
    forge.parts[0]["plain_size"] = 1
    file = forge.folder("volumes").tree(packed_tar([member("./", kind=tarfile.DIRTYPE)])).build(tmp_path / "x.tar.gz")
    with ArchiveReader.open_archive(file, tmp_path / "spool") as reader:
        assert [e.path for e, _ in reader.tree("volumes/x")] == [b""]
        with reader.open("database.sql") as stream:
            assert stream.read() == b"1"


_OUTER: dict[str, Callable[[], Forge]] = {
    "absolute name": lambda: Forge().file("/etc/cron.d/x", b"1", listed=False),
    "name above": lambda: Forge().file("../x", b"1", listed=False),
    "name above inside": lambda: Forge().folder("volumes").file("volumes/../../x", b"1"),
    "empty step": lambda: Forge().folder("volumes").file("volumes//x", b"1"),
    "file not declared": lambda: Forge().file("extra", b"1", declare=False),
    "configs not declared": lambda: Forge().folder("configs").file("configs/x", b"1", declare=False),
    "twice": lambda: Forge().file("a", b"1").file("a", b"1", declare=False),
    "declared twice": lambda: Forge().file("a", b"1").declare("a", 1, _HASH),
    "negative size": lambda: Forge().declare("a", -1, _HASH),
    "digest that is none": lambda: Forge().declare("a", 1, "x"),
    "declared above": lambda: Forge().declare("../a", 1, _HASH),
    "declared absolute": lambda: Forge().declare("/a", 1, _HASH),
    "symlink": lambda: Forge().odd("volumes", tarfile.SYMTYPE, "/etc"),
    "through a symlink": lambda: (
        Forge().declare("configs", 1, _HASH).folder("configs").odd("configs/a", tarfile.SYMTYPE, "/")
        .file("configs/a/b", b"1")
    ),
    "hard link out": lambda: Forge().odd("a", tarfile.LNKTYPE, "/etc/passwd"),
    "hard link inside": lambda: Forge().file("a", b"1").odd("b", tarfile.LNKTYPE, "20240101_120000/a"),
    "hard link in configs": lambda: (
        Forge().declare("configs", 1, _HASH).folder("configs").file("a", b"1").odd(
            "configs/b", tarfile.LNKTYPE, "20240101_120000/a"
        )
    ),
    "device": lambda: Forge().odd("a", tarfile.CHRTYPE),
    "pipe": lambda: Forge().odd("a", tarfile.FIFOTYPE),
    "device in configs": lambda: (
        Forge().declare("configs", 0, _HASH).folder("configs").odd("configs/sda", tarfile.BLKTYPE)
    ),
    "without its folder": lambda: Forge().file("volumes/x.tar.gz", b"1"),
    "configuration larger than declared": lambda: (
        Forge().declare("configs", 5, _HASH).folder("configs").file("configs/big", bytes(100_000), declare=False)
    ),
    "large page": lambda: Forge().file("README.txt", bytes(20_000_000), declare=False),
}  # fmt: skip


@pytest.mark.parametrize("case", _OUTER)
def test_hostile_archives(tmp_path: Path, case: str) -> None:
    file = _OUTER[case]().build(tmp_path / "x.tar.gz")
    assert type(_refused(file, tmp_path)) is errors.Hostile


def test_more_members_than_any_archive_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unpack, "_MOST_MEMBERS", 3)
    forge = Forge().folder("a").folder("b").folder("c")
    verify_archive(forge.build(tmp_path / "x.tar.gz"))
    assert "more than 3 members" in _refused(forge.folder("d").build(tmp_path / "x.tar.gz"), tmp_path).message


def test_another_folder_in_the_archive(tmp_path: Path) -> None:
    forge = Forge()
    forge.members.append(member("other", kind=tarfile.DIRTYPE))
    assert type(_refused(forge.build(tmp_path / "x.tar.gz"), tmp_path)) is errors.Hostile


_DAMAGED: dict[str, Callable[[], Forge]] = {
    "not in the sums": lambda: Forge().file("a", b"1", listed=False),
    "larger than declared": lambda: Forge().file("a", bytes(5000), declare=False).declare("a", 5, _HASH),
    "checksum differs": lambda: Forge().file("a", b"1", declare=False).declare("a", 1, _HASH),
    "declared and not there": lambda: Forge().declare("a", 1, _HASH),
    "configs declared and not there": lambda: Forge().declare("configs", 1, _HASH),
    "bytes behind": lambda: _with_tail(b"x"),
    "zeros without end behind": lambda: _with_tail(bytes(1_000_000)),
}


def _with_tail(tail: bytes) -> Forge:
    forge = Forge()
    forge.tail = tail
    return forge


@pytest.mark.parametrize("case", _DAMAGED)
def test_archives_that_contradict_themselves(tmp_path: Path, case: str) -> None:
    file = _DAMAGED[case]().build(tmp_path / "x.tar.gz")
    assert type(_refused(file, tmp_path)) is errors.Damaged


def test_a_sum_too_many(tmp_path: Path) -> None:
    forge = Forge().file("a", b"1")
    forge.listed[b"b"] = _HASH
    assert "does not agree about b" in _refused(forge.build(tmp_path / "x.tar.gz"), tmp_path).message


def test_a_newer_format_is_said_to_be_newer(tmp_path: Path) -> None:
    error = _refused(Forge().build(tmp_path / "x.tar.gz", format=9), tmp_path)
    assert type(error) is errors.Unsupported
    assert "format 9" in error.message


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"no archive at all",
        gzip.compress(b""),
        gzip.compress(b"text, but no tar"),
        packed_tar([]),
        packed_tar([member("./", kind=tarfile.DIRTYPE), member("./PG_VERSION", b"15\n")]),
        packed_tar([member("x" * 150, b"1")]),
    ],
    ids=["empty", "text", "empty gzip", "gzip of text", "no member", "by hand", "long name"],
)
def test_a_foreign_file_is_not_ours(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "postgres-data.tar.gz"
    file.write_bytes(content)
    error = _refused(file, tmp_path)
    assert type(error) is errors.Damaged
    assert "is not a Cosmos backup" in error.message
    with pytest.raises(errors.Damaged, match="is not a Cosmos backup"):
        read_manifest(file)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    assert type(_refused(tmp_path / "none.tar.gz", tmp_path)) is errors.NotFound


def test_bytes_behind_the_gzip(tmp_path: Path) -> None:
    file = make_archive(tmp_path)
    content = file.read_bytes()
    for tail in (b"x", b"\0", bytes(20_000), gzip.compress(b"x"), content):
        file.write_bytes(content + tail)
        assert type(_refused(file, tmp_path)) is errors.Damaged


def test_no_room_is_said_before_anything_is_written(tmp_path: Path) -> None:
    huge = Forge().declare("a", 1 << 60, _HASH).build(tmp_path / "x.tar.gz")
    with pytest.raises(errors.NoRoom):
        ArchiveReader.open_archive(huge, tmp_path / "spool")
    small = make_archive(tmp_path / "backups")
    with pytest.raises(errors.NoRoom, match="allowed are 10"):
        ArchiveReader.open_archive(small, tmp_path / "spool", limit_bytes=10)
    assert not (tmp_path / "spool").exists()


def test_a_spool_in_use_is_left_alone(tmp_path: Path) -> None:
    file = make_archive(tmp_path / "backups")
    (tmp_path / "mine").write_text("x")
    with pytest.raises(errors.Refused):
        ArchiveReader.open_archive(file, tmp_path)
    assert (tmp_path / "mine").exists()


# ------------------------------------------------------------------------------------------------------ inside a tree
def _read(forge: Forge, tmp_path: Path, *, devices: bool = False) -> list[Entry]:
    file = forge.build(tmp_path / "x.tar.gz")
    with ArchiveReader.open_archive(file, tmp_path / "spool", devices=devices) as reader:
        return [entry for entry, content in reader.tree("volumes/x") if content is None or content.read() is not None]


_TOP = member("./", kind=tarfile.DIRTYPE)
_TREES = {
    "absolute": [_TOP, member("/etc/passwd", b"x")],
    "above": [_TOP, member("../x", b"x")],
    "above inside": [_TOP, member("a/", kind=tarfile.DIRTYPE), member("a/../../x", b"x")],
    "dot step": [_TOP, member("./x", b"x")],
    "twice": [_TOP, member("x", b"x"), member("x", b"y")],
    "through a symlink": [_TOP, member("a", kind=tarfile.SYMTYPE, target="/etc"), member("a/passwd", b"x")],
    "through a file": [_TOP, member("a", b"x"), member("a/b", b"x")],
    "folder that becomes a symlink": [
        _TOP, member("a/", kind=tarfile.DIRTYPE), member("a", kind=tarfile.SYMTYPE, target="/"),
    ],
    "hard link out": [_TOP, member("a", kind=tarfile.LNKTYPE, target="/etc/passwd")],
    "hard link above": [_TOP, member("a", kind=tarfile.LNKTYPE, target="../x")],
    "hard link before its file": [_TOP, member("a", kind=tarfile.LNKTYPE, target="b"), member("b", b"x")],
    "hard link to a symlink": [
        _TOP, member("s", kind=tarfile.SYMTYPE, target="/etc"), member("a", kind=tarfile.LNKTYPE, target="s"),
    ],
    "without folder": [_TOP, member("a/b", b"x")],
    "no root": [member("x", b"x")],
    "folder after file": [_TOP, member("x", b"x"), member("y/", kind=tarfile.DIRTYPE)],
    "device": [_TOP, member("sda", kind=tarfile.BLKTYPE)],
    "terminal": [_TOP, member("tty", kind=tarfile.CHRTYPE)],
}  # fmt: skip


@pytest.mark.parametrize("case", _TREES)
def test_hostile_trees(tmp_path: Path, case: str) -> None:
    with pytest.raises(errors.Hostile):
        _read(Forge().folder("volumes").tree(packed_tar(_TREES[case])), tmp_path)


def test_devices_on_request(tmp_path: Path) -> None:
    forge = Forge().folder("volumes").tree(packed_tar(_TREES["device"]))
    assert [entry.kind for entry in _read(forge, tmp_path, devices=True)] == ["dir", "block"]


def test_absolute_symlinks_are_ordinary(tmp_path: Path) -> None:
    tree = packed_tar([_TOP, member("a", kind=tarfile.SYMTYPE, target="/etc/../x")])
    assert _read(Forge().folder("volumes").tree(tree), tmp_path)[1].target == b"/etc/../x"


def test_a_bomb_is_stopped_at_its_declared_size(tmp_path: Path) -> None:
    bomb = packed_tar([_TOP, member("zeros", bytes(50_000_000))])
    with pytest.raises(errors.Hostile, match="unpacks to more than"):
        _read(Forge().folder("volumes").tree(bomb, plain_size=10_000), tmp_path)
    forge = Forge().file("database.sql.gz", gzip.compress(bytes(50_000_000)))
    file = forge.build(tmp_path / "x.tar.gz")
    with (
        ArchiveReader.open_archive(file, tmp_path / "spool") as reader,
        reader.open("database.sql") as stream,
        pytest.raises(errors.Hostile),
    ):
        stream.read(1)


@pytest.mark.parametrize("plain_size", [0, 9, 11])
def test_a_stream_of_another_size_than_declared(tmp_path: Path, plain_size: int) -> None:
    forge = Forge().file("database.sql.gz", gzip.compress(b"0123456789"))
    forge.parts[0]["plain_size"] = plain_size
    with (
        ArchiveReader.open_archive(forge.build(tmp_path / "x.tar.gz"), tmp_path / "spool") as reader,
        pytest.raises(errors.Damaged),
        reader.open("database.sql") as stream,
    ):
        while stream.read(3):
            pass


def test_an_extended_header_without_bound(tmp_path: Path) -> None:
    info = tarfile.TarInfo("./@PaxHeader")
    info.type, info.size = tarfile.XHDTYPE, 1 << 30
    header = info.tobuf(tarfile.USTAR_FORMAT)
    with pytest.raises(errors.Hostile, match="a header of 1073741824 bytes"):
        list(tarformat.members(Gunzip(io.BytesIO(compress(header + bytes(512))))))


@pytest.mark.parametrize(
    "records",
    [
        b"9 path=x",
        b"x",
        b"0 a=b\n",
        b"99999 a=b\n",
        b"8 a=bc\n",
        b"6 a=b\n6 a=c\n",
        b"12 mtime=1e9\n",
        b"9 uid=-1\n",
        b"5 a\n\n",
    ],
)
def test_malformed_extended_headers(records: bytes) -> None:
    info = tarfile.TarInfo("./@PaxHeader")
    info.type, info.size = tarfile.XHDTYPE, len(records)
    plain = info.tobuf(tarfile.USTAR_FORMAT) + records + tarformat.padding(len(records))
    plain += tarformat.header(replace(ROOT, path=b"x")) + tarformat.END
    with pytest.raises(errors.Damaged):
        list(tarformat.members(Gunzip(io.BytesIO(compress(plain)))))


@pytest.mark.parametrize(
    "sparse_map",
    [b"", b"1\n", b"2\n0\n5\n3\n5\n", b"1\n0\n999999\n", b"9999999999\n", b"x\n", b"1" * 511, b"1\n0\n4\n", b"-1\n"],
)
def test_malformed_sparse_maps(sparse_map: bytes) -> None:
    head = tarformat.header(Entry(b"f", "file", size=100, data=((0, 5),)))[:-512]
    plain = head + sparse_map + bytes(512 - len(sparse_map)) + b"12345" + bytes(507) + bytes(1024)
    with pytest.raises(errors.Damaged):
        list(tarformat.members(Gunzip(io.BytesIO(compress(plain)))))


@pytest.mark.parametrize("path", [b"/a", b"a/", b"a//b", b".", b"..", b"a/..", b"a\0b", b"/", b"a" * 40_000])
def test_paths_that_are_not_safe(path: bytes) -> None:
    with pytest.raises(errors.Hostile):
        names.safe(path)


@pytest.mark.parametrize("path", [b"", b"a", b"...", b"a/.b/..c", b"-", b" ", b"\xff\n", b"d/" * 1000 + b"f"])
def test_paths_that_are(path: bytes) -> None:
    assert names.safe(path) == path
