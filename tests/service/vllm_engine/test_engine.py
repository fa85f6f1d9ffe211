"""The engine `vllm` over a fake vLLM."""

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, suppress
from pathlib import Path
from typing import Any

import pytest

from service.domain.engine import Caller, Engine, FinishReason, Request, TokenOutput
from service.domain.engine_settings import EngineModel
from service.domain.sampling import SamplingParams
from service.errors import (
    ContextLengthExceeded,
    DeadlinePassed,
    EngineDead,
    QueueFull,
    StepFailed,
)
from service.vllm_engine.client import VllmLimits
from service.vllm_engine.engine import VllmEngine
from tests.fakes.constraint import FakeConstraint
from tests.fakes.vllm_client import FakeOutput, FakeRequestStats, FakeVllm, Submitted
from tests.fakes.wait import failsafe, until

STOP = 1
LIMITS = VllmLimits(
    max_model_len=100, max_num_seqs=4, max_logprobs=20, num_kv_blocks=40, kv_block_size=16
)
Stream = AsyncGenerator[TokenOutput, int | None]


def make_request(**options: Any) -> Request:
    return Request((5, 6, 7), SamplingParams(max_tokens=50), frozenset({STOP}), **options)


class Rig:
    """An engine over a `FakeVllm`."""

    def __init__(
        self, limits: VllmLimits = LIMITS, max_queue_size: int = 8, step_timeout_s: float = 1000.0
    ) -> None:
        self.vllm = FakeVllm(limits)
        self.engine = VllmEngine(
            {"seed": 1},
            self.vllm.launch,
            max_queue_size=max_queue_size,
            step_timeout_s=step_timeout_s,
        )

    async def admitted(self, request: Request) -> Stream:
        """Return the stream of a request, after its first item."""
        stream = self.engine.generate(request)
        assert (await anext(stream)).is_progress
        return stream

    async def submitted(self, count: int = 1) -> list[Submitted]:
        """Return the requests in vLLM, once there are `count` of them."""
        await until(lambda: len(self.vllm.submitted) >= count)
        return self.vllm.submitted

    def step(self, *outputs: FakeOutput | Exception, to: int = -1) -> None:
        """Run a step of vLLM with outputs of one of its requests, by default the latest."""
        self.vllm.submitted[to].put(*outputs)
        self.vllm.step()

    async def idle(self) -> None:
        await until(lambda: not self.vllm.running and not self.engine.stats().num_waiting)


@pytest.fixture
async def rig() -> AsyncIterator[Rig]:
    rig = Rig()
    await rig.engine.start(EngineModel(Path("/models/x")))
    yield rig
    await rig.engine.stop()


async def item(stream: Stream) -> TokenOutput:
    async with failsafe():
        return await anext(stream)


async def test_start_passes_the_model_and_the_arguments(rig: Rig) -> None:
    assert isinstance(rig.engine, Engine)
    assert rig.vllm.arguments["model"] == "/models/x"
    assert rig.vllm.arguments["seed"] == 1
    assert rig.engine.max_model_len == 100
    assert rig.engine.max_request_sequences == 12
    capabilities = rig.engine.capabilities
    assert (capabilities.name, capabilities.max_logprobs) == ("vllm", 20)
    assert not capabilities.unsupported
    assert not capabilities.is_batch_invariant


async def test_drafts_leave_some_fields_unsupported() -> None:
    rig = Rig(
        VllmLimits(
            100, 4, None, 40, 16, has_drafts=True, is_batch_invariant=True, quantization="fp8"
        )
    )
    await rig.engine.start(EngineModel(Path()))
    assert rig.engine.capabilities.unsupported == {"min_p", "logit_bias"}
    assert rig.engine.capabilities.is_batch_invariant
    assert rig.engine.capabilities.quantization == "fp8"


async def test_request_yields_tokens_finish_reason_and_timings(rig: Rig) -> None:
    before_s = time.monotonic()
    stream = await rig.admitted(make_request(priority=3))
    [request] = await rig.submitted()
    assert request.prompt == {"prompt_token_ids": [5, 6, 7]}
    assert (request.arguments["max_tokens"], request.priority) == (50, 3)
    scheduled_s = time.monotonic()
    rig.step(FakeOutput.of(8, num_cached_tokens=2, metrics=FakeRequestStats(scheduled_s)))
    first = await item(stream)
    assert (first.token_ids, first.num_cached_tokens, first.finish_reason) == ((8,), 2, None)
    rig.step(FakeOutput.of(9, STOP, finish_reason="stop"))
    last = await item(stream)
    assert (last.token_ids, last.finish_reason) == ((9, STOP), FinishReason.STOP)
    timings = last.timings
    assert timings is not None
    assert timings.scheduled_s == scheduled_s
    assert timings.num_tokens == 3
    assert before_s <= (timings.queued_s or 0) <= scheduled_s <= (timings.first_token_s or 0)
    with pytest.raises(StopAsyncIteration):
        await item(stream)
    await rig.idle()


@pytest.mark.parametrize("offset_s", [-1e6, 1e6])
async def test_clock_of_another_machine_is_not_trusted(rig: Rig, offset_s: float) -> None:
    stream = await rig.admitted(make_request())
    await rig.submitted()
    rig.step(FakeOutput.of(8, metrics=FakeRequestStats(time.monotonic() + offset_s)))
    timings = (await item(stream)).timings
    assert timings is not None
    assert (timings.queued_s or 0) <= (timings.scheduled_s or 0) <= (timings.first_token_s or 0)
    await stream.aclose()


async def test_slow_consumer_gets_one_merged_output(rig: Rig) -> None:
    stream = await rig.admitted(make_request())
    await rig.submitted()
    for token_id in (2, 3, 4):
        rig.step(FakeOutput.of(token_id))
    rig.step(FakeOutput.of(5, finish_reason="length"))
    await rig.idle()
    output = await item(stream)
    assert (output.token_ids, output.finish_reason) == ((2, 3, 4, 5), FinishReason.LENGTH)


async def test_each_sequence_is_a_request_of_vllm_and_ends_by_itself(rig: Rig) -> None:
    stream = await rig.admitted(make_request(n=3))
    first, second, third = await rig.submitted(3)
    first.put(FakeOutput.of(8, num_cached_tokens=4))
    rig.vllm.step()
    assert (await item(stream)).index == 0
    second.put(FakeOutput.of(9, num_cached_tokens=16, finish_reason="length"))
    rig.vllm.step()
    output = await item(stream)
    assert (output.index, output.num_cached_tokens) == (1, 4)
    sending = asyncio.ensure_future(stream.asend(0))
    await until(lambda: first.is_ended)
    assert not third.is_ended
    third.put(FakeOutput.of(6, finish_reason="length"))
    rig.vllm.step()
    async with failsafe():
        assert (await sending).index == 2
    with pytest.raises(StopAsyncIteration):
        await item(stream)
    await rig.idle()


async def test_closing_the_stream_aborts_all_its_sequences(rig: Rig) -> None:
    stream = await rig.admitted(make_request(n=6))
    await rig.submitted(4)
    assert rig.engine.stats().num_waiting == 6
    await stream.aclose()
    await rig.idle()
    assert len(rig.vllm.submitted) == 4


async def test_cancelled_consumer_aborts_its_request(rig: Rig) -> None:
    async def consume() -> None:
        async with aclosing(rig.engine.generate(make_request())) as stream:
            async for _ in stream:
                pass

    task = asyncio.create_task(consume())
    await rig.submitted()
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
    await rig.idle()


async def test_sequences_wait_outside_of_vllm_and_callers_take_turns(rig: Rig) -> None:
    big = await rig.admitted(make_request(n=4, caller=Caller("a")))
    running = [*await rig.submitted(4)]
    streams = [
        await rig.admitted(make_request(caller=Caller(name), priority=priority))
        for name, priority in [("a", 0), ("a", 5), ("a", -5), ("b", 0)]
    ]
    assert len(rig.vllm.submitted) == 4
    for sequence in running:
        sequence.put(FakeOutput.of(8, finish_reason="length"))
    rig.vllm.step()
    await rig.submitted(8)
    # Request 0 has the sequences that ran. Caller b comes after one request of caller a.
    assert [each.request_id for each in rig.vllm.submitted[4:]] == ["3-0", "4-0", "1-0", "2-0"]
    for stream in (big, *streams):
        await stream.aclose()
    await rig.idle()


async def test_full_queue_rejects_requests(rig: Rig) -> None:
    streams = [await rig.admitted(make_request(n=4)) for _ in range(3)]
    with pytest.raises(QueueFull):
        await anext(rig.engine.generate(make_request()))
    await streams.pop().aclose()
    streams.append(await rig.admitted(make_request()))
    for stream in streams:
        await stream.aclose()


async def test_prompt_of_the_context_length_is_rejected(rig: Rig) -> None:
    with pytest.raises(ContextLengthExceeded):
        await anext(rig.engine.generate(Request((5,) * 100, SamplingParams())))
    assert not rig.vllm.submitted


@pytest.mark.parametrize("n", [1, 6])
async def test_deadline_fails_a_request_that_has_no_token(rig: Rig, n: int) -> None:
    stream = await rig.admitted(make_request(n=n, deadline=time.monotonic() + 0.05))
    with pytest.raises(DeadlinePassed):
        await item(stream)
    await rig.idle()


async def test_deadline_leaves_a_request_whose_sequences_all_have_tokens(rig: Rig) -> None:
    deadline_s = time.monotonic() + 0.2
    stream = await rig.admitted(make_request(deadline=deadline_s))
    await rig.submitted()
    rig.step(FakeOutput.of(8))
    assert (await item(stream)).token_ids == (8,)
    await until(lambda: time.monotonic() > deadline_s + 0.01)
    rig.step(FakeOutput.of(9, finish_reason="length"))
    assert (await item(stream)).token_ids == (9,)


@pytest.mark.parametrize(
    ("step", "error"),
    [
        (StepFailed("vLLM rejects the request"), StepFailed),
        (FakeOutput.of(8, finish_reason="error"), StepFailed),
        (FakeOutput.of(finish_reason="abort"), StepFailed),
        (RuntimeError("unexpected"), StepFailed),
    ],
)
async def test_error_of_one_request_hurts_no_other(
    rig: Rig, step: FakeOutput | Exception, error: type[Exception]
) -> None:
    failing, other = [await rig.admitted(make_request()) for _ in range(2)]
    await rig.submitted(2)
    rig.step(step, to=0)
    with pytest.raises(error):
        await item(failing)
    assert rig.engine.stats().num_failed_steps == 1
    rig.step(FakeOutput.of(9, finish_reason="length"), to=1)
    assert (await item(other)).token_ids == (9,)
    await rig.idle()


@pytest.mark.parametrize(("token_ids", "is_failure"), [((8, 9, STOP), False), ((8, STOP), True)])
async def test_incomplete_output_of_a_grammar_sets_its_failure(
    rig: Rig, token_ids: tuple[int, ...], *, is_failure: bool
) -> None:
    constraint = FakeConstraint(((8, 9),), STOP, grammar="start: X")
    stream = await rig.admitted(make_request(constraint=constraint))
    await rig.submitted()
    rig.step(FakeOutput.of(*token_ids, finish_reason="stop"))
    assert (await item(stream)).finish_reason is FinishReason.STOP
    assert (constraint.failure is not None) is is_failure


async def test_killed_core_fails_all_requests_and_the_engine(rig: Rig) -> None:
    dead = asyncio.create_task(rig.engine.wait_dead())
    running, queued = [await rig.admitted(make_request(n=n)) for n in (4, 1)]
    await rig.submitted(4)
    rig.vllm.die()
    for stream in (running, queued):
        with pytest.raises(EngineDead):
            await item(stream)
    async with failsafe():
        await dead
    with pytest.raises(EngineDead):
        await anext(rig.engine.generate(make_request()))
    assert not await rig.engine.stop()
    assert rig.vllm.stops == [0.0]


async def test_idle_core_that_is_killed_is_noticed(rig: Rig) -> None:
    dead = asyncio.create_task(rig.engine.wait_dead())
    rig.vllm.die()
    async with failsafe():
        await dead


async def test_frozen_core_is_noticed_after_the_step_timeout() -> None:
    rig = Rig(step_timeout_s=0.2)
    await rig.engine.start(EngineModel(Path()))
    dead = asyncio.create_task(rig.engine.wait_dead())
    stream = await rig.admitted(make_request())
    with pytest.raises(EngineDead):
        await item(stream)
    async with failsafe():
        await dead
    assert not await rig.engine.stop()
    assert rig.vllm.stops == [0.0]


async def test_working_or_idle_core_is_not_dead() -> None:
    rig = Rig(step_timeout_s=0.1)
    await rig.engine.start(EngineModel(Path()))
    dead = asyncio.create_task(rig.engine.wait_dead())
    start_s = time.monotonic()
    await until(lambda: time.monotonic() > start_s + 0.3)
    stream = await rig.admitted(make_request())
    await rig.submitted()
    while time.monotonic() < start_s + 0.6:
        rig.step(FakeOutput.of(8))
        await asyncio.sleep(0)
    await stream.aclose()
    assert not dead.done()
    dead.cancel()
    assert await rig.engine.stop()


async def test_stop_fails_what_runs_and_is_no_failure(rig: Rig) -> None:
    dead = asyncio.create_task(rig.engine.wait_dead())
    stream = await rig.admitted(make_request())
    assert await rig.engine.stop()
    assert rig.vllm.stops == [5.0]
    rig.vllm.die()
    with pytest.raises(EngineDead):
        await item(stream)
    assert not dead.done()
    dead.cancel()


async def test_stop_without_start() -> None:
    assert await Rig().engine.stop()


async def test_stats_count_vllm_and_the_queue(rig: Rig) -> None:
    stream = await rig.admitted(make_request(n=6))
    await rig.submitted(4)
    rig.vllm.step(num_running_reqs=3, num_waiting_reqs=1, kv_cache_usage=0.5)
    stats = rig.engine.stats()
    assert (stats.max_num_seqs, stats.num_running, stats.num_waiting) == (4, 3, 3)
    assert (stats.num_free_kv_blocks, stats.num_steps) == (20, 1)
    await stream.aclose()
    await rig.idle()
    assert rig.engine.stats().num_free_kv_blocks == 40
