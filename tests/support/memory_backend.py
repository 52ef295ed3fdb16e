"""A repository's place in memory, as strict as the real ones."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence

from cosmos_coherence import errors
from cosmos_coherence.storage import layout
from cosmos_coherence.storage.backend import Kind, Properties, Stored


class MemoryBackend:
    """Files by their path in the layout; ``files`` is there to be looked at and damaged by tests."""

    properties = Properties(connections=2, local=True)
    location = "memory"

    def __init__(self, *, append_only: bool = False) -> None:
        self.files: dict[str, bytes] = {}
        self._append_only = append_only
        self._lock = threading.Lock()

    def create(self) -> None:
        pass

    def save(self, kind: Kind, name: str, content: Sequence[bytes | bytearray | memoryview]) -> None:
        path, data = layout.path_of(kind, name), b"".join(content)
        with self._lock:
            found = self.files.setdefault(path, data)
        if len(found) != len(data):
            raise errors.Refused(f"{path} is there with {len(found)} bytes, and {len(data)} were to be written")

    def load(self, kind: Kind, name: str, offset: int = 0, length: int | None = None) -> bytes:
        data = self._at(kind, name)
        end = len(data) if length is None else offset + length
        if end > len(data) or (offset and offset >= len(data)):
            raise errors.Damaged(f"{name} has {len(data)} bytes, and bytes {offset} to {end} were asked for")
        return data[offset:end]

    def size(self, kind: Kind, name: str) -> int:
        return len(self._at(kind, name))

    def list(self, kind: Kind) -> Iterator[Stored]:
        with self._lock:
            found = [(path, len(data)) for path, data in self.files.items() if path.split("/")[0] == kind]
        for path, size in found:
            name = "" if kind == "config" else path.rpartition("/")[2]
            if kind == "config" or layout.is_name(name):
                yield Stored(name, size)

    def remove(self, kind: Kind, name: str) -> None:
        path = layout.path_of(kind, name)
        if self._append_only and kind != "locks":
            raise errors.Refused(f"{path} cannot be removed: the store is append-only")
        with self._lock:
            self.files.pop(path, None)

    def close(self) -> None:
        pass

    def _at(self, kind: Kind, name: str) -> bytes:
        path = layout.path_of(kind, name)
        with self._lock:
            if path not in self.files:
                raise errors.NotFound(f"{path} is not there")
            return self.files[path]
