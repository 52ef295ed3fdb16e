"""Which volumes hold nothing but what their programs make again."""

from __future__ import annotations

from typing import Final

from cosmos_coherence.model import Volume

LABEL: Final = "cosmos.cache"
_REFERENCE: Final = frozenset({"api-cache", "dashboard-cache", "nginx-cache"})
"""Those of the reference stack, which older ones of its volumes do not say by label."""


def is_cache(volume: Volume, project: str) -> bool:
    """Whether the volume may be emptied: its label says so, or it is a cache of the reference stack."""
    label = volume.labels.get(LABEL, "").lower()
    return label == "true" or (not label and project == "cosmos-coherence" and volume.short in _REFERENCE)
