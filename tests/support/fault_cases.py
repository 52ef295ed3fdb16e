"""The matrix of the fault harness: every named step of the product, every fault, both places, and what cannot be."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from cosmos_coherence.flow import steps

Verb = Literal["backup", "restore", "prune"]
Place = Literal["archive", "repository"]
Fault = Literal[
    "kill -9", "exception", "full disk", "lost engine",
    "dead PostgreSQL", "dead Redis", "slow PostgreSQL", "slow Redis", "dead backend",
]  # fmt: skip
RuntimeKind = Literal["process", "docker"]

STEPS: Mapping[Verb, tuple[str, ...]] = {
    "backup": steps.BACKUP,
    "restore": (*steps.RESTORE, steps.UNDO),
    "prune": steps.PRUNE,
}
FAULTS: Mapping[RuntimeKind, tuple[Fault, ...]] = {"process": get_args(Fault), "docker": ("kill -9", "lost engine")}
"""What goes on inside the program is the same on Docker, so there only what the engine makes different."""


@dataclass(frozen=True)
class Case:
    runtime: RuntimeKind
    place: Place
    verb: Verb
    step: str
    fault: Fault

    def __str__(self) -> str:
        return f"{self.runtime}: {self.fault} at `{self.step}` of {self.verb}, {self.place}"


IMPOSSIBLE: tuple[tuple[str, Callable[[Case], bool]], ...] = (
    ("plain processes have no engine", lambda c: c.fault == "lost engine" and c.runtime == "process"),
    ("archives are not pruned, retention removes them whole", lambda c: c.verb == "prune" and c.place == "archive"),
    ("an archive lies on a disk, not with a server", lambda c: c.fault == "dead backend" and c.place == "archive"),
    ("an archive is not exported from an archive", lambda c: c.step == "export" and c.place == "archive"),
    ("a prune asks neither servers nor engine", lambda c: c.verb == "prune" and c.fault in _OF_THE_STACK),
    ("the restore itself has stopped Redis then", lambda c: c.step in ("swap", "compare") and "Redis" in c.fault),
)
"""Why, and which."""

_OF_THE_STACK = ("lost engine", "dead PostgreSQL", "dead Redis", "slow PostgreSQL", "slow Redis")


def why_impossible(case: Case) -> str:
    """The reason that is declared for it; empty for a case that has to be run."""
    return next((why for why, applies in IMPOSSIBLE if applies(case)), "")


def cases(runtime: RuntimeKind) -> tuple[list[Case], list[Case]]:
    """Those that have to be run, and those that are declared impossible; together the whole matrix."""
    places: tuple[Place, ...] = get_args(Place)
    every = [
        Case(runtime, place, verb, step, fault)
        for place, verb in itertools.product(places, STEPS)
        for step, fault in itertools.product(STEPS[verb], FAULTS[runtime])
    ]
    impossible = [case for case in every if why_impossible(case)]
    return [case for case in every if case not in impossible], impossible
