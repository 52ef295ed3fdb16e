"""The coherence checker: writers that count through every store, and a judge of what a backup brought back.

``python -m benchmarks.coherence --runtime process --rounds 100`` runs a campaign; ``docs/coherence.md`` has the method
and the figures. ``record``, ``board``, ``wire`` and ``writer`` need nothing but Python, so that they run in any image.
"""
