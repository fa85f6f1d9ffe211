import asyncio
import threading
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from chatrpc_process.fairness.pool import FairPool, PoolFull

SMALL, LARGE = 1, 100


@pytest_asyncio.fixture
async def pool() -> AsyncIterator[FairPool]:
    pool = FairPool("test", small_size=10, max_jobs=12)
    yield pool
    pool.close()


class Gate:
    """A job that blocks its thread until it is opened."""

    def __init__(self) -> None:
        self._is_open = threading.Event()
        self._has_begun = threading.Event()

    def __call__(self) -> None:
        self._has_begun.set()
        assert self._is_open.wait(60)

    def open(self) -> None:
        self._is_open.set()

    async def begun(self) -> None:
        assert await asyncio.to_thread(self._has_begun.wait, 60)


async def occupied(pool: FairPool, size: int, caller: str) -> tuple[Gate, "asyncio.Task[None]"]:
    gate = Gate()
    task = asyncio.ensure_future(pool.run(caller, size, gate))
    await gate.begun()
    return gate, task


async def test_result_and_error_of_the_function_reach_the_caller(pool: FairPool) -> None:
    assert await pool.run("a", SMALL, divmod, 7, 2) == (3, 1)
    with pytest.raises(ZeroDivisionError):
        await pool.run("a", SMALL, divmod, 7, 0)
    assert pool.num_jobs == 0


async def test_callers_take_turns_and_small_jobs_of_a_caller_come_first(pool: FairPool) -> None:
    gates = [await occupied(pool, LARGE, name) for name in ("x", "y")]
    order: list[str] = []
    jobs = [
        pool.run("a", 90, order.append, "a, large"),
        pool.run("a", 80, order.append, "a, less large"),
        pool.run("b", 99, order.append, "b"),
    ]
    waiting = [asyncio.ensure_future(job) for job in jobs]
    await asyncio.sleep(0)
    gates[0][0].open()  # one thread is free, so jobs run in the order of the queue
    await asyncio.gather(*waiting)
    assert order == ["a, less large", "b", "a, large"]
    gates[1][0].open()
    await asyncio.gather(*(task for _, task in gates))


async def test_small_job_does_not_wait_for_large_ones(pool: FairPool) -> None:
    gates = [await occupied(pool, LARGE, name) for name in ("x", "y")]
    assert await pool.run("", SMALL, str, 1) == "1"
    for gate, task in gates:
        gate.open()
        await task


@pytest.mark.parametrize("size", [SMALL, LARGE])
async def test_caller_with_a_long_job_leaves_a_thread_to_others(pool: FairPool, size: int) -> None:
    gate, occupier = await occupied(pool, size, "a")
    own = asyncio.ensure_future(pool.run("a", size, str, 1))
    assert await pool.run("b", size, str, 2) == "2"
    assert not own.done()
    gate.open()
    assert await own == "1"
    await occupier


async def test_cancelled_job_is_dropped_before_it_starts(pool: FairPool) -> None:
    gate, occupier = await occupied(pool, SMALL, "a")
    calls: list[int] = []
    abandoned = asyncio.ensure_future(pool.run("a", SMALL, calls.append, 1))
    kept = asyncio.ensure_future(pool.run("a", SMALL, calls.append, 2))
    await asyncio.sleep(0)
    abandoned.cancel()
    with pytest.raises(asyncio.CancelledError):
        await abandoned
    gate.open()
    await asyncio.gather(occupier, kept)
    assert calls == [2]


async def test_cancelled_job_that_runs_ends_before_the_callers_next(pool: FairPool) -> None:
    gate, occupier = await occupied(pool, SMALL, "a")
    occupier.cancel()
    with pytest.raises(asyncio.CancelledError):
        await occupier
    following = asyncio.ensure_future(pool.run("a", SMALL, str, 1))
    await asyncio.sleep(0)
    assert not following.done()
    gate.open()
    assert await following == "1"


async def test_full_pool_rejects_and_leaves_room_for_another_caller(pool: FairPool) -> None:
    gate, occupier = await occupied(pool, SMALL, "a")
    waiting = [asyncio.ensure_future(pool.run("a", SMALL, str, i)) for i in range(12)]
    await asyncio.sleep(0)
    num_refused = sum(task.done() and isinstance(task.exception(), PoolFull) for task in waiting)
    assert num_refused > 0
    other = asyncio.ensure_future(pool.run("b", SMALL, str, 1))
    await asyncio.sleep(0)
    gate.open()
    assert await other == "1"
    await asyncio.gather(occupier, *waiting, return_exceptions=True)
    assert pool.num_jobs == 0
