"""The engine of pooling models, with a runner that computes made-up numbers."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Sequence

import pytest

from service.domain.backend import CallContext
from service.domain.engine import Caller
from service.errors import DeadlinePassed, EngineDead, ModelLoadError, QueueFull, StepFailed
from service.pooling.batch import PackedBatch, TokenizedInput
from service.pooling.engine import PoolingEngine, Runner
from tests.fakes.wait import until
from tests.fakes.workers import InlineWorkers


class FakeRunner:
    """A runner whose result for an input is its first token id.

    Attributes:
        steps: The lengths of the inputs of each step.
        failing: If a step has this token id, it fails.
        hold: Steps wait for it.
    """

    num_outputs = 1

    def __init__(self) -> None:
        self.steps: list[list[int]] = []
        self.failing: int | None = None
        self.hold = threading.Event()
        self.hold.set()

    def run(self, batch: PackedBatch) -> Sequence[int]:
        self.steps.append([len(each) for each in batch.inputs])
        self.hold.wait()
        firsts = [each.token_ids[0] for each in batch.inputs]
        if self.failing in firsts:
            raise RuntimeError("failing")
        found = [0] * len(firsts)
        for index, first in zip(batch.order, firsts, strict=True):
            found[index] = first
        return found


@pytest.fixture
def runner() -> FakeRunner:
    return FakeRunner()


def make(runner: Runner, *, max_queue_size: int = 8, step_timeout_s: float = 60) -> PoolingEngine:
    return PoolingEngine(
        lambda: runner,
        max_num_seqs=2,
        max_queue_size=max_queue_size,
        max_num_batched_tokens=10,
        step_timeout_s=step_timeout_s,
    )


@pytest.fixture
async def engine(runner: FakeRunner) -> AsyncIterator[PoolingEngine]:
    made = make(runner)
    await made.start()
    yield made
    runner.hold.set()
    await made.stop()


def call(name: str = "", priority: int = 0, deadline_s: float = 60) -> CallContext:
    return CallContext(Caller(name), time.monotonic() + deadline_s, priority, InlineWorkers())


def given(*firsts: int, length: int = 4) -> list[TokenizedInput]:
    return [TokenizedInput([first] * length) for first in firsts]


async def test_inputs_have_their_results_in_order(
    engine: PoolingEngine, runner: FakeRunner
) -> None:
    inputs = [TokenizedInput([i] * (1 + 5 * i % 9)) for i in range(30)]
    assert await engine.run(inputs, call()) == list(range(30))
    assert all(sum(lengths) <= 10 and lengths == sorted(lengths) for lengths in runner.steps)
    assert engine.stats().num_steps == len(runner.steps)
    assert engine.stats().num_running == 0


async def test_input_longer_than_a_step_is_a_step(
    engine: PoolingEngine, runner: FakeRunner
) -> None:
    assert await engine.run(given(1, 2, length=25), call()) == [1, 2]
    assert runner.steps == [[25], [25]]


async def held(engine: PoolingEngine, runner: FakeRunner) -> asyncio.Task[list[int]]:
    """Start a request whose step is held."""
    runner.hold.clear()
    first = asyncio.ensure_future(engine.run(given(0, length=10), call()))
    await until(lambda: len(runner.steps) == 1)
    return first


async def in_order(
    engine: PoolingEngine,
    runner: FakeRunner,
    *requests: tuple[CallContext, list[TokenizedInput]],
) -> list[int]:
    """Start requests during a held step. Return their indexes in the order of their ends."""
    first = await held(engine, runner)
    ended: list[int] = []

    async def run(index: int, context: CallContext, inputs: list[TokenizedInput]) -> None:
        await engine.run(inputs, context)
        ended.append(index)

    tasks = [asyncio.ensure_future(run(i, *each)) for i, each in enumerate(requests)]
    await until(lambda: engine.stats().num_running + engine.stats().num_waiting > len(tasks))
    runner.hold.set()
    await asyncio.gather(first, *tasks)
    return ended


@pytest.mark.parametrize("names", [("a", "b"), ("a", "a"), ("", "")])
async def test_short_request_does_not_wait_for_a_long_one(
    engine: PoolingEngine, runner: FakeRunner, names: tuple[str, str]
) -> None:
    long = (call(names[0]), given(*range(1, 21), length=5))
    short = (call(names[1]), given(50, length=5))
    assert await in_order(engine, runner, long, short) == [1, 0]


async def test_lower_priority_value_is_first(engine: PoolingEngine, runner: FakeRunner) -> None:
    requests = [(call(priority=priority), given(*[1] * 6, length=10)) for priority in (1, 0)]
    assert await in_order(engine, runner, *requests) == [1, 0]


async def test_cancelled_request_is_in_no_further_step(
    engine: PoolingEngine, runner: FakeRunner
) -> None:
    runner.hold.clear()
    task = asyncio.ensure_future(engine.run(given(*range(20), length=10), call()))
    await until(lambda: len(runner.steps) == 1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    runner.hold.set()
    assert await engine.run(given(7), call()) == [7]
    assert len(runner.steps) == 2


async def test_failed_step_fails_only_its_requests(
    engine: PoolingEngine, runner: FakeRunner
) -> None:
    first = await held(engine, runner)
    runner.failing = 66
    failing = asyncio.ensure_future(engine.run(given(66, 67, 68, length=10), call("a")))
    other = asyncio.ensure_future(engine.run(given(5, length=10), call("b")))
    await until(lambda: engine.stats().num_running + engine.stats().num_waiting == 3)
    runner.hold.set()
    with pytest.raises(StepFailed):
        await failing
    assert (await first, await other) == ([0], [5])
    assert engine.stats().num_failed_steps == 1
    assert await engine.run(given(8), call()) == [8]


async def test_full_queue_rejects_requests(engine: PoolingEngine) -> None:
    with engine.reserve(Caller(), engine.capacity), pytest.raises(QueueFull):
        engine.reserve(Caller(), 1).__enter__()


async def test_request_whose_deadline_has_passed_is_rejected(engine: PoolingEngine) -> None:
    with pytest.raises(DeadlinePassed):
        await engine.run(given(1), call(deadline_s=-1))


async def test_stopped_engine_fails_its_requests(engine: PoolingEngine, runner: FakeRunner) -> None:
    first = await held(engine, runner)
    stopping = asyncio.ensure_future(engine.stop())
    with pytest.raises(EngineDead):
        await first
    with pytest.raises(EngineDead):
        engine.reserve(Caller(), 1).__enter__()
    with pytest.raises(EngineDead):
        await engine.run(given(1), call())
    runner.hold.set()
    assert await stopping


async def test_hanging_step_kills_the_engine(runner: FakeRunner) -> None:
    engine = make(runner, step_timeout_s=0.05)
    await engine.start()
    first = await held(engine, runner)
    await engine.wait_dead()
    with pytest.raises(EngineDead):
        await first
    assert not await engine.stop()
    runner.hold.set()


async def test_idle_engine_does_not_hang(runner: FakeRunner) -> None:
    engine = make(runner, step_timeout_s=0.02)
    await engine.start()
    watching = asyncio.ensure_future(engine.wait_dead())
    for _ in range(3):
        await engine.run(given(1), call())
        await asyncio.sleep(0.05)
    assert await engine.stop()
    await asyncio.sleep(0.05)
    assert not watching.done()
    watching.cancel()


async def test_error_of_the_load_is_raised_by_start() -> None:
    def load() -> Runner:
        raise ModelLoadError("broken")

    engine = PoolingEngine(
        load, max_num_seqs=1, max_queue_size=1, max_num_batched_tokens=1, step_timeout_s=60
    )
    with pytest.raises(ModelLoadError, match="broken"):
        await engine.start()
    assert await engine.stop()
