"""Small files on their way into a repository: each is read in one call and is one blob, whatever is in it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from cosmos_coherence import errors
from cosmos_coherence.content_digest import SMALL
from cosmos_coherence.copied import Copied
from cosmos_coherence.drivers.folders import Folders, data_runs, from_stat, open_file, xattrs


def copied(root: Path, paths: Iterable[bytes], save: Callable[[memoryview], str]) -> Iterator[Copied]:
    """Read the files and have each saved, which gives its digest; what ``save`` gets is valid until it returns.

    Left out: what is no file any more, is too large, or has holes. What is read is exactly as long as the file was
    when it was opened, whatever becomes of it meanwhile. Raises ``CaptureFailed`` naming what cannot be read.
    """
    path = b""
    room = memoryview(bytearray(SMALL))
    try:
        with Folders(root) as folders:
            for path in paths:
                if (opened := open_file(folders, path)) is None:
                    continue
                file, status = opened
                try:
                    size = status.st_size
                    if size > SMALL or data_runs(file, status) is not None:
                        continue
                    attributes = xattrs(file)
                    count = os.readv(file, [room[:size]]) if size else 0
                    while count < size and (more := os.readv(file, [room[count:size]])):
                        count += more
                    if count < size:
                        room[count:size] = bytes(size - count)
                finally:
                    os.close(file)
                found = from_stat(path, status, folders.device)
                assert found is not None
                yield Copied(found, attributes, None, save(room[:size]))
    except OSError as error:
        name = ascii(os.fsdecode(path))[1:-1]
        raise errors.CaptureFailed(
            f"{name} in {root} cannot be read: {error.strerror}",
            remedy="Run as a user who may read it, or leave it out with `cosmos.exclude`.",
        ) from error
