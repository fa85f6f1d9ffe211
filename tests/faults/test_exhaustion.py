"""A full queue, clients that do not read, and processes without file descriptors."""

import asyncio
import resource
from typing import Any

import grpc
import pytest

from tests.fakes.chat_service import HELLO, MODEL, Admit, Delta, FakeService
from tests.fakes.wait import failsafe
from tests.support.programs import Client, Gateway, Launch, Service, body, http_client
from tests.support.raw_http import RawClient
from tests.support.rpc_errors import rpc_error

pytestmark = pytest.mark.slow

LONG = 50_000


async def test_full_queue_rejects_new_requests_only(launch: Launch) -> None:
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

        errors = await asyncio.gather(*(rpc_error(client.create()) for _ in range(20)))
        for error in errors:
            assert (error.code, error.reason) == (grpc.StatusCode.UNAVAILABLE, "QUEUE_FULL")
            assert error.retry_after_s
            assert error.retry_after_s >= 1
        for is_streamed in (False, True):
            response = await http.post("/v1/chat/completions", json=body(stream=is_streamed))
            assert response.status_code == 503
            assert int(response.headers["retry-after"]) >= 1
            assert response.json()["error"]["code"] == "server_is_overloaded"

        for _ in range(3):
            await anext(responses)
            await stream.read_until(b'"content":"a')
        for call in (running, *waiting):
            call.cancel()
        await stream.close()
        await service.idle()
        assert (await http.post("/v1/chat/completions", json=body())).status_code == 200


async def test_client_that_does_not_read_takes_bounded_memory(
    launch: Launch, service: FakeService
) -> None:
    gateway = await launch(Gateway(upstream=service.target)).ready()
    request = {"model": MODEL, "messages": [{"role": "user", "content": "Hi"}]}
    async with http_client(gateway.url) as http, RawClient(gateway.url) as slow:
        assert (await http.post("/v1/chat/completions", json=request)).status_code == 200
        rss_bytes = gateway.rss_bytes
        service.script = [Admit(), *([Delta("x" * (16 << 10))] * 8192)]  # 128 MiB
        await slow.post(request | {"stream": True})
        await slow.read_until(b"xxx")
        service.script = HELLO
        for _ in range(20):
            assert (await http.post("/v1/chat/completions", json=request)).status_code == 200
        assert gateway.rss_bytes - rss_bytes < 48 << 20
        assert not any(call.is_cancelled for call in service.calls)
        await slow.close()
        await service.cancelled()


async def test_connections_without_file_descriptors_wait_and_are_served(
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
        late = asyncio.create_task(_call_on_new_connection(service.target))
        for _ in range(5):  # earlier connections are still served
            await anext(responses)
            assert (await client.create()).completion.usage.completion_tokens == 3
            assert (await http.post("/v1/chat/completions", json=body())).status_code == 200
        assert len(service.lines) + len(gateway.lines) - num_lines < 200  # no busy loop that logs

        for _, writer in crowd:
            writer.transport.abort()
        await late
        async with http_client(gateway.url) as newcomer:
            async with failsafe():
                while True:
                    try:
                        response = await newcomer.post("/v1/chat/completions", json=body())
                        break
                    except OSError:
                        await asyncio.sleep(0.05)
            assert response.status_code == 200
        for program, limit in limits.items():
            resource.prlimit(program.process.pid, resource.RLIMIT_NOFILE, limit)
        stream.cancel()
    assert service.is_running
    assert gateway.is_running
    assert "Traceback" not in service.log


def _limit(program: Service | Gateway, num_fds: int) -> tuple[int, int]:
    """Limit the file descriptors of the process. Return its previous limit."""
    pid, what = program.process.pid, resource.RLIMIT_NOFILE
    before = resource.prlimit(pid, what)
    resource.prlimit(pid, what, (num_fds, before[1]))
    return before


async def _call_on_new_connection(target: str) -> Any:
    """Make a call on a new connection, and wait until it is connected."""
    async with Client(target) as client:
        return await client.create(wait_for_ready=True)
