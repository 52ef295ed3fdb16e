"""The files of a server that does not start, moved out of its way into a volume of their own, and back."""

from __future__ import annotations

import os
from pathlib import Path

from cosmos_coherence import errors
from cosmos_coherence.discover import classify
from cosmos_coherence.drivers.runtime import Runtime
from cosmos_coherence.model import Stack, Volume, VolumeRecord
from cosmos_coherence.sources import staging, tree_restore

_BY_HAND = (
    "Keep its files with the volume backup of the guide, remove the volume (`docker volume rm`), and run the same "
    "command again: it makes a new one."
)


def data_volume(stack: Stack, service: str) -> Volume:
    """The volume in which a PostgreSQL server of the live stack keeps its data. ``Unsupported`` when that is none, or
    cannot be reached from here."""
    found = stack.service(service)
    mount = classify.data_mount(found, "postgres") if found is not None else None
    volume = stack.volume(mount.source) if mount is not None and mount.kind == "volume" else None
    if volume is None or volume.path is None:
        raise errors.Unsupported(f"the data of {service} do not lie in a volume that can be reached", remedy=_BY_HAND)
    return volume


def move_out(runtime: Runtime, volume: Volume, name: str) -> None:
    """Move all that is in the volume into the new volume ``name``, which backups leave out. May be repeated.

    The server is stopped. Raises ``RestoreFailed``, and ``Unsupported`` where names cannot move from one to the other.
    """
    kept = runtime.create_volume(VolumeRecord(name, name, labels={"cosmos.exclude": "true"}))
    if kept.path is None:  # in a container that has only the volumes it was started with
        runtime.remove_volume(name)
    source, target = _path(volume), _path(kept)
    staging.refuse_mounts(source)
    with staging.translated(target):
        tree_restore.dress(target, tree_restore.metadata(source))
    _move_all(source, target)


def clear(volume: Volume) -> None:
    """Remove what a new server has made in the volume. May be repeated."""
    staging.refuse_mounts(_path(volume))
    with staging.translated(_path(volume)), staging.opened(_path(volume)) as folder:
        for name in staging.names(folder):
            staging.remove_tree(folder, name)
        os.fsync(folder)


def move_back(runtime: Runtime, volume: Volume, name: str) -> None:
    """The way back of ``move_out``; the volume ``name`` goes. May be repeated."""
    kept = runtime.stack().volume(name)
    if kept is None or not kept.exists:
        return
    source, target = _path(kept), _path(volume)
    _move_all(source, target)
    with staging.translated(target):
        tree_restore.dress(target, tree_restore.metadata(source))
    runtime.remove_volume(kept.name)


def _move_all(source: Path, target: Path) -> None:
    try:
        with staging.opened(source) as here, staging.opened(target) as there:
            for name in staging.names(here):
                staging.move(name, here, there)
            os.fsync(there)
            os.fsync(here)
    except OSError as error:
        raise errors.RestoreFailed(
            f"the files in {source} cannot be moved to {target}: {error.strerror}", remedy=_BY_HAND
        ) from error


def _path(volume: Volume) -> Path:
    if volume.path is None:
        raise errors.Unsupported(f"the files of volume {volume.name} cannot be reached from here", remedy=_BY_HAND)
    return volume.path
