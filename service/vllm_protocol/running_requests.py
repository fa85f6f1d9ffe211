"""The requests that clients of vLLM's protocol can abort."""

import asyncio
from collections import defaultdict
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any


class RunningRequest:
    """A request that is running in the current task."""

    def __init__(self) -> None:
        task = asyncio.current_task()
        assert task is not None  # noqa: S101  # a coroutine runs in a task
        self._task = task
        self._num_cancellations = task.cancelling()
        self._paused: AsyncGenerator[Any, None] | None = None
        self._closing: asyncio.Future[None] | None = None
        self.is_aborted = False

    def abort(self) -> None:
        """End the request's generation, if it has not been aborted before.

        If the task waits for the generation, it is cancelled. If it waits for the client to read,
        the generation is closed, and the task is not disturbed.
        """
        if self.is_aborted:
            return
        self.is_aborted = True
        if self._paused is None:
            self._task.cancel()
        else:
            self._closing = asyncio.ensure_future(self._paused.aclose())

    @asynccontextmanager
    async def paused(self, generation: AsyncGenerator[Any, None]) -> AsyncIterator[None]:
        """Let `abort` close the generation while in the context. The task does not use it there."""
        self._paused = generation
        try:
            yield
        finally:
            self._paused = None
            if self._closing is not None:
                await asyncio.shield(self._closing)

    def end_cancellation(self) -> bool:
        """End the cancellation of the task, which has just been raised in it.

        Returns:
            False if something else than `abort` has cancelled the task, so that it must end.
        """
        return self.is_aborted and self._task.uncancel() <= self._num_cancellations


class RunningRequests:
    """All requests that are running, by their callers and the ids that the callers gave them.

    Ids need not be unique.
    """

    def __init__(self) -> None:
        self._requests: defaultdict[tuple[str, str], set[RunningRequest]] = defaultdict(set)

    @contextmanager
    def added(self, caller: str, request_id: str) -> Iterator[RunningRequest]:
        """Add a request that the current task serves while in the context.

        Args:
            caller: Name of the caller; see `service.domain.engine.Caller`.
            request_id: The id. If it is empty, the request cannot be aborted.
        """
        key = caller, request_id
        request = RunningRequest()
        if request_id:
            self._requests[key].add(request)
        try:
            yield request
        finally:
            self._requests[key].discard(request)
            if not self._requests[key]:
                del self._requests[key]

    def abort(self, caller: str, request_ids: Iterable[str]) -> None:
        """Abort the requests of a caller that have one of the ids. Unknown ids are ignored."""
        for request_id in request_ids:
            for request in self._requests.get((caller, request_id), ()):
                request.abort()
