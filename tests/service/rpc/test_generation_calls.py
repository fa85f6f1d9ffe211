"""Deltas are encoded on the event loop, or on a thread if there are many."""

import threading
from collections.abc import AsyncIterator

import pytest

from service.domain.backend import DecodedLogprob, TextDelta
from service.rpc.calls.rpcs import SERVICE_NAMES
from service.rpc.calls.work_pools import WorkPools
from service.rpc.generation_calls import MAX_ENCODED_ON_LOOP, GenerationCalls
from service.rpc.serving.lifecycle import Lifecycle

LOGPROB = DecodedLogprob(b"a", -0.5, 97)
WITH_ALTERNATIVES = DecodedLogprob(b"a", -0.5, 97, (LOGPROB,) * 20)


@pytest.fixture
async def calls() -> AsyncIterator[GenerationCalls]:
    pools = WorkPools()
    yield GenerationCalls(Lifecycle(SERVICE_NAMES), pools, 60)
    pools.close()


def thread_of(_: object) -> int:
    return threading.get_ident()


@pytest.mark.parametrize(
    "deltas",
    [
        [TextDelta("a", logprobs=(LOGPROB,) * MAX_ENCODED_ON_LOOP)],
        [TextDelta("a", prompt_logprobs=(LOGPROB,) * MAX_ENCODED_ON_LOOP)],
        [TextDelta("a", logprobs=(WITH_ALTERNATIVES,) * (MAX_ENCODED_ON_LOOP // 20))],
        [TextDelta("a")] * (MAX_ENCODED_ON_LOOP + 1),
    ],
    ids=["logprobs", "prompt", "alternatives", "deltas"],
)
async def test_large_deltas_are_encoded_off_the_event_loop(
    calls: GenerationCalls, deltas: list[TextDelta]
) -> None:
    assert await calls.encode(thread_of, None, deltas) != threading.get_ident()


async def test_small_deltas_are_encoded_on_the_event_loop(calls: GenerationCalls) -> None:
    deltas = [TextDelta("a", logprobs=(WITH_ALTERNATIVES,))]
    assert await calls.encode(thread_of, None, deltas) == threading.get_ident()
