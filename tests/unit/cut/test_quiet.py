"""Hooks and stops around a cut, on real processes: what was begun is ended, whatever happens in between."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from cosmos_coherence import errors
from cosmos_coherence.cut.journal import Journal, QuietRecord
from cosmos_coherence.cut.quiet import quiet_leftovers, quieted
from cosmos_coherence.drivers.local import LocalRuntime
from cosmos_coherence.model import Quiet
from support.waiting import eventually

SERVICES = ("app", "web", "off")


class Bench:
    """A stack of sleeping processes; what hooks do is noted in ``said``."""

    def __init__(self, folder: Path) -> None:
        services = [{"name": name, "argv": ["sleep", "1000"], "environment": {"NAME": name}} for name in SERVICES]
        (folder / "stack.json").write_text(json.dumps({"project": "shop", "services": services}))
        (folder / "stack.json").chmod(0o600)
        self.runtime, self.said = LocalRuntime(folder), folder / "said"
        self.journal = Journal(folder / "state")
        self.notes: list[str] = []
        self.runtime.start(["app", "web"])

    def quieted(self, *services: Quiet, hook_s: float = 60.0):
        return quieted(self.runtime, services, journal=self.journal, run="r1", tell=self.notes.append, hook_s=hook_s)

    def words(self) -> list[str]:
        return self.said.read_text().split() if self.said.exists() else []

    def running(self) -> set[str]:
        return {s.name for s in self.runtime.stack().services if s.state == "running"}

    def leftovers(self) -> list[str]:
        return list(quiet_leftovers(self.runtime, self.journal))


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(tmp_path)
    yield bench
    bench.runtime.stop(SERVICES)


def hook(name: str = "app", before: str = "echo before-$NAME >>said", after: str = "echo after-$NAME >>said") -> Quiet:
    return Quiet(name, before, after)


def test_hooks_run_in_their_service_around_the_cut_and_stops_come_last(bench: Bench) -> None:
    with bench.quieted(hook(), Quiet("web", stop=True), Quiet("off", "echo never >>said", "echo never >>said")) as ms:
        assert bench.words() == ["before-app"]
        assert bench.running() == {"app"}
        (note,) = bench.journal.pending(QuietRecord)
        assert note.record == QuietRecord("r1", {"app": "echo after-$NAME >>said"}, {"web": ("web",)})
        assert ms == {}
    assert bench.words() == ["before-app", "after-app"]
    assert bench.running() == {"app", "web"}
    assert set(ms) == {"app", "web"} and all(value > 0 for value in ms.values())
    assert (bench.journal.pending(), bench.notes) == ((), [])


def test_it_is_journalled_before_anything_is_done(bench: Bench) -> None:
    count = "ls state/journal/*.json | wc -l >>said"
    with bench.quieted(hook(before=count)):
        assert bench.words() == ["1"]


@pytest.mark.parametrize("fault", [RuntimeError("cut"), KeyboardInterrupt()])
def test_whatever_ends_the_cut_everything_goes_on(bench: Bench, fault: BaseException) -> None:
    with pytest.raises(type(fault)), bench.quieted(hook(), Quiet("web", stop=True)):
        raise fault
    assert bench.words() == ["before-app", "after-app"]
    assert bench.running() == {"app", "web"}
    assert bench.journal.pending() == ()


def test_a_before_that_fails_fails_the_run_with_its_own_words_and_after_is_run(bench: Bench) -> None:
    with (
        pytest.raises(
            errors.CommandFailed, match=r"cosmos\.hold\.before of app failed: .* status 3: no room"
        ) as caught,
        bench.quieted(hook(before="echo no room >&2; exit 3"), Quiet("web", stop=True)),
    ):
        raise AssertionError("held all the same")
    assert caught.value.exit_status == 1
    assert bench.words() == ["after-app"]
    assert bench.running() == {"app", "web"}
    assert bench.journal.pending() == ()


def test_a_before_that_does_not_end_is_ended(bench: Bench) -> None:
    endless = "echo $$ >>said; sleep 1000"
    with (
        pytest.raises(errors.CommandFailed, match=r"before of app failed: it did not end within 0\.5 s"),
        bench.quieted(hook(before=endless), hook_s=0.5),
    ):
        raise AssertionError("held all the same")
    pid, after = bench.words()
    assert after == "after-app"
    assert eventually(lambda: not Path("/proc", pid).exists())


def test_ctrl_c_ends_a_before_that_runs(bench: Bench) -> None:
    interrupting = f"echo $$ >>said; sleep 0.3; kill -INT {os.getpid()}; sleep 1000"
    with pytest.raises(KeyboardInterrupt), bench.quieted(hook(before=interrupting)):
        raise AssertionError("held all the same")
    pid, after = bench.words()
    assert after == "after-app"
    assert eventually(lambda: not Path("/proc", pid).exists())


def test_an_after_that_fails_is_told_and_run_again_by_the_next_run_until_it_works(bench: Bench) -> None:
    with bench.quieted(hook(after="test -e ready && echo after >>said"), hook("web")):
        pass
    assert bench.words() == ["before-app", "before-web", "after-web"]
    (note,) = bench.notes
    assert "cosmos.hold.after of app failed" in note and "the next run tries again" in note
    (said,) = bench.leftovers()
    assert "cosmos.hold.after of app failed" in said
    (bench.runtime.folder / "ready").touch()
    assert bench.leftovers() == ["ran cosmos.hold.after of app, for run r1, which had ended before"]
    assert bench.words()[3:] == ["after"]
    assert (bench.leftovers(), bench.journal.pending()) == ([], ())


def test_killed_in_between_the_next_run_undoes_it(bench: Bench) -> None:
    child = os.fork()
    if child == 0:
        with bench.quieted(hook(), Quiet("web", stop=True)):
            os.kill(os.getpid(), signal.SIGKILL)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert (bench.words(), bench.running()) == (["before-app"], {"app"})
    assert bench.leftovers() == [
        "started web again, for run r1, which had ended before",
        "ran cosmos.hold.after of app, for run r1, which had ended before",
    ]
    assert (bench.words(), bench.running()) == (["before-app", "after-app"], {"app", "web"})
    assert bench.leftovers() == []


def test_a_service_that_is_down_or_gone_by_then(bench: Bench) -> None:
    bench.journal.open(QuietRecord("r1", {"off": "echo after >>said", "gone": "echo gone >>said"}, {}))
    said = bench.leftovers()
    assert [line for line in said if "off" in line] == [
        "cosmos.hold.after of off could not be run: the service does not run"
    ]
    bench.runtime.start(["off"])
    bench.leftovers()
    assert bench.words() == ["after"]
    assert bench.journal.pending() == ()
