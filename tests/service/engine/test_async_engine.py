import asyncio
import math
import threading
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.domain.engine import Caller, EngineStats, FinishReason, Request, TokenOutput
from service.domain.engine_settings import EngineModel
from service.domain.sampling import SamplingParams
from service.engine.async_engine import AsyncEngine
from service.engine.block_files import BlockFiles
from service.engine.block_pool import BlockPool
from service.engine.core import DeviceLost, EngineCore
from service.engine.disk_cache import DiskCache
from service.engine.scheduler import Scheduler
from service.errors import (
    ChatrpcError,
    ContextLengthExceeded,
    DeadlinePassed,
    EngineDead,
    ModelLoadError,
    QueueFull,
    StepFailed,
)
from tests.fakes.runner import FakeRunner, answer, make_core
from tests.fakes.wait import FAILSAFE_S, until
from tests.service.engine.requests import make_request

BLOCK_SIZE = 4
EMPTY = TokenOutput()

MODEL = EngineModel(Path())


class Rig:
    """An engine over a `FakeRunner`."""

    def __init__(
        self,
        num_blocks: int = 50,
        max_num_seqs: int = 4,
        max_queue_size: int = 100,
        num_speculative_tokens: int = 0,
        step_timeout_s: float = math.inf,
        prefix_cache_dir: Path | None = None,
    ) -> None:
        self.runner = FakeRunner(BLOCK_SIZE)
        self.max_model_len = num_blocks * BLOCK_SIZE
        pool = BlockPool(num_blocks, BLOCK_SIZE)
        self.disk_cache = None
        if prefix_cache_dir is not None:
            files = BlockFiles(prefix_cache_dir, max_bytes=10**6)
            self.disk_cache = DiskCache(files, self.runner, pool, lambda: b"model", min_tokens=8)
        scheduler = Scheduler(
            pool,
            max_num_seqs,
            max_num_seqs + 12,
            num_speculative_tokens,
            disk_cache=self.disk_cache,
        )
        core = make_core(self.runner, scheduler)
        self.engine = AsyncEngine(
            lambda _model: (core, self.max_model_len),
            max_queue_size=max_queue_size,
            step_timeout_s=step_timeout_s,
        )

    def generate(self, request: Request) -> AsyncGenerator[TokenOutput, int | None]:
        return self.engine.generate(request)

    async def collect(self, request: Request) -> list[TokenOutput]:
        """Return the outputs of a request: the first, and those with a token or a finish reason."""
        async with aclosing(self.generate(request)) as outputs:
            return [await anext(outputs)] + [o async for o in outputs if not o.is_progress]

    async def until(self, condition: Callable[[EngineStats], bool]) -> None:
        await until(lambda: condition(self.engine.stats()))

    async def until_step(self, num_steps: int) -> None:
        await self.until(lambda s: s.num_steps >= num_steps)

    async def until_empty(self) -> None:
        """Return when the state of all ended requests is freed. All requests must have ended."""
        # Commands run in order: when this request ends, all earlier commands have run.
        await self.collect(make_request(1, max_tokens=1))
        await self.until(
            lambda s: (
                s.num_running == s.num_waiting == 0 and s.num_kv_blocks == s.num_free_kv_blocks > 0
            )
        )

    def block(self) -> None:
        """Block the engine in the middle of its next step."""
        self.runner.is_waiting.clear()
        self.runner.gate.clear()

    async def blocked(self) -> None:
        assert await asyncio.to_thread(self.runner.is_waiting.wait, FAILSAFE_S)


@asynccontextmanager
async def started(rig: Rig) -> AsyncIterator[Rig]:
    await rig.engine.start(MODEL)
    try:
        yield rig
    finally:
        rig.runner.gate.set()
        await rig.engine.stop()


@pytest.fixture
async def rig() -> AsyncIterator[Rig]:
    async with started(Rig()) as rig:
        yield rig


def tokens(outputs: list[TokenOutput]) -> list[int]:
    return [token for output in outputs for token in output.token_ids]


async def next_token_of(stream: AsyncGenerator[TokenOutput, int | None]) -> None:
    """Read from a stream until it yields a token."""
    while not (await anext(stream)).token_ids:
        pass


async def test_request_yields_tokens_and_finish_reason(rig: Rig) -> None:
    request = make_request(5, max_tokens=6)
    outputs = await rig.collect(request)
    assert outputs[0] == EMPTY
    assert all(output.token_ids for output in outputs[1:])
    assert tokens(outputs) == answer(request, rig.max_model_len)
    assert [o.finish_reason for o in outputs[:-1]] == [None] * (len(outputs) - 1)
    assert outputs[-1].finish_reason is FinishReason.LENGTH
    await rig.until_empty()


async def test_max_model_len_is_set_after_start(rig: Rig) -> None:
    assert rig.engine.max_model_len == 200


async def test_many_at_once_are_answered_each_its_own(rig: Rig) -> None:
    requests = [make_request([i + 1] * (i % 17 + 1), max_tokens=i % 9 + 1) for i in range(60)]
    answers = await asyncio.gather(*map(rig.collect, requests))
    assert [tokens(a) for a in answers] == [answer(r, rig.max_model_len) for r in requests]
    await rig.until_empty()


async def test_first_output_is_empty_and_reports_admission(rig: Rig) -> None:
    rig.block()
    async with aclosing(rig.generate(make_request())) as outputs:
        assert await anext(outputs) == EMPTY
        await rig.blocked()
        assert rig.engine.stats().num_running == 0  # the step that admits it has not ended
        rig.runner.gate.set()
        await next_token_of(outputs)


async def test_slow_consumer_gets_one_merged_output(rig: Rig) -> None:
    request = make_request(5, max_tokens=20)
    async with aclosing(rig.generate(request)) as slow:
        assert await anext(slow) == EMPTY
        await rig.until_step(20)
        # Outputs come in the order of steps. So after these, all of the slow one have arrived.
        await rig.collect(make_request(max_tokens=1))
        whole = await anext(slow)
        assert list(whole.token_ids) == answer(request, rig.max_model_len)
        assert whole.finish_reason is FinishReason.LENGTH
        assert [o async for o in slow] == []


async def test_readers_of_any_speed_lose_nothing(rig: Rig) -> None:
    async def read(request: Request, pause: int) -> list[int]:
        got: list[int] = []
        async with aclosing(rig.generate(request)) as outputs:
            async for output in outputs:
                got += output.token_ids
                await rig.until_step(min(rig.engine.stats().num_steps + pause, 30))
        return got

    requests = [make_request([7, i], max_tokens=30) for i in range(4)]
    answers = await asyncio.gather(*(read(r, pause) for pause, r in enumerate(requests)))
    assert answers == [answer(r, rig.max_model_len) for r in requests]


def of_index(outputs: list[TokenOutput], index: int) -> list[TokenOutput]:
    return [output for output in outputs if output.index == index]


async def test_outputs_have_the_index_of_their_sequence(rig: Rig) -> None:
    request = Request((1, 2, 3), SamplingParams(seed=2, max_tokens=6), n=7)
    first, *outputs = await rig.collect(request)
    assert first == EMPTY
    for index in range(7):
        own = of_index(outputs, index)
        assert tokens(own) == answer(request, rig.max_model_len, index)
        ends = [output.finish_reason for output in own]
        assert ends == [None] * (len(own) - 1) + [FinishReason.LENGTH]
    await rig.until_empty()


async def test_slow_consumer_gets_one_output_of_each_sequence(rig: Rig) -> None:
    request = Request((1, 2, 3), SamplingParams(seed=2, max_tokens=9), n=3)
    async with aclosing(rig.generate(request)) as slow:
        assert await anext(slow) == EMPTY
        await rig.until(lambda s: s.num_steps > 0 and s.num_running == s.num_waiting == 0)
        await rig.collect(make_request(max_tokens=1))
        outputs = [output async for output in slow]
    assert [output.index for output in outputs] == [0, 1, 2]
    assert [list(o.token_ids) for o in outputs] == [
        answer(request, rig.max_model_len, i) for i in range(3)
    ]


async def test_finish_reason_without_token_is_not_merged(rig: Rig) -> None:
    """If it were merged with tokens, the last of these would look like a stop token."""
    rig.runner.dead_end = 3
    request = make_request(5, max_tokens=9)
    async with aclosing(rig.generate(request)) as slow:
        assert await anext(slow) == EMPTY
        await rig.until(lambda s: s.num_steps > 0 and s.num_running == s.num_waiting == 0)
        rig.runner.dead_end = None
        await rig.collect(make_request(max_tokens=1))
        said, end = [output async for output in slow]
    assert list(said.token_ids) == answer(request, rig.max_model_len)[:3]
    assert (said.finish_reason, end.finish_reason) == (None, FinishReason.STOP)
    assert end.token_ids == ()


async def test_error_comes_after_the_outputs_before_it(rig: Rig) -> None:
    rig.runner.failing_runs = {4}
    async with aclosing(rig.generate(make_request(5, max_tokens=9, n=2))) as slow:
        assert await anext(slow) == EMPTY
        await rig.until(lambda s: s.num_failed_steps == 1)
        await rig.collect(make_request(max_tokens=1))
        outputs = [await anext(slow), await anext(slow)]
        with pytest.raises(StepFailed):
            await anext(slow)
    assert [(o.index, len(o.token_ids)) for o in outputs] == [(0, 3), (1, 2)]


async def test_each_sequence_of_a_request_takes_a_place_in_the_queue() -> None:
    async with started(Rig(max_num_seqs=2, max_queue_size=1)) as rig:
        rig.block()
        async with aclosing(rig.generate(make_request(n=3))) as inside:
            await anext(inside)
            with pytest.raises(QueueFull), rig.engine.reserve(Caller(), 1):
                pass
        with rig.engine.reserve(Caller(), 1):
            pass
        rig.runner.gate.set()
        await rig.until_empty()


async def test_reserved_places_count_while_a_request_is_prepared() -> None:
    async with started(Rig(max_num_seqs=1, max_queue_size=1)) as rig:
        request = make_request(max_tokens=3)
        with rig.engine.reserve(Caller(), 2):
            with pytest.raises(QueueFull):
                await anext(rig.generate(make_request()))
            async with aclosing(rig.engine.generate(request, is_reserved=True)) as outputs:
                assert tokens([output async for output in outputs])
        assert tokens(await rig.collect(make_request()))
        await rig.until_empty()


async def test_closing_before_the_first_item(rig: Rig) -> None:
    await rig.generate(make_request()).aclose()
    assert rig.engine.stats().num_waiting == 0
    await rig.collect(make_request())
    await rig.until_empty()


async def test_closing_after_admission(rig: Rig) -> None:
    stream = rig.generate(make_request(max_tokens=None))
    await anext(stream)
    await stream.aclose()
    await rig.until_empty()


async def test_closing_in_a_step(rig: Rig) -> None:
    stream = rig.generate(make_request(max_tokens=None))
    rig.block()
    await anext(stream)
    await rig.blocked()
    await stream.aclose()
    rig.runner.gate.set()
    await rig.until_empty()


async def test_closing_while_it_waits() -> None:
    # The context is so long that the running request does not end during the test.
    async with started(Rig(num_blocks=100_000, max_num_seqs=1)) as rig:
        running, waiting = (rig.generate(make_request(max_tokens=None)) for _ in range(2))
        await next_token_of(running)
        await anext(waiting)
        await rig.until(lambda s: s.num_waiting == 1)
        await waiting.aclose()
        await rig.until(lambda s: (s.num_running, s.num_waiting) != (1, 1))
        await running.aclose()
        await rig.until_empty()


async def test_closing_in_the_middle(rig: Rig) -> None:
    stream = rig.generate(make_request(max_tokens=None))
    await next_token_of(stream)
    await stream.aclose()
    await rig.until_empty()


async def test_closing_at_the_end(rig: Rig) -> None:
    stream = rig.generate(make_request())
    while (await anext(stream)).finish_reason is None:
        pass
    await stream.aclose()
    await rig.until_empty()


async def test_cancelled_consumer_frees_its_sequence(rig: Rig) -> None:
    rig.block()
    task = asyncio.create_task(rig.collect(make_request(max_tokens=None)))
    await rig.blocked()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    rig.runner.gate.set()
    await rig.until_empty()


async def test_full_queue_rejects_and_then_admits_again() -> None:
    async with started(Rig(max_num_seqs=1, max_queue_size=1)) as rig:
        inside = [rig.generate(make_request(max_tokens=None)) for _ in range(2)]
        for stream in inside:
            await anext(stream)
        with pytest.raises(QueueFull):
            await anext(rig.generate(make_request()))
        for stream in inside:
            await stream.aclose()
        assert tokens(await rig.collect(make_request()))
        await rig.until_empty()


async def test_prompt_of_the_context_length_is_rejected(rig: Rig) -> None:
    with pytest.raises(ContextLengthExceeded):
        await anext(rig.generate(make_request(rig.max_model_len)))
    request = make_request(rig.max_model_len - 1, max_tokens=None)
    assert len(tokens(await rig.collect(request))) == 1


async def test_passed_deadline_is_rejected(rig: Rig) -> None:
    with pytest.raises(DeadlinePassed):
        await anext(rig.generate(make_request(deadline=time.monotonic())))
    await rig.until(lambda s: s.num_waiting == 0)


async def test_deadline_that_passes_in_the_queue_ends_the_wait() -> None:
    async with started(Rig(max_num_seqs=1)) as rig:
        async with aclosing(rig.generate(make_request(max_tokens=None))) as running:
            rig.block()
            await anext(running)
            await rig.blocked()
            late = rig.generate(make_request(deadline=(deadline := time.monotonic() + 0.05)))
            assert await anext(late) == EMPTY
            await rig.until(lambda _: time.monotonic() > deadline)
            rig.runner.gate.set()
            with pytest.raises(DeadlinePassed, match="waiting"):
                await anext(late)
        await rig.until_empty()


async def test_failed_engine_fails_all_requests(rig: Rig) -> None:
    dead = asyncio.create_task(rig.engine.wait_dead())
    rig.block()
    streams = [rig.generate(make_request(max_tokens=None)) for _ in range(6)]
    for stream in streams:
        await anext(stream)
    await rig.blocked()
    assert not dead.done()
    rig.runner.error = DeviceLost("the device is gone")
    rig.runner.gate.set()
    for stream in streams:
        with pytest.raises(EngineDead):
            while True:
                await anext(stream)
    await dead
    with pytest.raises(EngineDead):
        await anext(rig.generate(make_request()))
    await rig.engine.wait_dead()
    await rig.engine.stop()


async def test_failed_step_fails_its_requests_and_the_engine_continues(rig: Rig) -> None:
    rig.block()
    streams = [rig.generate(make_request(max_tokens=9)) for _ in range(6)]
    for stream in streams:
        await anext(stream)
    await rig.blocked()
    rig.runner.failing_runs = {1}
    rig.runner.gate.set()

    async def read(stream: AsyncGenerator[TokenOutput, int | None]) -> str:
        try:
            return str(tokens([output async for output in stream]))
        except StepFailed:
            return "failed"

    ends = await asyncio.gather(*map(read, streams))
    num_failed = ends.count("failed")  # the requests that had arrived when the step began
    assert 1 <= num_failed <= 4
    assert ends[num_failed:] == [str(answer(make_request(max_tokens=9), rig.max_model_len))] * (
        6 - num_failed
    )
    await rig.until_empty()
    assert rig.engine.stats().num_failed_steps == 1


async def test_steps_that_fail_time_and_again_are_the_end(rig: Rig) -> None:
    rig.runner.error = RuntimeError("no more memory")
    ends = []
    for _ in range(3):
        with pytest.raises((StepFailed, EngineDead)) as caught:
            await rig.collect(make_request())
        ends.append(caught.type)
    assert ends == [StepFailed, StepFailed, EngineDead]
    await rig.engine.wait_dead()


async def test_stop_fails_what_runs(rig: Rig) -> None:
    stream = rig.generate(make_request(max_tokens=None))
    rig.block()
    await anext(stream)
    await rig.blocked()
    stop = asyncio.create_task(rig.engine.stop())
    await asyncio.sleep(0)  # let the task request the stop
    rig.runner.gate.set()
    await stop
    with pytest.raises(EngineDead):
        while True:
            await anext(stream)
    with pytest.raises(EngineDead):
        await anext(rig.generate(make_request()))


async def test_stopped_engine_is_not_dead(rig: Rig) -> None:
    dead = asyncio.create_task(rig.engine.wait_dead())
    await rig.engine.stop()
    await rig.engine.stop()
    await asyncio.sleep(0)
    assert not dead.done()
    dead.cancel()


async def test_stop_without_start() -> None:
    rig = Rig()
    await rig.engine.stop()
    with pytest.raises(EngineDead):
        await anext(rig.generate(make_request()))


@pytest.mark.parametrize("error", [ModelLoadError("no such model"), ZeroDivisionError("a bug")])
async def test_start_raises_what_the_load_raises(error: Exception) -> None:
    def load(_model: EngineModel) -> tuple[EngineCore, int]:
        raise error

    engine = AsyncEngine(load, max_queue_size=1)
    with pytest.raises(type(error), match=str(error)):
        await engine.start(MODEL)
    await engine.stop()


class SlowLoad:
    """A load of a model that ends when the test permits it."""

    def __init__(self, error: Exception | None = None) -> None:
        self.is_loading = threading.Event()
        self.may_end = threading.Event()
        self.thread: threading.Thread
        self._error = error

    def __call__(self, _model: EngineModel) -> tuple[EngineCore, int]:
        self.thread = threading.current_thread()
        self.is_loading.set()
        self.may_end.wait()
        if self._error is not None:
            raise self._error
        scheduler = Scheduler(BlockPool(10, BLOCK_SIZE), 1, 8)
        return make_core(FakeRunner(BLOCK_SIZE), scheduler), 40


@pytest.mark.parametrize("error", [None, ModelLoadError("too late")])
async def test_stop_during_a_load_does_not_wait_for_it(error: Exception | None) -> None:
    load = SlowLoad(error)
    engine = AsyncEngine(load, max_queue_size=1)
    start = asyncio.create_task(engine.start(MODEL))
    await asyncio.to_thread(load.is_loading.wait)
    start.cancel()
    with suppress(asyncio.CancelledError):
        await start
    await engine.stop()  # returns although the load is not complete
    assert load.thread.is_alive()
    load.may_end.set()
    await asyncio.to_thread(load.thread.join)


async def test_stop_while_start_is_awaited() -> None:
    load = SlowLoad()
    engine = AsyncEngine(load, max_queue_size=1)
    start = asyncio.create_task(engine.start(MODEL))
    await asyncio.to_thread(load.is_loading.wait)
    await engine.stop()
    load.may_end.set()
    await start
    await asyncio.to_thread(load.thread.join)
    with pytest.raises(EngineDead):
        await anext(engine.generate(make_request()))


def test_event_loop_that_ends_during_a_load_leaves_no_error() -> None:
    load = SlowLoad()

    async def main() -> None:
        engine = AsyncEngine(load, max_queue_size=1)
        start = asyncio.create_task(engine.start(MODEL))
        await asyncio.to_thread(load.is_loading.wait)
        start.cancel()
        await engine.stop()

    asyncio.run(main())
    load.may_end.set()
    load.thread.join()  # pytest would report an exception of the thread


@dataclass(frozen=True)
class Client:
    """The requests of one client, and the time at which it disconnects."""

    prompt: int
    max_tokens: int | None
    cache_salt: str
    n: int
    priority: int
    pause: int  # iterations of the event loop before the requests are sent
    reads: int | None  # number of items after which it closes the stream; None to read all
    patience: int | None  # iterations after which it is cancelled; None for never
    deadline_s: float | None

    async def call(self, rig: Rig) -> str:
        await turns(self.pause)
        request = make_request(
            self.prompt,
            self.max_tokens,
            deadline=None if self.deadline_s is None else time.monotonic() + self.deadline_s,
            cache_salt=self.cache_salt,
            n=self.n,
            priority=self.priority,
        )
        task = asyncio.create_task(self._read(rig, request))
        if self.patience is not None:
            await turns(self.patience)
            task.cancel()
        try:
            return await task
        except asyncio.CancelledError:
            return "cancelled"
        except ChatrpcError as error:
            return type(error).__name__

    async def _read(self, rig: Rig, request: Request) -> str:
        got: list[TokenOutput] = []
        async with aclosing(rig.generate(request)) as outputs:
            async for output in outputs:
                got.append(output)
                if len(got) == self.reads:
                    break
        assert got[0] == EMPTY
        num_finished = 0
        for index in range(request.n):
            said = tokens(of_index(got, index))
            expected = answer(request, rig.max_model_len, index)
            is_finished = any(o.finish_reason is not None for o in of_index(got, index))
            num_finished += is_finished
            assert said == (expected if is_finished else expected[: len(said)])
        return "finished" if num_finished == request.n else "closed"


async def turns(count: int) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


callers = st.builds(
    Client,
    prompt=st.integers(1, 40),
    max_tokens=st.integers(1, 20) | st.none(),
    cache_salt=st.sampled_from(["", "", "salt"]),
    n=st.sampled_from([1, 1, 1, 3]),
    priority=st.sampled_from([0, 0, 1]),
    pause=st.integers(0, 30),
    reads=st.integers(1, 8) | st.none(),
    patience=st.integers(0, 60) | st.none(),
    deadline_s=st.sampled_from([-1.0, 0.0, 0.001, 0.005]) | st.none(),
)


@given(
    crowd=st.lists(callers, min_size=1, max_size=25),
    num_blocks=st.integers(3, 9),
    max_num_seqs=st.integers(1, 5),
    max_queue_size=st.integers(0, 20),
    num_speculative_tokens=st.sampled_from([0, 8]),
    failing_runs=st.sets(st.integers(1, 60), max_size=6),
)
def test_random_calls_all_end_and_leave_no_state(
    crowd: list[Client],
    num_blocks: int,
    max_num_seqs: int,
    max_queue_size: int,
    num_speculative_tokens: int,
    failing_runs: set[int],
) -> None:
    rig = Rig(num_blocks, max_num_seqs, max_queue_size, num_speculative_tokens)
    rig.runner.failing_runs = {n for n in failing_runs if not {n - 1, n - 2} <= failing_runs}

    async def main() -> list[str]:
        async with started(rig):
            ends = await asyncio.gather(*(caller.call(rig) for caller in crowd))
            rig.runner.failing_runs = ()
            await rig.until_empty()
            # The engine still works.
            request = make_request(2, max_tokens=2)
            assert tokens(await rig.collect(request)) == answer(request, rig.max_model_len)
            return ends

    names = {
        "finished",
        "closed",
        "cancelled",
        "ContextLengthExceeded",
        "DeadlinePassed",
        "QueueFull",
        "StepFailed",
    }
    assert set(asyncio.run(main())) <= names


async def test_one_sequence_of_several_can_be_ended(rig: Rig) -> None:
    request = replace(make_request(5, max_tokens=40), n=2)
    async with aclosing(rig.generate(request)) as outputs:
        assert await anext(outputs) == EMPTY
        first = await anext(outputs)
        rest = [await outputs.asend(first.index)]
        rest += [output async for output in outputs]
    assert {output.index for output in rest} == {1 - first.index}
    assert sum(len(output.token_ids) for output in rest) == 40
    await rig.until_empty()


async def test_ending_the_last_sequence_ends_the_request(rig: Rig) -> None:
    async with aclosing(rig.generate(make_request(5, max_tokens=40))) as outputs:
        assert await anext(outputs) == EMPTY
        output = await anext(outputs)
        with pytest.raises(StopAsyncIteration):
            await outputs.asend(output.index)
    await rig.until_empty()


async def test_hanging_step_kills_the_engine() -> None:
    rig = Rig(step_timeout_s=1e-6)
    await rig.engine.start(MODEL)
    dead = asyncio.ensure_future(rig.engine.wait_dead())
    rig.runner.gate.clear()
    with pytest.raises(EngineDead):
        await rig.collect(make_request(5))
    await dead
    await rig.engine.stop()  # does not wait for the thread, which still hangs
    rig.runner.gate.set()


async def test_working_or_idle_engine_is_not_dead() -> None:
    rig = Rig(step_timeout_s=0.4)
    await rig.engine.start(MODEL)
    dead = asyncio.ensure_future(rig.engine.wait_dead())
    await rig.collect(make_request(5, max_tokens=40))
    await asyncio.sleep(0.6)  # longer than a step may take; the duration itself is tested
    await rig.collect(make_request(5, max_tokens=40))
    assert not dead.done()
    dead.cancel()
    await rig.engine.stop()


async def test_process_suspended_in_a_step_is_not_dead() -> None:
    rig = Rig(step_timeout_s=1.0)
    await rig.engine.start(MODEL)
    rig.runner.gate.clear()
    answering = asyncio.ensure_future(rig.collect(make_request(5, max_tokens=40)))
    await rig.blocked()
    dead = asyncio.ensure_future(rig.engine.wait_dead())
    await asyncio.sleep(0)
    time.sleep(1.5)  # noqa: ASYNC251  # nothing moves, as when the process is stopped
    rig.runner.gate.set()
    await answering
    assert not dead.done()
    dead.cancel()
    await rig.engine.stop()


async def test_hanging_command_kills_the_engine() -> None:
    rig = Rig(step_timeout_s=0.05)
    await rig.engine.start(MODEL)
    dead = asyncio.ensure_future(rig.engine.wait_dead())
    never = threading.Event()

    def hang() -> None:
        never.wait(120)

    rig.engine._inbox.put(lambda core: hang())
    await dead
    with pytest.raises(EngineDead):
        await rig.collect(make_request(5))
    await rig.engine.stop()
    never.set()


async def test_output_reports_the_timings_of_its_request(rig: Rig) -> None:
    before_s = time.monotonic()
    outputs = await rig.collect(make_request(5, max_tokens=3))
    timings = outputs[-1].timings
    assert timings is not None
    found = [timings.queued_s, timings.scheduled_s, timings.first_token_s, timings.last_token_s]
    times_s = [time_s for time_s in found if time_s is not None]
    assert len(times_s) == 4
    assert before_s <= times_s[0]
    assert times_s == sorted(times_s)
    assert times_s[-1] <= time.monotonic()
    assert timings.num_tokens == 3


async def test_start_of_the_first_step_is_reported_before_the_step_ends(rig: Rig) -> None:
    rig.block()
    async with aclosing(rig.engine.generate(make_request(5))) as outputs:
        admitted, scheduled = await anext(outputs), await anext(outputs)
        assert admitted.timings is not None
        assert admitted.timings.scheduled_s is None
        assert scheduled.is_progress
        assert scheduled.timings is not None
        assert scheduled.timings.scheduled_s is not None
        rig.runner.gate.set()


async def test_waiting_request_is_reported_as_queued_only() -> None:
    async with started(Rig(max_num_seqs=1)) as rig:
        rig.block()
        first = asyncio.ensure_future(rig.collect(make_request(5)))
        await rig.blocked()
        async with aclosing(rig.engine.generate(make_request(5))) as outputs:
            timings = (await anext(outputs)).timings
            assert timings is not None
            assert timings.queued_s is not None
            assert timings.scheduled_s is None
            next_output = asyncio.ensure_future(anext(outputs))
            await asyncio.sleep(0)
            assert not next_output.done()
            next_output.cancel()
            await asyncio.gather(next_output, return_exceptions=True)
        rig.runner.gate.set()
        await first


async def test_prefix_on_disk_is_stored_and_loaded_by_an_idle_engine(tmp_path: Path) -> None:
    prompt = tuple(i % 29 for i in range(42))
    for num_cached in (0, 40, 40):
        async with started(Rig(prefix_cache_dir=tmp_path)) as rig:
            assert rig.disk_cache is not None
            await until(lambda rig=rig: rig.disk_cache.is_open)  # type: ignore[misc]
            for user in range(2):  # the second request uses the blocks again
                request = make_request((*prompt, user), max_tokens=3)
                outputs = await rig.collect(request)
                assert tokens(outputs) == answer(request, rig.max_model_len)
                assert outputs[-1].num_cached_tokens == (40 if user else num_cached)
            await rig.until(lambda s: s.disk_cache.num_bytes > 0)
            await rig.until_empty()
