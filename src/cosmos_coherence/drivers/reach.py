"""What of the engine's machine can be reached from where this program runs: on that machine, beside it, elsewhere."""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

from cosmos_coherence import errors
from cosmos_coherence.drivers import cgroup
from cosmos_coherence.drivers.docker_facts import Facts
from cosmos_coherence.drivers.engine import Engine


class Reach:
    """The folders of one engine's machine, as they are seen from here."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    @cached_property
    def own_id(self) -> str:
        """The id of the container of this engine that this program runs in; empty outside of one."""
        found = cgroup.own_container()
        if found:
            try:
                return str(self._engine.ask("inspect_container", found)["Id"])
            except errors.NotFound:
                return ""  # another engine's
        return ""

    @cached_property
    def own_mounts(self) -> Sequence[Facts]:
        """What is mounted into that container."""
        return tuple(self._engine.ask("inspect_container", self.own_id)["Mounts"]) if self.own_id else ()

    def volume(self, facts: Facts) -> Path | None:
        """Where the files of a volume, as the engine inspects it, can be read; None where they cannot."""
        for mount in self.own_mounts:
            if mount["Type"] == "volume" and mount["Name"] == facts["Name"]:
                return Path(mount["Destination"])
        options = facts.get("Options") or {}
        path = Path(str(facts.get("Mountpoint") or ""))
        if facts.get("Driver") != "local" or "device" in options:
            # Mounted only while a container uses it; at other times the folder is there, and empty.
            if "bind" in str(options.get("o", "")).split(","):
                path = Path(str(options["device"]))
            elif not os.path.ismount(path):
                return None
        reachable = path.is_absolute() and os.access(path, os.R_OK | os.X_OK) and path.is_dir()
        return path if reachable else None

    def host_path(self, path: Path) -> Path | None:
        """Where ``path`` lies on the engine's machine; None for one inside this program's own container only."""
        if not self.own_id:
            return path
        under = [m for m in self.own_mounts if m.get("Source") and path.is_relative_to(m["Destination"])]
        if not under:
            return None
        mount = max(under, key=lambda m: len(m["Destination"]))
        return Path(mount["Source"]) / path.relative_to(mount["Destination"])


def private_folder(folder: Path) -> Path:
    """A folder for state, made and closed to others where that is missing. ``ConfigurationError`` when it cannot be."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if stat.S_IMODE(folder.stat().st_mode) != 0o700:
            folder.chmod(0o700)
    except OSError as error:
        raise errors.ConfigurationError(
            f"the state directory {folder} cannot be used: {error.strerror}",
            remedy="Run as the user it belongs to, or name another one with COSMOS_STATE_DIRECTORY.",
        ) from error
    return folder
