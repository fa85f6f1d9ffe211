"""The engine as asyncio sees it: one thread owns the model, everything else posts to its inbox.

Into the thread go commands, one `SimpleQueue`. Out of it comes one `call_soon_threadsafe` a step
with the outputs of every request, however many run, and another one before a step in which requests
begin.
"""

import asyncio
import itertools
import math
import queue
import sys
import threading
import time
import traceback
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from functools import partial

import structlog

from service.domain.engine import Caller, EngineStats, EngineTimings, Request, TokenOutput
from service.domain.engine_settings import EngineModel
from service.engine.admission import Admission
from service.engine.core import EngineCore, RequestOutput
from service.engine.output_slot import OutputSlot
from service.errors import ContextLengthExceeded, EngineDead

# An output costs 0.3 ms of a core on its way to the client, and hardly more if it has more tokens.
# So many a second are let go, of all streams together, as long as none is kept longer than that.
_OUTPUTS_PER_S = 240
_LONGEST_STAY_S = 0.15
# How often the engine's thread is looked at; a step is given up after some such looks.
_LONGEST_TICK_S = 1.0
_LEAST_TICKS = 4
# How long the end of the process waits for the step that the engine is in.
_LAST_STEP_S = 5.0

Command = Callable[[EngineCore], None]

log = structlog.get_logger(__name__)


class AsyncEngine:
    """`service.domain.engine.Engine` over an `EngineCore` that lives on a thread of its own.

    Args:
        load: Returns the core of a model and its longest sequence. It is called on the engine's
            thread, so that the model is loaded, warmed up and run by one and the same thread.
        max_num_seqs: the most sequences that run at once.
        max_queue_size: the most sequences that wait besides those.
        step_timeout_s: what takes longer, a step or a command, will not end any more: the engine
            has failed.
    """

    def __init__(
        self,
        load: Callable[[EngineModel], tuple[EngineCore, int]],
        *,
        max_num_seqs: int,
        max_queue_size: int,
        step_timeout_s: float = math.inf,
    ) -> None:
        self._load = load
        self._step_timeout_s = step_timeout_s
        self._admission = Admission(max_num_seqs, max_queue_size)
        self._max_model_len = 0
        self._stats = EngineStats()
        self._request_ids = itertools.count()
        self._slots: dict[int, OutputSlot] = {}
        self._inbox: queue.SimpleQueue[Command | None] = queue.SimpleQueue()
        self._thread: threading.Thread
        self._loop: asyncio.AbstractEventLoop
        self._started: asyncio.Future[int]
        self._num_turns = 0  # of the engine's thread, through its loop
        self._is_idle = True  # it waits for a command
        self._is_hung = False
        self._is_closed = False
        self._dead = asyncio.Event()

    @property
    def max_model_len(self) -> int:
        return self._max_model_len

    def stats(self) -> EngineStats:
        return self._stats

    async def start(self, model: EngineModel) -> None:
        """Load the model on the engine's thread.

        Raises:
            ModelLoadError, or whatever else `load` raises.
        """
        self._loop = asyncio.get_running_loop()
        self._started = self._loop.create_future()
        self._thread = threading.Thread(target=self._run, args=(model,), name="engine", daemon=True)
        self._thread.start()
        self._max_model_len = await self._started

    async def stop(self) -> bool:
        """Fail what still runs and end the thread, after the step it is in.

        A load under way cannot be interrupted and is not waited for; its thread ends after it. One
        that hangs in a step is left there.

        Returns:
            Whether the engine was well to the end.
        """
        self._inbox.put(None)
        if self._max_model_len and not self._is_hung:  # it is loaded
            await asyncio.to_thread(self._thread.join, _LAST_STEP_S)
            if self._thread.is_alive():
                self._give_up(_LAST_STEP_S)
        self._close()
        return not self._dead.is_set()

    async def wait_dead(self) -> None:
        """See `service.domain.engine.Engine.wait_dead`. Steps are watched while somebody waits."""
        tick_s = min(_LONGEST_TICK_S, self._step_timeout_s / _LEAST_TICKS)
        stuck_s, num_turns = 0.0, -1
        while not self._dead.is_set():
            with suppress(TimeoutError):
                async with asyncio.timeout(tick_s):
                    await self._dead.wait()
            # Counted in looks, not read from a clock: a process that was stopped for an hour, or
            # whose machine was, has missed one of them.
            is_stuck = self._num_turns == num_turns and not self._is_idle
            stuck_s = stuck_s + tick_s if is_stuck else 0.0
            num_turns = self._num_turns
            if stuck_s >= self._step_timeout_s:
                self._give_up(stuck_s)

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
        places = nullcontext() if is_reserved else self.reserve(request.caller, request.n)
        with places, self._inside(request) as (request_id, slot, queued_s):
            yield TokenOutput(timings=EngineTimings(queued_s))
            unfinished = set(range(request.n))
            while unfinished:
                output = await slot.take()
                if output.index not in unfinished:
                    continue
                if output.finish_reason is not None:
                    unfinished.remove(output.index)
                unwanted = yield output
                if unwanted in unfinished:
                    unfinished.remove(unwanted)
                    finish = partial(EngineCore.finish, request_id=request_id, index=unwanted)
                    self._inbox.put(finish)

    @contextmanager
    def _inside(self, request: Request) -> Iterator[tuple[int, OutputSlot, float]]:
        """A request's stay in the engine: added when it is admitted, aborted if it leaves early."""
        if self._is_closed:
            raise EngineDead
        if len(request.prompt_token_ids) >= self._max_model_len:
            raise ContextLengthExceeded(len(request.prompt_token_ids), self._max_model_len)
        now = time.monotonic()
        self._admission.check_deadline(request.caller, request.n, request.deadline, now)
        request_id, slot = next(self._request_ids), OutputSlot()
        self._slots[request_id] = slot
        self._inbox.put(lambda core: core.add(request_id, request, now))
        try:
            yield request_id, slot, now
        finally:
            self._inbox.put(lambda core: core.abort(request_id))
            del self._slots[request_id]
            self._admission.note_end(request.n, time.monotonic())

    def _deliver(self, outputs: list[RequestOutput]) -> None:
        for output in outputs:
            if (slot := self._slots.get(output.request_id)) is not None:
                slot.put(output.output)
        now_s = self._loop.time()
        interval_s = min(len(outputs) / _OUTPUTS_PER_S, _LONGEST_STAY_S)
        for slot in self._slots.values():
            slot.release(now_s, interval_s)

    def _give_up(self, stuck_s: float) -> None:
        """The engine's thread will not come back. It cannot be ended, only left."""
        frame = sys._current_frames().get(self._thread.ident or 0)
        stack = "".join(traceback.format_stack(frame)) if frame is not None else ""
        log.error("engine_hangs", step_s=round(stuck_s, 1), stack=stack)
        self._is_hung = True
        self._die()

    def _close(self) -> None:
        self._is_closed = True
        for slot in self._slots.values():
            slot.put(EngineDead())

    def _die(self) -> None:
        self._close()
        self._dead.set()

    def _settle_start(self, max_model_len: int | None, error: BaseException | None) -> None:
        if self._started.done():  # nobody waits any more: start() was cancelled
            return
        if error is not None:
            self._started.set_exception(error)
        elif max_model_len is not None:
            self._started.set_result(max_model_len)

    # Below: on the engine's thread.

    def _run(self, model: EngineModel) -> None:
        try:
            core, max_model_len = self._load(model)
        except BaseException as error:  # start() raises it
            self._post(self._settle_start, None, error)
            return
        self._stats = core.stats
        self._post(self._settle_start, max_model_len, None)
        try:
            while self._obey(core):
                outputs = core.step(partial(self._post, self._deliver))
                self._num_turns += 1
                self._stats = core.stats
                self._post(self._deliver, outputs)
        except BaseException:  # whatever it was, nothing can be said of the model's state after it
            log.exception("engine_failed")
            self._post(self._die)

    def _obey(self, core: EngineCore) -> bool:
        """Carry out what is in the inbox, waiting if there is nothing else to do; False to stop."""
        while True:
            self._is_idle = not core.has_unfinished
            try:
                command = self._inbox.get(block=self._is_idle)
            except queue.Empty:
                return True
            if command is None:
                self._is_idle = True
                return False
            self._is_idle = False
            self._num_turns += 1
            command(core)
            self._stats = core.stats

    def _post(self, function: Callable[..., object], *args: object) -> None:
        try:
            self._loop.call_soon_threadsafe(function, *args)
        except RuntimeError:
            # The loop is closed: the process is on its way out and nobody is left to tell.
            log.debug("engine_thread_outlived_event_loop")
