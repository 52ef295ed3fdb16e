"""Kill a child at one of its steps, as a power cut would."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable


def killed_at(step: int, run: Callable[[Callable[[str], None]], None]) -> bool:
    """Run in a child that is killed at its n-th checkpoint. Whether it came that far."""
    child = os.fork()
    if child == 0:
        steps = 0

        def checkpoint(_: str) -> None:
            nonlocal steps
            steps += 1
            if steps == step:
                os.kill(os.getpid(), signal.SIGKILL)

        try:
            run(checkpoint)
        except BaseException:  # noqa: BLE001 - a child must never go on as the test
            os._exit(3)
        os._exit(0)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status in (0, -signal.SIGKILL)
    return status != 0
