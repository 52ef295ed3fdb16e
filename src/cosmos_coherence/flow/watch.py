"""A watchdog that outlives whatever this program runs in."""

from __future__ import annotations

from cosmos_coherence.cut.watchdog import Watchdog
from cosmos_coherence.drivers.runtime import Runtime


def watchdog_for(runtime: Runtime) -> Watchdog:
    """Started beside the program; where that runs in a container, in another one, which does not die with it."""
    pipes = runtime.watchdog_pipes()
    return Watchdog(*pipes) if pipes else Watchdog.start()
