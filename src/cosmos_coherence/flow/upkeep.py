"""Keeping the repository well: checked, without what nobody needs, and copied to a second place."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
from msgspec import structs
from msgspec.structs import replace

from cosmos_coherence import errors
from cosmos_coherence.flow import known, store
from cosmos_coherence.settings import Settings

if TYPE_CHECKING:
    from cosmos_coherence.repository import check as checking
    from cosmos_coherence.repository.copying import Copied
    from cosmos_coherence.repository.prune import Progress

_DAY_S = 86400


class Pruned(msgspec.Struct, frozen=True):
    """What a prune did, or would do. Sizes are bytes."""

    removed_packs: int
    repacked_packs: int
    freed: int
    repacked: int
    kept: int
    unused: int
    """Stays though nothing needs it, because moving its neighbours would cost more."""
    dry_run: bool


class Checked(msgspec.Struct, frozen=True):
    """What a check found."""

    report: checking.Report
    note: str
    """What there is to say of the comparison with this host's own record; mostly nothing."""


def check(
    settings: Settings, *, read_share: float = 0.0, state: Path | None = None, project: str | None = None
) -> Checked:
    """Look at everything in the repository, and read a share of its data, another one every day.

    With ``state`` (the stack's state directory) and ``project``, a backup that this host knows and that is not there
    is a fault. Raises as ``store.open_repository``, ``Locked`` during a prune, and the backend's errors.
    """
    from cosmos_coherence.repository import check as checking
    from cosmos_coherence.repository import locks

    repository = store.open_repository(settings)
    with locks.acquire(repository):
        report = checking.check(repository, read_share=read_share, day=int(time.time() // _DAY_S))
        if state is None or project is None:
            return Checked(report, "not compared with this host's own record, which cannot be reached from here")
        try:
            gone, note = known.missing(state, repository, project)
        except errors.CosmosError as error:  # a repository that cannot be listed has faults enough to be told
            return Checked(report, f"not compared with this host's own record: {error.message}")
    file = known.file_of(state, repository.config.id)
    faults = [
        checking.Fault(
            "snapshot", each.snapshot, f"backup {each.backup} was here and is gone, and was not forgotten from here; "
            f"if you removed it on purpose, remove {file}",
        )
        for each in gone
    ]  # fmt: skip
    return Checked(replace(report, faults=(*report.faults, *faults)), note)


def prune(settings: Settings, *, dry_run: bool, progress: Progress = lambda step, done, of: None) -> Pruned:
    """Remove the data that no backup needs. Raises ``Locked`` while anybody uses the repository, and ``Damaged``."""
    from cosmos_coherence.repository import locks
    from cosmos_coherence.repository import prune as pruning

    repository = store.open_repository(settings)
    with locks.acquire(repository, exclusive=True) as lock:
        progress("plan", 0, 1)
        plan = pruning.plan(repository)
        if not dry_run and not plan.empty:
            pruning.apply(repository, plan, lock, progress=progress)
    return Pruned(
        len(plan.remove),
        len(plan.repack),
        plan.freed_size,
        plan.repacked_size,
        plan.kept_size,
        plan.unused_size,
        dry_run,
    )


def copy(settings: Settings, target: Settings, *, project: str | None, names: tuple[str, ...] = ()) -> Copied:
    """Copy backups (all of the project without ``names``) into another repository, which stores only what it lacks.

    What is damaged stays behind and is named in the result; with ``names``, what cannot be read was not asked for.
    """
    from cosmos_coherence.repository import copying, locks

    source, other = store.open_repository(settings), store.open_repository(target)
    wanted = [store.find(source, name, project) for name in names] or store.kept(source, project)
    with locks.acquire(source), locks.acquire(other):
        copied = copying.copy(source, other, [each.snapshot for each in wanted], workers=settings.backup.workers)
    if names:
        copied.unreadable = ()
    return copied


def second(settings: Settings, url: str, password_file: Path) -> Settings:
    """The settings of the other repository: its URL and password, everything else as for the first."""
    repository = structs.replace(
        settings.repository, url=url, password_file=settings.stack.directory / password_file, password_command=()
    )
    return structs.replace(settings, repository=repository)
