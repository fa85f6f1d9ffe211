"""The service over a real vLLM whose processes are killed or frozen, or that is itself ended."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import grpc
import psutil
import pytest

from chatrpc.v1 import chat_service_pb2
from tests.fakes.wait import until
from tests.support.programs import Client, Launch, Program, RealService, chat, launching
from tests.support.rpc_errors import rpc_error
from tests.support.tiny_model import save_model

pytestmark = pytest.mark.vllm

# vLLM's names of its processes.
CORE, WORKER = "VLLM::EngineCore", "VLLM::Worker"
# vLLM starts in a minute if it has the machine for itself.
START_TIMEOUT_S = 500


class VllmService(RealService):
    """`python -m service` with vLLM, which takes long to start."""

    async def ready(self) -> Self:
        async with asyncio.timeout(START_TIMEOUT_S):
            while self.is_running and not self.events("ready"):
                await asyncio.sleep(0.05)
        return await super().ready()


@pytest.fixture
def launch() -> Iterator[Launch]:
    with launching() as launch:
        yield launch


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    # vLLM's attention on a CPU needs heads of 32 numbers or more.
    path = tmp_path_factory.mktemp("models") / "fake"
    return save_model(path, 300, hidden_size=64, num_key_value_heads=1)


def options(model: Path, *more: str) -> tuple[str, ...]:
    small = "--dtype", "float32", "--max-model-len", "4096", "--kv-cache-memory-bytes", "256MiB"
    eager = "--vllm-args", '{"enforce_eager": true}'
    return "--engine", "vllm", "--model", str(model), *small, *eager, *more


def processes(program: Program) -> dict[str, psutil.Process]:
    """Return the processes of vLLM by name."""
    found = program.process.children(recursive=True)
    return {each.name(): each for each in found if each.name().startswith("VLLM::")}


def endless(client: Client, num_tokens: int = 3000, **call: Any) -> Any:
    """Return a stream of `num_tokens` tokens, which the model does not end before."""
    params = chat("hi", num_tokens)
    params.sampling.ignore_eos = True
    request = chat_service_pb2.StreamChatCompletionRequest(params=params)
    return client.chat.StreamChatCompletion(request, **call)


async def all_ended(found: dict[str, psutil.Process]) -> None:
    await until(lambda: not any(_is_alive(each) for each in found.values()))


def _is_alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.mark.parametrize("name", [CORE, WORKER])
async def test_killed_process_fails_the_streams_and_the_service(
    launch: Launch, model: Path, name: str
) -> None:
    service = await launch(VllmService(*options(model))).ready()
    found = processes(service)
    async with Client(service.target) as client:
        stream = endless(client)
        await anext(aiter(stream))
        found[name].kill()
        assert (await rpc_error(stream)).reason == "ENGINE_DEAD"
    assert await service.ended() == 1
    assert service.events("core_process_ended")
    assert not service.events("engine_hangs")
    await all_ended(found)


async def test_frozen_core_fails_the_streams_and_the_service(launch: Launch, model: Path) -> None:
    service = await launch(VllmService(*options(model, "--step-timeout-s", "3"))).ready()
    found = processes(service)
    async with Client(service.target) as client:
        stream = endless(client)
        await anext(aiter(stream))
        frozen_s = time.monotonic()
        found[CORE].suspend()
        assert (await rpc_error(stream)).reason == "ENGINE_DEAD"
    assert time.monotonic() > frozen_s + 2
    assert service.events("engine_hangs")
    assert await service.ended() == 1
    await all_ended(found)


async def test_drain_serves_what_runs_and_ends_all_processes(launch: Launch, model: Path) -> None:
    service = await launch(VllmService(*options(model))).ready()
    found = processes(service)
    assert found.keys() == {CORE, WORKER}
    # Ctrl-C in a terminal signals the whole group of the service.
    groups = {os.getpgid(each.pid) for each in found.values()}
    assert os.getpgid(service.process.pid) not in groups
    async with Client(service.target) as client:
        stream = endless(client, num_tokens=300)
        responses = aiter(stream)
        await anext(responses)
        service.send(signal.SIGINT)
        last = [response async for response in responses][-1]
    assert last.chunk.usage.completion_tokens == 300
    assert await service.ended() == 0
    await all_ended(found)


async def test_killed_service_leaves_no_process(launch: Launch, model: Path) -> None:
    service = await launch(VllmService(*options(model))).ready()
    found = processes(service)
    async with Client(service.target) as client:
        await anext(aiter(endless(client)))
        service.send(signal.SIGKILL)
    await all_ended(found)


async def test_stop_during_the_load_leaves_no_process(launch: Launch, model: Path) -> None:
    service = launch(VllmService(*options(model)))
    async with asyncio.timeout(START_TIMEOUT_S):
        while CORE not in processes(service):
            await asyncio.sleep(0.05)
    found = processes(service)
    service.send(signal.SIGTERM)
    assert await service.ended() == 0
    await all_ended(found)


async def test_aborted_requests_leave_nothing_in_vllm(launch: Launch, model: Path) -> None:
    service = await launch(VllmService(*options(model))).ready()
    async with Client(service.target) as client:
        streams = [endless(client) for _ in range(20)]
        for stream in streams:
            await anext(aiter(stream))
        assert (await service.metrics())["chatrpc_sequences_running"] == 20
        for stream in streams:
            stream.cancel()
        late = endless(client, timeout=0.5)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            async for _ in late:
                pass
        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert await client.create(num_tokens=5)
    # vLLM's own counters: the last step had no other request than the last one.
    await service.idle()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ('{"nope": 1}', "vllm_args.nope is not an argument of vLLM's AsyncEngineArgs."),
        ('{"seed": "x"}', "vllm_args.seed: Input should be a valid integer."),
        ('{"compilation_config": {"mode": "x"}}', "vllm_args.compilation_config.mode: Value error"),
        ('{"model": "x"}', "vllm_args.model cannot be set: the option `model` sets it."),
    ],
)
def test_check_names_an_invalid_argument(args: str, message: str) -> None:
    command = [sys.executable, "-m", "service", "--check", "--engine", "vllm", "--vllm-args", args]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 2
    assert f"error: {message}" in done.stderr


def test_check_names_an_option_without_a_meaning() -> None:
    command = [sys.executable, "-m", "service", "--check", "--engine", "vllm", "--device", "cuda"]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 2
    assert "device=cuda: the installed vLLM computes on the device 'cpu'." in done.stderr


def test_check_names_an_option_that_a_variable_would_override() -> None:
    command = [sys.executable, "-m", "service", "--check", "--engine", "vllm"]
    done = subprocess.run(
        [*command, "--kv-cache-memory-bytes", "1GiB"],
        env={**os.environ, "VLLM_CPU_KVCACHE_SPACE": "2"},
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert "kv_cache_memory_bytes and the variable VLLM_CPU_KVCACHE_SPACE" in done.stderr
