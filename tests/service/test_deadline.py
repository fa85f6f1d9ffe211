import asyncio
import time
from contextlib import closing

import pytest

from service.deadline import WaitLimit, deadline_of_waits
from service.errors import DeadlinePassed


async def never() -> None:
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
    with closing(WaitLimit("Too late.")) as limit:
        with limit.within(0.01):
            pass
        await asyncio.sleep(0.03)  # the limit passes
        with limit.within(600):
            await asyncio.sleep(0)


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
