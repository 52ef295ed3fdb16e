"""The configuration of a stack as a source: its Compose files, ``.env*``, ``configs/`` and what they point to."""

from __future__ import annotations

import io
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from cosmos_coherence import errors
from cosmos_coherence.copied import Copied
from cosmos_coherence.model import Entry, Fingerprint, Gap, Part, SourceRef
from cosmos_coherence.parts import Sink
from cosmos_coherence.sources import tree_print

_LARGEST = 16 * 1024 * 1024
"""A configuration file above this size is no configuration."""


class ConfigSource:
    """Captures a list of small files and folders below the project's folder, read whole at the anchor."""

    def __init__(self, ref: SourceRef, root: Path, names: tuple[str, ...]) -> None:
        self._ref, self._root, self._names = ref, root, names
        self._taken: list[tuple[Entry, bytes]] = []

    @property
    def ref(self) -> SourceRef:
        """What it captures."""
        return self._ref

    def prepare(self, sink: Sink) -> None:
        """Nothing takes long here."""

    def anchor(self) -> None:
        """Read everything. Raises ``CaptureFailed`` naming the file that cannot be read."""
        self._taken = sorted(_collect(self._root, self._names), key=lambda pair: pair[0].path)

    def capture(self, sink: Sink) -> Part:
        """Write what was read."""
        tree = sink.tree("configs")
        names: list[Copied] = []
        for entry, content in self._taken:
            names.append(Copied.of(entry, tree.add(entry, io.BytesIO(content)) if entry.kind == "file" else ""))
        file = tree.finish(names)
        print_ = tree_print.print_of(names)
        return Part(name=self._ref.part, kind="config", files=(file,), fingerprint=Fingerprint(tree=print_))

    @property
    def gaps(self) -> tuple[Gap, ...]:
        """All of it is captured, or nothing."""
        return ()

    def clients(self) -> tuple[tuple[str, str], ...]:
        """Nobody is connected to files."""
        return ()

    def close(self) -> None:
        """Forget what was read."""
        self._taken = []


def _collect(root: Path, names: tuple[str, ...]) -> Iterator[tuple[Entry, bytes]]:
    seen: set[bytes] = set()
    yield _entry(root, b""), b""
    for name in names:
        for path in _below(root / name):
            relative = os.fsencode(path.relative_to(root))
            steps = relative.split(b"/")
            for depth in range(1, len(steps)):
                folder = b"/".join(steps[:depth])
                if folder not in seen:
                    seen.add(folder)
                    yield _entry(root / os.fsdecode(folder), folder), b""
            if relative in seen:
                continue
            seen.add(relative)
            entry = _entry(path, relative)
            yield entry, _read(path) if entry.kind == "file" else b""


def _below(path: Path) -> Iterator[Path]:
    if path.is_symlink() or not path.is_dir():
        if path.is_symlink() or path.is_file():  # never open a pipe or a device
            yield path
        return
    yield path
    for child in sorted(path.iterdir()):
        yield from _below(child)


def _entry(path: Path, relative: bytes) -> Entry:
    try:
        found = path.lstat()
        target = os.fsencode(path.readlink()) if stat.S_ISLNK(found.st_mode) else b""
    except OSError as error:
        raise errors.CaptureFailed(f"{path} cannot be read: {error.strerror}") from error
    kind = "dir" if stat.S_ISDIR(found.st_mode) else "symlink" if stat.S_ISLNK(found.st_mode) else "file"
    return Entry(
        path=relative,
        kind=kind,  # type: ignore[arg-type]
        mode=stat.S_IMODE(found.st_mode),
        uid=found.st_uid,
        gid=found.st_gid,
        mtime_ns=found.st_mtime_ns,
        size=found.st_size if kind == "file" else 0,
        target=target,
    )


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            content = file.read(_LARGEST + 1)
    except OSError as error:
        raise errors.CaptureFailed(f"{path} cannot be read: {error.strerror}") from error
    if len(content) > _LARGEST:
        raise errors.CaptureFailed(
            f"{path} is larger than {_LARGEST} bytes", remedy="Keep data out of the configuration folders."
        )
    return content
