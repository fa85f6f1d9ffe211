"""Waits for conditions, never for durations, with one time limit for all of them."""

import asyncio
import subprocess
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager

# Far longer than any machine needs. A condition that never becomes true fails its test instead of
# hanging the suite.
FAILSAFE_S = 120.0
_POLL_S = 0.005


def failsafe() -> asyncio.Timeout:
    """Return a context manager that raises TimeoutError after `FAILSAFE_S` seconds."""
    return asyncio.timeout(FAILSAFE_S)


async def until(condition: Callable[[], bool | Awaitable[bool]]) -> None:
    """Return as soon as `condition` is true. Raise TimeoutError after `FAILSAFE_S` seconds.

    A condition may be a coroutine function.
    """
    async with failsafe():
        while True:
            result = condition()
            if await result if isinstance(result, Awaitable) else result:
                return
            await asyncio.sleep(_POLL_S)


def block_until(condition: Callable[[], bool]) -> None:
    """Wait as `until` does, in a test without an event loop."""
    deadline = time.monotonic() + FAILSAFE_S
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError("the condition did not become true")
        time.sleep(_POLL_S)


@contextmanager
def killed_after_failsafe(process: "subprocess.Popen[str]") -> Iterator[None]:
    """Kill the process if the body runs for more than `FAILSAFE_S` seconds.

    For bodies that read the output of the process: killing it ends the output.
    """
    timer = threading.Timer(FAILSAFE_S, process.kill)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
