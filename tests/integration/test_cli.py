"""The command line as programs and people meet it: one JSON document on request, progress beside it, no secrets."""

import gzip
import json
import os
import re
import subprocess
import sys
import tarfile
import threading
from pathlib import Path

import pytest

from cosmos_coherence.drivers.embedded import DATABASE
from support.embedded_stack import EmbeddedStack, embedded_stack
from support.program import SOURCE, cosmos

pytestmark = [pytest.mark.postgres, pytest.mark.redis]


@pytest.fixture(scope="module")
def stack():
    with embedded_stack() as stack:
        assert stack.backup().status == "done"
        yield stack


def call(stack: EmbeddedStack, *arguments: str, **environment: str):
    return cosmos("-C", str(stack.folder), *arguments, **environment)


# --------------------------------------------------------------------------------------------------------- --json
@pytest.mark.parametrize(
    ("verb", "field"),
    [
        (["status"], "coverage"),
        (["list"], None),
        (["show"], "instant"),
        (["check"], "checked"),
        (["health"], "checks"),
        (["audit"], "audit"),
        (["doctor"], "checks"),
        (["recover"], "status"),
        (["forget"], "remove"),
        (["forget", "--dry-run"], "dry_run"),
        (["backup"], "pause_ms"),
        (["restore"], None),
        (["restore", "latest", "--dry-run"], "steps"),
        (["restore", "latest", "--only", "volumes/files", "--yes"], "safety_backup"),
    ],
)
def test_one_document_and_nothing_else(stack, verb, field):
    found = call(stack, *verb, "--json")
    assert found.returncode == 0, found.stdout + found.stderr
    assert found.stderr == ""
    document = json.loads(found.stdout)
    assert isinstance(document, list) if field is None else field in document


def test_the_demo_in_one_document():
    found = cosmos("demo", "--json")
    assert (found.returncode, found.stderr) == (0, "")
    assert json.loads(found.stdout)["status"] == "equal"


def test_every_verb_has_json():
    verbs = re.findall(r"^  ([a-z]+)  ", cosmos("--help").stdout, re.M)
    assert len(verbs) > 10
    helps = {verb: cosmos(verb, "--help").stdout for verb in verbs}
    for group in [verb for verb, text in helps.items() if "COMMAND [ARGS]" in text]:
        below = re.findall(r"^  ([a-z-]+)  ", helps.pop(group), re.M)
        assert len(below) > 2
        helps |= {f"{group} {verb}": cosmos(group, verb, "--help").stdout for verb in below}
    without = [verb for verb, text in helps.items() if "--json" not in text]
    assert without == ["serve"], "only what never ends has no outcome"


def test_the_report_says_what_the_exit_status_says(stack):
    found = call(stack, "backup", "--only", "config", "--json")
    report = json.loads(found.stdout)
    assert (found.returncode, report["exit_status"], report["status"]) == (3, 3, "incomplete")
    assert {"what", "why"} <= report["missing"][0].keys()


# ------------------------------------------------------------------------------------------------------- progress
def test_progress_goes_beside_the_result(stack):
    found = call(stack, "backup")
    steps = [line for line in found.stderr.splitlines() if re.match(r" *\d+\.\d s  \S", line)]
    assert len(steps) > 5
    assert re.search(r"\d\.\d s    postgres/db  [\d.]+ [KM]?i?B", found.stderr), "a part and its size"
    assert "writers stood still" in found.stderr
    assert found.stdout.startswith("backup ")
    assert "capture" not in found.stdout
    assert "\x1b" not in found.stdout + found.stderr, "no colours where there is no terminal"


@pytest.mark.parametrize("verb", ["status", "list", "show", "health", "doctor"])
def test_plain_text_where_there_is_no_terminal(stack, verb):
    found = call(stack, verb)
    assert found.returncode == 0
    assert found.stdout
    assert "\x1b" not in found.stdout + found.stderr


def test_nobody_reads_the_result(stack):
    reader, writer = os.pipe()
    os.close(reader)
    argv = [sys.executable, "-m", "cosmos_coherence.cli.main", "-C", str(stack.folder), "list"]
    environment = {**os.environ, "PYTHONPATH": str(SOURCE)}
    with os.fdopen(writer, "wb") as nobody:
        done = subprocess.run(argv, stdout=nobody, stderr=subprocess.PIPE, text=True, env=environment, timeout=60)
    assert (done.returncode, done.stderr) == (1, "")


# ------------------------------------------------------------------------------------------- a fault of the program
FAULT = """
import sys
from cosmos_coherence.cli import look, main
def broken(**_):
    raise {error}
look.status = broken
sys.argv = ["cosmos", {arguments}]
main.main()
"""


@pytest.mark.parametrize(
    ("error", "status", "code", "said"),
    [
        ("KeyError('hunter2')", 1, "failed", "KeyError in <string>, line 5"),
        ("OSError(28, 'No space left on device', '/somewhere')", 7, "no-room", "/somewhere"),
        ("OSError(5, 'Input/output error', '/somewhere')", 1, "failed", "Input/output error: /somewhere"),
        ("MemoryError()", 1, "failed", "not enough memory"),
        ("RecursionError('hunter2')", 1, "failed", "RecursionError"),
        ("KeyboardInterrupt()", 130, "interrupted", "interrupted"),
    ],
)
def test_an_unexpected_error(error, status, code, said):
    def run(*arguments: str):
        text = FAULT.format(error=error, arguments=", ".join(map(repr, arguments)))
        environment = {**os.environ, "PYTHONPATH": str(SOURCE)}
        return subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, env=environment, timeout=60)

    told, data, debugged = run("status"), run("status", "--json"), run("--debug", "status")
    assert {told.returncode, data.returncode, debugged.returncode} == {status}
    document = json.loads(data.stdout)
    assert (document["exit_status"], document["failure"]["code"]) == (status, code)
    assert said in told.stderr
    assert said in document["failure"]["message"]
    assert len(told.stderr.splitlines()) == 2
    assert "hunter2" not in told.stderr + data.stdout + data.stderr, "what an exception says may be a secret"
    assert "Traceback" in debugged.stderr


# --------------------------------------------------------------------------------------------------------- doctor
def test_the_doctor_names_what_is_missing(stack, tmp_path):
    well = json.loads(call(stack, "doctor", "--json").stdout)
    assert {c["name"] for c in well["checks"]} >= {"program", "stack", "backups", "leftovers", "disk"}
    assert well["outcome"] == "ok"
    (tmp_path / "compose.yaml").write_text("services: {a: {image: busybox}}\n")
    ill = cosmos("-C", str(tmp_path), "--docker-host", f"unix://{tmp_path}/none.sock", "doctor", "--json")
    found = {c["name"]: c for c in json.loads(ill.stdout)["checks"]}
    assert ill.returncode == 1
    assert found["engine"]["outcome"] == "fail"
    assert "Start Docker" in found["engine"]["detail"]
    assert found["program"]["outcome"] == "ok"


def test_the_doctor_finds_what_a_killed_run_left(stack):
    spool = stack.backups / ".spool-20200101_000000"
    spool.mkdir()
    try:
        found = call(stack, "doctor")
        assert found.returncode == 1
        assert "cosmos recover" in found.stdout
    finally:
        spool.rmdir()


# -------------------------------------------------------------------------------------------------------- secrets
class Arguments(threading.Thread):
    """Reads the arguments of every process, again and again, until it is told to stop."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.seen: set[bytes] = set()
        self._ended = threading.Event()

    def run(self) -> None:
        while not self._ended.wait(0.002):
            for path in Path("/proc").glob("[0-9]*/cmdline"):
                try:
                    self.seen.add(path.read_bytes())
                except OSError:
                    continue

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self.join()


def test_no_secret_is_told(stack):
    """Two passwords, one of each server, so that neither can hide behind the other."""
    path = stack.folder / "stack.json"
    services = {s["name"]: s["environment"] for s in json.loads(path.read_text())["services"]}
    of_redis, of_postgres = services["redis"]["REDISCLI_AUTH"], "sesame-of-postgres"
    with stack.runtime.run("db", ["psql", "-qX", "-d", DATABASE], stdin=True) as client:
        client.stdin.write(f"ALTER ROLE cosmos PASSWORD '{of_postgres}';\n".encode())
    spec = json.loads(path.read_text())
    for environment in (s["environment"] for s in spec["services"] if "PGPASSWORD" in s["environment"]):
        environment["PGPASSWORD"] = of_postgres
    path.write_text(json.dumps(spec))

    with Arguments() as arguments:
        made = call(stack, "backup", "--json")
        verbs = [["restore", "latest", "--yes"], ["status"], ["show"], ["list"], ["health"], ["doctor"], ["recover"]]
        outcomes = [made, *(call(stack, *verb, "--json") for verb in verbs), call(stack, "backup"), call(stack, "show")]
    assert [o.returncode for o in outcomes] == [0] * len(outcomes), [o.stdout for o in outcomes if o.returncode]
    assert any(b"pg_dump" in line for line in arguments.seen), "it looked while the backup ran"

    told = {f"output of call {n}": (o.stdout + o.stderr).encode() for n, o in enumerate(outcomes)}
    told |= {f"arguments {line!r}": line for line in arguments.seen}
    kept = [*stack.backups.rglob("*.json"), *(stack.folder / "logs").rglob("*"), *(stack.folder / ".cosmos").rglob("*")]
    told |= {str(file): file.read_bytes() for file in kept if file.is_file()}
    with tarfile.open(json.loads(made.stdout)["path"]) as archive:
        for member in archive:
            name = member.name.partition("/")[2]
            if member.isfile() and not name.startswith(("configs/", "volumes/")):  # those are the user's own files
                content = archive.extractfile(member).read()
                told[f"in the archive: {name}"] = gzip.decompress(content) if name.endswith(".gz") else content
    assert any("globals.sql" in name for name in told)
    assert len(told) > 20
    for secret in (of_redis.encode(), of_postgres.encode()):
        assert [where for where, content in told.items() if secret in content] == []
