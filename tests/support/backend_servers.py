"""Real servers that keep repositories: S3, SFTP and REST, each on loopback, in a folder of its own, gone afterwards."""

from __future__ import annotations

import contextlib
import fcntl
import getpass
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address
from pathlib import Path

import obstore
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from obstore.store import S3Store

from support import stores
from support.waiting import eventually

KEY_ID, SECRET = "cosmos-test-key", "wrong-Horse-battery-8"
USER, PASSWORD = "cosmos", "right-Horse-9"
OWNER_ID, OWNER_SECRET = "cosmos-test-owner", "quiet-Horse-anvil-3"
BUCKET = "backups"
LOCKED = "locked"


@dataclass(frozen=True)
class S3:
    """An S3 server with ``BUCKET``; ``KEY_ID`` and ``SECRET`` open it."""

    port: int
    folder: Path

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def store(self, prefix: str) -> S3Store:
        """The same place for a test that goes round the backend."""
        return S3Store(
            BUCKET,
            prefix=prefix or None,
            endpoint=self.endpoint,
            region="us-east-1",
            access_key_id=KEY_ID,
            secret_access_key=SECRET,
            client_options={"allow_http": True, "timeout": "5s"},
            retry_config={"max_retries": 0},
        )


@dataclass(frozen=True)
class Sftp:
    """An OpenSSH server that lets ``user`` in with ``key``."""

    port: int
    user: str
    key: Path
    known_hosts: Path
    folder: Path
    """An empty folder for repositories."""
    server: subprocess.Popen[bytes]

    def sessions(self) -> list[int]:
        """The processes that serve the open connections."""
        found, look_at = [], [self.server.pid]
        while look_at:
            parent = look_at.pop()
            children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
            look_at += map(int, children)
            found += map(int, children)
        return found


@dataclass(frozen=True)
class Rest:
    """A REST server of restic's protocol; ``USER`` and ``PASSWORD`` open it."""

    port: int
    folder: Path

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


@contextlib.contextmanager
def seaweedfs(*, owner: bool = False) -> Iterator[S3]:
    """``owner``: all is ``OWNER_ID``'s, who may make ``LOCKED``; ``KEY_ID`` only reads, writes, deletes and lists."""
    with _alone(), _folder() as folder:
        port, *others = (_port_with_twin() for _ in range(5))
        few = [f"{what}:{bucket}" for what in ("Read", "Write", "List") for bucket in (BUCKET, LOCKED)]
        people = [("cosmos", KEY_ID, SECRET, few if owner else ["Admin"])]
        if owner:
            people.append(("owner", OWNER_ID, OWNER_SECRET, ["Admin"]))
        config = {
            "identities": [
                {"name": name, "credentials": [{"accessKey": key, "secretKey": secret}], "actions": actions}
                for name, key, secret, actions in people
            ]
        }
        (folder / "s3.json").write_text(json.dumps(config))
        (folder / "data").mkdir()
        options = [
            *("-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-master.telemetry=false", "-admin.ui=false", "-webdav=false"),
            *(
                "-s3.port.iceberg=0",
                "-s3.port.lance=0",
                "-s3.iam=false",
                f"-dir={folder / 'data'}",
                f"-s3.config={folder / 's3.json'}",
            ),
            *(f"-s3.port={port}", f"-bucket={BUCKET}", f"-metricsPort={stores.free_port()}"),
            *(f"-{name}.port={other}" for name, other in zip(_PARTS, others, strict=True)),
        ]
        with _running([_program("weed"), "mini", *options], folder) as server:
            ready = S3(port, folder)
            _await(server, folder, lambda: _takes(ready))
            yield ready


_PARTS = ("master", "volume", "filer", "admin")


@contextlib.contextmanager
def _alone() -> Iterator[None]:
    """One such server at a time: two have been seen to get into each other's way, whatever ports they are given."""
    with Path(tempfile.gettempdir(), "cosmos-test-seaweedfs.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def rclone_s3() -> Iterator[S3]:
    """The S3 server that ignores ranges, which a probe must find."""
    with _folder() as folder:
        (folder / "data" / BUCKET).mkdir(parents=True)
        port = stores.free_port()
        command = ["serve", "s3", "--auth-key", f"{KEY_ID},{SECRET}", "--addr", f"127.0.0.1:{port}", folder / "data"]
        with _rclone(command, folder) as server:
            _await(server, folder, lambda: _connects(port))
            yield S3(port, folder)


@contextlib.contextmanager
def rclone_restic(
    *, append_only: bool = False, tls: tuple[Path, Path] | None = None, data: Path | None = None
) -> Iterator[Rest]:
    """``tls``: certificate and key; the server then speaks HTTPS only. ``data``: the folder of its repositories."""
    with _folder() as folder:
        data = data or folder / "data"
        data.mkdir(exist_ok=True)
        port = stores.free_port()
        options: list[str | Path] = ["--user", USER, "--pass", PASSWORD, "--addr", f"127.0.0.1:{port}"]
        if append_only:
            options.append("--append-only")
        if tls:
            options += ["--cert", tls[0], "--key", tls[1]]
        with _rclone(["serve", "restic", *options, data], folder) as server:
            _await(server, folder, lambda: _connects(port))
            yield Rest(port, folder)


@contextlib.contextmanager
def sshd() -> Iterator[Sftp]:
    """As root it runs as root does; as anybody else it lets only that user in, which is all a test needs."""
    program = shutil.which("sshd") or shutil.which("sshd", path="/usr/sbin:/usr/local/sbin")
    if not program:
        stores.missing("an OpenSSH server")
    with _folder() as folder:
        port, user = stores.free_port(), getpass.getuser()
        for name in ("host", "user"):
            _run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "", "-f", folder / name)
        shutil.copy(folder / "user.pub", folder / "authorized")
        (folder / "known").write_text(f"[127.0.0.1]:{port} {(folder / 'host.pub').read_text()}")
        (folder / "repositories").mkdir()
        (folder / "config").write_text(
            f"Port {port}\nListenAddress 127.0.0.1\nHostKey {folder / 'host'}\nPidFile none\nUsePAM no\n"
            f"AuthorizedKeysFile {folder / 'authorized'}\nStrictModes no\nPasswordAuthentication no\n"
            "KbdInteractiveAuthentication no\nPermitRootLogin prohibit-password\nSubsystem sftp internal-sftp\n"
        )
        with _privilege_separation(), _running([program, "-D", "-e", "-f", folder / "config"], folder) as server:
            _await(server, folder, lambda: _connects(port))
            yield Sftp(port, user, folder / "user", folder / "known", folder / "repositories", server)


@contextlib.contextmanager
def silent() -> Iterator[int]:
    """The port of a server that takes connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield int(server.getsockname()[1])


def make_certificate(certificate: Path, key: Path) -> None:
    """One that vouches for itself and for 127.0.0.1."""
    private = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "a test")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(private.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(IPv4Address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .sign(private, hashes.SHA256())
    )
    certificate.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    plain = serialization.NoEncryption()
    key.write_bytes(private.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain))


class Cutting:
    """A door to a server that breaks the first ``cuts`` connections once ``after`` bytes went through, either way.

    It counts what is left in ``cuts``: a test looks that they came.
    """

    def __init__(self, port: int, *, after: int, cuts: int = 1) -> None:
        self._server_port, self._after, self.cuts = port, after, cuts
        self._door = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._door.getsockname()[1])
        self._lock = threading.Lock()
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._door.shutdown(socket.SHUT_RDWR)
        self._door.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._door.accept()
                server = socket.create_connection(("127.0.0.1", self._server_port))
                for one, other in ((client, server), (server, client)):
                    threading.Thread(target=self._pass_on, args=(one, other), daemon=True).start()

    def _pass_on(self, one: socket.socket, other: socket.socket) -> None:
        passed = 0
        with contextlib.suppress(OSError):
            while data := one.recv(1 << 16):
                passed += len(data)
                if passed > self._after and self._cut():
                    break
                other.sendall(data)
        for end in (one, other):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()

    def _cut(self) -> bool:
        with self._lock:
            self.cuts -= 1
            return self.cuts >= 0


@contextlib.contextmanager
def _privilege_separation() -> Iterator[None]:
    """As root, sshd wants an empty folder of the system, which only its service would make."""
    folder = Path("/run/sshd")
    with contextlib.suppress(PermissionError):
        folder.mkdir(mode=0o755, exist_ok=True)
    yield


def _program(name: str) -> Path:
    found = Path(sys.executable).parent / name
    if not found.exists():
        stores.missing(name)
    return found


def _rclone(command: Sequence[str | Path], folder: Path) -> contextlib.AbstractContextManager[subprocess.Popen[bytes]]:
    return _running([_program("rclone"), "--config", folder / "rclone.conf", *command], folder)


@contextlib.contextmanager
def _folder() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="cosmos-test-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _run(*command: str | Path) -> None:
    subprocess.run([str(part) for part in command], check=True, capture_output=True)


@contextlib.contextmanager
def _running(command: Sequence[str | Path], folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen(
            [str(part) for part in command],
            stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=folder,
            env={**os.environ, "TMPDIR": str(folder)},  # where the S3 server leaves its sockets
        )  # fmt: skip
    try:
        yield server
    finally:
        server.kill()  # nothing of it is kept, and a polite stop takes seconds
        server.wait(20)


def _await(server: subprocess.Popen[bytes], folder: Path, answers: Callable[[], object]) -> None:
    up = eventually(lambda: server.poll() is not None or answers())
    if server.poll() is not None or not up:
        raise AssertionError((folder / "log").read_text(errors="replace"))


def _connects(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except OSError:
        return False
    return True


def _takes(server: S3) -> bool:
    try:
        obstore.put(server.store(""), "ready", b"", use_multipart=False)
    except Exception:  # noqa: BLE001 - whatever it is, it is not ready
        return False
    return True


def _port_with_twin() -> int:
    """A free port whose neighbour 10,000 higher is free as well: these servers take it without being asked."""
    while True:
        port = stores.free_port()
        if port < 55_000:
            with contextlib.suppress(OSError), socket.socket() as twin:
                twin.bind(("127.0.0.1", port + 10_000))
                return port
