"""Where the fault harness plays: a stack, a place for its backups, and the run that goes wrong and is mended."""

from __future__ import annotations

import os
import random
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from cosmos_coherence import errors
from cosmos_coherence.archive.verify import verify_archive
from cosmos_coherence.flow import events, initialise, steps, store
from cosmos_coherence.repository.check import check
from support import backend_servers
from support.fault_cases import Case, Place, Verb
from support.fault_strikes import STRIKES, Lift, Surroundings
from support.faulty import LAST_WAY_BACK

_COMMON = '[backup]\nmin_free = 0\narchive = true\n[retention]\nkeep_within = "0s"\n'
_REPOSITORY = '[repository]\nurl = "{url}"\npassword_file = "secrets/password"\n'
_SERVER = f'rest_user = "{backend_servers.USER}"\nrest_password_file = "secrets/rest"\n'
_LARGE = 2 << 20
UNPUBLISHED = frozenset(steps.BACKUP[: steps.BACKUP.index("publish")])


class Staged(Protocol):
    """What the stacks of both runtimes can do for the harness."""

    def change(self) -> None:
        """Make every store differ from what was backed up."""
        ...

    def state(self) -> Any:
        """What is in all stores; a mix of two states equals neither."""
        ...

    def leftovers(self) -> list[str]:
        """Everything that a run leaves behind only when it was not healed."""
        ...

    def goes_on(self) -> bool:
        """All services run, nothing is held, and the writer writes."""
        ...


@dataclass
class Stage:
    """Play one case after the other on it; each leaves it whole."""

    around: Surroundings
    stack: Any  # a FaultyStack that is Staged
    wanted: dict[str, Any] = field(default_factory=dict)
    """What each backup holds, by its id."""
    place: Place = "archive"

    def __post_init__(self) -> None:
        secrets = self.stack.folder / "secrets"
        secrets.mkdir(mode=0o700, exist_ok=True)
        (secrets / "password").write_text("of the repository\n")
        (secrets / "rest").write_text(f"{backend_servers.PASSWORD}\n")
        self.keep_in("repository")
        initialise.initialise(self.stack.settings)

    def keep_in(self, place: Place, *, served: bool = False) -> None:
        """From now on backups go there; ``served``: through the door in front of the repository's server."""
        text, self.place = _COMMON, place
        if place == "repository":
            door = self.around.backend
            url = f"rest:http://127.0.0.1:{door.port}/repository" if served and door else initialise.DEFAULT_URL
            text += _REPOSITORY.format(url=url) + (_SERVER if served else "")
        (self.stack.folder / "cosmos.toml").write_text(text)

    # -------------------------------------------------------------------------------------------------- one case
    def play(self, case: Case, rng: random.Random) -> None:
        """The fault, the look around, perhaps ``recover``, the same command again, and everything as it must be."""
        self.keep_in(case.place, served=case.fault == "dead backend")
        source = self.prepared(case.verb)
        old, listed = self.stack.state(), self.stack.published()
        new = self.wanted[source] if case.verb == "restore" else old
        assert case.verb != "restore" or new != old
        report = self.struck(case, source)
        self.look_at_the_list(listed, old)
        if report is not None:
            self.look_at(case, report, listed, old, new)
        if case.verb != "restore":
            assert self.stack.goes_on(), "what was not touched does not go on"
        if rng.random() < 0.5:
            healed = self.stack.recover()
            assert healed.status == "done", healed.failure
            self.whole((old, new))
        again = self.run(case.verb, source)
        assert again.status == "done", again.failure or again.missing
        self.look_at_the_list(listed, old)
        self.whole((new,))
        if case.place == "repository":
            self.look_at_the_repository()
        if case.verb == "backup" and rng.random() < 0.25:
            self.comes_back()

    def prepared(self, verb: Verb) -> str:
        """The stack differs from its newest backup, whose id this is; a repository holds what nobody needs any more.

        Beside the last large file, whose backup is gone, lies one that is still needed: a prune has to repack.
        """
        if verb == "prune" or not self.stack.published() or self.stack.published()[-1] not in self.wanted:
            for name in ("lasting", "bulk"):
                for large in {name, "bulk"}:
                    (self.stack.files / large).write_bytes(os.urandom(_LARGE))
                self.stack.change()
                report = self.run("backup", "")
                assert report.status == "done", report.failure
                self.wanted[report.backup] = self.stack.state()
        self.stack.change()
        return str(self.stack.published()[-1])

    def at(self, identity: str) -> Path:
        return Path(identity) if self.place == "repository" else self.stack.backups / f"{identity}.tar.gz"

    def run(self, verb: Verb, source: str, step: events.Step = events.no_step) -> events.Report:
        if verb == "restore":
            return self.stack.restore(self.at(source), step)
        return self.stack.backup(step) if verb == "backup" else self.stack.prune(step)

    def struck(self, case: Case, source: str) -> events.Report | None:
        """The run with the fault at its step, which has to come; None of one that was killed."""
        if case.fault == "kill -9":
            self.stack.killed_at(case.step, case.verb, self.at(source))
            return None
        lifts: list[Lift] = []
        left = [case.step]

        def step(reached: str) -> None:
            if left and reached == left[0]:
                left.clear()
                lifts.append(STRIKES[case.fault](self.around))
            elif reached == LAST_WAY_BACK and case.step == steps.UNDO:
                raise errors.CommandFailed(f"broken on purpose at {reached}")

        try:
            report = self.run(case.verb, source, step)
        finally:
            for lift in lifts:
                lift()
        assert not left, f"the fault was planned and never came: {report}"
        return report

    # ------------------------------------------------------------------------------------------------- the looks
    def look_at(self, case: Case, report: events.Report, listed: Iterable[str], old: Any, new: Any) -> None:
        """The report says what is true."""
        said = report.failure.message if report.failure else ""
        print(f"  {report.status} {said}")
        if case.fault == "exception":
            assert "broken on purpose" in "; ".join((said, *report.notes))
            if case.verb == "restore":
                assert ("as it was before" in said) == (case.step not in ("recover", "finish", steps.UNDO))
        if case.verb == "backup":
            fresh = [*self.stack.published()] != [*listed]
            assert fresh == (report.status == "done") or case.step in ("publish", "export"), report
            assert not (fresh and case.fault == "exception" and case.step in UNPUBLISHED)
        if case.verb == "restore" and (report.status == "done" or "as it was before" in said):
            assert self.stack.state() == (new if report.status == "done" else old)

    def look_at_the_list(self, listed: Iterable[str], old: Any) -> None:
        """What is listed is whole; what went has a newer one instead."""
        now = self.stack.published()
        for fresh in (each for each in now if each not in listed):
            self.wanted.setdefault(fresh, old)
            if self.place == "archive":
                assert verify_archive(self.at(fresh)).complete
            else:
                with self.stack.opened(self.at(fresh)) as reader:
                    assert reader.manifest.complete
        assert now[-1] >= [*listed][-1], "the newest has gone"

    def look_at_the_repository(self) -> None:
        repository = store.open_repository(self.stack.settings)
        report = check(repository, read_share=1.0)
        assert report.sound, report.faults
        assert not [*repository.backend.list("locks")]

    def whole(self, states: tuple[Any, ...]) -> None:
        assert self.stack.state() in states, "neither the old nor the new state"
        left = self.stack.leftovers()
        assert not left, left  # the value is looked at first: what is taken away meanwhile would not be told
        assert self.stack.goes_on()

    def comes_back(self) -> None:
        """The newest backup restores to what it was made of."""
        source = self.stack.published()[-1]
        self.stack.change()
        report = self.run("restore", source)
        assert report.status == "done", report.failure
        self.whole((self.wanted[source],))
