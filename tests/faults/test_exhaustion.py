"""What runs out: places in the queue, file descriptors, a disk that may be written to."""

import asyncio
import resource
import shutil
from pathlib import Path
from typing import Any

import grpc
import pytest

from service.cache import default_cache_dir
from tests.faults.conftest import Launch
from tests.faults.program import Client, Gateway, RealService, Service, body, http_client
from tests.gateway_http.raw_http import RawClient
from tests.service.rpc.details import refusal
from tests.service.test_main import save_model

LONG = 50_000


async def test_a_full_queue_refuses_on_both_wires_and_harms_nobody_in_it(launch: Launch) -> None:
    service = await launch(Service("--max-num-seqs", "2", "--max-queue-size", "2")).ready()
    gateway = await launch(Gateway(upstream=service.target)).ready()
    async with (
        Client(service.target) as client,
        http_client(gateway.url) as http,
        RawClient(gateway.url) as stream,
    ):
        running = client.stream(num_tokens=LONG)
        responses = aiter(running)
        await anext(responses)
        await stream.post(body(num_tokens=LONG, stream=True))
        await stream.read_until(b'"content":"a')
        waiting = [client.stream(num_tokens=LONG) for _ in range(2)]
        await asyncio.gather(*(call.initial_metadata() for call in waiting))

        refusals = await asyncio.gather(*(refusal(client.create()) for _ in range(20)))
        for refused in refusals:
            assert (refused.code, refused.reason) == (grpc.StatusCode.UNAVAILABLE, "QUEUE_FULL")
            assert refused.retry_after_s
            assert refused.retry_after_s >= 1
        for is_streamed in (False, True):
            answer = await http.post("/v1/chat/completions", json=body(stream=is_streamed))
            assert answer.status_code == 503
            assert int(answer.headers["retry-after"]) >= 1
            assert answer.json()["error"]["code"] == "server_is_overloaded"

        for _ in range(3):
            await anext(responses)
            await stream.read_until(b'"content":"a')
        for call in (running, *waiting):
            call.cancel()
        await stream.close()
        await service.idle()
        assert (await http.post("/v1/chat/completions", json=body())).status_code == 200


async def test_without_file_descriptors_connections_wait_and_are_served_when_there_are_some(
    launch: Launch,
) -> None:
    service = await launch(Service()).ready()
    gateway = await launch(Gateway(upstream=service.target)).ready()
    async with Client(service.target) as client, http_client(gateway.url) as http:
        stream = client.stream(num_tokens=LONG)
        responses = aiter(stream)
        await anext(responses)
        assert (await http.post("/v1/chat/completions", json=body())).status_code == 200
        limits = {program: _limit(program, program.num_fds + 3) for program in (service, gateway)}
        num_lines = len(service.lines) + len(gateway.lines)
        crowd = [
            await asyncio.open_connection("127.0.0.1", port)
            for port in (service.port, int(gateway.url.rpartition(":")[2]))
            for _ in range(12)
        ]
        late = asyncio.create_task(_ask_anew(service.target))
        for _ in range(5):  # whoever was there before goes on
            await anext(responses)
            assert (await client.create()).completion.usage.completion_tokens == 3
            assert (await http.post("/v1/chat/completions", json=body())).status_code == 200
        assert len(service.lines) + len(gateway.lines) - num_lines < 200  # nobody turns in circles

        for _, writer in crowd:
            writer.transport.abort()
        await late
        async with http_client(gateway.url) as newcomer:
            async with asyncio.timeout(120):
                while True:
                    try:
                        answer = await newcomer.post("/v1/chat/completions", json=body())
                        break
                    except OSError:
                        await asyncio.sleep(0.05)
            assert answer.status_code == 200
        for program, limit in limits.items():
            resource.prlimit(program.process.pid, resource.RLIMIT_NOFILE, limit)
        stream.cancel()
    assert service.is_running
    assert gateway.is_running
    assert "Traceback" not in service.log


def _limit(program: Service | Gateway, num_fds: int) -> tuple[int, int]:
    """Let the process have so many; what it could have before."""
    pid, what = program.process.pid, resource.RLIMIT_NOFILE
    before = resource.prlimit(pid, what)
    resource.prlimit(pid, what, (num_fds, before[1]))
    return before


async def _ask_anew(target: str) -> Any:
    """A call on a connection of its own, however long that takes."""
    async with Client(target) as client:
        return await client.create(wait_for_ready=True)


@pytest.fixture
def read_only(tmp_path: Path) -> Path:
    directory = tmp_path / "cache"
    directory.mkdir()
    return directory


async def test_a_model_that_is_not_converted_needs_a_place_to_write_to_and_says_so(
    launch: Launch, read_only: Path
) -> None:
    _lock(read_only)
    service = launch(
        RealService("--cache-dir", str(read_only), env={"CXX": "/nowhere/c++"}, is_privileged=False)
    )
    assert await service.ended() == 1
    [line] = [line for line in service.lines if '"level": "error"' in line]
    assert "cannot be converted" in line
    assert str(read_only) in line
    assert "Permission denied" in line
    assert "Traceback" not in service.log


async def test_what_is_cached_is_read_from_where_nothing_can_be_written(
    launch: Launch, read_only: Path, tmp_path: Path
) -> None:
    native = default_cache_dir() / "native"
    if not native.is_dir():
        pytest.skip("no kernels have been compiled here yet")
    shutil.copytree(native, read_only / "native")
    _lock(read_only)
    model = save_model(tmp_path / "tiny", vocab_size=300)
    service = launch(
        RealService("--model", str(model), "--cache-dir", str(read_only), is_privileged=False)
    )
    await service.ready()
    assert not service.events("native_kernels_not_cached")


def _lock(directory: Path) -> None:
    for path in (directory, *directory.rglob("*")):
        path.chmod(0o555 if path.is_dir() else 0o444)
