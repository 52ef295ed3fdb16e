"""The installed program in a child process, as a person calls it."""

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

SOURCE = Path(__file__).resolve().parents[2] / "src"
NOBODY = 65534


def cosmos(*arguments: str, cwd: Path | None = None, timeout: float = 200, **environment: str):
    """Run ``cosmos`` with these arguments and wait for it."""
    return subprocess.run(
        [sys.executable, "-m", "cosmos_coherence.cli.main", *arguments],
        cwd=cwd, capture_output=True, text=True, timeout=timeout, stdin=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": str(SOURCE), **environment},
    )  # fmt: skip


def as_ordinary_user(folder: Path, *arguments: str, timeout: float = 200):
    """The same as the user ``nobody``, with a copy of the program that this user can read and a home of its own."""
    program, home = folder / "program", folder / "home"
    packages = Path(sysconfig.get_paths()["purelib"])
    shutil.copytree(packages, program, symlinks=True, ignore=shutil.ignore_patterns("mypy*", "*.a"))
    shutil.copytree(SOURCE, program, dirs_exist_ok=True)
    home.mkdir()
    os.chown(home, NOBODY, NOBODY)
    interpreter = sys.executable if _may_run(sys.executable) else "/usr/bin/python3"
    return subprocess.run(
        [interpreter, "-m", "cosmos_coherence.cli.main", *arguments],
        user=NOBODY, group=NOBODY, extra_groups=[], cwd=home, capture_output=True, text=True, timeout=timeout,
        env={"PATH": os.environ["PATH"], "HOME": str(home), "PYTHONPATH": str(program), "TMPDIR": str(home)},
    )  # fmt: skip


def _may_run(interpreter: str) -> bool:
    try:
        return subprocess.run([interpreter, "-c", ""], user=NOBODY, group=NOBODY, extra_groups=[]).returncode == 0
    except OSError:
        return False
