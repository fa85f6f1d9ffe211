"""A buffer of one request's outputs, between the engine and the consumer."""

import asyncio
from dataclasses import replace

from service.domain.engine import EngineTimings, TokenOutput
from service.errors import ChatrpcError


class OutputSlot:
    """The pending outputs of one request, with at most one consumer.

    Pending outputs of one sequence are merged into one. A finish reason without a token is not
    merged with tokens before it, because a finish reason belongs to the last token of its output.

    The consumer gets outputs when they are released, so that several tokens are sent together. The
    first output and finish reasons are released at once. An output without a token or finish reason
    is dropped if the next output arrives before the consumer takes it.

    An output has the latest timings of the request when the consumer takes it. So they never go
    back from one output to the next, although pending outputs are taken by sequence.
    """

    __slots__ = ("_error", "_pending", "_progress", "_ready", "_released_s", "_timings")

    def __init__(self) -> None:
        # Keyed by the sequence's index and True if the output has tokens. In the order of arrival.
        self._pending: dict[tuple[int, bool], TokenOutput] = {}
        self._progress: TokenOutput | None = None
        self._error: ChatrpcError | None = None
        self._ready = asyncio.Event()
        self._released_s = float("-inf")
        self._timings: EngineTimings | None = None

    def put(self, output: TokenOutput | ChatrpcError) -> None:
        """Add an output, or the error that ends the request. Later errors are dropped."""
        if isinstance(output, ChatrpcError):
            self._error = self._error or output
            self._ready.set()
            return
        self._timings = output.timings
        if output.is_progress:
            self._progress = output
            self._ready.set()
            return
        if self._progress is not None:
            self._progress = None
            if self._error is None:
                self._ready.clear()
        key = output.index, bool(output.token_ids)
        before = self._pending.get(key)
        self._pending[key] = output if before is None else before.merged_with(output)
        if output.finish_reason is not None:
            self._ready.set()

    def release(self, now_s: float, interval_s: float) -> None:
        """Release pending outputs if the last release was at least `interval_s` seconds ago."""
        if self._pending and now_s - self._released_s >= interval_s:
            self._released_s = now_s
            self._ready.set()

    async def take(self) -> TokenOutput:
        """Wait for a released output, and return it.

        Raises:
            ChatrpcError: The request has failed, and no output is pending.
        """
        await self._ready.wait()
        if self._progress is not None:
            progress, self._progress = self._progress, None
            if not self._pending and self._error is None:
                self._ready.clear()
            return progress
        if not self._pending:
            assert self._error is not None  # noqa: S101  # the event is set with one of the two
            raise self._error
        output = self._pending.pop(next(iter(self._pending)))
        if not self._pending and self._error is None:
            self._ready.clear()
        if output.timings is not self._timings:
            output = replace(output, timings=self._timings)
        return output
