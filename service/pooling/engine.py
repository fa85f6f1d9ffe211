"""The engine of pooling models. One thread owns the model, and computes inputs of many requests.

Each step takes inputs from the requests by turns, first among callers and then among the requests
of a caller, up to a number of tokens. A request is complete when all its inputs are computed.
"""

import asyncio
import itertools
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import structlog

from chatrpc_process.fairness.queue import FairQueue
from service.domain.backend import CallContext
from service.domain.engine import Caller, EngineStats
from service.errors import ChatrpcError, EngineDead, StepFailed
from service.pooling.batch import PackedBatch, TokenizedInput, packed
from service.streams.admission import Admission
from service.streams.hang_detector import HangDetector

# Maximum time that `stop` waits for the step in progress.
_STOP_TIMEOUT_S = 5.0
# A request of a low priority is overtaken at most this many times in a row.
_MAX_OVERTAKES = 256

log = structlog.get_logger(__name__)


class Runner(Protocol):
    """A loaded model. All methods are called on the engine's thread.

    Attributes:
        num_outputs: Number of numbers that each input has.
    """

    num_outputs: int

    def run(self, batch: PackedBatch) -> Sequence[Any]:
        """Return one array of float32 for each input, in the order in which they were packed."""
        ...


@dataclass(eq=False, slots=True)
class _Job:
    """A request: its inputs, and the results so far.

    `rank` and `arrival` order the jobs of a caller: those of the lowest priority value take turns.
    """

    inputs: Sequence[TokenizedInput]
    caller: Caller
    priority: int
    done: asyncio.Future[list[Any]]
    rank: tuple[int, int] = (0, 0)
    arrival: int = 0
    num_taken: int = 0
    num_missing: int = field(init=False)
    results: list[Any] = field(init=False)

    def __post_init__(self) -> None:
        self.num_missing = len(self.inputs)
        self.results = [None] * len(self.inputs)


class PoolingEngine:
    """Runs a pooling model on a thread of its own.

    Args:
        load: Returns the model. Called on the engine's thread.
        max_num_seqs: Maximum number of requests that count as running.
        max_queue_size: Maximum number of further requests.
        max_num_batched_tokens: Maximum number of tokens of a step, unless one input has more.
        step_timeout_s: Maximum duration of a step in seconds. If one takes longer, the engine has
            failed.
    """

    def __init__(
        self,
        load: Callable[[], Runner],
        *,
        max_num_seqs: int,
        max_queue_size: int,
        max_num_batched_tokens: int,
        step_timeout_s: float,
    ) -> None:
        self._load = load
        self._max_num_seqs = max_num_seqs
        self._max_tokens = max_num_batched_tokens
        self._step_timeout_s = step_timeout_s
        self._admission = Admission(max_num_seqs, max_queue_size)
        self._stats = EngineStats(max_num_seqs=max_num_seqs)
        self._dead = asyncio.Event()
        self._num_outputs = 0
        self._loop: asyncio.AbstractEventLoop
        self._thread: threading.Thread
        # Both threads use what follows, with the lock of the condition.
        self._changed = threading.Condition()
        self._queue: FairQueue[_Job] = FairQueue(_MAX_OVERTAKES)
        self._order = itertools.count()
        self._jobs: set[_Job] = set()
        self._is_closed = False
        self._is_idle = True
        self._num_steps = 0  # that began, also those that failed

    @property
    def num_outputs(self) -> int:
        """Number of numbers that each input has; set by `start`."""
        return self._num_outputs

    @property
    def capacity(self) -> int:
        """Maximum number of requests, running and waiting."""
        return self._admission.capacity

    def stats(self) -> EngineStats:
        """Return the engine's load and counters. Its sequences are requests."""
        num = len(self._jobs)
        num_running = min(num, self._max_num_seqs)
        return replace(self._stats, num_running=num_running, num_waiting=num - num_running)

    async def start(self) -> None:
        """Load the model on the engine's thread.

        Raises:
            ModelLoadError: The model cannot be served.
        """
        self._loop = asyncio.get_running_loop()
        started: asyncio.Future[None] = self._loop.create_future()
        self._thread = threading.Thread(
            target=self._run, args=(started,), name="engine", daemon=True
        )
        self._thread.start()
        await started

    async def stop(self) -> bool:
        """Fail all requests with EngineDead, and end the thread after its step.

        Returns:
            True if the engine has not failed.
        """
        has_failed = self._dead.is_set()
        self._close()
        thread = getattr(self, "_thread", None)
        if thread is not None and not has_failed:
            await asyncio.to_thread(thread.join, _STOP_TIMEOUT_S)
        return not has_failed

    async def wait_dead(self) -> None:
        """Return when the engine has failed. Never return otherwise, even after `stop`.

        Hangs are detected only while this method is awaited.
        """
        detector = HangDetector(self._step_timeout_s)
        while not self._dead.is_set():
            with suppress(TimeoutError):
                async with asyncio.timeout(detector.interval_s):
                    await self._dead.wait()
            if detector.check(self._num_steps, is_idle=self._is_idle):
                self._abandon_thread(detector.stuck_s)

    @contextmanager
    def reserve(self, caller: Caller, num_requests: int) -> Iterator[None]:
        """See `service.domain.backend.ModelBackend.reserve`."""
        if self._is_closed:
            raise EngineDead
        self._admission.enter(caller, num_requests, time.monotonic())
        try:
            yield
        finally:
            self._admission.leave(caller, num_requests)

    async def run(self, inputs: Sequence[TokenizedInput], call: CallContext) -> list[Any]:
        """Return one array of float32 for each input. Cancelling the task aborts the request.

        The step in progress ends first. No input of the request is in a later one. Capacity must
        have been reserved.

        Raises:
            DeadlinePassed: The request is expected to wait until its deadline or longer.
            StepFailed: A step with this request failed.
            EngineDead: The engine has failed or is stopped.
        """
        self._admission.check_deadline(call.caller, 1, call.deadline, time.monotonic())
        job = _Job(inputs, call.caller, call.priority, self._loop.create_future())
        with self._changed:
            if self._is_closed:
                raise EngineDead
            self._jobs.add(job)
            self._push(job)
            self._changed.notify()
        try:
            return await job.done
        finally:
            with self._changed:
                self._jobs.discard(job)
                with suppress(ValueError):  # it is in the step in progress, or done
                    self._queue.remove(job)
            self._admission.note_end(1, time.monotonic())

    def _push(self, job: _Job) -> None:
        job.arrival = next(self._order)
        job.rank = (job.priority, job.arrival)
        self._queue.push(job.caller.name, job.caller.weight, job)

    def _close(self) -> None:
        with self._changed:
            self._is_closed = True
            jobs = list(self._jobs)
            self._changed.notify()
        _fail(jobs, EngineDead)

    def _die(self) -> None:
        self._dead.set()
        self._close()

    def _abandon_thread(self, stuck_s: float) -> None:
        """Log where the engine's thread hangs and fail the engine. A thread cannot be killed."""
        frame = sys._current_frames().get(self._thread.ident or 0)
        stack = "".join(traceback.format_stack(frame)) if frame is not None else ""
        log.error("engine_hangs", step_s=round(stuck_s, 1), stack=stack)
        self._die()

    # The methods below run on the engine's thread.

    def _run(self, started: asyncio.Future[None]) -> None:
        try:
            runner = self._load()
        except BaseException as error:  # it is reported by start()
            self._post(_settle, started, error)
            return
        self._num_outputs = runner.num_outputs
        self._post(_settle, started, None)
        try:
            while taken := self._take():
                self._step(runner, taken)
        except BaseException:  # after any error outside of a step the state is undefined
            log.exception("engine_failed")
            self._post(self._die)

    def _take(self) -> list[tuple[_Job, int]]:
        """Wait for requests. Return the inputs of the next step; none if the thread has to end."""
        taken: list[tuple[_Job, int]] = []
        num_tokens = 0
        with self._changed:
            self._is_idle = True
            while not len(self._queue) and not self._is_closed:
                self._changed.wait()
            if self._is_closed:
                return []
            self._is_idle = False
            while (job := self._queue.first()) is not None:
                num_tokens += len(job.inputs[job.num_taken])
                if taken and num_tokens > self._max_tokens:
                    break
                self._queue.pop()
                taken.append((job, job.num_taken))
                job.num_taken += 1
                if job.num_taken < len(job.inputs):
                    self._push(job)
            self._num_steps += 1
        return taken

    def _step(self, runner: Runner, taken: Sequence[tuple[_Job, int]]) -> None:
        started_s = time.monotonic()
        try:
            results = runner.run(packed([job.inputs[index] for job, index in taken]))
        except Exception:  # only the requests of this step fail
            failed = {job for job, _ in taken}
            log.exception("step_failed", requests=len(failed))
            self._stats = replace(self._stats, num_failed_steps=self._stats.num_failed_steps + 1)
            with self._changed:
                for job in failed:
                    with suppress(ValueError):
                        self._queue.remove(job)
            self._post(_fail, failed, StepFailed)
            return
        self._stats = replace(
            self._stats,
            num_steps=self._stats.num_steps + 1,
            step_s=self._stats.step_s + time.monotonic() - started_s,
        )
        finished = []
        for (job, index), result in zip(taken, results, strict=True):
            job.results[index] = result
            job.num_missing -= 1
            if not job.num_missing:
                finished.append(job)
        if finished:
            self._post(self._finish, finished)

    def _finish(self, jobs: Sequence[_Job]) -> None:
        for job in jobs:
            if not job.done.done():
                job.done.set_result(job.results)

    def _post(self, function: Callable[..., object], *args: object) -> None:
        try:
            self._loop.call_soon_threadsafe(function, *args)
        except RuntimeError:
            # The event loop is closed: the process is about to exit.
            log.debug("engine_thread_outlived_event_loop")


def _settle(started: asyncio.Future[None], error: BaseException | None) -> None:
    if started.done():  # start() was cancelled
        return
    if error is None:
        started.set_result(None)
    else:
        started.set_exception(error)


def _fail(jobs: Iterable[_Job], make_error: Callable[[], ChatrpcError]) -> None:
    for job in jobs:
        if not job.done.done():
            job.done.set_exception(make_error())
