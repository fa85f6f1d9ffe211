"""Detects that an engine makes no progress."""

import asyncio
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from threading import Thread

# Interval of the checks. It is also at most 1 / _MIN_CHECKS of the timeout.
_MAX_INTERVAL_S = 1.0
_MIN_CHECKS = 4


class HangDetector:
    """Decides at regular checks whether an engine hangs.

    The time is measured in checks and not by a clock. If the process or the machine was suspended
    for an hour, only one check was missed.

    Args:
        timeout_s: Seconds without progress after which the engine hangs.

    Attributes:
        interval_s: Seconds between two checks.
        stuck_s: Seconds without progress so far.
    """

    def __init__(self, timeout_s: float) -> None:
        self.interval_s = min(_MAX_INTERVAL_S, timeout_s / _MIN_CHECKS)
        self.stuck_s = 0.0
        self._timeout_s = timeout_s
        self._num_iterations = -1

    def check(self, num_iterations: int, *, is_idle: bool) -> bool:
        """Return True if the engine hangs.

        Args:
            num_iterations: Number of steps that the engine has completed.
            is_idle: True if the engine has no work.
        """
        is_stuck = num_iterations == self._num_iterations and not is_idle
        self.stuck_s = self.stuck_s + self.interval_s if is_stuck else 0.0
        self._num_iterations = num_iterations
        return self.stuck_s >= self._timeout_s


async def wait_dead(
    dead: asyncio.Event,
    timeout_s: float,
    progress: Callable[[], tuple[int, bool]],
    on_hang: Callable[[float], None],
) -> None:
    """Return when an engine has failed. Meanwhile, detect that it hangs.

    Args:
        dead: It is set when the engine has failed.
        timeout_s: See `HangDetector`.
        progress: Returns the arguments of `HangDetector.check`.
        on_hang: Called with the seconds without progress if the engine hangs. It sets `dead`.
    """
    detector = HangDetector(timeout_s)
    while not dead.is_set():
        with suppress(TimeoutError):
            async with asyncio.timeout(detector.interval_s):
                await dead.wait()
        num_iterations, is_idle = progress()
        if detector.check(num_iterations, is_idle=is_idle):
            on_hang(detector.stuck_s)


def stack_of(thread: Thread) -> str:
    """Return the stack of a running thread as text; "" if it does not run."""
    frame = sys._current_frames().get(thread.ident or 0)
    return "".join(traceback.format_stack(frame)) if frame is not None else ""
