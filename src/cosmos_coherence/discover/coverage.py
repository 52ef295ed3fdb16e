"""What a backup of this stack holds, and everything it does not, each named with the reason."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import msgspec

from cosmos_coherence import errors
from cosmos_coherence.discover import classify
from cosmos_coherence.model import Gap, Mount, Service, SourceKind, SourceRef, Stack, Volume
from cosmos_coherence.settings import SourceSettings

STATE_VOLUME = "cosmos-state"


class Coverage(msgspec.Struct, frozen=True):
    """The sources of a stack, in the order they are captured, and the gaps."""

    sources: tuple[SourceRef, ...]
    gaps: tuple[Gap, ...]
    hints: tuple[str, ...] = ()
    """Worth saying in ``status``, though everything is covered."""

    @property
    def engines(self) -> frozenset[str]:
        """The services that are database servers."""
        return frozenset(s.service for s in self.sources if s.service)

    def only(self, parts: Iterable[str]) -> tuple[SourceRef, ...]:
        """The sources of these parts; a name without folder (``api-cache``) is enough when it is clear.

        Raises ``NotFound`` naming the first part that is not there.
        """
        chosen: list[SourceRef] = []
        for wanted in parts:
            found = [s for s in self.sources if wanted in (s.part, s.part.split("/", 1)[-1], s.part.split("/", 1)[0])]
            if not found:
                known = ", ".join(s.part for s in self.sources)
                raise errors.NotFound(f"there is no part {wanted}", remedy=f"The parts are: {known}.")
            chosen += [s for s in found if s not in chosen]
        return tuple(chosen)


class Looks(msgspec.Struct, frozen=True):
    """How to look at folders: what a data folder looks like, how large one is, whether git tracks it."""

    holds: Callable[[Path], str]
    size: Callable[[Path], int]
    tracked: Callable[[Path], bool]


def cover(stack: Stack, settings: tuple[SourceSettings, ...], looks: Looks, *, backups: tuple[Path, ...]) -> Coverage:
    """Find the sources and the gaps; ``backups`` are the folders in which backups lie.

    Raises ``ConfigurationError`` for labels that make no sense.
    """
    gaps: list[Gap] = []
    hints: list[str] = []
    engines, engine_volumes = _engines(stack, looks)
    sources = list(engines)
    for volume in _volumes(stack):
        if volume.name in engine_volumes:
            continue
        found = _volume_source(stack, volume, looks)
        if isinstance(found, Gap):
            gaps.append(found)
        else:
            sources.append(found)
        if not volume.name.startswith(f"{stack.project}_"):
            hints.append(f"volume {volume.name} does not carry the project's prefix {stack.project}_")
    binds, bind_gaps = _binds(stack, looks, backups=backups)
    sources += binds
    gaps += bind_gaps
    gaps += _anonymous(stack, looks)
    sources += _configured(settings, sources)
    sources.append(SourceRef(kind="config", part="config", path=stack.directory))
    return Coverage(tuple(sources), tuple(gaps), tuple(hints))


def _engines(stack: Stack, looks: Looks) -> tuple[list[SourceRef], set[str]]:
    found: dict[str, SourceRef] = {}
    volumes: set[str] = set()
    for service in stack.services:
        kind = classify.classify(service, holds=looks.holds, stack=stack)
        if kind == "none" or service.name in found:
            continue
        mount = classify.data_mount(service, kind)
        volume = mount.source if mount and mount.kind == "volume" else ""
        path = Path(mount.source) if mount and mount.kind == "bind" else None
        if volume:
            volumes.add(volume)
            known = stack.volume(volume)
            path = known.path if known else None
        found[service.name] = SourceRef(
            kind=kind, part=f"{kind}/{service.name}", service=service.name, volume=volume, path=path
        )
    return sorted(found.values(), key=lambda s: (s.kind, s.service)), volumes


def _volumes(stack: Stack) -> Iterator[Volume]:
    for volume in sorted(stack.volumes, key=lambda v: v.name):
        if volume.exists and not re.fullmatch(r"[0-9a-f]{64}", volume.name):
            yield volume


def _excluded(labels: Iterable[str]) -> tuple[bool, tuple[str, ...]]:
    """(left out whole, patterns left out) from ``cosmos.exclude`` values."""
    patterns: list[str] = []
    for label in labels:
        if label.strip().lower() in ("true", "yes", "1"):
            return True, ()
        patterns += [p.strip() for p in label.split(",") if p.strip()]
    for pattern in patterns:
        if pattern.startswith("/") or ".." in pattern.split("/"):
            raise errors.ConfigurationError(f"cosmos.exclude pattern {pattern!r} does not stay inside the volume")
    return False, tuple(patterns)


def _volume_source(stack: Stack, volume: Volume, looks: Looks) -> SourceRef | Gap:
    name = f"volume {volume.name}"
    if volume.short == STATE_VOLUME:
        return Gap(name, "the program's own journal and schedule; a restored one would act on old notes", chosen=True)
    whole, patterns = _excluded([volume.labels["cosmos.exclude"]] if "cosmos.exclude" in volume.labels else [])
    if whole:
        return Gap(name, "label cosmos.exclude", size=looks.size(volume.path) if volume.path else None, chosen=True)
    if volume.path is None:
        return Gap(name, f"its files cannot be reached from here (driver {volume.driver})")
    held = looks.holds(volume.path)
    running = [s for s in stack.services if s.state == "running" and _mounts(s, volume.name)]
    if held == "postgres" and running:
        return Gap(
            name, f"looks like the data of a running {held} that was not recognised; label its service cosmos.kind"
        )
    return SourceRef(
        kind="volume", part=f"volumes/{volume.short}", volume=volume.name, path=volume.path, exclude=patterns
    )


def _mounts(service: Service, volume: str) -> bool:
    return any(m.kind == "volume" and m.source == volume and m.writable for m in service.mounts)


def _binds(stack: Stack, looks: Looks, *, backups: tuple[Path, ...]) -> tuple[list[SourceRef], list[Gap]]:
    sources: dict[str, SourceRef] = {}
    gaps: dict[str, Gap] = {}
    for service in stack.services:
        kind = classify.classify(service, holds=looks.holds, stack=stack)
        engine_data = classify.data_mount(service, kind)
        whole, patterns = _excluded([service.labels["cosmos.exclude"]] if "cosmos.exclude" in service.labels else [])
        included = [p.strip() for p in service.labels.get("cosmos.include", "").split(",") if p.strip()]
        for mount in service.mounts:
            if mount.kind != "bind" or mount == engine_data or mount.source in sources:
                continue
            name = f"bind mount {mount.source} of {service.name}"
            reason, chosen = _why_not(stack, mount, looks, backups=backups)
            if mount.target in included:
                reason = ""
            if not reason and (whole or any(fnmatch.fnmatch(mount.target, p) for p in patterns)):
                reason, chosen = "label cosmos.exclude", True
            if reason:
                gaps.setdefault(mount.source, Gap(name, reason, chosen=chosen))
                continue
            gaps.pop(mount.source, None)
            part = f"files/{_slug(stack, Path(mount.source), sources.values())}"
            sources[mount.source] = SourceRef(kind="files", part=part, path=Path(mount.source))
    return list(sources.values()), [g for source, g in gaps.items() if source not in sources]


def _why_not(stack: Stack, mount: Mount, looks: Looks, *, backups: tuple[Path, ...]) -> tuple[str, bool]:
    """Why a bind mount is not captured by itself (empty when it is), and whether that is nobody's fault."""
    path = Path(mount.source)
    if not mount.writable:
        return "mounted read-only", True
    if path.is_socket() or path.is_char_device() or path.is_block_device() or path.is_fifo():
        return "not a folder", True
    resolved = path.resolve()
    if lies_in(resolved, backups):
        return "the backups themselves", True
    directory = stack.directory.resolve()
    if directory not in resolved.parents:
        return "outside the project's folder; label the service cosmos.include or cosmos.exclude", False
    if holds(resolved, backups):
        return "holds the backups themselves", False
    if looks.tracked(resolved):
        return "tracked by git", True
    if not path.is_dir():
        return "a single file; put it below configs/ or label it cosmos.include", False
    return "", True


def lies_in(path: Path, folders: Iterable[Path]) -> bool:
    """Whether it is one of these folders or something below one, by whatever name."""
    resolved, own = path.resolve(), [_identity(folder) for folder in folders]
    return any(_identity(folder) in own for folder in (resolved, *resolved.parents))


def holds(path: Path, folders: Iterable[Path]) -> bool:
    """Whether one of these folders lies below it, by whatever name."""
    return any(_identity(path) == _identity(above) for folder in folders for above in folder.resolve().parents)


def _identity(folder: Path) -> object:
    """What tells a folder from all others. In a container the same one has a path of its own beside the host's."""
    resolved = folder.resolve()
    try:
        found = resolved.stat()
    except OSError:
        return resolved
    return (found.st_dev, found.st_ino)


def _slug(stack: Stack, path: Path, taken: Iterable[SourceRef]) -> str:
    try:
        name = str(path.resolve().relative_to(stack.directory.resolve()))
    except ValueError:
        name = str(path).strip("/")
    slug = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.") or "root"
    used = {s.part for s in taken}
    number, free = 2, slug
    while f"files/{free}" in used:
        free, number = f"{slug}-{number}", number + 1
    return free


def _anonymous(stack: Stack, looks: Looks) -> Iterator[Gap]:
    for service in stack.services:
        for mount in service.mounts:
            if not (mount.kind == "volume" and mount.anonymous and mount.writable):
                continue
            volume = stack.volume(mount.source)
            size = looks.size(volume.path) if volume and volume.path else None
            if size == 0:
                continue
            yield Gap(
                f"anonymous volume of {service.name} at {mount.target}",
                "it has no name and goes with its container; give it one in the Compose file",
                size=size,
            )


def _configured(settings: tuple[SourceSettings, ...], found: list[SourceRef]) -> Iterator[SourceRef]:
    parts = {s.part for s in found}
    for source in settings:
        if source.kind not in ("files", "volume", "sqlite"):
            continue
        if source.path is None or not source.path.is_absolute():
            raise errors.ConfigurationError(f"source {source.name}: path has to be absolute")
        kind: SourceKind = "sqlite" if source.kind == "sqlite" else "files"
        part = f"{kind}/{source.name}"
        if part in parts:
            raise errors.ConfigurationError(f"source {source.name}: there is already a part {part}")
        yield SourceRef(kind=kind, part=part, path=source.path, exclude=source.exclude)
