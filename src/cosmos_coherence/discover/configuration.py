"""Which files make up the configuration of a stack."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from cosmos_coherence.model import Stack

_NEVER = ("secrets/repository-password", ".git", "backups")
"""The repository's own password is never captured: whoever holds the backup would hold the key."""


def configuration_names(
    stack: Stack, *, referenced: Iterable[Path] = (), never: Iterable[Path] = ()
) -> tuple[str, ...]:
    """Names relative to the project's folder, sorted: Compose files, ``.env*``, ``configs/``, ``cosmos.toml``,
    ``stack.json``, and what the Compose files refer to (``referenced``: secrets, configs, read-only mounts). Files that
    ``never`` names are not among them."""
    root = stack.directory.resolve()
    left_out = {(root / path).resolve() for path in never}
    names: set[str] = set()
    for path in (*stack.config_files, *_well_known(root), *referenced):
        resolved = path if path.is_absolute() else root / path
        if resolved.resolve() in left_out:
            continue
        if not resolved.is_relative_to(root) or not (resolved.exists() or resolved.is_symlink()):
            continue
        name = str(resolved.relative_to(root))
        if name not in (".", "") and not any(name == n or name.startswith(f"{n}/") for n in _NEVER):
            names.add(name)
    return tuple(sorted(names))


def outside(stack: Stack) -> tuple[Path, ...]:
    """Compose files that lie outside the project's folder and so are not captured with it."""
    root = stack.directory.resolve()
    return tuple(p for p in stack.config_files if not p.resolve().is_relative_to(root))


def _well_known(root: Path) -> Iterator[Path]:
    yield from sorted(root.glob(".env*"))
    for name in ("configs", "cosmos.toml", "stack.json"):
        yield root / name


def compose_names(stack: Stack) -> tuple[str, ...]:
    """The Compose files in use, relative to the project's folder, in their order."""
    root = stack.directory.resolve()
    return tuple(str(p.resolve().relative_to(root)) for p in stack.config_files if p.resolve().is_relative_to(root))
