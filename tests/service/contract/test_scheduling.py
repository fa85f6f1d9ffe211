"""The order of requests, the queue and its limits, and the engine's own numbers."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, ExitStack, aclosing, asynccontextmanager

import pytest

from service.domain.engine import Caller, Engine, EngineStats, FinishReason, Request, TokenOutput
from service.domain.engine_settings import EngineModel
from service.errors import DeadlinePassed, QueueFull
from tests.fakes.wait import failsafe, until
from tests.service.contract.kinds import Kind
from tests.service.contract.promises import (
    collect,
    finish_reason,
    generate,
    make_prompt,
    make_request,
    occupied,
    skip_unless_served,
    tokens,
    until_idle,
)

pytestmark = pytest.mark.asyncio(loop_scope="session")

MAX_QUEUE_SIZE = 8


class Waiting:
    """Requests that wait while the only slot is occupied, and the times at which they began."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._tasks: list[tuple[str, asyncio.Task[float]]] = []

    async def add(self, name: str, request: Request) -> None:
        """Send a request, and return when it waits in the engine."""
        num_waiting = sum(not task.done() for _, task in self._tasks)
        self._tasks.append((name, asyncio.create_task(self._begin(request))))
        await until(lambda: self._engine.stats().num_waiting == num_waiting + 1)

    async def _begin(self, request: Request) -> float:
        outputs = await collect(self._engine, request)
        timings = outputs[-1].timings
        assert timings is not None
        assert timings.scheduled_s is not None
        return timings.scheduled_s

    async def order(self) -> list[str]:
        """Return the names, except the first, in the order in which the requests began."""
        times = [(await task, name) for name, task in self._tasks]
        first, *names = [name for _, name in sorted(times)]
        assert first == self._tasks[0][0]
        return names


@asynccontextmanager
async def waiting(engine: Engine) -> AsyncIterator[Waiting]:
    """Occupy the engine's slot, so that requests wait until the end of the context.

    An engine may choose the next request before the slot is free. So another one comes first.
    """
    await until_idle(engine)
    async with occupied(engine):
        queue = Waiting(engine)
        await queue.add("first", make_request(max_tokens=1, priority=-100, caller=Caller("first")))
        yield queue


async def test_waiting_request_has_only_the_time_of_admission(narrow: Engine) -> None:
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(failsafe())
        running = await stack.enter_async_context(aclosing(narrow.generate(long_request())))
        while not (await anext(running)).token_ids:
            pass
        late = await stack.enter_async_context(aclosing(narrow.generate(make_request())))
        admitted = await anext(late)
        assert admitted.timings is not None
        assert admitted.timings.scheduled_s is None
        await until(lambda: narrow.stats().num_waiting == 1)
        assert narrow.stats().num_running == 1
        before_s = time.monotonic()
        await running.aclose()
        first = await anext(late)
        assert first.timings is not None
        assert first.timings.scheduled_s is not None
        assert admitted.timings.queued_s is not None
        assert admitted.timings.queued_s < before_s <= first.timings.scheduled_s
        assert sum([len(o.token_ids) async for o in late], len(first.token_ids)) == 12
    await until_idle(narrow)


def long_request() -> Request:
    return make_request(max_tokens=None)


async def test_requests_of_a_caller_are_served_in_order(narrow: Engine) -> None:
    async with waiting(narrow) as queue:
        for name in "abcd":
            await queue.add(name, make_request(max_tokens=2))
    assert await queue.order() == list("abcd")


async def test_requests_of_a_lower_priority_value_are_admitted_first(narrow: Engine) -> None:
    skip_unless_served(narrow, "priority")
    async with waiting(narrow) as queue:
        for name, priority in [("9", 9), ("5", 5), ("-3", -3), ("0", 0), ("-3 later", -3)]:
            await queue.add(name, make_request(max_tokens=2, priority=priority))
    assert await queue.order() == ["-3", "-3 later", "0", "5", "9"]


async def test_requests_of_a_lower_priority_value_are_preempted_last(
    kind: Kind, model: EngineModel
) -> None:
    """The cache has ten blocks, and each of two sequences needs eight."""
    engine = kind.make(
        max_model_len=256, max_num_seqs=2, block_size=32, kv_cache_memory_bytes=10 * 32 * 512
    )
    skip_unless_served(engine, "priority")
    if not engine.capabilities.preempts_by_priority:
        pytest.skip("the engine preempts without regard to the priority")
    await engine.start(model)
    requests = [
        make_request(make_prompt(seed, 60), max_tokens=180, priority=priority)
        for seed, priority in [(300, 5), (301, -5)]
    ]
    low, high = await asyncio.gather(*(collect(engine, request) for request in requests))
    assert engine.stats().num_preemptions > 0
    for outputs in (low, high):
        assert finish_reason(outputs) is FinishReason.LENGTH
        assert len(tokens(outputs)) == 180
    assert last_token_s(high) < last_token_s(low)
    await until_idle(engine)
    await engine.stop()


def last_token_s(outputs: list[TokenOutput]) -> float:
    """Return the time of a request's last token."""
    timings = outputs[-1].timings
    assert timings is not None
    assert timings.last_token_s is not None
    return timings.last_token_s


async def test_callers_take_turns(narrow: Engine) -> None:
    skip_unless_served(narrow, "caller")
    async with waiting(narrow) as queue:
        for name in ("a1", "a2", "a3", "b1", "b2"):
            await queue.add(name, make_request(max_tokens=2, caller=Caller(name[0])))
    assert await queue.order() == ["a1", "b1", "a2", "b2", "a3"]


async def test_weight_is_the_number_of_turns_in_a_round(narrow: Engine) -> None:
    skip_unless_served(narrow, "caller")
    async with waiting(narrow) as queue:
        for name in ("a1", "a2", "a3", "b1", "b2", "b3"):
            caller = Caller(name[0], weight=2 if name[0] == "b" else 1)
            await queue.add(name, make_request(max_tokens=2, caller=caller))
    assert await queue.order() == ["a1", "b1", "b2", "a2", "b3", "a3"]


async def test_priority_orders_only_the_requests_of_a_caller(narrow: Engine) -> None:
    skip_unless_served(narrow, "caller", "priority")
    async with waiting(narrow) as queue:
        for name, priority in [("a1", 5), ("a2", 4), ("b1", -1), ("b2", -2)]:
            request = make_request(max_tokens=2, priority=priority, caller=Caller(name[0]))
            await queue.add(name, request)
    assert await queue.order() == ["a2", "b2", "a1", "b1"]


async def test_passed_deadline_is_rejected_at_the_first_item(narrow: Engine) -> None:
    with pytest.raises(DeadlinePassed):
        await anext(narrow.generate(make_request(deadline=time.monotonic())))
    await until_idle(narrow)


async def test_deadline_that_passes_while_the_request_waits_ends_it(narrow: Engine) -> None:
    await until_idle(narrow)
    async with occupied(narrow):
        deadline = time.monotonic() + 2.0
        async with failsafe(), aclosing(narrow.generate(make_request(deadline=deadline))) as late:
            await anext(late)
            with pytest.raises(DeadlinePassed):
                await anext(late)
        assert time.monotonic() >= deadline
        await until(lambda: narrow.stats().num_waiting == 0)
    await until_idle(narrow)


async def test_deadline_that_passes_after_the_first_token_has_no_effect(narrow: Engine) -> None:
    deadline = time.monotonic() + 2.0
    request = make_request(max_tokens=None, deadline=deadline)
    async with failsafe(), aclosing(narrow.generate(request)) as outputs:
        while not (await anext(outputs)).token_ids:
            pass
        await until(lambda: time.monotonic() > deadline)
        assert (await anext(outputs)).token_ids
    await until_idle(narrow)


async def test_full_queue_rejects_until_there_is_room(narrow: Engine) -> None:
    assert narrow.max_request_sequences == 1 + MAX_QUEUE_SIZE
    streams = [narrow.generate(long_request()) for _ in range(narrow.max_request_sequences)]
    for stream in streams:
        await anext(stream)
    with pytest.raises(QueueFull) as caught:
        await anext(narrow.generate(make_request()))
    assert caught.value.retry_after_s > 0
    with pytest.raises(QueueFull), narrow.reserve(Caller(), 1):
        pass
    for stream in reversed(streams):
        await stream.aclose()
    assert len(await generate(narrow)) == 12
    await until_idle(narrow)


async def test_sequences_of_a_request_take_capacity_each(narrow: Engine) -> None:
    with narrow.reserve(Caller(), narrow.max_request_sequences - 2):
        request = make_request(n=3)
        with pytest.raises(QueueFull):
            await anext(narrow.generate(request))
        outputs = await collect(narrow, make_request(n=2))
        assert len(tokens(outputs, 1)) == 12
    with pytest.raises(QueueFull), narrow.reserve(Caller(), narrow.max_request_sequences + 1):
        pass


async def test_reserved_capacity_is_used_by_its_request(narrow: Engine) -> None:
    most = narrow.max_request_sequences
    with narrow.reserve(Caller(), most):
        with pytest.raises(QueueFull):
            await anext(narrow.generate(make_request()))
        request = make_request(n=most, max_tokens=2)
        async with failsafe(), aclosing(narrow.generate(request, is_reserved=True)) as outputs:
            found = [output async for output in outputs]
        assert {o.index for o in found} == set(range(most))
    assert len(await generate(narrow)) == 12


async def test_caller_cannot_fill_the_queue(narrow: Engine) -> None:
    with ExitStack() as reservations:
        with pytest.raises(QueueFull):
            for _ in range(narrow.max_request_sequences + 1):
                reservations.enter_context(narrow.reserve(Caller("a"), 1))
        with narrow.reserve(Caller("b"), 1):
            pass


async def test_closing_a_waiting_request_frees_its_place(narrow: Engine) -> None:
    await until_idle(narrow)
    async with occupied(narrow):
        async with failsafe(), aclosing(narrow.generate(make_request())) as late:
            await anext(late)
            await until(lambda: narrow.stats().num_waiting == 1)
        await until(lambda: narrow.stats().num_waiting == 0)
    await until_idle(narrow)


def counters(stats: EngineStats) -> tuple[int, ...]:
    return (
        stats.num_preemptions,
        stats.num_steps,
        stats.num_failed_steps,
        stats.num_prefix_cache_queries,
        stats.num_prefix_cache_hits,
        stats.num_draft_tokens,
        stats.num_accepted_tokens,
    )


async def test_stats_count_running_sequences_blocks_and_steps(engine: Engine) -> None:
    await until_idle(engine)
    before = engine.stats()
    assert before.max_num_seqs == 8
    assert before.num_kv_blocks * before.kv_block_size >= engine.max_model_len
    request = make_request(make_prompt(200, 100), temperature=1.0, n=4, max_tokens=None)
    async with failsafe(), aclosing(engine.generate(request)) as outputs:
        while not (await anext(outputs)).token_ids:
            pass
        await until(lambda: engine.stats().num_running == 4)
        during = engine.stats()
        num_used = during.num_kv_blocks - during.num_free_kv_blocks
        assert num_used * during.kv_block_size >= 100
        assert during.num_steps > before.num_steps
    await until_idle(engine)
    after = engine.stats()
    assert all(a >= b for a, b in zip(counters(after), counters(before), strict=True))
    assert after.num_failed_steps == 0
    assert after.num_accepted_tokens <= after.num_draft_tokens
    assert after.num_prefix_cache_hits <= after.num_prefix_cache_queries
