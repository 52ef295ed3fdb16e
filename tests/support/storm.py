"""A process that does everything one can do to files, as fast as it can, until it is held."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_WRITER = r"""
import mmap, os, random, sys
root, seed, links = sys.argv[1], int(sys.argv[2]), sys.argv[3] == "True"
rnd = random.Random(seed)
os.chdir(root)
shared = open("mapped", "w+b"); shared.truncate(1 << 16)
page = mmap.mmap(shared.fileno(), 1 << 16)
log = open("log", "ab", buffering=0)
print("ready", flush=True)
step = 0
while True:
    step += 1
    name = f"d{rnd.randrange(3)}/f{rnd.randrange(40)}"
    os.makedirs(os.path.dirname(name), exist_ok=True)
    log.write(b"%d\n" % step)
    page[rnd.randrange(1 << 16)] = step % 256
    try:
        match rnd.randrange(9):
            case 0 | 1:
                with open(name, "wb") as f: f.write(rnd.randbytes(rnd.randrange(20000)))
            case 2:
                with open(name, "ab") as f: f.write(b"more")
            case 3: os.rename(name, f"d{rnd.randrange(3)}/f{rnd.randrange(40)}")
            case 4: os.unlink(name)
            case 5 if links: os.link(name, f"d{rnd.randrange(3)}/f{rnd.randrange(40)}")
            case 6: os.truncate(name, rnd.randrange(3000))
            case 7: os.symlink(name, f"d{rnd.randrange(3)}/l{rnd.randrange(9)}")
            case 8:
                os.chmod(name, 0o600 + rnd.randrange(64))
                os.rename(f"d{rnd.randrange(3)}", f"e{rnd.randrange(3)}")
    except OSError:
        pass
"""


class Writer:
    """A process that does everything one can do to files, until it is held."""

    def __init__(self, root: Path, seed: int, links: bool) -> None:
        command = [sys.executable, "-c", _WRITER, str(root), str(seed), str(links)]
        self._child = subprocess.Popen(command, stdout=subprocess.PIPE)
        assert self._child.stdout is not None
        assert self._child.stdout.readline() == b"ready\n"

    def hold(self) -> None:
        self._child.send_signal(signal.SIGSTOP)
        assert os.waitid(os.P_PID, self._child.pid, os.WSTOPPED | os.WNOWAIT) is not None

    def release(self) -> None:
        self._child.send_signal(signal.SIGCONT)

    def end(self) -> None:
        self._child.kill()
        self._child.wait()
        assert self._child.stdout is not None
        self._child.stdout.close()


@contextmanager
def writing(root: Path, seed: int, *, links: bool = True) -> Iterator[Writer]:
    """With ``links`` files get further names too."""
    writer = Writer(root, seed, links)
    try:
        yield writer
    finally:
        writer.end()
