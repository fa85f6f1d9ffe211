"""When a call must be over, and ending what outlasts it."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from service.errors import DeadlinePassed
from service.rpc.calls.context import Context

# The caller's own deadline ends the call by itself, at its time; ours follows, for callers without
# one, and the two never race.
_SLACK_S = 0.5


def deadline_of(context: Context, request_timeout_s: float) -> float:
    """When the request must be complete, of `time.monotonic()`.

    Raises:
        DeadlinePassed: that was before now.
    """
    remaining = context.time_remaining()
    if remaining is not None and remaining <= 0:
        raise DeadlinePassed("The deadline has passed.")
    allowed = request_timeout_s if remaining is None else min(remaining, request_timeout_s)
    return time.monotonic() + allowed


@asynccontextmanager
async def until(deadline: float | None) -> AsyncIterator[None]:
    """Cancel the body and raise DeadlinePassed when the deadline, of `time.monotonic()`, passes."""
    loop_time = None
    if deadline is not None:
        remaining_s = deadline - time.monotonic() + _SLACK_S
        loop_time = asyncio.get_running_loop().time() + remaining_s
    try:
        async with asyncio.timeout_at(loop_time):
            yield
    except TimeoutError as error:
        raise DeadlinePassed("The deadline passed before the answer was complete.") from error
