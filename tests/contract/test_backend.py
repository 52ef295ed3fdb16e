"""What every place for a repository promises, on real servers; and what must be noticed about one that does not."""

from __future__ import annotations

import hashlib
import os
import random
import secrets
import shutil
import signal
import stat
import subprocess
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import httpx
import obstore
import pytest

from cosmos_coherence import errors
from cosmos_coherence.storage.backend import KINDS, Backend, Kind, Stored
from cosmos_coherence.storage.folder import FolderBackend
from cosmos_coherence.storage.opened import Access, open_backend
from cosmos_coherence.storage.probe import probe
from cosmos_coherence.storage.rest import RestBackend
from cosmos_coherence.storage.retrying import RetryingBackend
from cosmos_coherence.storage.s3 import S3Backend
from cosmos_coherence.storage.sftp import SftpBackend
from support import backend_servers as servers
from support import stores
from support.memory_backend import MemoryBackend
from support.waiting import eventually

PLACES = ("folder", "memory", "s3", "sftp", "rest")
NAMED: tuple[Kind, ...] = tuple(kind for kind in KINDS if kind != "config")


@pytest.fixture(scope="module")
def weed() -> Iterator[servers.S3]:
    with servers.seaweedfs() as server:
        yield server


@pytest.fixture(scope="module")
def sshd() -> Iterator[servers.Sftp]:
    with servers.sshd() as server:
        yield server


@pytest.fixture(scope="module")
def rest() -> Iterator[servers.Rest]:
    with servers.rclone_restic() as server:
        yield server


OPENED: list[Backend] = []


@pytest.fixture(autouse=True)
def whatever_was_opened_is_closed() -> Iterator[None]:
    yield
    while OPENED:
        OPENED.pop().close()


def s3(server: servers.S3, prefix: str, *, secret: str = servers.SECRET, bucket: str = servers.BUCKET) -> S3Backend:
    return S3Backend(bucket, prefix, endpoint=server.endpoint, region="us-east-1", key_id=servers.KEY_ID, secret=secret)


def sftp(server: servers.Sftp, name: str) -> SftpBackend:
    path = str(server.folder / name)
    made = SftpBackend(
        "127.0.0.1", path, user=server.user, port=server.port, key=server.key, known_hosts=server.known_hosts
    )
    OPENED.append(made)
    return made


def over_rest(server: servers.Rest, name: str, password: str = servers.PASSWORD) -> RestBackend:
    made = RestBackend(f"{server.url}/{name}", user=servers.USER, password=password)
    OPENED.append(made)
    return made


def at_url(url: str, access: Access) -> Backend:
    OPENED.append(open_backend(url, access))
    return OPENED[-1]


@pytest.fixture(params=PLACES)
def backend(request: pytest.FixtureRequest, tmp_path: Path) -> Backend:
    """A new repository's place in each kind of store."""
    name = secrets.token_hex(4)
    made: dict[str, Callable[[], Backend]] = {
        "folder": lambda: FolderBackend(tmp_path / "repository"),
        "memory": MemoryBackend,
        "s3": lambda: s3(request.getfixturevalue("weed"), name),
        "sftp": lambda: sftp(request.getfixturevalue("sshd"), name),
        "rest": lambda: RetryingBackend(over_rest(request.getfixturevalue("rest"), name), longest_wait=0.1),
    }
    place = made[request.param]()
    place.create()
    return place


def named(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def saved(backend: Backend, kind: Kind, content: bytes) -> str:
    name = named(content)
    backend.save(kind, name, [content])
    return name


def test_what_is_saved_is_listed_and_read_whole(backend: Backend, rng: random.Random) -> None:
    for kind in NAMED:
        contents = [rng.randbytes(size) for size in (0 if kind == "locks" else 7, 1, 4096, 100_001)]
        for content in contents:
            middle = len(content) // 2
            parts = [content[:middle], bytearray(content[middle : middle + 9]), memoryview(content)[middle + 9 :]]
            backend.save(kind, named(content), parts)
        assert {*backend.list(kind)} == {Stored(named(content), len(content)) for content in contents}
        for content in contents:
            assert backend.load(kind, named(content)) == content
            assert backend.size(kind, named(content)) == len(content)
    assert [*backend.list("config")] == []
    backend.save("config", "", [b"the configuration"])
    assert [*backend.list("config")] == [Stored("", 17)]
    assert backend.load("config", "") == b"the configuration"


def test_parts_are_read_exactly(backend: Backend, rng: random.Random) -> None:
    content = rng.randbytes(300_000)
    name = saved(backend, "data", content)
    for offset, length in ((0, 1), (0, 300_000), (299_999, 1), (123_456, 70_000), (1, 2)):
        assert backend.load("data", name, offset, length) == content[offset : offset + length]
    assert backend.load("data", name, 299_000) == content[299_000:]
    for offset, length in ((299_999, 2), (0, 300_001), (300_000, 1), (300_000, None), (400_000, 5), (400_000, None)):
        with pytest.raises(errors.Damaged):
            backend.load("data", name, offset, length)


def test_a_name_is_written_once(backend: Backend) -> None:
    name = saved(backend, "data", b"first")
    backend.save("data", name, [b"other"])
    assert backend.load("data", name) == b"first"
    with pytest.raises(errors.Refused, match="5 bytes"):
        backend.save("data", name, [b"less"])
    with pytest.raises((errors.Refused, errors.BackendUnavailable)):  # the latter where it may still be growing
        backend.save("data", name, [b"longer"])
    assert backend.load("data", name) == b"first"
    assert [*backend.list("data")] == [Stored(name, 5)]


def test_what_is_removed_is_gone(backend: Backend) -> None:
    name, kept = saved(backend, "index", b"one"), saved(backend, "index", b"two")
    backend.remove("index", name)
    backend.remove("index", name)
    assert [*backend.list("index")] == [Stored(kept, 3)]
    for ask in (backend.load, backend.size):
        with pytest.raises(errors.NotFound):
            ask("index", name)
    with pytest.raises(errors.NotFound):
        backend.load("index", name, 1, 1)
    with pytest.raises(errors.NotFound):
        backend.load("config", "")
    assert saved(backend, "index", b"one") == name


def test_making_it_again_keeps_what_is_there(backend: Backend) -> None:
    name = saved(backend, "keys", b"key")
    backend.create()
    assert backend.load("keys", name) == b"key"


def test_names_that_would_be_paths_are_refused(backend: Backend) -> None:
    for name in ("../" + "a" * 61, "A" * 64, "a" * 63, "", "a" * 64 + "/x", "a" * 64 + "\n"):
        for ask in (
            lambda name: backend.load("keys", name),
            lambda name: backend.size("data", name),
            lambda name: backend.remove("locks", name),
            lambda name: backend.save("index", name, [b"x"]),
        ):
            with pytest.raises(errors.Damaged):
                ask(name)
    with pytest.raises(errors.Damaged):
        backend.load("config", "a" * 64)


def test_many_threads_at_a_time(backend: Backend, rng: random.Random) -> None:
    contents = [rng.randbytes(rng.randrange(1, 200_000)) for _ in range(24)]
    same = rng.randbytes(5000)

    def one(content: bytes) -> None:
        name = saved(backend, "data", content)
        saved(backend, "data", same)
        assert backend.load("data", name) == content
        assert backend.load("data", name, len(content) - 1, 1) == content[-1:]
        if content in contents[::6]:
            assert name in {stored.name for stored in backend.list("data")}

    with ThreadPoolExecutor(6) as pool:
        assert [*pool.map(one, contents)] == [None] * len(contents)
    assert {stored.name for stored in backend.list("data")} == {named(content) for content in (*contents, same)}


def test_more_than_a_page_is_listed(backend: Backend) -> None:
    contents = [f"{number}".encode() for number in range(1100 if isinstance(backend, S3Backend) else 250)]
    with ThreadPoolExecutor(8) as pool:
        names = set(pool.map(lambda content: saved(backend, "snapshots", content), contents))
    listed = [stored.name for stored in backend.list("snapshots")]
    assert len(listed) == len(contents)
    assert {*listed} == names


def test_closed_twice(backend: Backend) -> None:
    backend.close()
    backend.close()


def test_every_store_passes_the_probe_and_nothing_is_left(backend: Backend) -> None:
    probe(backend)
    assert [stored for kind in KINDS for stored in backend.list(kind)] == []


def test_the_probe_finds_a_store_that_ignores_ranges() -> None:
    with servers.rclone_s3() as server:
        backend = s3(server, "p")
        with pytest.raises(errors.Refused, match="does not answer ranged reads"):
            probe(backend)
        assert [*backend.list("locks")] == []


@pytest.fixture(scope="module")
def written_by_restic(tmp_path_factory: pytest.TempPathFactory) -> tuple[FolderBackend, Path]:
    """A small repository of restic's own in a folder that we had prepared, and the folder that it backed up."""
    folder = tmp_path_factory.mktemp("restic")
    (folder / "files").mkdir()
    for number in range(20):
        (folder / "files" / str(number)).write_bytes(secrets.token_bytes(7000 * number))
    backend = FolderBackend(folder / "repository")
    backend.create()
    restic(folder, "-r", backend.location, "init")
    restic(folder, "-r", backend.location, "backup", str(folder / "files"))
    return backend, folder / "files"


@pytest.mark.parametrize("place", ["s3", "sftp", "rest"])
def test_restic_reads_the_same_place(
    place: str, request: pytest.FixtureRequest, tmp_path: Path, written_by_restic: tuple[FolderBackend, Path]
) -> None:
    """What restic wrote locally, carried over by our backends, is whole for restic; what it adds there, we list."""
    source, files = written_by_restic
    if place == "s3":
        server = request.getfixturevalue("weed")
        backend, there = s3(server, "a/b"), ["-r", f"s3:{server.endpoint}/{servers.BUCKET}/a/b"]
    elif place == "sftp":
        server = request.getfixturevalue("sshd")
        command = f"ssh -F none -i {server.key} -p {server.port} -o UserKnownHostsFile={server.known_hosts}"
        there = ["-o", f"sftp.command={command} {server.user}@127.0.0.1 -s sftp"]
        backend, there = sftp(server, "r"), [*there, "-r", f"sftp:{server.user}@127.0.0.1:{server.folder}/r"]
    else:
        server = request.getfixturevalue("rest")
        url = f"http://{servers.USER}:{servers.PASSWORD}@127.0.0.1:{server.port}/r/"
        backend, there = over_rest(server, "r"), ["-r", f"rest:{url}"]
    backend.create()
    for kind in KINDS:
        for stored in source.list(kind):
            backend.save(kind, stored.name, [source.load(kind, stored.name)])
    (tmp_path / "new").write_bytes(secrets.token_bytes(100_000))
    restic(tmp_path, *there, "backup", str(files), str(tmp_path / "new"))
    restic(tmp_path, *there, "check", "--read-data")
    assert len([*backend.list("snapshots")]) == 2
    assert len([*backend.list("data")]) > len([*source.list("data")])


def restic(folder: Path, *arguments: str) -> None:
    """The real one, without a cache, so that it reads what lies there."""
    if not shutil.which("restic"):
        stores.missing("restic")
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(folder),
        "RESTIC_PASSWORD": "p",
        "AWS_ACCESS_KEY_ID": servers.KEY_ID,
        "AWS_SECRET_ACCESS_KEY": servers.SECRET,
    }
    command = ["restic", "--no-cache", *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr + done.stdout


def test_an_append_only_server_keeps_everything_but_locks() -> None:
    with servers.rclone_restic(append_only=True) as server:
        backend = over_rest(server, "r")
        backend.create()
        backend.create()
        probe(backend)
        for kind in NAMED:
            name = saved(backend, kind, b"kept")
            backend.save(kind, name, [b"kept"])
            if kind == "locks":
                backend.remove(kind, name)
            else:
                with pytest.raises(errors.Refused, match="403"):
                    backend.remove(kind, name)
                assert backend.load(kind, name) == b"kept"
                with pytest.raises(errors.Refused):
                    backend.save(kind, name, [b"no"])
    memory = MemoryBackend(append_only=True)
    probe(memory)
    with pytest.raises(errors.Refused):
        memory.remove("data", saved(memory, "data", b"kept"))


NAME = "ab" * 32
FOREIGN = ("AB" * 32, "ab" * 31, "ab" * 33, "abc", NAME + "-tmp-1234", "." + NAME, "xy" * 32)


def test_foreign_names_are_passed_over(
    weed: servers.S3, sshd: servers.Sftp, rest: servers.Rest, tmp_path: Path
) -> None:
    """However they came there: only what a repository would have written itself is listed."""
    folders = {tmp_path / "r": FolderBackend(tmp_path / "r"), sshd.folder / "foreign": sftp(sshd, "foreign")}
    for root, backend in folders.items():
        backend.create()
        for kind, folder in (("keys", root / "keys"), ("data", root / "data" / "ab")):
            for name in (*FOREIGN, "cd" * 32 if kind == "data" else "abc"):
                (folder / name).write_bytes(b"foreign")
            (folder / ("ab" + "1" * 62)).mkdir()
            (folder / ("ab" + "2" * 62)).symlink_to("/etc/hostname")
            (folder / NAME).write_bytes(b"ours")
            assert [*backend.list(kind)] == [Stored(NAME, 4)]
    over = over_rest(rest, "foreign")
    over.create()
    for name in FOREIGN:
        (rest.folder / "data" / "foreign" / "keys" / name).write_bytes(b"foreign")
    saved(over, "keys", b"ours")
    assert [*over.list("keys")] == [Stored(named(b"ours"), 4)]
    stored = s3(weed, "foreign")
    store = weed.store("foreign")
    for path in (*(f"keys/{name}" for name in FOREIGN), f"keys/{'cd' * 32}/{NAME}", f"data/cd/{NAME}", f"data/{NAME}"):
        obstore.put(store, path, b"foreign")
    for kind in ("keys", "data"):
        stored.save(kind, NAME, [b"ours"])
        assert [*stored.list(kind)] == [Stored(NAME, 4)]


@pytest.mark.parametrize("place", ["s3", "sftp", "rest"])
def test_a_connection_that_breaks_midway_is_made_again(
    place: str, request: pytest.FixtureRequest, tmp_path: Path, rng: random.Random
) -> None:
    content = rng.randbytes(1_500_000)
    waits: list[float] = []

    def wait(seconds: float) -> None:
        waits.append(seconds)
        time.sleep(0.1)

    for way in ("save", "load"):
        server = request.getfixturevalue({"s3": "weed"}.get(place, {"sftp": "sshd"}.get(place, "rest")))
        door = servers.Cutting(server.port, after=500_000)
        direct: Backend
        if place == "s3":
            direct = s3(server, f"cut-{way}")
            cut: Backend = s3(replace(server, port=door.port), f"cut-{way}")
        elif place == "sftp":
            hosts = tmp_path / "hosts"
            hosts.write_text(server.known_hosts.read_text().replace(f":{server.port} ", f":{door.port} "))
            direct = sftp(server, f"cut-{way}")
            cut = sftp(replace(server, port=door.port, known_hosts=hosts), f"cut-{way}")
        else:
            direct = over_rest(server, f"cut-{way}")
            cut = over_rest(replace(server, port=door.port), f"cut-{way}")
        direct.create()
        backend = RetryingBackend(cut, sleep=wait)
        if way == "load":
            direct.save("data", named(content), [content])
            assert backend.load("data", named(content)) == content
        else:
            backend.save("data", named(content), [content])
            assert direct.load("data", named(content)) == content
        assert door.cuts <= 0
        assert [*direct.list("data")] == [Stored(named(content), len(content))]
        door.close()
    assert len(waits) >= 2


def nobody(place: str, port: int, server: servers.Sftp) -> Backend:
    """A backend whose server is at ``port``, where none of ours is."""
    if place == "s3":
        return s3(servers.S3(port, Path()), "p")
    if place == "sftp":
        return sftp(replace(server, port=port), "p")
    return over_rest(servers.Rest(port, Path()), "p")


@pytest.mark.parametrize("place", ["s3", "sftp", "rest"])
@pytest.mark.parametrize("server", ["dead", "silent"])
def test_a_server_that_does_not_answer(
    place: str, server: str, sshd: servers.Sftp, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cosmos_coherence.storage.s3._REQUEST_S", 0.1)
    monkeypatch.setattr("cosmos_coherence.storage.ssh._CONNECTING_S", 0.1)
    monkeypatch.setattr("cosmos_coherence.storage.rest._TIMES", httpx.Timeout(0.1))
    with ExitStack() as stack:
        port = stack.enter_context(servers.silent()) if server == "silent" else stores.free_port()
        backend = nobody(place, port, sshd)
        waits: list[float] = []
        retrying = RetryingBackend(backend, attempts=3, sleep=waits.append)
        with pytest.raises(errors.BackendUnavailable) as caught:
            retrying.load("config", "")
        assert len(waits) == 2
        assert "config" in caught.value.message
        for ask in (
            lambda: backend.save("data", NAME, [b"x"]),
            lambda: [*backend.list("data")],
            lambda: backend.remove("data", NAME),
            backend.create,
        ):
            with pytest.raises(errors.BackendUnavailable):
                ask()


def test_who_the_store_does_not_know_is_told_so_and_no_secret(weed: servers.S3, rest: servers.Rest) -> None:
    wrong = "wrong-secret-of-someone"
    for backend in (s3(weed, "p", secret=wrong), over_rest(rest, "p", password=wrong)):
        for ask in (
            lambda backend: backend.save("data", NAME, [b"x"]),
            lambda backend: backend.load("config", "", 1, 5),
            lambda backend: backend.size("config", ""),
            lambda backend: [*backend.list("keys")],
            lambda backend: backend.remove("locks", NAME),
        ):
            with pytest.raises(errors.AccessDenied) as caught:
                ask(backend)
            told = "".join(traceback.format_exception(caught.value)) + caught.value.remedy + backend.location
            assert wrong not in told
            assert servers.SECRET not in told
            assert servers.PASSWORD not in told
    with pytest.raises(errors.NotFound, match="no bucket 'elsewhere'"):
        s3(weed, "p", bucket="elsewhere").create()


def test_the_environment_changes_nothing(
    weed: servers.S3, rest: servers.Rest, sshd: servers.Sftp, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever other programs are told there, a backend does what its arguments say."""
    nowhere = "http://127.0.0.1:1"
    for name, value in {
        "AWS_ACCESS_KEY_ID": "other", "AWS_SECRET_ACCESS_KEY": "other", "AWS_SESSION_TOKEN": "other",
        "AWS_ENDPOINT": nowhere, "AWS_ENDPOINT_URL": nowhere, "AWS_BUCKET": "other", "AWS_REGION": "other",
        "AWS_SKIP_SIGNATURE": "true", "AWS_UNSIGNED_PAYLOAD": "true", "AWS_CONDITIONAL_PUT": "disabled",
        "AWS_VIRTUAL_HOSTED_STYLE_REQUEST": "true", "NETRC": "/nonexistent", "SSH_AUTH_SOCK": "/nonexistent",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    for backend in (s3(weed, "environment"), over_rest(rest, "environment"), sftp(sshd, "environment")):
        backend.create()
        probe(backend)


def test_an_ssh_server_must_be_known_and_must_know_us(sshd: servers.Sftp, tmp_path: Path) -> None:
    empty, other, locked = tmp_path / "empty", tmp_path / "other", tmp_path / "locked"
    empty.write_text("")
    other.write_text(sshd.known_hosts.read_text().split()[0] + " " + public_key(tmp_path / "stranger"))
    keygen("-N", "a passphrase", "-f", locked)
    for server, error, words in (
        (replace(sshd, known_hosts=empty), errors.Refused, "known hosts"),
        (replace(sshd, known_hosts=other), errors.Refused, "known hosts"),
        (replace(sshd, known_hosts=tmp_path / "none"), errors.ConfigurationError, "none"),
        (replace(sshd, key=tmp_path / "none"), errors.ConfigurationError, "none"),
        (replace(sshd, key=locked), errors.ConfigurationError, "key file"),
        (replace(sshd, key=empty), errors.ConfigurationError, "key file"),
        (replace(sshd, key=tmp_path / "stranger"), errors.AccessDenied, "none of our keys"),
        (replace(sshd, user="nobody-of-that-name"), errors.AccessDenied, "none of our keys"),
    ):
        backend = sftp(server, "p")
        with pytest.raises(error, match=words) as caught:
            backend.create()
        assert type(caught.value) is error
        assert caught.value.remedy


def test_an_agent_opens_an_ssh_server(sshd: servers.Sftp, tmp_path: Path) -> None:
    socket_path = tmp_path / "agent"
    agent = subprocess.Popen(["ssh-agent", "-D", "-a", socket_path], stdout=subprocess.DEVNULL)
    try:
        assert eventually(socket_path.exists)
        environment = {**os.environ, "SSH_AUTH_SOCK": str(socket_path)}
        subprocess.run(["ssh-add", "-q", sshd.key], check=True, env=environment, capture_output=True)
        access = Access(sftp_agent=socket_path, sftp_known_hosts=sshd.known_hosts)
        backend = at_url(f"sftp://{sshd.user}@127.0.0.1:{sshd.port}/{sshd.folder}/agent", access)
        backend.create()
        assert (sshd.folder / "agent" / "data" / "ff").is_dir()
    finally:
        agent.terminate()
        agent.wait(20)


@pytest.mark.parametrize("kind", ["folder", "sftp"])
def test_folders_that_an_object_store_did_not_hand_on_are_made(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """A repository that was copied from there has none that was empty, and an empty mount point becomes none."""
    if kind == "sftp":
        server = request.getfixturevalue("sshd")
        backend: Backend = sftp(server, "handed-on")
        root = server.folder / "handed-on"
    else:
        root = tmp_path / "handed-on"
        backend = FolderBackend(root)
    root.mkdir()
    for each in NAMED:
        with pytest.raises(errors.NotFound):
            saved(backend, each, b"nothing is there")
    assert list(root.iterdir()) == []
    backend.save("config", "", [b"sealed"])
    for each in NAMED:
        assert backend.load(each, saved(backend, each, b"kept")) == b"kept"
    assert {stat.S_IMODE(path.stat().st_mode) for path in root.rglob("*") if path.is_dir()} == {0o700}


def test_over_sftp_files_are_private_and_nothing_else_is_left(sshd: servers.Sftp) -> None:
    backend = sftp(sshd, "private")
    backend.create()
    name = saved(backend, "data", b"x" * 100_000)
    (sshd.folder / "private" / "data" / "00").rmdir()
    backend.save("data", "00" * 32, [b"its folder is made again"])
    with pytest.raises(errors.Refused):
        backend.save("data", name, [b"another size"])
    root = sshd.folder / "private"
    files = [path for path in root.rglob("*") if path.is_file()]
    assert {path.name for path in files} == {name, "00" * 32}
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o600}
    assert {stat.S_IMODE(path.stat().st_mode) for path in (root, *root.rglob("*")) if path.is_dir()} == {0o700}
    assert backend._connection._open
    assert backend._connection._open[0].get_extra_info("send_cipher") == "aes128-gcm@openssh.com"


def test_an_sftp_server_that_stalls_is_given_up_and_found_again(
    sshd: servers.Sftp, monkeypatch: pytest.MonkeyPatch, rng: random.Random
) -> None:
    backend, content = sftp(sshd, "stalled"), rng.randbytes(1_000_000)
    backend.create()
    stalled = sshd.sessions()
    assert stalled
    monkeypatch.setattr("cosmos_coherence.storage.ssh._ANSWER_S", 0.2)
    monkeypatch.setattr("cosmos_coherence.storage.ssh._SLOWEST", 10**9)
    for session in stalled:
        os.kill(session, signal.SIGSTOP)
    try:
        with ThreadPoolExecutor(2) as pool:
            calls = [
                pool.submit(backend.save, "data", named(content), [content]),
                pool.submit(lambda: [*backend.list("keys")]),
            ]
            assert all(isinstance(call.exception(), errors.BackendUnavailable) for call in calls)
    finally:
        for session in stalled:
            os.kill(session, signal.SIGCONT)
    monkeypatch.undo()
    assert backend.load("data", saved(backend, "data", content)) == content


def test_over_sftp_a_full_disk_is_named(sshd: servers.Sftp) -> None:
    if os.geteuid() != 0:
        stores.missing("root, who may mount a small disk")
    disk = sshd.folder / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", disk], check=True)
    try:
        backend = sftp(sshd, "disk/r")
        backend.create()
        with pytest.raises(errors.NoRoom):
            backend.save("data", NAME, [bytes(3_000_000)])
        assert [*backend.list("data")] == []
        assert saved(backend, "data", b"small enough")
    finally:
        subprocess.run(["umount", disk], check=True)


def test_a_certificate_must_be_trusted(tmp_path: Path) -> None:
    certificate, key = tmp_path / "certificate.pem", tmp_path / "key.pem"
    servers.make_certificate(certificate, key)
    with servers.rclone_restic(tls=(certificate, key)) as server:
        url = f"rest:https://{servers.USER}:{servers.PASSWORD}@127.0.0.1:{server.port}/r"
        for trusted in (False, True):
            backend = at_url(url, Access(ca=certificate if trusted else None))
            assert servers.PASSWORD not in backend.location
            if trusted:
                backend.create()
                assert saved(backend, "data", b"x") == named(b"x")
            else:
                with pytest.raises(errors.Refused, match="certificate is not trusted") as caught:
                    backend.create()
                assert servers.PASSWORD not in "".join(traceback.format_exception(caught.value))


def test_a_url_opens_each_store(weed: servers.S3, rest: servers.Rest, tmp_path: Path) -> None:
    keys = Access(s3_key_id=servers.KEY_ID, s3_secret=servers.SECRET, upload_limit=10**9, download_limit=10**9)
    for url, access in (
        (str(tmp_path / "r"), Access()),
        (f"s3:{weed.endpoint}/{servers.BUCKET}/url/one", keys),
        (f"s3://{servers.BUCKET}/url/two", replace(keys, s3_endpoint=weed.endpoint)),
        (f"rest:{rest.url}/url", Access(rest_user=servers.USER, rest_password=servers.PASSWORD)),
    ):
        backend = at_url(url, access)
        backend.create()
        probe(backend)
        assert backend.load("data", saved(backend, "data", b"x")) == b"x"


def keygen(*options: str | Path) -> None:
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-C", "", *options], check=True, capture_output=True)


def public_key(path: Path) -> str:
    keygen("-N", "", "-f", path)
    return path.with_suffix(".pub").read_text()
