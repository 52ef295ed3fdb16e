"""Every parser of repository bytes: whatever is in them, they end in a value or in an error of ours.

Most of what is parsed is sealed, so only somebody who has the key can write it, another host that was broken into; key
files are not sealed at all.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import hashlib
import io
import json
import random
import time
from base64 import b64encode
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cosmos_coherence import errors, manifests
from cosmos_coherence.flow import contents
from cosmos_coherence.model import Fingerprint, Manifest, Part, PartFile, TreePrint
from cosmos_coherence.repository import config, gotext, index, keys, layout, locks, packs, snapshots, trees
from cosmos_coherence.repository.blob import Blob
from cosmos_coherence.repository.crypto import OVERHEAD, Key, Scrypt, Sealer, derive
from cosmos_coherence.repository.envelope import Envelope
from cosmos_coherence.repository.index import Index
from cosmos_coherence.repository.reader import RepositoryReader
from cosmos_coherence.repository.repository import Repository
from cosmos_coherence.repository.snapshots import Listed, Snapshot
from support.memory_backend import MemoryBackend

KEY = Key.new()
PASSWORD = "right-Horse-9"
ID = "ab" * 32
FILE, EMPTY = hashlib.sha256(b"x").hexdigest(), hashlib.sha256(trees.encode([])).hexdigest()
QUICK = Scrypt(2, 1, 1)
Parse = Callable[[bytes], object]


# ---------------------------------------------------------------------------- what is parsed, and used as it is used
def a_key_file(plain: bytes) -> None:
    backend = MemoryBackend()
    backend.files[f"keys/{hashlib.sha256(plain).hexdigest()}"] = plain
    keys.listing(backend)
    keys.find(backend, PASSWORD)


def a_master_key(plain: bytes) -> None:
    """What a key file seals, by one who knows the password."""
    a_key_file(_key_file(Sealer(derive(PASSWORD, b"salt", QUICK)).seal(plain)))


def a_config(plain: bytes) -> None:
    backend = MemoryBackend()
    backend.files = {"config": Sealer(KEY).seal(plain), **_keys()}
    Repository.open(backend, PASSWORD)


def an_index(plain: bytes) -> None:
    found, _ = index.decode(plain)
    known = Index()
    for pack, blobs in found:
        known.add(pack, blobs)
    known.by_pack()


def a_header(plain: bytes) -> None:
    """Of a pack whose blobs are as long as the header says."""
    sealed = Sealer(KEY).seal(plain)
    for size in (len(sealed) + 4, len(sealed) + 4 + 40, 1 << 30):
        packs.decode_header(sealed, size, "name", Sealer(KEY))


def a_pack(content: bytes) -> None:
    backend = MemoryBackend()
    name = hashlib.sha256(content).hexdigest()
    backend.files[f"data/{name[:2]}/{name}"] = content
    packs.read_header(backend, bytes.fromhex(name), len(content), Sealer(KEY))


def a_tree(plain: bytes) -> None:
    for node in trees.decode(plain):
        assert node.file_name
        assert b"/" not in node.file_name
        _ = node.target, node.blobs, node.mtime_ns, node.ctime_ns, gotext.permissions(node.mode)


def a_snapshot(plain: bytes) -> None:
    found = snapshots.decode(plain)
    assert len(found.tree_id) == 32
    listed = [Listed(ID, found)]
    _ = found.time_ns, layout.backups(listed), layout.backup_id(found), layout.project_of(found)
    snapshots.in_order(listed)
    snapshots.encode(found)


def a_lock(plain: bytes) -> None:
    repository = _empty()
    repository.envelope().save(repository.backend, "locks", plain)
    for lock in locks.held(repository):
        _ = lock.owner, lock.is_stale(time.time_ns())
    locks.unlock(repository)


def sums(plain: bytes) -> None:
    layout.decode_sums(plain)


def a_manifest(plain: bytes) -> None:
    reader = RepositoryReader(_empty(), Listed(ID, Snapshot(time=gotext.NO_TIME, tree=ID, paths=[])))
    for part in manifests.decode(plain).parts:
        for file in part.files:
            contents.is_tree(reader.logical(file))


def a_backup(plain: bytes) -> None:
    """A whole volume of a backup, as the restore reads it: this is the tree of its root."""
    with _empty().saver(workers=0) as saver:
        repository = saver._repository
        saver.save("data", b"x")
        saver.save("tree", trees.encode([]))
        below = saver.save("tree", plain).hex()
        volume = saver.save("tree", trees.encode([trees.node(b"v", "dir", subtree=below)])).hex()
        top = saver.save("tree", trees.encode([trees.node(b"volumes", "dir", subtree=volume)])).hex()
    reader = RepositoryReader(repository, Listed(ID, Snapshot(time=gotext.NO_TIME, tree=top, paths=[])), devices=True)
    for _, content in reader.tree("volumes/v"):
        if content is not None:
            content.read()


def a_sealed_file(plain: bytes) -> None:
    """A file whose name and seal are right, with anything inside, compressed or not."""
    for body in (plain, b"\x02" + plain, b"\x02" + zstandard.compress(plain)):
        sealed = Sealer(KEY).seal(body)
        with contextlib.suppress(errors.CosmosError):
            Envelope(KEY).read("index", hashlib.sha256(sealed).hexdigest(), sealed)
    Envelope(KEY).read("index", hashlib.sha256(plain).hexdigest(), plain)


def a_blob(plain: bytes) -> None:
    """A blob whose seal is right, and of which the index says anything."""
    envelope = Envelope(KEY)
    for claimed in (0, 1, len(plain), 1 << 29):
        sealed = envelope.sealer.seal(plain)
        with contextlib.suppress(errors.CosmosError):
            envelope.unpack(Blob("data", bytes(32), 0, len(sealed), claimed), sealed)


@functools.cache
def _keys() -> dict[str, bytes]:
    backend = MemoryBackend()
    master = json.dumps(
        {
            "mac": {"k": b64encode(KEY.mac_k).decode(), "r": b64encode(KEY.mac_r).decode()},
            "encrypt": b64encode(KEY.encrypt).decode(),
        }
    )
    content = _key_file(Sealer(derive(PASSWORD, b"salt", QUICK)).seal(master.encode()))
    backend.files[f"keys/{hashlib.sha256(content).hexdigest()}"] = content
    return backend.files


def _key_file(sealed: bytes) -> bytes:
    file = {"kdf": "scrypt", "N": 2, "r": 1, "p": 1, "salt": b64encode(b"salt").decode(),
            "data": b64encode(sealed).decode(), "created": "", "hostname": "h", "username": "u"}  # fmt: skip
    return json.dumps(file).encode()


def _empty() -> Repository:
    return Repository(MemoryBackend(), keys.Opened(ID, KEY), config.new())


# ------------------------------------------------------------------------------------------------------ valid ones
def _tree() -> bytes:
    return trees.encode(
        [
            trees.node(b"a\\b\xff", "file", size=2, content=[FILE, FILE], mode=0o644, mtime=1, links=2, inode=7),
            trees.node(b"dir", "dir", subtree=EMPTY, xattrs={"user.x": b"\x00\xff"}),
            trees.node(b"link", "symlink", target=b"\xff/to"),
            trees.node(b"null", "chardev", device=259),
        ]
    )


def _manifest() -> bytes:
    file = PartFile("volumes/v", 1, ID, 1)
    part = Part("volumes/v", "volume", files=(file,), volume="v", fingerprint=Fingerprint(tree=TreePrint(1, 1, 0, 1)))
    return manifests.encode(
        Manifest("20240101_000000", "p", "process", "2024-01-01T00:00:00Z", 1.0, "t", parts=(part,))
    )


BLOBS = [Blob("data", bytes.fromhex(ID), 0, OVERHEAD + 9, 0), Blob("tree", bytes(32), OVERHEAD + 9, OVERHEAD, 80)]
MASTER = {"mac": {"k": "AAAA", "r": "AAAA"}, "encrypt": "AAAA"}
PARSERS: dict[Parse, bytes] = {
    a_key_file: next(iter(_keys().values())),
    a_master_key: json.dumps(MASTER).encode(),
    a_config: config.encode(config.new()),
    an_index: index.encode([(bytes(32), BLOBS)], [bytes(32)]),
    a_header: packs._encode_header(BLOBS),
    a_pack: bytes(2 * OVERHEAD + 9) + Sealer(KEY).seal(packs._encode_header(BLOBS)) + (109).to_bytes(4, "little"),
    a_tree: _tree(),
    a_backup: _tree(),
    a_snapshot: snapshots.encode(
        Snapshot(time="2024-01-01T00:00:00Z", tree=ID, paths=["/p"], tags=["cosmos", "id=20240101_000000"])
    ),
    a_lock: msgspec.json.encode(
        locks.LockFile(time="2024-01-01T00:00:00Z", pid=1, boot_id=locks._boot_id(), pid_namespace="x")
    ),
    sums: layout.encode_sums({b"a": ID, b"b\n\\c": ID}),
    a_manifest: _manifest(),
    a_sealed_file: b'{"packs":[]}',
    a_blob: zstandard.compress(b"x" * 99),
}
JSON = [parse for parse, valid in PARSERS.items() if valid.startswith(b"{") and parse is not a_sealed_file]
each_parser = pytest.mark.parametrize("parse", PARSERS, ids=lambda parse: parse.__name__)
often = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])

ANY = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(-(1 << 70), 1 << 70), st.floats(allow_nan=False, allow_infinity=False),
        st.text(max_size=8),
        st.sampled_from([
            "", "\0", "..", "/", "\\", "\\x00", "\\xff", "0" * 64, "z" * 64, " " * 64, ID.upper(), "é" * 64,
            "2024-01-01T00:00:00Z", "0000-01-01T00:00:00Z", "9999-12-31T23:59:59+23:59", "2024-01-01T00:00:00-99:99",
            "dir", "file", "socket", "====", "AAAA", "cosmos", "id=", (1 << 64) - 1, 1 << 64, 1 << 63, -1, 1e308,
        ]),
    ),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)  # fmt: skip


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "_SETTLE_S", 0.0)


def ends_well(parse: Parse, plain: bytes) -> bool:
    """Whether it is taken; anything that is raised and not ours fails the test."""
    try:
        parse(plain)
    except errors.CosmosError:
        return False
    return True


@each_parser
def test_what_is_valid_comes_as_far_as_it_can(parse: Parse) -> None:
    """So that what is made of it by changing it meets more than the first check."""
    expected = parse not in (a_master_key, a_header, a_pack, a_sealed_file)
    assert ends_well(parse, PARSERS[parse]) == expected


@each_parser
@often
@given(plain=st.binary(max_size=300))
def test_any_bytes(parse: Parse, plain: bytes) -> None:
    ends_well(parse, plain)


@each_parser
@often
@given(data=st.data())
def test_valid_bytes_with_some_changed(parse: Parse, data: st.DataObject) -> None:
    changed = bytearray(PARSERS[parse])
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(changed)))
        match data.draw(st.sampled_from(["change", "insert", "remove", "repeat"])):
            case "change" if at < len(changed):
                changed[at] = data.draw(st.integers(0, 255))
            case "insert":
                changed[at:at] = data.draw(st.binary(max_size=4))
            case "remove":
                del changed[at : at + data.draw(st.integers(0, 20))]
            case _:
                changed[at:at] = changed[at : at + data.draw(st.integers(0, 20))]
    ends_well(parse, bytes(changed))


@pytest.mark.parametrize("parse", JSON, ids=lambda parse: parse.__name__)
@often
@given(chance=st.randoms(use_true_random=False), value=ANY)
def test_valid_json_with_another_value_somewhere(parse: Parse, chance: random.Random, value: Any) -> None:
    document = json.loads(PARSERS[parse])
    holder, key = chance.choice([*_places(document)])
    holder[key] = value
    ends_well(parse, json.dumps(document, ensure_ascii=chance.random() < 0.5).encode("utf-8", "surrogatepass"))


@pytest.mark.parametrize("parse", JSON, ids=lambda parse: parse.__name__)
def test_json_that_is_nested_too_deep(parse: Parse) -> None:
    valid = PARSERS[parse].rstrip()
    for deep in (b"[" * 30_000, b'{"a":' * 10_000):
        for plain in (deep, b'{"unknown":' + deep, valid[:-1] + b',"unknown":' + deep, b'{"nodes":[' + deep):
            assert ends_well(parse, plain) == (parse is a_lock)  # one that cannot be read locks all the same


def test_something_that_expands_is_believed_only_as_far_as_it_may(monkeypatch: pytest.MonkeyPatch) -> None:
    """A frame of a few bytes that becomes large, with its size said, understated and not said at all."""
    monkeypatch.setattr("cosmos_coherence.repository.envelope._LARGEST_FILE", 1 << 20)
    large = bytes(8 << 20)
    unsized = io.BytesIO()
    with zstandard.ZstdCompressor(write_content_size=False).stream_writer(unsized, closefd=False) as out:
        out.write(large)
    for frame in (zstandard.compress(large), unsized.getvalue()):
        sealed = Sealer(KEY).seal(b"\x02" + frame)
        with pytest.raises(errors.Damaged):
            Envelope(KEY).read("index", hashlib.sha256(sealed).hexdigest(), sealed)
        sealed = Sealer(KEY).seal(frame)
        with pytest.raises(errors.Damaged):
            Envelope(KEY).unpack(Blob("data", bytes(32), 0, len(sealed), 100), sealed)


def _places(document: Any) -> Iterator[tuple[Any, Any]]:
    """Every place of a JSON document that holds a value."""
    for key in list(document) if isinstance(document, dict) else range(len(document)):
        yield document, key
        if isinstance(document[key], dict | list):
            yield from _places(document[key])
    if isinstance(document, list) and document:
        document.append(copy.deepcopy(document[0]))
        yield document, len(document) - 1
