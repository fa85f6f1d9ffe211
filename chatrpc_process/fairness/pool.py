"""Threads for work that would block an event loop, shared fairly by callers."""

import asyncio
import itertools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeVar

from chatrpc_process.fairness.capacity import SharedCapacity
from chatrpc_process.fairness.queue import FairQueue

_NUM_THREADS = 2  # number of threads for each kind of job
# The number of times that a caller's smaller jobs may overtake its oldest one.
_MAX_OVERTAKES = 8

Result = TypeVar("Result")


class PoolFull(Exception):
    """The pool has the maximum number of jobs, or the caller has its share of them."""


@dataclass(frozen=True, slots=True, eq=False)
class _Job:
    """A call of `function` and the future that waits for it."""

    caller: str
    size: int
    arrival: int
    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    result: "asyncio.Future[Any]"

    @property
    def rank(self) -> tuple[int, int]:
        return self.size, self.arrival


class FairPool:
    """Two threads for small jobs and two for large ones.

    - Small jobs never wait for large ones.
    - A caller runs one job of each kind at a time, so its jobs never occupy both threads. Callers
      take turns (`FairQueue`), and the smallest job of a caller comes first.
    - A job that is cancelled before it starts is dropped. A job that has started runs to its end.

    A pool must be used from one event loop at a time.

    Args:
        name: Prefix of the threads' names.
        small_size: The largest size, in the unit of `run`, of a small job. A small job takes
            milliseconds.
        max_jobs: Maximum number of waiting and running jobs of all callers together.
    """

    def __init__(self, name: str, *, small_size: int, max_jobs: int) -> None:
        self._small_size = small_size
        self._jobs = SharedCapacity(max_jobs)
        self._arrivals = itertools.count()
        self._small = _Lane(f"{name}-small")
        self._large = _Lane(f"{name}-large")

    @property
    def num_jobs(self) -> int:
        """The number of waiting and running jobs."""
        return self._jobs.num_used

    async def run(
        self,
        caller: str,
        size: int,
        function: Callable[..., Result],
        *arguments: Any,
        weight: int = 1,
    ) -> Result:
        """Return `function(*arguments)`, called on a thread of the pool.

        Args:
            caller: The caller of the job; empty if callers cannot be distinguished.
            size: A measure of the job's duration, in one unit for all jobs of the pool.
            weight: Number of jobs that the caller may run in one turn.

        Raises:
            PoolFull: The pool has the maximum number of jobs, or the caller has its share of them.
        """
        if not self._jobs.has_room(caller, 1, weight):
            raise PoolFull
        result: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        job = _Job(caller, size, next(self._arrivals), function, arguments, result)
        lane = self._small if size <= self._small_size else self._large
        self._jobs.take(caller, 1)
        try:
            lane.add(job, weight)
            return await result
        finally:
            lane.drop(job)
            self._jobs.release(caller, 1)

    def close(self) -> None:
        """End the threads when they are idle, without waiting for running jobs."""
        self._small.close()
        self._large.close()


class _Lane:
    """Threads of one kind, and the jobs that wait for them."""

    def __init__(self, name: str) -> None:
        self._queue: FairQueue[_Job] = FairQueue(_MAX_OVERTAKES)
        self._busy: set[str] = set()  # the callers that have a running job
        self._executor = ThreadPoolExecutor(_NUM_THREADS, thread_name_prefix=name)

    def add(self, job: _Job, weight: int) -> None:
        self._queue.push(job.caller, weight, job)
        self._start()

    def drop(self, job: _Job) -> None:
        """Remove the job if it has not been started."""
        if job in self._queue:
            self._queue.remove(job)

    def close(self) -> None:
        self._executor.shutdown(wait=False, cancel_futures=True)

    def _start(self) -> None:
        """Start the next jobs while there are idle threads."""
        while len(self._busy) < _NUM_THREADS:
            caller = next((name for name in self._queue.weights if name not in self._busy), None)
            if caller is None:
                return
            self._busy.add(caller)
            self._executor.submit(self._run, self._queue.pop(caller))

    def _run(self, job: _Job) -> None:
        """Run a job, on a thread of the lane."""
        result, error = None, None
        try:
            result = job.function(*job.arguments)
        except BaseException as raised:  # `run` raises it to its caller
            error = raised
        with suppress(RuntimeError):  # the loop is closed because the process is ending
            job.result.get_loop().call_soon_threadsafe(self._settle, job, result, error)

    def _settle(self, job: _Job, result: Any, error: BaseException | None) -> None:
        self._busy.discard(job.caller)
        if not job.result.done():
            if error is None:
                job.result.set_result(result)
            else:
                job.result.set_exception(error)
        self._start()
