"""Kill a child at one of its steps or at any moment, as a power cut would."""

from __future__ import annotations

import os
import signal
import time
import traceback
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


def killed_within(seconds: float, run: Callable[[], object]) -> bool:
    """Run in a child that is killed so long after it began. False when it had ended well by then."""
    child = os.fork()
    if child == 0:
        try:
            run()
        except BaseException:  # noqa: BLE001 - a child must never go on as the test
            traceback.print_exc()
            os._exit(3)
        os._exit(0)
    time.sleep(seconds)
    os.kill(child, signal.SIGKILL)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status in (0, -signal.SIGKILL), f"it ended with {status} before it was killed"
    return status != 0
