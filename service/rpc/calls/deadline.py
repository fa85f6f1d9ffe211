"""The deadline of a call."""

import time

from service.errors import DeadlinePassed
from service.rpc.calls.context import Context


def deadline_of(context: Context, request_timeout_s: float) -> float:
    """Return the time by which the request must be complete, in seconds of `time.monotonic()`.

    Args:
        request_timeout_s: Maximum duration of a request in seconds. It applies if the caller sets
            no deadline or a later one.

    Raises:
        DeadlinePassed: The caller's deadline has passed.
    """
    remaining = context.time_remaining()
    if remaining is not None and remaining <= 0:
        raise DeadlinePassed("The deadline has passed.")
    allowed = request_timeout_s if remaining is None else min(remaining, request_timeout_s)
    return time.monotonic() + allowed
