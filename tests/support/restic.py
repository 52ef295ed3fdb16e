"""The real restic, in both versions, as the referee; and what is in a repository, read with ours."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import stat
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import pytest

from cosmos_coherence.repository.gotext import permissions
from cosmos_coherence.repository.repository import Repository

PASSWORD = "right-Horse-9"
VERSIONS = ("0.14", "0.19")
_NEWER = Path(__file__).parents[2] / ".tools" / "restic-0.19" / "restic"
_KINDS = {
    "file": stat.S_IFREG,
    "dir": stat.S_IFDIR,
    "symlink": stat.S_IFLNK,
    "dev": stat.S_IFBLK,
    "chardev": stat.S_IFCHR,
    "fifo": stat.S_IFIFO,
}


@dataclass(frozen=True)
class Restic:
    """One version. ``work`` holds its cache."""

    program: str
    version: str
    work: Path
    environment: Mapping[str, str] = field(default_factory=dict)

    def run(self, repository: Path, *arguments: str | Path, cwd: Path | None = None, fails: bool = False) -> str:
        """What it says to ``arguments``; a test fails when it does (or does not, with ``fails``)."""
        command = [self.program, *map(str, arguments)]
        ended = subprocess.run(
            command, env=self._told(repository), capture_output=True, text=True, errors="backslashreplace", cwd=cwd
        )
        assert bool(ended.returncode) == fails, f"{command}: {ended.returncode}\n{ended.stdout}\n{ended.stderr}"
        return ended.stdout + ended.stderr if fails else ended.stdout

    def start(self, repository: Path, *arguments: str | Path, output: IO[bytes]) -> subprocess.Popen[bytes]:
        """It, running; what it says goes to ``output``."""
        command = [self.program, *map(str, arguments)]
        return subprocess.Popen(
            command, env=self._told(repository), stdin=subprocess.DEVNULL, stdout=output, stderr=output
        )

    def _told(self, repository: Path) -> dict[str, str]:
        return {
            "PATH": os.environ["PATH"],
            "HOME": str(self.work),
            "RESTIC_REPOSITORY": str(repository),
            "RESTIC_PASSWORD": PASSWORD,
            "RESTIC_FROM_PASSWORD": PASSWORD,
            "RESTIC_CACHE_DIR": str(self.work / "cache"),
            "GOMAXPROCS": "2",
            **self.environment,
        }

    def snapshots(self, repository: Path) -> list[dict[str, Any]]:
        """What it lists."""
        return list(json.loads(self.run(repository, "snapshots", "--json")))

    def check(self, repository: Path) -> None:
        """It reads everything and finds nothing wrong."""
        assert "no errors were found" in self.run(repository, "check", "--read-data")


def restic(version: str, work: Path, environment: Mapping[str, str] | None = None) -> Restic:
    """The program of that version; without it the test is skipped, which CI takes for a failure."""
    program = shutil.which("restic") if version == "0.14" else str(_NEWER) if _NEWER.exists() else None
    if program is None:
        pytest.skip(f"no restic {version}: `apt-get install restic` (bookworm), `tests/support/get-restic.sh`")
    said = subprocess.run([program, "version"], capture_output=True, text=True, check=True).stdout
    if not said.startswith(f"restic {version}."):
        pytest.skip(f"wanted restic {version}, found {said.strip()}")
    return Restic(program, version, work, environment or {})


def contents(repository: Repository, tree: bytes) -> dict[bytes, tuple[Any, ...]]:
    """Every name of a tree as in ``trees.looks``."""
    found: dict[bytes, tuple[Any, ...]] = {}
    first: dict[tuple[int, int], bytes] = {}
    _contents(repository, tree, b"", found, first)
    return found


def _contents(
    repository: Repository,
    tree: bytes,
    prefix: bytes,
    found: dict[bytes, tuple[Any, ...]],
    first: dict[tuple[int, int], bytes],
) -> None:
    nodes = repository.load_tree(tree)
    # In the order of ``os.walk``: a folder's files before what lies below.
    for node in nodes:
        path = prefix + node.file_name
        content: Any = node.target if node.type == "symlink" else None
        if node.type == "file":
            digest, size = hashlib.sha256(), 0
            for blob in node.blobs:
                plain = repository.load_blob("data", blob)
                digest.update(plain)
                size += len(plain)
            content = digest.hexdigest()
            assert size == node.size
        found[path] = (
            _KINDS[node.type] | permissions(node.mode),
            node.uid,
            node.gid,
            node.mtime_ns,
            {"file": node.size, "symlink": len(node.target)}.get(node.type, 0),
            0 if node.type == "dir" else node.links or 1,
            node.device,
            content,
            {xattr.name: xattr.value or b"" for xattr in node.extended_attributes},
        )
        if node.type == "file" and node.links > 1:
            found[path] += (first.setdefault((node.device_id, node.inode), path),)
    for node in nodes:
        if node.subtree is not None:
            _contents(repository, bytes.fromhex(node.subtree), prefix + node.file_name + b"/", found, first)
