"""Where a request's outputs wait for their reader."""

import asyncio

from service.errors import ChatrpcError
from service.types import TokenOutput


class OutputSlot:
    """The pending output of one request. What its reader has not taken yet is merged into one.

    The reader gets it when it is released, so that not every token has to travel alone. The first
    and the last are released at once.
    """

    __slots__ = ("_error", "_pending", "_ready", "_released_s")

    def __init__(self) -> None:
        self._pending: TokenOutput | None = None
        self._error: ChatrpcError | None = None
        self._ready = asyncio.Event()
        self._released_s = float("-inf")

    def put(self, output: TokenOutput | ChatrpcError) -> None:
        if isinstance(output, ChatrpcError):
            self._error = output
            self._ready.set()
            return
        self._pending = output if self._pending is None else self._pending.merged_with(output)
        if output.finish_reason is not None:
            self._ready.set()

    def release(self, now_s: float, interval_s: float) -> None:
        """Let the reader have what is pending, if the last release was `interval_s` ago."""
        if self._pending is not None and now_s - self._released_s >= interval_s:
            self._released_s = now_s
            self._ready.set()

    async def take(self) -> TokenOutput:
        """The pending output, waiting for one; raises the error once nothing is pending."""
        await self._ready.wait()
        output, self._pending = self._pending, None
        if output is None:
            assert self._error is not None  # noqa: S101  # the event is set with one of the two
            raise self._error
        if self._error is None:
            self._ready.clear()
        return output
