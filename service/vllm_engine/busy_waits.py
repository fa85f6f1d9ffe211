"""Ends the busy waiting of vLLM's processes on a CPU."""

import time
from contextlib import suppress
from functools import partialmethod
from typing import Any

# A reader that has read a message within the last second wakes at this interval. The writer's
# notification wakes it at once, but vLLM may lose the second of two notifications within about a
# millisecond. Otherwise vLLM notices the message after up to five seconds.
_RECHECK_INTERVAL_MS = 2
_RECENT_S = 1.0


def end_busy_waits() -> None:
    """Make this process of vLLM sleep while it waits for another one, if vLLM computes on a CPU.

    vLLM's core and its workers exchange messages through shared memory. For a second after a
    message, a reader polls the memory in a loop, and only then waits for notifications. So the core
    polls while a worker computes a step. On a CPU that takes the time from the worker's threads.

    Does nothing with a version of vLLM that waits in another way.
    """
    with suppress(ImportError):
        from vllm.distributed.device_communicators.shm_broadcast import (  # noqa: PLC0415
            SpinCondition,
        )
        from vllm.platforms import current_platform  # noqa: PLC0415  # importing it takes seconds

        if current_platform.is_cpu():
            _replace_waits(SpinCondition)


def _replace_waits(condition: Any) -> None:
    """Replace the waits of vLLM's class `SpinCondition`."""
    wait_for_notification = condition.wait

    def wait(self: Any, timeout_ms: int | None = None) -> None:
        is_recent = time.monotonic() <= self.last_read + _RECENT_S
        wait_for_notification(self, _RECHECK_INTERVAL_MS if is_recent else timeout_ms)

    condition.__init__ = partialmethod(condition.__init__, busy_loop_s=0)
    condition.wait = wait
