"""Where a request's outputs wait for their reader."""

import asyncio

from service.domain.engine import TokenOutput
from service.errors import ChatrpcError


class OutputSlot:
    """The pending outputs of one request. What its reader has not taken yet of a sequence is merged
    into one, but for an end without a token: behind tokens the end belongs to the last of them.

    The reader gets them when they are released, so that not every token has to travel alone. The
    first and the ends are released at once. An output without a token or an end is dropped if the
    reader has not taken it when another one comes.
    """

    __slots__ = ("_error", "_pending", "_progress", "_ready", "_released_s")

    def __init__(self) -> None:
        self._pending: dict[tuple[int, bool], TokenOutput] = {}  # in the order of their first token
        self._progress: TokenOutput | None = None
        self._error: ChatrpcError | None = None
        self._ready = asyncio.Event()
        self._released_s = float("-inf")

    def put(self, output: TokenOutput | ChatrpcError) -> None:
        if isinstance(output, ChatrpcError):
            self._error = output
            self._ready.set()
            return
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
        """Let the reader have what is pending, if the last release was `interval_s` ago."""
        if self._pending and now_s - self._released_s >= interval_s:
            self._released_s = now_s
            self._ready.set()

    async def take(self) -> TokenOutput:
        """A pending output, waiting for one; raises the error once nothing is pending."""
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
        return output
