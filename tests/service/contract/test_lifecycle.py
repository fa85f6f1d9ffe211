"""The start and the end of an engine, and engines that fail."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Container, Sequence
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import NoReturn

import pytest
import pytest_asyncio

from service.domain.engine import Caller, Engine, EngineStats, TokenOutput
from service.domain.engine_settings import EngineModel, EngineSettings
from service.engine.async_engine import AsyncEngine
from service.engine.block_pool import BlockPool
from service.engine.core import DeviceLost
from service.engine.scheduler import Scheduler
from service.errors import EngineDead, ModelLoadError, StepFailed
from tests.fakes.runner import FakeRunner, make_core
from tests.fakes.small_engine import SmallEngine
from tests.fakes.wait import failsafe
from tests.service.contract.kinds import Kind
from tests.service.contract.promises import VOCAB_SIZE, collect, make_request, tokens, until_idle

pytestmark = pytest.mark.asyncio(loop_scope="session")


async def test_start_loads_the_model_and_stop_ends_everything(
    kind: Kind, model: EngineModel
) -> None:
    engine = kind.make(max_model_len=4096, max_num_seqs=1)
    start = asyncio.create_task(engine.start(model))
    num_turns = 0
    while not start.done():  # the event loop runs while the engine loads the model
        await asyncio.sleep(0.001)
        num_turns += 1
    await start
    assert num_turns > 3
    assert engine.max_model_len == 4096
    stats = engine.stats()
    assert stats.max_num_seqs == 1
    assert stats.num_kv_blocks == stats.num_free_kv_blocks > 0
    names = {"max_num_seqs", "num_kv_blocks", "num_free_kv_blocks", "kv_block_size"}
    counted = {f.name for f in fields(EngineStats)} - names
    nothing = EngineStats()
    assert all(getattr(stats, name) == getattr(nothing, name) for name in counted)
    dead = asyncio.create_task(engine.wait_dead())

    running, waiting = (engine.generate(make_request(max_tokens=None)) for _ in range(2))
    async with failsafe():
        while not (await anext(running)).token_ids:
            pass
        await anext(waiting)
        assert await engine.stop()
        for stream in (running, waiting):
            with pytest.raises(EngineDead):
                while True:
                    await anext(stream)
    with pytest.raises(EngineDead):
        await anext(engine.generate(make_request()))
    with pytest.raises(EngineDead), engine.reserve(Caller(), 1):
        pass
    await asyncio.sleep(0)
    assert not dead.done()  # it did not fail
    dead.cancel()


def without_files(_model: Path, empty: Path) -> None:
    assert not list(empty.iterdir())


def with_half_of_the_weights(model: Path, directory: Path) -> None:
    for file in model.iterdir():
        content = file.read_bytes()
        is_weights = file.suffix == ".safetensors"
        (directory / file.name).write_bytes(content[: len(content) // 2] if is_weights else content)


@pytest.mark.parametrize("write", [without_files, with_half_of_the_weights])
async def test_start_fails_if_the_model_cannot_be_served(
    kind: Kind, path: Path, tmp_path: Path, write: Callable[[Path, Path], None]
) -> None:
    write(path, tmp_path)
    engine = kind.make(max_model_len=256)
    with pytest.raises(ModelLoadError):
        await engine.start(EngineModel(tmp_path))
    await engine.stop()


# Tokens of a context that no test fills.
MAX_MODEL_LEN = 400_000


@dataclass(frozen=True)
class Failing:
    """An engine with two slots and a fake model, and functions that make its next step fail.

    Attributes:
        fail_step: Makes the step fail, after which the engine continues.
        fail_engine: Makes the engine fail.
    """

    engine: Engine
    fail_step: Callable[[], None]
    fail_engine: Callable[[], None]


class NextRun(Container[int]):
    """Contains the number of the next run only."""

    def __init__(self) -> None:
        self._is_over = False

    def __contains__(self, _number: object) -> bool:
        is_next, self._is_over = not self._is_over, True
        return is_next


def failing_local() -> Failing:
    runner = FakeRunner(4)
    core = make_core(runner, Scheduler(BlockPool(MAX_MODEL_LEN // 4, 4), 2, 14))
    engine = AsyncEngine(lambda _model: (core, MAX_MODEL_LEN), max_queue_size=9)

    def fail_step() -> None:
        runner.failing_runs = NextRun()

    def fail_engine() -> None:
        runner.error = DeviceLost("the device is gone")

    return Failing(engine, fail_step, fail_engine)


class UniformModel:
    """A model to which all tokens are equally likely."""

    max_model_len = MAX_MODEL_LEN
    vocab_size = VOCAB_SIZE

    def __init__(self, _path: Path) -> None: ...

    def logits(self, token_ids: Sequence[int]) -> list[list[float]]:
        return [[0.0] * self.vocab_size] * len(token_ids)


def failing_small() -> Failing:
    engine = SmallEngine(EngineSettings(max_num_seqs=2, max_queue_size=9), UniformModel)

    def fail_step() -> None:
        engine.step_error = StepFailed()

    def fail_engine() -> None:
        engine.step_error = RuntimeError("the device is gone")

    return Failing(engine, fail_step, fail_engine)


@pytest_asyncio.fixture(
    params=[failing_local, failing_small],
    ids=["local", "small"],
    loop_scope="session",
)
async def failing(request: pytest.FixtureRequest) -> AsyncIterator[Failing]:
    failing: Failing = request.param()
    await failing.engine.start(EngineModel(Path()))
    yield failing
    await failing.engine.stop()


@asynccontextmanager
async def two_running_and_one_waiting(
    engine: Engine,
) -> AsyncIterator[list[AsyncGenerator[TokenOutput, int | None]]]:
    async with failsafe(), AsyncExitStack() as stack:
        streams = [
            await stack.enter_async_context(
                aclosing(engine.generate(make_request(max_tokens=None)))
            )
            for _ in range(3)
        ]
        for stream in streams[:2]:
            while not (await anext(stream)).token_ids:
                pass
        await anext(streams[2])
        yield streams


async def read(stream: AsyncGenerator[TokenOutput, int | None]) -> NoReturn:
    while True:
        await anext(stream)


async def test_failed_step_fails_only_its_requests(failing: Failing) -> None:
    engine = failing.engine
    async with two_running_and_one_waiting(engine) as (*running, waiting):
        failing.fail_step()
        for stream in running:
            with pytest.raises(StepFailed):
                await read(stream)
        while not (await anext(waiting)).token_ids:
            pass
    assert len(tokens(await collect(engine, make_request()))) == 12
    await until_idle(engine)
    assert engine.stats().num_failed_steps == 1


async def test_failed_engine_fails_all_requests(failing: Failing) -> None:
    engine = failing.engine
    dead = asyncio.create_task(engine.wait_dead())
    async with two_running_and_one_waiting(engine) as streams:
        assert not dead.done()
        failing.fail_engine()
        for stream in streams:
            with pytest.raises(EngineDead):
                await read(stream)
        await dead
    with pytest.raises(EngineDead):
        await anext(engine.generate(make_request()))
    with pytest.raises(EngineDead), engine.reserve(Caller(), 1):
        pass
    assert not await engine.stop()
