"""Walking what snapshots refer to."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from cosmos_coherence.repository.blob import Id
from cosmos_coherence.repository.trees import Node


def trees(
    load: Callable[[Id], list[Node]], roots: Iterable[Id], seen: set[Id] | None = None
) -> Iterator[tuple[Id, list[Node]]]:
    """Every tree at or below the roots, each once, with its nodes; those in ``seen`` are passed over, the others added.

    Errors of ``load`` pass.
    """
    known = set() if seen is None else seen
    waiting = list(roots)
    while waiting:
        tree = waiting.pop()
        if tree in known:
            continue
        known.add(tree)
        nodes = load(tree)
        yield tree, nodes
        waiting.extend(bytes.fromhex(node.subtree) for node in nodes if node.subtree is not None)
