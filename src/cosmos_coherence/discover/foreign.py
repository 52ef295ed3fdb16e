"""Writers outside the hold: they are connected to a database of the stack and would not stand still."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from cosmos_coherence.model import Gap, Service, Stack


def writers(stack: Stack, held: Sequence[Service], clients: Mapping[str, Sequence[tuple[str, str]]]) -> tuple[Gap, ...]:
    """A gap for each foreign address: the backup is whole, but its instant is not promised for what they write.

    Containers of the stack that are never held (the agent) write only through a spool, and the engines to nobody. On
    the process runtime, where nothing has an address, nobody can be told apart and nothing is reported. ``clients`` are
    the (address, name) pairs by part.
    """
    known = {a for s in (*held, *stack.services) for a in s.addresses}
    if not known:
        return ()
    strangers: dict[str, str] = {}
    for part, connected in clients.items():
        for address, name in connected:
            if address and address not in known and not address.startswith(("127.", "::1")):
                strangers.setdefault(f"{part} from {address}", name)
    return tuple(
        Gap(f"writes to {where}", f"connected from outside the held containers ({name or 'no name'})")
        for where, name in sorted(strangers.items())
    )
