"""A volume that a person has named."""

from __future__ import annotations

from cosmos_coherence import errors
from cosmos_coherence.discover.coverage import STATE_VOLUME
from cosmos_coherence.model import Stack, Volume


def find(stack: Stack, name: str) -> Volume:
    """The volume of the stack of that full or short name. The program's own is ``Refused``."""
    volume = stack.volume(name)
    if volume is None or not volume.exists:
        known = ", ".join(v.short for v in stack.volumes if v.exists)
        raise errors.NotFound(f"stack {stack.project} has no volume {name}", remedy=f"Its volumes: {known or 'none'}.")
    if volume.short == STATE_VOLUME:
        raise errors.Refused(f"volume {volume.name} is this program's own", remedy="Leave it as it is.")
    return volume
