"""Wait for what happens by itself in a moment."""

from __future__ import annotations

import time
from collections.abc import Callable


def eventually(holds: Callable[[], object], *, within_s: float = 30.0) -> bool:
    """Whether it comes true, asked again and again; the bound only ends a test that fails."""
    deadline = time.monotonic() + within_s
    while not holds():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True
