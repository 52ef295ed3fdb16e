"""Backups and restores of a stack that go wrong on purpose, in this process or in one that is killed.

``python -m support.faulty FOLDER PROJECT DOCKER_HOST VERB ARCHIVE KILL`` carries out one verb. It says each step
that it comes to, and kills itself at ``KILL``; for the step ``undo`` it first fails at the last from which a way leads
back.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cosmos_coherence import errors
from cosmos_coherence.archive import listing
from cosmos_coherence.archive.reader import ArchiveReader
from cosmos_coherence.drivers.docker import DockerRuntime
from cosmos_coherence.drivers.local import LocalRuntime
from cosmos_coherence.flow import backup, events, recover, restore, steps, store, upkeep
from cosmos_coherence.parts import BackupReader
from cosmos_coherence.settings import Settings, load
from cosmos_coherence.storage import local
from support.program import SOURCE

LAST_WAY_BACK = "probe"
"""The last step of a restore from which it takes back what it did."""


@dataclass(frozen=True)
class FaultyStack:
    """A stack in a folder, of local processes or (with ``docker_host``) of containers."""

    folder: Path
    project: str
    docker_host: str = ""

    @property
    def runtime(self) -> Any:
        if not self.docker_host:
            return LocalRuntime(self.folder)
        return DockerRuntime(self.project, directory=self.folder, docker_host=self.docker_host)

    @property
    def settings(self) -> Settings:
        kind = "docker" if self.docker_host else "process"
        return load(self.folder, environ={}, stack__project=self.project, stack__runtime=kind)

    @property
    def backups(self) -> Path:
        return self.folder / "backups"

    def backup(self, step: events.Step = events.no_step, emit=events.silent, **options: Any) -> events.Report:
        plan = backup.plan_backup(self.runtime, self.settings, **options)
        return backup.backup(self.runtime, self.settings, plan, self._story("backup", step, emit))

    def restore(self, archive: Path, step: events.Step = events.no_step, emit=events.silent, only=()) -> events.Report:
        with self.opened(archive) as reader:
            plan = restore.plan_restore(self.runtime, reader.manifest, only=only, backups=(self.backups,))
            story = self._story("restore", step, emit)
            return restore.restore(self.runtime, self.settings, plan, reader, story, backups=self.backups)

    def prune(self, step: events.Step = events.no_step) -> events.Report:
        """Of the repository; nothing is left that no backup needs."""
        story = self._story("prune")
        try:
            upkeep.prune(self.settings, dry_run=False, progress=lambda name, done, of: step(name))
        except errors.CosmosError as error:
            return story.failed(error)
        return story.report("done")

    @contextmanager
    def opened(self, backup: Path) -> Iterator[BackupReader]:
        """The archive of that path; with a repository, the backup of that id."""
        if store.configured(self.settings):
            with store.open_backup(self.settings, str(backup), project=self.project) as reader:
                yield reader
            return
        with (
            local.spool(self.backups, recover.RESTORE_SPOOL) as spool,
            ArchiveReader.open_archive(backup, spool) as archive,
        ):
            yield archive

    def recover(self) -> events.Report:
        return recover.recover(self.runtime, self._story("recover"), backups=self.backups)

    def _story(self, verb: str, step=events.no_step, emit=events.silent) -> events.Story:
        return events.Story(verb=verb, run=backup.new_run(), project=self.project, step=step, emit=emit)

    def killed_at(self, step: str, verb: str, archive: Path | None = None) -> None:
        """The verb in a process that is killed when it comes to this step."""
        with self._process(verb, archive, step) as run:
            said = run.communicate(timeout=120)
        assert run.returncode == -signal.SIGKILL, f"the planned fault at {step} never happened: {said}"

    def killed_within(self, seconds: float, verb: str, archive: Path | None = None, *, after: str = "recover") -> bool:
        """The verb in a process that is killed so long after it came to a step, by itself the first. False when it had
        ended well by then."""
        with self._process(verb, archive) as run:
            assert run.stdout is not None
            while (said := run.stdout.readline()) != f"{after}\n":
                assert said, run.communicate()
            try:
                run.wait(timeout=seconds)
            except subprocess.TimeoutExpired:
                run.kill()
                run.wait()
                return True
            said = run.communicate()
        assert run.returncode == 0, said
        return False

    def _process(self, verb: str, archive: Path | None, step: str = "") -> subprocess.Popen[str]:
        stack = (str(self.folder), self.project, self.docker_host)
        return subprocess.Popen(
            [sys.executable, "-m", "support.faulty", *stack, verb, str(archive or ""), step],
            env={**os.environ, "PYTHONPATH": os.pathsep.join([str(SOURCE), str(Path(__file__).parents[1])])},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    def running(self) -> set[str]:
        return {s.name for s in self.runtime.stack().services if s.state == "running"}

    def published(self) -> list[str]:
        """The backups that are no safety backups, oldest first."""
        if store.configured(self.settings):
            return [k.id for k in store.kept(store.open_repository(self.settings), self.project) if not k.safety]
        return [a.id for a in listing.list_archives(self.backups) if not a.safety]

    def files_left(self) -> list[str]:
        """Every file that a run leaves behind only when it was killed and nobody healed it."""
        roots = [self.folder, *(v.path for v in self.runtime.stack().volumes if v.path)]
        found = [*listing.leftovers(self.backups), *(self.runtime.state_directory() / "journal").iterdir()]
        return [str(path) for path in (*found, *(p for root in roots for p in root.glob(".cosmos-*")))]


def fail_at(*names: str) -> Callable[[str], None]:
    """Break the run at these steps, one after another; ``left`` are those that it has not come to."""
    left = list(names)

    def step(reached: str) -> None:
        if left and reached == left[0]:
            raise errors.CommandFailed(f"broken on purpose at {left.pop(0)}")

    step.left = left  # type: ignore[attr-defined]
    return step


def act_at(**acts: Callable[[], object]) -> Callable[[str], None]:
    """Do something to the stack at these steps; ``left`` are those that the run has not come to."""

    def step(reached: str) -> None:
        if reached in acts:
            acts.pop(reached)()

    step.left = acts  # type: ignore[attr-defined]
    return step


def _main(folder: str, project: str, docker_host: str, verb: str, archive: str, kill: str) -> int:
    def step(name: str) -> None:
        print(name, flush=True)
        if name == kill:
            os.kill(os.getpid(), signal.SIGKILL)
        if kill == steps.UNDO and name == LAST_WAY_BACK:
            raise errors.CommandFailed(f"broken on purpose at {name}")

    stack = FaultyStack(Path(folder), project, docker_host)
    match verb:
        case "backup":
            report = stack.backup(step)
        case "restore":
            report = stack.restore(Path(archive), step)
        case _:
            report = stack.prune(step)
    print(report.failure, file=sys.stderr)
    return report.exit_status


if __name__ == "__main__":
    sys.exit(_main(*sys.argv[1:]))
