"""The small stack that the contract of runtimes is tested on, one context manager for each runtime.

Every runtime runs the same three services, shell scripts that note what happens to them in ``$EVENTS``, the folder of
the volume ``events`` (for the process runtime ``Mount.target`` is where that really lies):

========== ============ ==================================================================================
service    depends on   what it does
========== ============ ==================================================================================
store                   healthy when ``store-ready`` is there, which it makes a moment after its start
app        store        counts in ``ticks``; ``GREETING=hello``; label ``cosmos.test=yes``; bind mount at ``/inbox``
stubborn                ignores SIGTERM
========== ============ ==================================================================================

Volumes ``events`` and ``spare``, which nothing uses.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from cosmos_coherence.drivers import stackfile
from cosmos_coherence.drivers.local import LocalRuntime
from cosmos_coherence.drivers.runtime import Runtime
from cosmos_coherence.drivers.stackfile import MountSpec, ServiceSpec, StackSpec, VolumeSpec

STORE = """
trap 'echo "stop store" >>"$EVENTS/log"; rm -f "$EVENTS/store-ready"; exit 0' TERM
rm -f "$EVENTS/store-ready"; echo "start store" >>"$EVENTS/log"; sleep 0.3; : >"$EVENTS/store-ready"
while :; do sleep 0.05; done
"""
APP = """
trap 'echo "stop app" >>"$EVENTS/log"; exit 0' TERM
echo "start app" >>"$EVENTS/log"; while :; do printf x >>"$EVENTS/ticks"; sleep 0.02; done
"""
STUBBORN = """
trap '' TERM; while :; do sleep 0.05; done
"""


@dataclass(frozen=True, slots=True)
class Sample:
    """A stack as described above, all of it running and ready."""

    runtime: Runtime
    lose_volume: Callable[[str], None]
    """Delete the volume of this short name by other means than the runtime's."""

    @property
    def events(self) -> str:
        """The folder of the volume ``events`` as a command run in a service sees it."""
        service = self.runtime.stack().service("store")
        assert service
        return service.mounts[0].target


@contextmanager
def process_sample(folder: Path) -> Iterator[Sample]:
    """Plain local processes."""
    inbox = folder / "inbox"
    inbox.mkdir()
    events = MountSpec(volume="events")
    surroundings = {"EVENTS": str(folder / "volumes/events")}
    services = (
        # the dependent first: order must come from what they say, not from where they stand
        ServiceSpec(
            name="app",
            argv=("sh", "-c", APP),
            environment={**surroundings, "GREETING": "hello"},
            volumes=(events, MountSpec(path=inbox, target="/inbox")),
            depends_on=("store",),
            labels={"cosmos.test": "yes"},
        ),
        ServiceSpec(
            name="store",
            argv=("sh", "-c", STORE),
            environment=surroundings,
            volumes=(events,),
            ready=("test", "-e", f"{folder}/volumes/events/store-ready"),
        ),
        ServiceSpec(name="stubborn", argv=("sh", "-c", STUBBORN)),
    )
    volumes = {"events": VolumeSpec(), "spare": VolumeSpec()}
    stackfile.write(folder, StackSpec(project="sample", services=services, volumes=volumes))
    runtime = LocalRuntime(folder)
    runtime.create()
    everything = [s.name for s in services]
    try:
        runtime.start(everything)
        runtime.wait_ready(everything, timeout_s=60)
        yield Sample(runtime, lambda short: (folder / "volumes" / short).rmdir())
    finally:
        runtime.stop(everything, timeout_s=0.2)


SAMPLES = [pytest.param(process_sample, id="process")]
