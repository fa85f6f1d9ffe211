import asyncio
import time
from contextlib import closing

import pytest

from service.deadline import WaitLimit, deadline_of_waits
from service.errors import DeadlinePassed
from tests.fakes.wait import failsafe


async def never() -> None:
    async with failsafe():
        await asyncio.Event().wait()


async def test_wait_that_takes_too_long_is_cancelled() -> None:
    task = asyncio.current_task()
    limit = WaitLimit("Too late.")
    with pytest.raises(DeadlinePassed, match="Too late"), closing(limit), limit.within(0.01):
        await never()
    assert task is not None
    assert task.cancelling() == 0


async def test_limit_applies_to_each_wait() -> None:
    with closing(WaitLimit("Too late.")) as limit:
        for _ in range(3):
            with limit.within(60):
                await asyncio.sleep(0)
        for _ in range(3):
            with pytest.raises(DeadlinePassed), limit.within(0.01):
                await never()


async def test_time_between_waits_does_not_count() -> None:
    failures = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: failures.append(context))
    with closing(WaitLimit("Too late.")) as limit:
        with limit.within(0.01):
            pass
        await asyncio.sleep(0.03)  # the limit passes
        with limit.within(600):
            await asyncio.sleep(0)
    assert not failures  # those of the timer


async def test_limit_of_an_earlier_wait_does_not_end_a_later_one() -> None:
    with closing(WaitLimit("Too late.")) as limit:
        with limit.within(0.01):
            pass
        with limit.within(600):
            await asyncio.sleep(0.03)  # the earlier limit passes


async def test_later_wait_ends_at_its_own_limit() -> None:
    with closing(WaitLimit("Too late.")) as limit:
        with limit.within(0.01):
            pass
        start_s = time.monotonic()
        with pytest.raises(DeadlinePassed), limit.within(0.05):
            await never()
    assert time.monotonic() - start_s > 0.04


async def test_shorter_limit_applies_after_a_longer_one() -> None:
    with closing(WaitLimit("Too late.")) as limit:
        with limit.within(600):
            await asyncio.sleep(0)
        with pytest.raises(DeadlinePassed), limit.within(0.01):
            await never()


async def test_cancelled_wait_remains_cancelled() -> None:
    async def wait() -> None:
        with closing(WaitLimit("Too late.")) as limit, limit.within(60):
            await never()

    task = asyncio.create_task(wait())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_error_of_the_body_is_raised() -> None:
    limit = WaitLimit("Too late.")
    with pytest.raises(ZeroDivisionError), closing(limit), limit.within(60):
        raise ZeroDivisionError


async def test_passed_deadline_ends_the_next_wait() -> None:
    with deadline_of_waits(time.monotonic() - 60) as limit:
        time.sleep(0.01)  # noqa: ASYNC251  # a wait begins after the deadline
        for _ in range(2):
            with pytest.raises(DeadlinePassed, match="before the response was complete"), limit:
                await never()


async def test_waits_before_the_deadline_are_not_limited() -> None:
    with deadline_of_waits(time.monotonic() + 60) as limit:
        for _ in range(3):
            with limit:
                await asyncio.sleep(0)
