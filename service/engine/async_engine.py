"""The asyncio interface of the engine. One thread owns the model and takes commands from an inbox.

Commands enter the thread through one `SimpleQueue`. Outputs of all requests leave it in one
`call_soon_threadsafe` per step, and in another one before a step in which requests begin.
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

from service.domain.engine import (
    Caller,
    EngineCapabilities,
    EngineStats,
    EngineTimings,
    Request,
    TokenOutput,
)
from service.domain.engine_settings import EngineModel
from service.engine.admission import Admission
from service.engine.core import EngineCore, RequestOutput
from service.engine.output_slot import OutputSlot
from service.errors import ContextLengthExceeded, EngineDead

# Sending an output to the client costs 0.3 ms of a core, independent of its number of tokens.
# So at most this many outputs per second are released, over all streams, and the rest are merged;
# but no output is held longer than _MAX_HOLD_S.
_OUTPUTS_PER_S = 240
_MAX_HOLD_S = 0.15
# Interval at which the engine's thread is checked for a hang. It is also at most 1 / _MIN_CHECKS of
# the step timeout.
_MAX_CHECK_INTERVAL_S = 1.0
_MIN_CHECKS = 4
# Maximum time that `stop` waits for the step in progress.
_STOP_TIMEOUT_S = 5.0

Command = Callable[[EngineCore], None]

log = structlog.get_logger(__name__)


class AsyncEngine:
    """`service.domain.engine.Engine` over an `EngineCore` that runs on a thread of its own.

    Args:
        load: Returns the core of a model and the maximum length of a sequence in tokens. Called
            on the engine's thread, so one thread loads, warms up and runs the model.
        max_queue_size: Maximum number of sequences that wait.
        step_timeout_s: Maximum duration of a step or command, in seconds. If one takes longer, the
            engine has failed.
    """

    def __init__(
        self,
        load: Callable[[EngineModel], tuple[EngineCore, int]],
        *,
        max_queue_size: int,
        step_timeout_s: float = math.inf,
    ) -> None:
        self._load = load
        self._step_timeout_s = step_timeout_s
        self._max_queue_size = max_queue_size
        self._admission = Admission(0, max_queue_size)  # until the model is loaded
        self._max_model_len = 0
        self._stats = EngineStats()
        self._request_ids = itertools.count()
        self._slots: dict[int, OutputSlot] = {}
        self._inbox: queue.SimpleQueue[Command | None] = queue.SimpleQueue()
        self._thread: threading.Thread
        self._loop: asyncio.AbstractEventLoop
        self._started: asyncio.Future[int]
        self._num_iterations = 0  # steps and commands that the engine's thread has completed
        self._is_idle = True  # True while the engine's thread waits for a command
        self._is_hung = False
        self._is_closed = False
        self._dead = asyncio.Event()

    @property
    def capabilities(self) -> EngineCapabilities:
        return EngineCapabilities("local", is_batch_invariant=True)

    @property
    def max_model_len(self) -> int:
        return self._max_model_len

    def stats(self) -> EngineStats:
        return self._stats

    async def start(self, model: EngineModel) -> None:
        """Load the model on the engine's thread.

        Raises:
            ModelLoadError: The model cannot be served.
            Exception: Any other exception that `load` raised.
        """
        self._loop = asyncio.get_running_loop()
        self._started = self._loop.create_future()
        self._thread = threading.Thread(target=self._run, args=(model,), name="engine", daemon=True)
        self._thread.start()
        self._max_model_len = await self._started
        self._admission = Admission(self._stats.max_num_seqs, self._max_queue_size)

    async def stop(self) -> bool:
        """Fail the unfinished requests with EngineDead, and end the thread after its current step.

        If the model is still being loaded, the thread ends after that; this method does not wait
        for it. If a step hangs, the thread is not ended.

        Returns:
            True if the engine has not failed.
        """
        self._inbox.put(None)
        if self._max_model_len and not self._is_hung:  # the model is loaded
            await asyncio.to_thread(self._thread.join, _STOP_TIMEOUT_S)
            if self._thread.is_alive():
                self._abandon_thread(_STOP_TIMEOUT_S)
        self._close()
        return not self._dead.is_set()

    async def wait_dead(self) -> None:
        """See `service.domain.engine.Engine.wait_dead`.

        Hangs are detected only while this method is awaited.
        """
        interval_s = min(_MAX_CHECK_INTERVAL_S, self._step_timeout_s / _MIN_CHECKS)
        stuck_s, num_iterations = 0.0, -1
        while not self._dead.is_set():
            with suppress(TimeoutError):
                async with asyncio.timeout(interval_s):
                    await self._dead.wait()
            # The time is measured in checks and not by a clock. If the process or the machine was
            # suspended for an hour, only one check was missed.
            is_stuck = self._num_iterations == num_iterations and not self._is_idle
            stuck_s = stuck_s + interval_s if is_stuck else 0.0
            num_iterations = self._num_iterations
            if stuck_s >= self._step_timeout_s:
                self._abandon_thread(stuck_s)

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
                    finish = partial(
                        EngineCore.finish, request_id=request_id, index=index_to_finish
                    )
                    self._inbox.put(finish)

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
        interval_s = min(len(outputs) / _OUTPUTS_PER_S, _MAX_HOLD_S)
        for slot in self._slots.values():
            slot.release(now_s, interval_s)

    def _abandon_thread(self, stuck_s: float) -> None:
        """Log where the engine's thread hangs and fail the engine. A thread cannot be killed."""
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
        if self._started.done():  # start() was cancelled
            return
        if error is not None:
            self._started.set_exception(error)
        elif max_model_len is not None:
            self._started.set_result(max_model_len)

    # The methods below run on the engine's thread.

    def _run(self, model: EngineModel) -> None:
        try:
            core, max_model_len = self._load(model)
        except BaseException as error:  # it is reported by start()
            self._post(self._settle_start, None, error)
            return
        self._stats = core.stats
        self._post(self._settle_start, max_model_len, None)
        try:
            while self._run_commands(core):
                outputs = core.step(partial(self._post, self._deliver))
                self._num_iterations += 1
                self._stats = core.stats
                self._post(self._deliver, outputs)
        except BaseException:  # after any error the state of the model is undefined
            log.exception("engine_failed")
            self._post(self._die)

    def _run_commands(self, core: EngineCore) -> bool:
        """Run the commands in the inbox. Wait for one if no request is unfinished.

        Returns:
            False if the thread has to end.
        """
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
            self._num_iterations += 1
            command(core)
            self._stats = core.stats

    def _post(self, function: Callable[..., object], *args: object) -> None:
        try:
            self._loop.call_soon_threadsafe(function, *args)
        except RuntimeError:
            # The event loop is closed: the process is about to exit.
            log.debug("engine_thread_outlived_event_loop")
