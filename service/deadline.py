"""Ends work whose request's deadline has passed."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from types import TracebackType

from service.errors import DeadlinePassed

# gRPC ends a call at its caller's deadline. For callers without a deadline, the work is cancelled
# here, this many seconds after the deadline, so that the two never happen at the same time.
_SLACK_S = 0.5
_INCOMPLETE = "The deadline passed before the response was complete."


@asynccontextmanager
async def deadline_scope(deadline: float) -> AsyncIterator[None]:
    """Cancel the body and raise DeadlinePassed when the deadline passes.

    Args:
        deadline: Time in seconds of `time.monotonic()`.
    """
    try:
        async with asyncio.timeout_at(_loop_time(deadline)):
            yield
    except TimeoutError as error:
        raise DeadlinePassed(_INCOMPLETE) from error


class WaitLimit:
    """Limits the waits of a task, one after another, with one timer.

    It does what `asyncio.timeout` does, which makes a timer for each wait. That takes longer than
    everything else that is done for one token of a stream.

    Args:
        message: The message of the DeadlinePassed that a wait raises if it takes too long.
    """

    def __init__(self, message: str) -> None:
        self._message = message
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._until = 0.0
        self._task: asyncio.Task[object] | None = None  # set during a wait
        self._num_cancels = 0  # of the task, before the wait
        self._has_expired = False

    def until(self, loop_time: float) -> "WaitLimit":
        """Return the context of a wait that is cancelled at `loop_time`.

        Args:
            loop_time: Time in seconds of the event loop.
        """
        self._until = loop_time
        return self

    def within(self, timeout_s: float) -> "WaitLimit":
        """Return the context of a wait that is cancelled after `timeout_s` seconds."""
        return self.until(self._loop.time() + timeout_s)

    def __enter__(self) -> None:
        task = asyncio.current_task()
        assert task is not None  # noqa: S101  # a coroutine waits
        self._task, self._num_cancels = task, task.cancelling()
        if self._timer is None:
            self._timer = self._loop.call_at(self._until, self._expire)
        elif self._until < self._timer.when():
            self._timer.cancel()
            self._timer = self._loop.call_at(self._until, self._expire)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        task, self._task = self._task, None
        if self._has_expired and task is not None:
            self._has_expired = False
            is_ours = task.uncancel() <= self._num_cancels
            if is_ours and kind is asyncio.CancelledError:
                raise DeadlinePassed(self._message) from error

    def close(self) -> None:
        """Stop the timer."""
        if self._timer is not None:
            self._timer.cancel()

    def _expire(self) -> None:
        self._timer = None
        if self._task is None:  # the next wait starts the timer again
            return
        if self._until > self._loop.time():  # this wait began after the timer was started
            self._timer = self._loop.call_at(self._until, self._expire)
            return
        self._has_expired = True
        self._task.cancel()


@contextmanager
def deadline_of_waits(deadline: float) -> Iterator[WaitLimit]:
    """Yield a limit for the waits of one request. Each is a `with` block of the limit.

    Each wait does what `deadline_scope` does.

    Args:
        deadline: Time in seconds of `time.monotonic()`.
    """
    limit = WaitLimit(_INCOMPLETE)
    try:
        yield limit.until(_loop_time(deadline))
    finally:
        limit.close()


def _loop_time(deadline: float) -> float:
    """Return the time of the event loop at which work is cancelled."""
    return asyncio.get_running_loop().time() + deadline - time.monotonic() + _SLACK_S
