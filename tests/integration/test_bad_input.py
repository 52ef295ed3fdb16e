"""What goes wrong in a person's hands: a sentence, a remedy, the right exit status, and nothing lost."""

import gzip
import io
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import uuid
from contextlib import contextmanager

import pytest

from cosmos_coherence.cut.journal import Journal
from cosmos_coherence.cut.lock import run_lock
from cosmos_coherence.drivers.embedded import DATABASE
from support.docker_stack import HOST, docker
from support.embedded_stack import EmbeddedStack, embedded_stack
from support.program import SOURCE, as_ordinary_user, cosmos

pytestmark = [pytest.mark.postgres, pytest.mark.redis]
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root mounts file systems")


@pytest.fixture(scope="module")
def shared():
    with embedded_stack(writer=False) as stack:
        assert stack.backup().status == "done"
        yield stack


@pytest.fixture
def stack(shared: EmbeddedStack):
    """The stack with one backup, which every test has to leave running and tidy."""
    before = sorted(p.name for p in shared.backups.iterdir())
    yield shared
    assert shared.running() == {"db", "redis"}
    assert sorted(p.name for p in shared.backups.iterdir()) == before
    assert Journal(shared.runtime.state_directory()).pending() == ()


@pytest.fixture
def untouched(stack: EmbeddedStack):
    """The same for tests that come near the data: every row, key and file is as it was."""
    before = stack.state()
    yield stack
    for path in stack.backups.glob("safety-*"):
        path.unlink()
    assert stack.state() == before


def secret(stack: EmbeddedStack) -> str:
    """The password of both servers; from a copy, since some tests break the file."""
    return (stack.folder / "configs/redis.conf").read_text().split("requirepass ")[1].split()[0]


def refused(*arguments: str, status: int, code: str, where: EmbeddedStack | None = None, **environment: str) -> str:
    """Call it as a person and as a program; what it says. Both must agree, and neither may show a traceback."""
    if where is not None:
        arguments = ("-C", str(where.folder), *arguments)
    told = cosmos(*arguments, **environment)
    assert told.returncode == status, told.stderr
    sentence, remedy = told.stderr.splitlines()[-2:]
    assert sentence.startswith("error: "), told.stderr
    assert remedy.startswith("  ")
    assert remedy.strip()
    data = cosmos(*arguments, "--json", **environment)
    assert data.returncode == status, data.stderr
    document = json.loads(data.stdout)
    assert (document["status"], document["exit_status"]) == ("failed", status)
    assert document["failure"]["code"] == code
    assert document["failure"]["message"]
    assert document["failure"]["remedy"]
    everything = told.stdout + told.stderr + data.stdout + data.stderr
    assert "Traceback" not in everything
    if where is not None:
        assert secret(where) not in everything
    return f"{sentence}\n{remedy}"


@contextmanager
def changed(stack: EmbeddedStack, change):
    """``stack.json`` as ``change`` makes it of its text, and back."""
    path = stack.folder / "stack.json"
    before = path.read_text()
    path.write_text(change(before))
    try:
        yield
    finally:
        path.write_text(before)


@contextmanager
def memory_disk(folder, size: int, *options: str):
    """A disk of so many bytes at ``folder``."""
    folder.mkdir(exist_ok=True)
    how = ",".join([f"size={size}", *options])
    subprocess.run(["mount", "-t", "tmpfs", "-o", how, "tmpfs", str(folder)], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


# ------------------------------------------------------------------------------------------------------- the call
@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["frobnicate"], "frobnicate"),
        (["backup", "--frobnicate"], "--frobnicate"),
        (["show", "one", "two"], "two"),
        (["serve"], "api|dashboard|agent"),
        (["--project", "x"], "missing command"),
    ],
)
def test_wrong_usage(arguments, named):
    assert named in refused(*arguments, status=2, code="usage")


def test_nothing_to_serve_by_that_name(tmp_path):
    found = cosmos("-C", str(tmp_path), "serve", "tea")
    assert found.returncode == 2
    assert "tea" in found.stderr


def test_every_fault_of_the_settings_is_named(stack, tmp_path):
    file = tmp_path / "wrong.toml"
    file.write_text('[cut]\nmax_pause = "soon"\nattempts = 0\n[backup]\nwrokers = 2\n[retention]\nkeep_within = []\n')
    said = refused("--config", str(file), "status", status=2, code="configuration", where=stack)
    assert all(name in said for name in ("cut.max_pause", "cut.attempts", "backup.wrokers", "retention.keep_within"))


def test_settings_that_are_no_settings(stack, tmp_path):
    (tmp_path / "wrong.toml").write_bytes(b"\xff\xfe = [")
    file = str(tmp_path / "wrong.toml")
    assert file in refused("--config", file, "status", status=2, code="configuration", where=stack)
    assert "none.toml" in refused(
        "--config", str(tmp_path / "none.toml"), "status", status=2, code="configuration", where=stack
    )


@pytest.mark.parametrize("cut", [0, 40, -3])
def test_a_broken_stack_file(stack, cut):
    with changed(stack, lambda text: text[:cut]):
        for verb in (["status"], ["backup"], ["restore", "latest", "--yes"]):
            assert "stack.json" in refused(*verb, status=2, code="configuration", where=stack)


def test_a_stack_file_with_faults_names_all(stack):
    def wrong(text):
        spec = json.loads(text)
        spec["services"][0]["dependson"] = []
        spec["services"][1]["argv"] = []
        return json.dumps(spec)

    with changed(stack, wrong):
        said = refused("status", status=2, code="configuration", where=stack)
    assert "services.0.dependson" in said
    assert "services.1.argv" in said


def test_a_folder_without_a_stack(tmp_path):
    said = refused("-C", str(tmp_path), "status", status=4, code="not-found", COSMOS_RUNTIME="process")
    assert "stack.json" in said
    assert str(tmp_path / "none") in refused("-C", str(tmp_path / "none"), "status", status=4, code="not-found")


# ----------------------------------------------------------------------------------------------------- the engine
def test_no_engine(tmp_path):
    (tmp_path / "compose.yaml").write_text("services: {a: {image: busybox}}\n")
    for verb in (["status"], ["backup"]):
        where = f"unix://{tmp_path}/none.sock"
        said = refused("-C", str(tmp_path), "--docker-host", where, *verb, status=1, code="engine-unavailable")
        assert where in said


def test_not_allowed_to_use_the_socket(roomy):
    path = roomy / "engine.sock"
    with socket.socket(socket.AF_UNIX) as engine:
        engine.bind(str(path))
        engine.listen()
        path.chmod(0)
        call = ["--docker-host", f"unix://{path}", "status", "--json"]
        found = as_ordinary_user(roomy, *call) if os.geteuid() == 0 else cosmos(*call)
    assert found.returncode == 1, found.stderr
    failure = json.loads(found.stdout)["failure"]
    assert failure["code"] == "engine-forbidden"
    assert "docker" in failure["remedy"]
    assert "Traceback" not in found.stderr


@pytest.mark.docker
def test_an_unknown_stack_names_those_that_there_are(tmp_path):
    known = f"cosmos-test-{uuid.uuid4().hex[:10]}"
    container = docker("create", "--label", f"com.docker.compose.project={known}", "busybox:1").strip()
    try:
        call = ["-C", str(tmp_path), "--docker-host", HOST, "--project", f"{known}-other", "status"]
        assert known + "-other" in (said := refused(*call, status=4, code="not-found"))
        assert known in said.splitlines()[1]
    finally:
        docker("rm", container)


# ------------------------------------------------------------------------------------------------------- the stack
def test_an_unknown_part(stack):
    for verb in (["backup"], ["restore", "latest", "--yes"]):
        said = refused(*verb, "--only", "postgres/none", status=4, code="not-found", where=stack)
        assert "postgres/none" in said
        assert "postgres/db" in said


@pytest.mark.parametrize("service", ["db", "redis"])
def test_a_server_that_is_down(stack, service):
    stack.runtime.stop([service])
    try:
        assert service in refused("backup", status=1, code="service-down", where=stack)
        assert cosmos("-C", str(stack.folder), "status").returncode == 0
    finally:
        stack.runtime.start([service])
        stack.runtime.wait_ready([service])


@pytest.mark.parametrize(("service", "name"), [("db", "PGPASSWORD"), ("redis", "REDISCLI_AUTH")])
def test_a_wrong_password(stack, service, name):
    def wrong(text):
        spec = json.loads(text)
        next(s for s in spec["services"] if s["name"] == service)["environment"][name] = "swordfish"
        return json.dumps(spec)

    with changed(stack, wrong):
        said = refused("backup", status=6, code="access-denied", where=stack)
    assert service in said
    assert "swordfish" not in said


def test_another_run_is_under_way(stack):
    with run_lock(stack.runtime.state_directory(), run="other", what="backup"):
        for verb in (["backup"], ["restore", "latest", "--yes"], ["recover"]):
            assert "backup other" in refused(*verb, status=5, code="locked", where=stack)


def test_restored_although_somebody_is_connected(untouched):
    client = untouched.runtime.run("db", ["psql", "-qAtX", "-d", DATABASE], stdin=True)
    try:
        client.stdin.write(b"SELECT 1;\n")
        client.stdin.flush()
        assert client.stdout.readline() == b"1\n"
        found = cosmos("-C", str(untouched.folder), "restore", "latest", "--only", "postgres/db", "--yes", "--json")
        assert (found.returncode, json.loads(found.stdout)["status"]) == (0, "done"), found.stdout
    finally:
        client.kill()


def test_nobody_to_ask(stack):
    assert "--yes" in refused("restore", "latest", status=7, code="refused", where=stack)


def test_a_backup_of_another_project(stack):
    with changed(stack, lambda text: text.replace('"cosmos-demo"', '"another"', 1)):
        found = cosmos("-C", str(stack.folder), "restore", "latest", "--only", "volumes/files", "--dry-run")
        assert found.returncode == 0, found.stderr
        assert "the backup is of project cosmos-demo, the target is another" in found.stdout


# ------------------------------------------------------------------------------------------------------ the archive
@pytest.mark.parametrize("verb", [["show"], ["check"], ["restore", "--yes"], ["restore", "--dry-run"]])
def test_an_unknown_backup(stack, verb):
    assert "20010101_000000" in refused(*verb, "20010101_000000", status=4, code="not-found", where=stack)


def foreign_tar(whole: bytes) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as tar:
        member = tarfile.TarInfo("etc/passwd")
        member.size = 4
        tar.addfile(member, io.BytesIO(b"root"))
    return out.getvalue()


def flipped(whole: bytes) -> bytes:
    middle = len(whole) * 2 // 3
    return whole[:middle] + bytes([whole[middle] ^ 0x10]) + whole[middle + 1 :]


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(foreign_tar, id="another tar"),
        pytest.param(flipped, id="a flipped bit"),
        pytest.param(lambda whole: b"", id="empty"),
        pytest.param(lambda whole: b"this is no archive\n" * 1000, id="text"),
        pytest.param(lambda whole: gzip.compress(b"this is no tar\n" * 1000), id="gzip of text"),
        pytest.param(lambda whole: whole[: len(whole) // 2], id="half"),
        pytest.param(lambda whole: whole[:-1], id="one byte short"),
        pytest.param(lambda whole: whole + b"more", id="more behind it"),
    ],
)
def test_a_file_that_is_not_what_it_was(untouched, tmp_path, damage):
    file = tmp_path / "archive.tar.gz"
    file.write_bytes(damage((untouched.backups / "latest.tar.gz").read_bytes()))
    code = "hostile" if damage is foreign_tar else "damaged"
    for verb in (["check"], ["restore", "--yes"]):
        assert str(file) in refused(*verb, str(file), status=6, code=code, where=untouched)


# --------------------------------------------------------------------------------------------------------- the disk
@as_root
@pytest.mark.parametrize("size", [64 * 1024, 1024 * 1024])
def test_the_disk_of_the_archives_gets_full(stack, tmp_path, size):
    with memory_disk(tmp_path / "full", size) as folder:
        refused("backup", "--archive", str(folder), status=7, code="no-room", where=stack, COSMOS_BACKUP__MIN_FREE="0")
        assert list(folder.iterdir()) == []


@as_root
def test_the_disk_of_the_archives_would_get_too_full(stack, tmp_path):
    with memory_disk(tmp_path / "small", 1024 * 1024) as folder:
        said = refused("backup", "--archive", str(folder), status=7, code="no-room", where=stack)
        assert str(folder) in said


@as_root
def test_a_folder_of_archives_that_cannot_be_written(stack, tmp_path):
    with memory_disk(tmp_path / "shut", 1024 * 1024, "ro") as folder:
        said = refused("backup", "--archive", str(folder / "new"), status=7, code="refused", where=stack)
        assert str(folder) in said


def test_a_folder_of_archives_that_is_a_file(stack, tmp_path):
    (tmp_path / "file").write_text("")
    assert str(tmp_path / "file") in refused(
        "backup", "--archive", str(tmp_path / "file"), status=1, code="failed", where=stack
    )


@as_root
def test_no_room_in_the_volume_for_what_is_restored(tmp_path):
    with embedded_stack(writer=False) as stack:
        files = stack.folder / "volumes/files"
        shutil.copytree(files, tmp_path / "files", symlinks=True)
        used = sum(p.stat().st_blocks * 512 + 4096 for p in files.rglob("*") if not p.is_symlink())
        with memory_disk(files, used + used // 2):
            shutil.copytree(tmp_path / "files", files, symlinks=True, dirs_exist_ok=True)
            assert stack.backup().status == "done"
            before = stack.state(), sorted(files.iterdir())
            refused("restore", "latest", "--yes", status=7, code="no-room", where=stack)
            assert (stack.state(), sorted(files.iterdir())) == before
            assert stack.running() == {"db", "redis"}
            assert Journal(stack.runtime.state_directory()).pending() == ()


# ------------------------------------------------------------------------------------------------------- interrupted
AS_ON_A_TERMINAL = """
import signal
from cosmos_coherence.cli import main
signal.signal(signal.SIGINT, signal.default_int_handler)  # a suite in the background has it ignored
main.main()
"""


def interrupted(stack: EmbeddedStack, *arguments: str, at: str, number=signal.SIGINT, again="") -> tuple[int, str]:
    """Send it the signal as soon as it says that this step begins, and once more at ``again``; its exit status and
    what else it said."""
    call = [sys.executable, "-c", AS_ON_A_TERMINAL, "-C", str(stack.folder), *arguments]
    with subprocess.Popen(
        call, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": str(SOURCE)},
    ) as run:  # fmt: skip
        try:
            said, awaited = "", [at, again] if again else [at]
            for line in run.stderr:
                said += line
                if awaited and awaited[0] in line:
                    del awaited[0]
                    run.send_signal(number)
            return run.wait(timeout=120), said
        finally:
            run.kill()


@pytest.mark.parametrize("at", ["copy files", "hold the writers", "capture", "publish"])
def test_a_backup_that_is_interrupted(untouched, at):
    status, said = interrupted(untouched, "backup", at=at)
    assert (status, "error: the backup was interrupted" in said) == (130, True), said
    assert "Traceback" not in said


@pytest.mark.parametrize("at", ["save what", "write the new state", "stop the writers", "compare", "start"])
def test_a_restore_that_is_interrupted(untouched, at):
    status, said = interrupted(untouched, "restore", "latest", "--yes", at=at)
    assert (status, "error: the restore was interrupted" in said) == (130, True), said
    assert "Traceback" not in said


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_restore_that_is_asked_to_end(untouched, number):
    status, said = interrupted(untouched, "restore", "latest", "--yes", at="stop the writers", number=number)
    assert (status, "the stack is as it was before" in said) == (130, True), said


def test_asking_twice_does_not_tear_the_way_back_in_two(untouched):
    verb = ["restore", "latest", "--yes"]
    status, said = interrupted(untouched, *verb, at="stop the writers", again="bring the old state back")
    assert (status, "the stack is as it was before" in said) == (130, True), said
    assert "going back to how it was" in said


def test_nobody_reads_the_progress(untouched):
    """A terminal that went away must not end a run half way."""
    program = [sys.executable, "-m", "cosmos_coherence.cli.main", "-C", str(untouched.folder)]
    call = [*program, "restore", "latest", "--yes"]
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = subprocess.run(
            call, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=writer, text=True, timeout=200,
            env={**os.environ, "PYTHONPATH": str(SOURCE)},
        )  # fmt: skip
    finally:
        os.close(writer)
    assert (done.returncode, "restored" in done.stdout) == (0, True)
