"""The requests inside an engine: their admission, and the delivery of their outputs."""

import asyncio
import itertools
import time
from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager, nullcontext
from typing import Protocol

from service.domain.engine import Caller, EngineTimings, Request, TokenOutput
from service.errors import ChatrpcError, ContextLengthExceeded, EngineDead
from service.streams.admission import Admission
from service.streams.output_slot import OutputSlot

# Sending an output to the client costs 0.3 ms of a core, independent of its number of tokens.
# So at most this many outputs per second are released, over all streams, and the rest are merged;
# but no output is held longer than _MAX_HOLD_S.
_OUTPUTS_PER_S = 240
_MAX_HOLD_S = 0.15


class EngineWork(Protocol):
    """The work of an engine on admitted requests. No method blocks or raises an exception."""

    def add(self, request_id: int, request: Request, queued_s: float) -> None:
        """Start to work on a request.

        Args:
            queued_s: Time of admission, in seconds of `time.monotonic()`.
        """
        ...

    def finish(self, request_id: int, index: int) -> None:
        """End one sequence of a request. Does nothing if the sequence has already finished."""
        ...

    def abort(self, request_id: int) -> None:
        """End a request. Does nothing if the request has already finished."""
        ...


class RequestStreams:
    """Admits requests to an engine, and delivers the engine's outputs to the requests' consumers.

    All methods are called on the thread of the event loop.

    Args:
        work: The engine.
        max_queue_size: Maximum number of sequences that wait.
    """

    def __init__(self, work: EngineWork, max_queue_size: int) -> None:
        self._work = work
        self._max_queue_size = max_queue_size
        self._admission = Admission(0, max_queue_size)  # until the model is loaded
        self._max_model_len = 0
        self._request_ids = itertools.count()
        self._slots: dict[int, OutputSlot] = {}
        self._is_closed = False

    def open(self, max_num_seqs: int, max_model_len: int) -> None:
        """Set the limits of the loaded model.

        Args:
            max_num_seqs: Maximum number of sequences that run at once.
            max_model_len: Maximum length of a sequence in tokens, prompt and output together.
        """
        self._admission = Admission(max_num_seqs, self._max_queue_size)
        self._max_model_len = max_model_len

    def close(self) -> None:
        """Fail the unfinished requests, and all later ones, with EngineDead."""
        self._is_closed = True
        for slot in self._slots.values():
            slot.put(EngineDead())

    @property
    def max_model_len(self) -> int:
        return self._max_model_len

    @property
    def max_request_sequences(self) -> int:
        return self._admission.capacity

    @contextmanager
    def reserve(self, caller: Caller, num_sequences: int) -> Iterator[None]:
        """See `service.domain.engine.Engine.reserve`."""
        if self._is_closed:
            raise EngineDead
        self._admission.enter(caller, num_sequences, time.monotonic())
        try:
            yield
        finally:
            self._admission.leave(caller, num_sequences)

    async def generate(
        self, request: Request, *, is_reserved: bool = False
    ) -> AsyncGenerator[TokenOutput, int | None]:
        """See `service.domain.engine.Engine.generate`."""
        reservation = nullcontext() if is_reserved else self.reserve(request.caller, request.n)
        with reservation, self._added(request) as (request_id, slot, queued_s):
            yield TokenOutput(timings=EngineTimings(queued_s))
            unfinished = set(range(request.n))
            while unfinished:
                output = await slot.take()
                if output.index not in unfinished:
                    continue
                if output.finish_reason is not None:
                    unfinished.remove(output.index)
                index_to_finish = yield output
                if index_to_finish in unfinished:
                    unfinished.remove(index_to_finish)
                    self._work.finish(request_id, index_to_finish)

    def put(self, request_id: int, output: TokenOutput | ChatrpcError) -> None:
        """Add an output of a request, or the error that ends it. Ignores unknown requests."""
        if (slot := self._slots.get(request_id)) is not None:
            slot.put(output)

    def release(self, num_outputs: int) -> None:
        """Release the outputs that were added, so that consumers take them.

        Args:
            num_outputs: Number of outputs of the engine's last step. If there are many, outputs
                are held for a moment, so that consumers take several tokens at once.
        """
        now_s = asyncio.get_running_loop().time()
        interval_s = min(num_outputs / _OUTPUTS_PER_S, _MAX_HOLD_S)
        for slot in self._slots.values():
            slot.release(now_s, interval_s)

    @contextmanager
    def _added(self, request: Request) -> Iterator[tuple[int, OutputSlot, float]]:
        """Add a request to the engine; abort it at the end of the context, if it is unfinished.

        Yields:
            Its id, its output slot and the time at which it was added.
        """
        if self._is_closed:
            raise EngineDead
        if len(request.prompt_token_ids) >= self._max_model_len:
            raise ContextLengthExceeded(len(request.prompt_token_ids), self._max_model_len)
        now = time.monotonic()
        self._admission.check_deadline(request.caller, request.n, request.deadline, now)
        request_id, slot = next(self._request_ids), OutputSlot()
        self._slots[request_id] = slot
        self._work.add(request_id, request, now)
        try:
            yield request_id, slot, now
        finally:
            self._work.abort(request_id)
            del self._slots[request_id]
            self._admission.note_end(request.n, time.monotonic())
