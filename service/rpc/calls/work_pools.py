"""Threads for work on requests that would block the event loop."""

from collections.abc import Callable
from typing import Any, TypeVar

from chatrpc_process.fairness.pool import FairPool, PoolFull
from service.errors import PreparationFull
from service.rpc.calls.caller import current_caller, received_bytes

# Jobs up to these sizes are small: they take milliseconds. A message of 32 KiB has about 8000
# tokens of text.
_SMALL_MESSAGE_BYTES = 32 << 10
_SMALL_GRAMMAR_LENGTH = 8 << 10  # characters
# More than the default capacity of the queue. So this limit is reached only by calls that do not
# reserve capacity of the queue.
_MAX_JOBS = 512

Result = TypeVar("Result")


class WorkPools:
    """Pools that callers share fairly (`FairPool`), one for each kind of work.

    Every method returns `function(*arguments)`, called on a thread for the current caller.

    Raises:
        PreparationFull: Too many jobs are waiting, or the caller has used its share of them.
    """

    def __init__(self) -> None:
        # The event loop's own pool is not used, because the process would wait at exit for its
        # jobs.
        self._texts = FairPool("text", small_size=_SMALL_MESSAGE_BYTES, max_jobs=_MAX_JOBS)
        self._grammars = FairPool("grammar", small_size=_SMALL_GRAMMAR_LENGTH, max_jobs=_MAX_JOBS)

    @property
    def num_jobs(self) -> int:
        """Number of jobs that wait or run."""
        return self._texts.num_jobs + self._grammars.num_jobs

    async def text(self, function: Callable[..., Result], *arguments: Any) -> Result:
        """Parse, tokenize or render text. The job's size is that of the call's message."""
        return await _run(self._texts, received_bytes(), function, *arguments)

    async def grammar(
        self, length: int, function: Callable[..., Result], *arguments: Any
    ) -> Result:
        """Compile a grammar of `length` characters."""
        return await _run(self._grammars, length, function, *arguments)

    def close(self) -> None:
        self._texts.close()
        self._grammars.close()


async def _run(
    pool: FairPool, size: int, function: Callable[..., Result], *arguments: Any
) -> Result:
    caller = current_caller()
    try:
        return await pool.run(caller.name, size, function, *arguments, weight=caller.weight)
    except PoolFull:
        raise PreparationFull from None
