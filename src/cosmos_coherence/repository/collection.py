"""The garbage collector, out of the way while many objects are made of which none is garbage."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def paused() -> Iterator[None]:
    """No collection of cycles in the block, in any thread; it makes none that matter."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            # All that was made counts as old at once: else the first thing that happens is a look at each of it.
            gc.freeze()
            gc.unfreeze()
            gc.enable()
