"""The asyncio interface of the engine. One thread owns the model and takes commands from an inbox.

Commands enter the thread through one `SimpleQueue`. Outputs of all requests leave it in one
`call_soon_threadsafe` per step, and in another one before a step in which requests begin.
"""

import asyncio
import math
import queue
import threading
from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial

import structlog

from service.domain.engine import Caller, EngineCapabilities, EngineStats, Request, TokenOutput
from service.domain.engine_settings import EngineModel
from service.engine.core import EngineCore, RequestOutput
from service.streams.hang_detector import stack_of, wait_dead
from service.streams.request_streams import RequestStreams

# Maximum time that `stop` waits for the step in progress.
_STOP_TIMEOUT_S = 5.0

# Interval in which the engine checks whether a disk still answers, in seconds.
_LOADING_INTERVAL_S = 0.1

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
        self._streams = RequestStreams(self, max_queue_size)
        self._capabilities = EngineCapabilities("local", reads_gguf=True)
        self._stats = EngineStats()
        self._inbox: queue.SimpleQueue[Command | None] = queue.SimpleQueue()
        self._thread: threading.Thread
        self._loop: asyncio.AbstractEventLoop
        self._started: asyncio.Future[int]
        self._num_iterations = 0  # steps and commands that the engine's thread has completed
        self._is_idle = True  # True while the engine's thread waits for a command
        self._is_hung = False
        self._dead = asyncio.Event()

    @property
    def capabilities(self) -> EngineCapabilities:
        return self._capabilities

    @property
    def max_model_len(self) -> int:
        return self._streams.max_model_len

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
        max_model_len = await self._started
        self._streams.open(self._stats.max_num_seqs, max_model_len)

    async def stop(self) -> bool:
        """Fail the unfinished requests with EngineDead, and end the thread after its current step.

        If the model is still being loaded, the thread ends after that; this method does not wait
        for it. If a step hangs, the thread is not ended.

        Returns:
            True if the engine has not failed.
        """
        self._inbox.put(None)
        if self.max_model_len and not self._is_hung:  # the model is loaded
            await asyncio.to_thread(self._thread.join, _STOP_TIMEOUT_S)
            if self._thread.is_alive():
                self._abandon_thread(_STOP_TIMEOUT_S)
        self._streams.close()
        return not self._dead.is_set()

    async def wait_dead(self) -> None:
        """See `service.domain.engine.Engine.wait_dead`.

        Hangs are detected only while this method is awaited.
        """
        await wait_dead(
            self._dead,
            self._step_timeout_s,
            lambda: (self._num_iterations, self._is_idle),
            self._abandon_thread,
        )

    @property
    def max_request_sequences(self) -> int:
        return self._streams.max_request_sequences

    def reserve(self, caller: Caller, num_sequences: int) -> AbstractContextManager[None]:
        """See `service.domain.engine.Engine.reserve`."""
        return self._streams.reserve(caller, num_sequences)

    def generate(
        self, request: Request, *, is_reserved: bool = False
    ) -> AsyncGenerator[TokenOutput, int | None]:
        """See `service.domain.engine.Engine.generate`."""
        return self._streams.generate(request, is_reserved=is_reserved)

    def add(self, request_id: int, request: Request, queued_s: float) -> None:
        """See `service.streams.request_streams.EngineWork.add`."""
        self._inbox.put(lambda core: core.add(request_id, request, queued_s))

    def finish(self, request_id: int, index: int) -> None:
        """See `service.streams.request_streams.EngineWork.finish`."""
        self._inbox.put(lambda core: core.finish(request_id, index))

    def abort(self, request_id: int) -> None:
        """See `service.streams.request_streams.EngineWork.abort`."""
        self._inbox.put(lambda core: core.abort(request_id))

    def _deliver(self, outputs: list[RequestOutput]) -> None:
        for output in outputs:
            self._streams.put(output.request_id, output.output)
        self._streams.release(len(outputs))

    def _abandon_thread(self, stuck_s: float) -> None:
        """Log where the engine's thread hangs and fail the engine. A thread cannot be killed."""
        log.error("engine_hangs", step_s=round(stuck_s, 1), stack=stack_of(self._thread))
        self._is_hung = True
        self._die()

    def _die(self) -> None:
        self._streams.close()
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
        core.on_work(partial(self._inbox.put, _wake))
        self._stats = core.stats
        self._capabilities = replace(
            self._capabilities,
            is_batch_invariant=core.is_batch_invariant,
            quantization=core.quantization,
        )
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
        core.close()

    def _run_commands(self, core: EngineCore) -> bool:
        """Run the commands in the inbox. Wait for one if the core has no work.

        Returns:
            False if the thread has to end.
        """
        while True:
            self._is_idle = not core.has_unfinished
            try:
                command = self._inbox.get(
                    block=not core.has_work,
                    timeout=_LOADING_INTERVAL_S if core.is_loading else None,
                )
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


def _wake(_: EngineCore) -> None:
    """Do nothing: a command that only ends a wait for commands."""
