"""The program run again in a container of its own image, and a watchdog that outlives such a container."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from msgspec import structs

from cosmos_coherence import errors
from cosmos_coherence.drivers import container
from cosmos_coherence.drivers.docker import DockerRuntime
from support.docker_stack import HOST, ComposeStack, docker
from support.waiting import eventually

pytestmark = pytest.mark.docker

STACK = """
services:
  counter:
    image: busybox:1
    command: ["sh", "-c", "while :; do echo -n x >>/data/count; usleep 1000; done"]
    volumes: ["data:/data", "./uploads:/uploads"]
    init: true
volumes: {data: {}}
"""


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ComposeStack]:
    with ComposeStack(tmp_path_factory.mktemp("container"), STACK, files={"uploads/.keep": ""}) as stack:
        yield stack


def inside(stack: ComposeStack, image: str, program: str, **options: object) -> list[str]:
    """What the arguments of a program are that calls ``container.rerun`` with ``python -c program`` for ``cosmos``."""
    call = f"""
        import sys
        from pathlib import Path
        from cosmos_coherence import errors
        from cosmos_coherence.drivers import container
        from cosmos_coherence.drivers.docker import DockerRuntime

        start = container._start
        def as_python(engine, call, config, query):
            call = {{**call, "entrypoint": ["python"]}} if call["entrypoint"] == ["cosmos"] else call
            return start(engine, call, config, query)
        container._start = as_python
        runtime = DockerRuntime({stack.project!r}, directory=Path({str(stack.folder)!r}), docker_host={HOST!r})
        sys.exit(container.rerun(runtime, ["-c", {textwrap.dedent(program)!r}], image={image!r},
                                 directory=Path({str(stack.folder)!r}), **{options!r}))
    """
    return [sys.executable, "-c", textwrap.dedent(call)]


def run(stack: ComposeStack, image: str, program: str, **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        inside(stack, image, program, **options), capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=100
    )


def leftovers(image: str) -> list[str]:
    return docker("ps", "--all", "--quiet", "--filter", f"ancestor={image}").split()


def test_everything_is_reachable_inside_at_the_same_paths(stack: ComposeStack, program_image: str) -> None:
    """The runtime inside finds the stack, its volume and folders, and can hold it in the same way."""
    program = f"""
        import json, os
        from pathlib import Path
        from cosmos_coherence.drivers import container
        from cosmos_coherence.drivers.docker import DockerRuntime
        runtime = DockerRuntime({stack.project!r}, directory=Path({str(stack.folder)!r}))
        stack = runtime.stack()
        path = stack.volume("data").path
        (path / "made-inside").write_text("x")
        (Path({str(stack.folder)!r}) / "uploads/made-inside").write_text("x")
        targets = runtime.hold_targets(stack.services)
        print(json.dumps({{
            "path": str(path), "needs": container.needs_container(runtime), "state": str(runtime.state_directory()),
            "own": runtime.reach.own_id, "targets": [t.means for t in targets], "host": runtime.engine.host,
        }}))
    """
    done = run(stack, program_image, program)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    outside = stack.runtime()
    volume = outside.stack().volume("data")
    assert volume and volume.path
    assert said["path"] == str(volume.path)
    assert said["needs"] == ""
    assert said["state"] == str(outside.state_directory())
    assert said["own"]
    assert said["host"] == HOST
    assert said["targets"] == [t.means for t in outside.hold_targets(outside.stack().services)]
    assert (volume.path / "made-inside").exists() and (stack.folder / "uploads/made-inside").exists()
    assert not leftovers(program_image)


def test_streams_and_status_pass_through(stack: ComposeStack, program_image: str) -> None:
    done = run(
        stack,
        program_image,
        "import sys; print('out'); print('err', file=sys.stderr); print('o' * 300000); sys.exit(6)",
    )
    assert (done.returncode, done.stdout, done.stderr) == (6, "out\n" + "o" * 300000 + "\n", "err\n")


def test_a_folder_that_is_given_is_there_and_missing_ones_are_made(
    stack: ComposeStack, program_image: str, tmp_path: Path
) -> None:
    folder = tmp_path / "far" / "away"
    program = f"open({str(folder / 'file')!r}, 'w').write('x'); import os; print(os.getcwd())"
    script = inside(stack, program_image, program)
    script[-1] = script[-1].replace("**{}", f"extra_paths=(Path({str(folder)!r}),)")
    done = subprocess.run(script, capture_output=True, text=True, stdin=subprocess.DEVNULL, cwd=tmp_path, timeout=100)
    assert done.returncode == 0, done.stderr
    assert (folder / "file").read_text() == "x"
    assert done.stdout.strip() == str(tmp_path)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_are_passed_on(stack: ComposeStack, program_image: str, number: signal.Signals) -> None:
    program = """
        import signal, sys, time
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda number, _: sys.exit(100 + number))
        print("ready", flush=True)
        time.sleep(100)
    """
    with subprocess.Popen(inside(stack, program_image, program), stdout=subprocess.PIPE, text=True) as caller:
        assert caller.stdout and caller.stdout.readline() == "ready\n"
        caller.send_signal(number)
        assert caller.wait(timeout=60) == 100 + number
    assert not leftovers(program_image)


def test_on_a_terminal_a_question_can_be_answered(stack: ComposeStack, program_image: str) -> None:
    program = "import sys; assert sys.stdin.isatty(); print('you said', input('well? ').upper())"
    child, terminal = pty.fork()
    if child == 0:
        argv = inside(stack, program_image, program)
        os.execv(argv[0], argv)
    seen = b""
    try:
        while b"well? " not in seen:
            seen += os.read(terminal, 1024)
        os.write(terminal, b"yes\r")
        while b"you said YES" not in seen:
            seen += os.read(terminal, 1024)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    finally:
        os.close(terminal)


def test_no_secret_of_the_environment_is_passed_on(
    stack: ComposeStack, program_image: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COSMOS_SOME_PASSWORD", "s3cret")
    monkeypatch.setenv("COSMOS_CUT__MAX_PAUSE", "2s")
    monkeypatch.setenv("PGPASSWORD", "s3cret")
    done = run(
        stack, program_image, "import os; print(sorted(n for n in os.environ if n.startswith(('COSMOS', 'PG'))))"
    )
    assert "COSMOS_CUT__MAX_PAUSE" in done.stdout and "COSMOS_IN_CONTAINER" in done.stdout
    assert "PASSWORD" not in done.stdout


def test_an_image_that_is_not_there(stack: ComposeStack) -> None:
    with pytest.raises(errors.NotFound, match="no-such-image") as caught:
        container.rerun(stack.runtime(), ["status"], image="cosmos-test-no-such-image:1", directory=stack.folder)
    assert "make images" in caught.value.remedy


def test_the_program_itself(stack: ComposeStack, program_image: str) -> None:
    """The entry point of the image, not a stand-in for it."""
    call = f"""
        import sys
        from pathlib import Path
        from cosmos_coherence.drivers import container
        from cosmos_coherence.drivers.docker import DockerRuntime
        runtime = DockerRuntime({stack.project!r}, directory=Path({str(stack.folder)!r}), docker_host={HOST!r})
        sys.exit(container.rerun(runtime, ["--version"], image={program_image!r}, directory=Path.cwd()))
    """
    argv = [sys.executable, "-c", textwrap.dedent(call)]
    done = subprocess.run(argv, capture_output=True, text=True, cwd=stack.folder, timeout=100)
    assert done.returncode == 0 and done.stdout.startswith("cosmos "), done.stderr


# -------------------------------------------------------------------------------------------------------- needed?
@pytest.mark.skipif(os.geteuid() != 0, reason="as root, on the engine's machine")
def test_root_on_the_engine_s_machine_needs_no_container(stack: ComposeStack, tmp_path: Path) -> None:
    assert container.needs_container(stack.runtime()) == ""
    assert container.needs_container(DockerRuntime("nothing-yet", directory=tmp_path, docker_host=HOST)) == ""


def test_an_ordinary_user_needs_one(stack: ComposeStack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert "only root" in container.needs_container(stack.runtime())
    monkeypatch.setenv(container.INSIDE, "1")
    assert container.needs_container(stack.runtime()) == ""


# -------------------------------------------------------------------------------------------------------- watchdog
HOLDER = """
import json, sys, time
from cosmos_coherence.cut import freezer
from cosmos_coherence.cut.watchdog import Watchdog
from cosmos_coherence.drivers.container import start_watchdog_container
from cosmos_coherence.drivers.docker import DockerRuntime
from cosmos_coherence.model import HoldTarget

project, host, image, target = sys.argv[1:]
target = HoldTarget(**json.loads(target))
with Watchdog(*start_watchdog_container(DockerRuntime(project, docker_host=host), image)) as watchdog:
    watchdog.arm([target], 120.0)
    watchdog.hold()
    freezer.freeze(target)
    print("held", flush=True)
    time.sleep(1000)
"""


@pytest.mark.parametrize("by_engine", [False, True], ids=["as found", "engine"])
def test_the_watchdog_in_a_container_releases_what_a_killed_program_held(
    stack: ComposeStack, program_image: str, by_engine: bool
) -> None:
    runtime = stack.runtime()
    (target,) = runtime.hold_targets(runtime.stack().services)
    if by_engine:
        facts = runtime.engine.ask("inspect_container", target.name)
        target = structs.replace(target, means="engine", where=runtime.engine.socket_path, id=facts["Id"])
    count = runtime.stack().volume("data").path / "count"
    argv = [sys.executable, "-c", HOLDER, stack.project, HOST, program_image, json.dumps(structs.asdict(target))]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout and holder.stdout.readline() == "held\n"
        size = count.stat().st_size
        time.sleep(0.3)
        assert count.stat().st_size == size
        holder.kill()
    assert eventually(lambda: count.stat().st_size > size)
    assert eventually(lambda: not leftovers(program_image)), "it removes itself when it is done"


def test_the_watchdog_s_pipes_carry_its_words(stack: ComposeStack, program_image: str) -> None:
    stdin, stdout = container.start_watchdog_container(stack.runtime(), program_image)
    with stdin, stdout:
        stdin.write(b'{"targets": [], "budget_s": 1.0}\n')
        stdin.flush()
        assert stdout.readline() == b"ready\n"
        stdin.close()
        assert stdout.read() == b""
