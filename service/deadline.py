"""Ends work whose request's deadline has passed."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from service.errors import DeadlinePassed

# gRPC ends a call at its caller's deadline. For callers without a deadline, the work is cancelled
# here, this many seconds after the deadline, so that the two never happen at the same time.
_SLACK_S = 0.5


@asynccontextmanager
async def deadline_scope(deadline: float | None) -> AsyncIterator[None]:
    """Cancel the body and raise DeadlinePassed when the deadline passes.

    Args:
        deadline: Time in seconds of `time.monotonic()`; None if there is no deadline.
    """
    loop_time = None
    if deadline is not None:
        remaining_s = deadline - time.monotonic() + _SLACK_S
        loop_time = asyncio.get_running_loop().time() + remaining_s
    try:
        async with asyncio.timeout_at(loop_time):
            yield
    except TimeoutError as error:
        raise DeadlinePassed("The deadline passed before the response was complete.") from error
