"""The engine vllm over a fake core that is killed or frozen, is slow, or has no memory.

`tests/service/vllm_engine/test_processes.py` kills and freezes the processes of a real vLLM.
"""

import asyncio
import signal
from collections.abc import Callable

import grpc
import psutil
import pytest

from tests.fakes.wait import until
from tests.support.programs import (
    Client,
    Gateway,
    Launch,
    RealService,
)
from tests.support.rpc_errors import rpc_error
from tests.support.running_requests import HIDDEN, LONG, running_requests


class VllmService(RealService):
    """The service with a fake core of vLLM."""

    module = "tests.fakes.vllm_service"

    def __init__(self, *options: str, step_s: float = 0.002, start_failure: str = "") -> None:
        env = {"STEP_S": str(step_s), "START_FAILURE": start_failure}
        super().__init__(*options, env=env)

    @property
    def core(self) -> psutil.Process:
        """The process of the core."""
        [core] = [p for p in self.process.children() if "spawn_main" in " ".join(p.cmdline())]
        return core


def kill(service: VllmService) -> None:
    service.core.kill()


def freeze(service: VllmService) -> None:
    service.core.suspend()


def has_ended(process: psutil.Process) -> bool:
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


@pytest.mark.parametrize(
    ("fault", "event"), [(kill, "core_process_ended"), (freeze, "engine_hangs")]
)
async def test_killed_or_frozen_core_fails_all_requests_and_ends_the_process(
    launch: Launch, fault: Callable[[VllmService], None], event: str
) -> None:
    service = await launch(VllmService("--step-timeout-s", "1")).ready()
    gateway = await launch(Gateway(upstream=service.target)).ready()
    core = service.core
    async with running_requests(service, gateway) as running:
        fault(service)
        await running.fail_as_engine_dead(service)
    await until(lambda: has_ended(core))
    assert len(service.events(event)) == 1


async def test_core_without_memory_fails_all_requests_and_ends_the_process(launch: Launch) -> None:
    service = await launch(VllmService()).ready()
    core = service.core
    async with Client(service.target) as client:
        stream = client.stream(num_tokens=LONG)
        await anext(aiter(stream))
        for error in (await rpc_error(client.create("!lose")), await rpc_error(stream)):
            assert (error.code, error.reason) == (grpc.StatusCode.INTERNAL, "ENGINE_DEAD")
            assert HIDDEN not in repr(error)
        assert await service.ended() == 1
    await until(lambda: has_ended(core))


async def test_request_that_fails_in_the_core_does_not_affect_others(launch: Launch) -> None:
    service = await launch(VllmService()).ready()
    async with Client(service.target) as client:
        stream = client.stream(num_tokens=200)
        responses = aiter(stream)
        await anext(responses)
        error = await rpc_error(client.create("!fail"))
        assert (error.code, error.reason) == (grpc.StatusCode.INTERNAL, "STEP_FAILED")
        assert [r async for r in responses][-1].chunk.usage.completion_tokens == 200
        await service.idle()
    assert service.is_running


async def test_slow_core_is_not_a_hanging_one(launch: Launch) -> None:
    """The response takes longer than the limit of a step."""
    service = await launch(VllmService("--step-timeout-s", "1", step_s=0.3)).ready()
    async with Client(service.target) as client:
        created = await client.create(num_tokens=6)
        assert created.completion.usage.completion_tokens == 6
        await service.idle()
    assert service.is_running


@pytest.mark.slow
async def test_core_that_is_frozen_for_a_moment_continues_its_streams(launch: Launch) -> None:
    service = await launch(VllmService("--step-timeout-s", "60")).ready()
    async with Client(service.target) as client:
        stream = client.stream(num_tokens=500)
        responses = aiter(stream)
        await anext(responses)
        service.core.suspend()
        await asyncio.sleep(1)  # the test is about this duration
        service.core.resume()
        assert [r async for r in responses][-1].chunk.usage.completion_tokens == 500
        await service.idle()
    assert service.is_running


async def test_core_that_cannot_start_ends_the_process(launch: Launch) -> None:
    service = launch(VllmService(start_failure="no memory"))
    assert await service.ended() == 1
    assert not service.events("ready")
    [line] = [line for line in service.lines if "vLLM cannot serve the model" in line]
    assert "Traceback" not in line


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGKILL, -9)])
async def test_core_ends_with_the_service(
    launch: Launch, number: signal.Signals, code: int
) -> None:
    service = await launch(VllmService()).ready()
    core = service.core
    service.send(number)
    assert await service.ended() == code
    await until(lambda: has_ended(core))
