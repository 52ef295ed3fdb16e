"""kill -9 at random moments: within two seconds nothing is frozen, the same command converges, data old or new.

Three hundred on processes and sixty on Docker (``-m soak``); ``kills.ndjson`` of the results' folder keeps each, so a
campaign that was ended goes on from there. In the suite ``test_process_runtime`` and ``test_docker_runtime`` do.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from cosmos_coherence.cut import freezer
from support.embedded_stack import embedded_stack
from support.fault_cases import Place, RuntimeKind, Verb
from support.fault_stage import Stage
from support.fault_strikes import Surroundings
from support.lasting import Results
from support.marked_stack import marked_stack

pytestmark = [pytest.mark.soak, pytest.mark.timeout(4 * 3600)]

FREE_S = 2.0
"""So long after the program's death something may still be frozen."""
_CLOSE = {"backup": ("hold", 0.06), "restore": ("swap", 0.6)}
"""Every third kill comes this soon after that step, where most is at stake."""


@contextmanager
def stage_on(runtime: RuntimeKind) -> Iterator[Stage]:
    if runtime == "docker":
        with marked_stack() as marked:
            yield Stage(Surroundings(marked), marked)
    else:
        with embedded_stack(rate=20) as embedded:
            embedded.backups.mkdir(mode=0o700)
            yield Stage(Surroundings(embedded), embedded)


def frozen(stage: Stage) -> set[str]:
    """The services of which nothing can run though they have not ended, as the kernel or the engine says it."""
    services = [s for s in stage.stack.runtime.stack().services if s.state in ("running", "paused")]
    targets = stage.stack.runtime.hold_targets(services)
    return {target.name for target in targets} - {*freezer.still_running(targets, within_s=10)}


def free_after(stage: Stage) -> float:
    """Seconds until nothing is frozen."""
    began = time.monotonic()
    while held := frozen(stage):
        assert time.monotonic() < began + 60, f"{held} stand still"
    return time.monotonic() - began


def one_kill(stage: Stage, verb: Verb, place: Place, rng: random.Random, longest: dict[Any, float]) -> dict[str, Any]:
    """Killed once at some moment, healed by ``recover`` or not, the same command again."""
    stage.keep_in(place)
    close = rng.random() < 1 / 3
    after, key = _CLOSE[verb][0] if close else "recover", (verb, place, close)
    while True:
        source = stage.prepared(verb)
        old, listed = stage.stack.state(), stage.stack.published()
        moment = rng.uniform(0, longest.setdefault(key, _CLOSE[verb][1] if close else 8.0))
        if stage.stack.killed_within(moment, verb, stage.at(source), after=after):
            break
        longest[key] = moment  # it had ended by then
        stage.look_at_the_list(listed, old)
    free_s = free_after(stage)
    new = stage.wanted[source] if verb == "restore" else old
    stage.look_at_the_list(listed, old)
    if verb == "backup":
        assert stage.stack.goes_on(), "what was not touched does not go on"
    if heals := rng.random() < 0.5:
        healed = stage.stack.recover()
        assert healed.status == "done", healed.failure
        stage.whole((old, new))
    again = stage.run(verb, source)
    assert again.status == "done", again.failure or again.missing
    stage.look_at_the_list(listed, old)
    stage.whole((new,))
    if place == "repository" and rng.random() < 0.2:
        stage.look_at_the_repository()
    return {
        "verb": verb, "place": place, "after": after, "killed_s": round(moment, 3), "free_s": round(free_s, 3),
        "recover": heals,
    }  # fmt: skip


def campaign(runtime: RuntimeKind, wanted: int, rng: random.Random) -> None:
    results = Results("kills")

    def of_this() -> list[dict[str, Any]]:
        return [row for row in results.rows if row["runtime"] == runtime]

    with stage_on(runtime) as stage:
        longest: dict[Any, float] = {}
        while len(of_this()) < wanted and results.goes_on():
            turn = len(of_this())
            verb: Verb = "restore" if turn % 2 else "backup"
            place: Place = "repository" if turn // 2 % 2 else "archive"
            results.add(runtime=runtime, turn=turn, **one_kill(stage, verb, place, rng, longest))
    free = [row["free_s"] for row in of_this()]
    print(
        f"{runtime}: {len(free)} kills, free after {statistics.median(free):.3f} s (median), {max(free):.3f} s (worst)"
    )
    assert max(free) <= FREE_S


def test_three_hundred_on_processes(rng: random.Random) -> None:
    campaign("process", 300, rng)


@pytest.mark.docker
def test_sixty_on_docker(rng: random.Random) -> None:
    campaign("docker", 60, rng)
