"""The archive while it is made: parts into a spool, then one file, published as the last write."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from cosmos_coherence import errors, manifests
from cosmos_coherence.archive import gzipped, listing, names, readme, sums
from cosmos_coherence.archive.folder import FolderFile, FolderWriter
from cosmos_coherence.archive.outer import OuterTar
from cosmos_coherence.archive.stored import Stored, StoredFile, sha256
from cosmos_coherence.archive.tree import TarGzWriter
from cosmos_coherence.archive.verify import verify_archive
from cosmos_coherence.model import Manifest, PartFile
from cosmos_coherence.parts import CONFIGS, Stream, TreeWriter
from cosmos_coherence.storage import local


class _Packed(msgspec.Struct, frozen=True):
    """A whole archive that nobody sees yet."""

    temporary: Path
    final: Path
    manifest: Manifest
    latest: bool
    """Whether it becomes the latest."""


def spool_of(directory: Path, backup_id: str) -> Path:
    """The folder in which the parts of an archive wait until all are there."""
    return directory / f"{names.SPOOL_PREFIX}{backup_id}"


def discard(spool: Path) -> None:
    """Remove what a killed writer left: its spool, its temporary files, a manifest that got no archive. An archive that
    it had published, but not yet made the latest, becomes that. Errors as in ``local.translated``.
    """
    directory, backup_id = spool.parent, spool.name.removeprefix(names.SPOOL_PREFIX)
    with local.translated(f"clearing {directory}"):
        own = (backup_id, f"{names.SAFETY_PREFIX}{backup_id}")
        for name in (*own, names.LATEST):
            for path in directory.glob(f".{name}.*.tmp"):
                path.unlink()
        for name in own:
            if not (directory / f"{name}.tar.gz").exists():
                (directory / f"{name}.json").unlink(missing_ok=True)
        final, latest = directory / f"{backup_id}.tar.gz", directory / names.LATEST
        if final.exists() and not (latest.exists() and latest.stat().st_mtime_ns >= final.stat().st_mtime_ns):
            local.publish_link(final, latest)
    shutil.rmtree(spool, ignore_errors=True)


class ArchiveWriter:
    """A ``parts.Sink`` into one archive: filled, packed, then published. ``abort`` may come at any time."""

    def __init__(self, directory: Path, backup_id: str, *, workers: int = 2) -> None:
        """Make the spool ``.spool-<id>`` in ``directory``, which is made as well. ``workers`` threads compress.

        ``Refused`` when the spool is there already, else errors as in ``local.translated``.
        """
        self.id = backup_id
        self.spool = spool_of(directory, backup_id)
        self._directory, self._ahead = directory, 2 * workers
        self._stored: dict[str, Stored] = {}
        self.stored = 0
        self._folder: tuple[FolderFile, ...] = ()
        self._trees: list[TarGzWriter] = []
        self._unpublished: list[Path] = []
        self._open, self._opening = True, threading.Lock()
        self._packed: _Packed | None = None
        local.make_private(directory)
        with local.translated(f"making {self.spool}"):
            try:
                self.spool.mkdir(mode=0o700)
            except FileExistsError as error:
                raise errors.Refused(
                    f"{self.spool} was left behind by another run", remedy="Run `cosmos recover`."
                ) from error
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="gzip")

    @contextmanager
    def stream(self, name: str) -> Iterator[Stream]:
        """As ``parts.Sink`` says: compressed, except what lies below ``redis/``, which must be usable as it is."""
        stored = names.stream_file(name)
        path = self._place(stored)
        file = StoredFile(path)
        stream = _GzipStream(stored, file, self._pool, self._ahead) if stored.endswith(".gz") else _Plain(stored, file)
        try:
            yield stream
            stream.close()
        except BaseException:
            file.discard()
            raise
        file.close()
        self._keep(Stored(stream.file(), path, ((0, file.size),)))

    def tree(self, name: str) -> TreeWriter:
        """As ``parts.Sink`` says."""
        stored = names.tree_file(name)
        path = self._place(stored)
        if stored == CONFIGS:
            local.make_private(path)
            return FolderWriter(path, self._keep_folder)
        tree = TarGzWriter(path, stored, self._pool, self._ahead, self._keep)
        self._trees.append(tree)
        return tree

    def last(self) -> Manifest | None:
        """The manifest of the newest archive beside this one."""
        found = [archive.manifest for archive in listing.list_archives(self._directory) if not archive.safety]
        return found[-1] if found else None

    def pack(self, manifest: Manifest) -> Path:
        """Write the archive of every file that the manifest names; what it does not name goes.

        Returns its temporary path, so that it can be read back before it counts. ``Refused`` when an archive of that
        name exists. A safety backup is called ``safety-<id>``.
        """
        assert manifest.id == self.id, f"the manifest of {manifest.id} for the archive {self.id}"
        name = f"{names.SAFETY_PREFIX}{self.id}" if manifest.safety else self.id
        final = self._directory / f"{name}.tar.gz"
        if final.exists():
            raise errors.Refused(f"{final} exists already", remedy="Run the command again.")
        temporary = self._directory / f".{name}.tar.gz.tmp"
        self._unpublished.append(temporary)
        with OuterTar(temporary, self.id.encode(), _mtime_ns(self.id)) as outer:
            self._write(outer, manifest, manifests.encode(manifest))
        self._packed = _Packed(temporary, final, manifest, latest=not manifest.safety)
        self.stored = temporary.stat().st_size
        return temporary

    def verify(self) -> None:
        """Read the packed archive back to its end. Raises what ``verify_archive`` raises."""
        assert self._packed is not None, "nothing is packed"
        verify_archive(self._packed.temporary, self._packed.manifest)

    def publish(self) -> Path:
        """Give the packed archive its name, durable and in one step, and return it.

        The manifest beside it comes before the archive's final name, ``latest.tar.gz`` last; a safety backup never
        becomes the latest.
        """
        assert self._packed is not None, "nothing is packed"
        final = self._packed.final
        beside = final.with_name(f"{final.name.removesuffix('.tar.gz')}.json")
        self._unpublished.append(beside)
        local.write_atomically(beside, manifests.encode(self._packed.manifest))
        local.publish(self._packed.temporary, final)
        self._unpublished.clear()
        if self._packed.latest:
            local.publish_link(final, self._directory / names.LATEST)
        self.abort()
        return final

    def abort(self) -> None:
        """Remove all that was not published. May be called again, and after ``publish``. Never raises."""
        with self._opening:  # Ctrl-C may have left a thread behind that nobody awaits: it must not begin anew
            self._open = False
        self._pool.shutdown(cancel_futures=True)
        for tree in self._trees:
            tree.close()
        self._trees.clear()
        for path in self._unpublished:
            with suppress(OSError):
                path.unlink()
        self._unpublished.clear()
        shutil.rmtree(self.spool, ignore_errors=True)

    def _place(self, stored: str) -> Path:
        path = self.spool / stored
        with self._opening:
            if not self._open:
                raise errors.Interrupted("the archive is not written any more")
            local.make_private(path.parent)
        return path

    def _keep(self, stored: Stored) -> None:
        self._stored[stored.file.path] = stored

    def _keep_folder(self, folder: tuple[FolderFile, ...]) -> None:
        self._folder = folder

    def _write(self, outer: OuterTar, manifest: Manifest, text: bytes) -> None:
        parts = {file.path: file for part in manifest.parts for file in part.files}
        folder = self._folder if parts.pop(CONFIGS, None) else ()
        for path, file in parts.items():
            assert path in self._stored and self._stored[path].file == file, f"{path} is not what was stored"
        ours = {"README.txt": readme.text(manifest).encode("utf-8", "backslashreplace")}
        links: dict[str, str] = {}
        for dump in filter(names.is_redis_dump, parts):
            links[names.aof_base(dump)] = dump
            ours[names.aof_manifest(dump)] = names.AOF_MANIFEST

        digests = {path: file.sha256 for path, file in parts.items()}
        digests |= {path: digests[dump] for path, dump in links.items()}
        digests |= {path: sha256(content) for path, content in ours.items()}
        digests[manifests.NAME] = sha256(text)
        listed = {path.encode(): digest for path, digest in digests.items()}
        listed |= {b"configs/" + f.entry.path: f.sha256 for f in folder if f.entry.kind == "file"}

        outer.content(manifests.NAME, text)
        outer.content(sums.NAME, sums.encode(listed))
        for path, content in sorted(ours.items()):
            outer.content(path, content)
        for path in sorted(parts):
            outer.file(self._stored[path])
        for path, dump in sorted(links.items()):
            outer.link(path, dump)
        for folder_file in folder:
            outer.folder_file(folder_file)


class _Plain:
    """A stream that is stored as it is."""

    def __init__(self, name: str, file: StoredFile) -> None:
        self._name, self._file = name, file

    def write(self, data: bytes | memoryview, /) -> int:
        self._file.write(data)
        return len(data)

    def close(self) -> None:
        pass

    def file(self) -> PartFile:
        return self._file.part_file(self._name, self._file.size)


class _GzipStream:
    """A stream that is compressed by several threads."""

    def __init__(self, name: str, file: StoredFile, pool: ThreadPoolExecutor, ahead: int) -> None:
        self._name, self._file = name, file
        self._gzip = gzipped.ParallelGzip(pool, ahead)
        self._buffer = bytearray()
        self._plain = 0

    def write(self, data: bytes | memoryview, /) -> int:
        self._buffer += data
        self._plain += len(data)
        if len(self._buffer) >= gzipped.MEMBER:
            self._submit()
        return len(data)

    def close(self) -> None:
        if self._buffer or not self._plain:
            self._submit()
        self._gzip.flush()

    def file(self) -> PartFile:
        return self._file.part_file(self._name, self._plain)

    def _submit(self) -> None:
        self._gzip.put(self._buffer, self._file.write)
        self._buffer = bytearray()


def _mtime_ns(backup_id: str) -> int:
    made = datetime.strptime(backup_id[: len("YYYYMMDD_HHMMSS")], "%Y%m%d_%H%M%S").replace(tzinfo=UTC)
    return int(made.timestamp()) * 1_000_000_000
