"""Every named step of backup, restore and prune, broken in every way: the data are the old or the new, never a mix.

After each fault nothing is held, no half backup is listed, and the same command succeeds. A fault that was planned and
did not come fails the test. A sample is drawn for every run of the suite (``COSMOS_TEST_SEED`` repeats it); ``-m soak``
plays the whole matrix, or of it what ``COSMOS_FAULTS`` names: words that a case has to have, as its name shows them.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import os
import random
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from cosmos_coherence.flow import steps
from cosmos_coherence.repository import crypto, keys
from cosmos_coherence.storage import retrying
from support import backend_servers, stores
from support.docker_stack import HOST
from support.door import Door
from support.embedded_stack import embedded_stack
from support.fault_cases import STEPS, Case, Place, RuntimeKind, Verb, cases
from support.fault_stage import Stage
from support.fault_strikes import Surroundings
from support.lasting import Results
from support.marked_stack import marked_stack

GROUPS: Sequence[tuple[Verb, Place]] = [
    ("backup", "archive"), ("backup", "repository"), ("restore", "archive"), ("restore", "repository"),
    ("prune", "repository"),
]  # fmt: skip
DISK = "900m"
# a run that is broken leaves connections to whoever collects them: in life its process ends then, here `collected` does
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")


@contextlib.contextmanager
def process_stage() -> Iterator[Stage]:
    with embedded_stack(rate=20, disk=DISK) as stack:
        stack.backups.mkdir(mode=0o700)
        with (
            backend_servers.rclone_restic(data=stack.backups) as server,
            Door(server.port, stores.free_port()) as door,
        ):
            yield Stage(Surroundings(stack, backend=door), stack)


@contextlib.contextmanager
def docker_stage() -> Iterator[Stage]:
    with tempfile.TemporaryDirectory(prefix="door-") as folder:
        at = Path(folder) / "docker.sock"
        with Door(Path(HOST.removeprefix("unix://")), at) as door, marked_stack(f"unix://{at}") as stack:
            yield Stage(Surroundings(stack, engine=door), stack)


STAGES = {"process": process_stage, "docker": docker_stage}


@pytest.fixture(scope="module", autouse=True)
def quick() -> Iterator[None]:
    """The same password gives the same key, so it is derived once; and nobody waits between two tries."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(keys, "derive", functools.lru_cache(maxsize=64)(crypto.derive))
        patch.setattr(retrying.RetryingBackend, "_wait", lambda self, tried: time.sleep(0.02))
        yield


@pytest.fixture(scope="module", autouse=True)
def collected() -> Iterator[None]:
    """Nothing is left for a test of another file to stumble upon, where such a warning is an error."""
    yield
    gc.collect()


@pytest.fixture(scope="module")
def stage() -> Iterator[Stage]:
    with process_stage() as made:
        yield made


@pytest.fixture(scope="module")
def on_docker() -> Iterator[Stage]:
    with docker_stage() as made:
        yield made


# ------------------------------------------------------------------------------------------------------ the list
@pytest.mark.parametrize(("verb", "place"), GROUPS)
def test_the_list_has_every_step_that_a_run_takes(stage: Stage, verb: Verb, place: Place) -> None:
    stage.keep_in(place)
    source, told = stage.prepared(verb), []
    assert stage.run(verb, source, told.append).status == "done"
    apart = {steps.UNDO} | ({"export"} if place == "archive" else set())
    assert [*dict.fromkeys(told)] == [name for name in STEPS[verb] if name not in apart]


def test_every_pair_is_run_or_declared_impossible() -> None:
    for runtime, planned in (("process", 612), ("docker", 136)):
        run, impossible = cases(runtime)  # type: ignore[arg-type]
        assert len(run) + len(impossible) == planned
        assert {case.step for case in run} == {name for names in STEPS.values() for name in names}


# ------------------------------------------------------------------------------------------------------- a sample
def sample(rng: random.Random, every: Sequence[Case], count: int) -> list[Case]:
    """Each fault in its turn, at steps that chance chooses."""
    left = rng.sample(every, len(every))
    chosen: list[Case] = []
    while len(chosen) < count:
        seen = Counter(case.fault for case in chosen)
        rarest = min(left, key=lambda case: (seen[case.fault], case.step in {one.step for one in chosen}))
        left.remove(rarest)
        chosen.append(rarest)
    return chosen


def of(runtime: RuntimeKind, verb: Verb, place: Place) -> list[Case]:
    return [case for case in cases(runtime)[0] if (case.verb, case.place) == (verb, place)]


@pytest.mark.parametrize(("verb", "place", "count"), [(*group, 2) for group in GROUPS])
def test_a_sample(stage: Stage, rng: random.Random, verb: Verb, place: Place, count: int) -> None:
    for case in sample(rng, of("process", verb, place), count):
        print(case)
        stage.play(case, rng)
    if verb != "restore":
        stage.comes_back()


@pytest.mark.docker
@pytest.mark.parametrize(("verb", "place"), [("backup", "archive"), ("restore", "archive"), ("restore", "repository")])
def test_a_sample_on_docker(on_docker: Stage, rng: random.Random, verb: Verb, place: Place) -> None:
    for case in sample(rng, of("docker", verb, place), 2):
        print(case)
        on_docker.play(case, rng)


# ------------------------------------------------------------------------------------------------ the whole matrix
def campaign(runtime: RuntimeKind, rng: random.Random) -> None:
    """All of it that has not passed yet; a case that fails gets its words printed, and the rest go on with a new stage.

    ``faults.ndjson`` of the results' folder keeps what was played, so a campaign that was ended goes on from there.
    """
    run, impossible = cases(runtime)
    words = os.environ.get("COSMOS_FAULTS", "").split(",")
    chosen = [str(case) for case in run if all(word.strip() in str(case) for word in words)]
    results = Results("faults")
    passed = {row["case"] for row in results.rows if row["passed"]}
    left = [case for case in run if str(case) in chosen and str(case) not in passed]
    rng.shuffle(left)  # one fault may hide behind another that came before it
    failed: list[Case] = []
    while left and results.goes_on():
        with STAGES[runtime]() as stage:
            while left and results.goes_on():
                case, began = left.pop(), time.monotonic()
                try:
                    stage.play(case, rng)
                except Exception:  # noqa: BLE001 - told at the end, with all others
                    failed.append(case)
                    print(f"FAILED {case}\n{traceback.format_exc()}", flush=True)
                results.add(case=str(case), passed=case not in failed, seconds=round(time.monotonic() - began, 1))
                if case in failed:
                    break
    passed = {row["case"] for row in results.rows if row["passed"]}.intersection(chosen)
    print(f"{runtime}: {len(chosen)} run, {len(passed)} passed, {len(impossible)} declared impossible")
    assert not failed, "\n".join(map(str, failed))


@pytest.mark.soak
@pytest.mark.timeout(4 * 3600)
def test_all_on_processes(rng: random.Random) -> None:
    campaign("process", rng)


@pytest.mark.soak
@pytest.mark.docker
@pytest.mark.timeout(4 * 3600)
def test_all_on_docker(rng: random.Random) -> None:
    campaign("docker", rng)
