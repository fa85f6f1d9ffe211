"""Requests are aborted by their caller and id."""

import asyncio
from collections.abc import AsyncGenerator

import pytest

from service.vllm_protocol.running_requests import RunningRequests


async def waiting(requests: RunningRequests, caller: str, request_id: str) -> str:
    """Wait for ever, and return "aborted" if that is ended by an abort."""
    with requests.added(caller, request_id) as request:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            if not request.end_cancellation():
                raise
            return "aborted"
    raise AssertionError


async def started(requests: RunningRequests, caller: str, request_id: str) -> asyncio.Task[str]:
    task = asyncio.create_task(waiting(requests, caller, request_id))
    await asyncio.sleep(0)
    return task


async def test_abort_ends_the_requests_of_the_caller_and_the_id() -> None:
    requests = RunningRequests()
    mine, theirs = await started(requests, "me", "r"), await started(requests, "them", "r")
    requests.abort("me", ["x", "r", "r"])
    assert await mine == "aborted"
    assert not theirs.done()
    requests.abort("them", ["r"])
    assert await theirs == "aborted"


async def test_cancellation_is_not_an_abort() -> None:
    task = await started(RunningRequests(), "me", "r")
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_cancellation_has_precedence_over_an_abort() -> None:
    requests = RunningRequests()
    task = await started(requests, "me", "r")
    requests.abort("me", ["r"])
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_request_without_an_id_is_not_aborted() -> None:
    requests = RunningRequests()
    task = await started(requests, "me", "")
    requests.abort("me", [""])
    await asyncio.sleep(0)
    assert not task.done()
    task.cancel()


async def test_finished_request_is_not_aborted() -> None:
    requests = RunningRequests()
    with requests.added("me", "r"):
        pass
    requests.abort("me", ["r"])
    await asyncio.sleep(0)  # an abort would cancel this task here


async def test_abort_of_a_paused_request_closes_its_generation_only() -> None:
    requests = RunningRequests()
    is_closed = False

    async def generation() -> AsyncGenerator[int, None]:
        nonlocal is_closed
        try:
            yield 1
        finally:
            await asyncio.sleep(0)
            is_closed = True

    started = generation()
    await anext(started)
    with requests.added("me", "r") as request:
        async with request.paused(started):
            requests.abort("me", ["r"])
        assert is_closed
        assert request.is_aborted
