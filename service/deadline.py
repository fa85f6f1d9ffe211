"""Ends work whose request's deadline has passed."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from service.errors import DeadlinePassed

# A caller's own deadline ends its call at that time. This limit follows a little later, for callers
# without a deadline, so that the two never race.
_SLACK_S = 0.5


@asynccontextmanager
async def deadline_scope(deadline: float | None) -> AsyncIterator[None]:
    """Cancel the body and raise DeadlinePassed when the deadline, of `time.monotonic()`, passes."""
    loop_time = None
    if deadline is not None:
        remaining_s = deadline - time.monotonic() + _SLACK_S
        loop_time = asyncio.get_running_loop().time() + remaining_s
    try:
        async with asyncio.timeout_at(loop_time):
            yield
    except TimeoutError as error:
        raise DeadlinePassed("The deadline passed before the response was complete.") from error
