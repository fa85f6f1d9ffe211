import asyncio

import pytest

from service.domain.engine import EngineTimings, FinishReason, TokenOutput
from service.errors import EngineDead, StepFailed
from service.streams.output_slot import OutputSlot

INTERVAL_S = 1.0


async def is_waiting(slot: OutputSlot) -> bool:
    """Return True if a consumer has to wait. Otherwise the output that it gets is lost."""
    reader = asyncio.ensure_future(slot.take())
    await asyncio.sleep(0)  # the task runs until it waits or returns
    is_done = reader.done()
    reader.cancel()
    return not is_done


async def test_first_output_is_released_at_once() -> None:
    slot = OutputSlot()
    slot.put(TokenOutput((1,)))
    slot.release(100.0, INTERVAL_S)
    assert await slot.take() == TokenOutput((1,))


async def test_later_outputs_are_merged_until_the_interval_ends() -> None:
    slot = OutputSlot()
    slot.put(TokenOutput((1,)))
    slot.release(100.0, INTERVAL_S)
    await slot.take()
    for token_id, now_s in ((2, 100.3), (3, 100.6)):
        slot.put(TokenOutput((token_id,)))
        slot.release(now_s, INTERVAL_S)
        assert await is_waiting(slot)
    slot.release(101.0, INTERVAL_S)
    assert await slot.take() == TokenOutput((2, 3))


async def test_empty_slot_releases_nothing() -> None:
    slot = OutputSlot()
    slot.release(100.0, INTERVAL_S)
    assert await is_waiting(slot)


async def test_finish_reason_is_released_at_once() -> None:
    slot = OutputSlot()
    slot.put(TokenOutput((1,)))
    slot.release(100.0, INTERVAL_S)
    await slot.take()
    slot.put(TokenOutput((2,), FinishReason.LENGTH))
    assert await slot.take() == TokenOutput((2,), FinishReason.LENGTH)


async def test_error_comes_at_once_after_pending_outputs() -> None:
    slot = OutputSlot()
    slot.put(TokenOutput((1,)))
    slot.put(StepFailed())
    assert await slot.take() == TokenOutput((1,))
    with pytest.raises(StepFailed):
        await slot.take()


async def test_first_error_ends_the_request() -> None:
    slot = OutputSlot()
    first = EngineDead()
    for error in (first, StepFailed()):
        slot.put(error)
    with pytest.raises(EngineDead) as caught:
        await slot.take()
    assert caught.value is first


async def test_outputs_have_the_latest_timings_of_their_request() -> None:
    slot = OutputSlot()
    for num_tokens, index in enumerate([0, 1, 0], 1):
        slot.put(TokenOutput((7,), index=index, timings=EngineTimings(num_tokens=num_tokens)))
    slot.release(100.0, INTERVAL_S)
    outputs = [await slot.take(), await slot.take()]
    assert [len(output.token_ids) for output in outputs] == [2, 1]
    assert [output.timings for output in outputs] == [EngineTimings(num_tokens=3)] * 2
