"""Server programs out of the images that the tests have on their engine, run as plain processes.

So there are other versions than the system's, each with its own libraries, as fast to start and to kill as any other.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from contextlib import suppress
from pathlib import Path

from support import docker_stack

_WANTED = (
    "usr/lib/postgresql/*", "usr/share/postgresql/*", "usr/lib/*-linux-gnu/*.so*", "usr/lib/locale/*",
    "usr/bin/redis-*", "usr/bin/valkey-*", "usr/local/bin/redis-*", "usr/local/bin/valkey-*", "usr/local/lib/*.so*",
)  # fmt: skip
_EXPORT = 'docker export "$1" | tar -x --no-same-owner -C "$2" --wildcards $3 2>/dev/null; test -d "$2/usr"'
_WRAPPER = '#!/bin/sh\nexec "{loader}" --library-path "{libraries}" --argv0 "$0" "{program}" "$@"\n'


def programs(image: str) -> Path | None:
    """The folder with the programs of a server's image, unpacked once on this machine; None without image or engine."""
    if docker_stack.why_not():
        return None
    identity = docker_stack.docker("image", "inspect", "--format", "{{.Id}}", image, check=False).strip()
    if not identity:
        return None
    mark = identity.removeprefix("sha256:")[:12]
    root = Path(tempfile.gettempdir()) / f"cosmos-test-programs-{os.geteuid()}-{mark}"
    if not root.exists():
        _unpack(image, root)
    return next(root.glob("usr/lib/postgresql/*/bin"), root / "bin")


def _unpack(image: str, root: Path) -> None:
    beside = Path(tempfile.mkdtemp(prefix="cosmos-test-programs-"))
    container = docker_stack.docker("create", image).strip()
    try:
        environment = {**os.environ, "DOCKER_HOST": docker_stack.HOST}
        call = ["sh", "-fc", _EXPORT, "sh", container, str(beside), " ".join(_WANTED)]
        subprocess.run(call, env=environment, check=True, timeout=200)
    finally:
        docker_stack.docker("rm", "--volumes", container)
    _wrap(beside, root)
    beside.chmod(0o755)
    with suppress(OSError):  # somebody else was faster
        beside.rename(root)
    shutil.rmtree(beside, ignore_errors=True)


def _wrap(beside: Path, root: Path) -> None:
    """In the place of each program a script that starts it with the loader and the libraries of its image."""
    (beside / "bin").mkdir()
    (beside / "program").mkdir()
    loader = next(path for path in beside.glob("usr/lib/*/ld-linux*.so.*"))
    libraries = f"{root / loader.parent.relative_to(beside)}:{root}/usr/local/lib"
    found = [*beside.glob("usr/lib/postgresql/*/bin/*"), *beside.glob("usr/bin/*"), *beside.glob("usr/local/bin/*")]
    for path in found:
        place = path if "postgresql" in path.parts else beside / "bin" / path.name
        program = beside / "program" / path.name
        if not program.exists():
            shutil.copy(path, program)
            if place == path:
                path.unlink()
            lines = {"loader": root / loader.relative_to(beside), "program": root / program.relative_to(beside)}
            place.write_text(_WRAPPER.format(libraries=libraries, **lines))
            place.chmod(0o755)
