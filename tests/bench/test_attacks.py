"""Each attack reaches its target, with requests below the default limit of 8 MiB."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest
from aiohttp import web

from bench.attacks import ATTACKS, Target
from tests.fakes.wait import until

pytestmark = pytest.mark.slow

LIMIT = 8 << 20


class Sink(grpc.GenericRpcHandler):
    """Accepts any call of any method, and records the size of its message in bytes."""

    def __init__(self) -> None:
        self.sizes: list[int] = []

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        async def call(requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
            async for request in requests:
                self.sizes.append(len(request))
            yield b""

        return grpc.stream_stream_rpc_method_handler(call)


@asynccontextmanager
async def sinks() -> AsyncIterator[tuple[Target, list[int]]]:
    """Yield servers that accept everything, and the sizes of the messages that they receive."""
    sink = Sink()
    server = grpc.aio.server(options=[("grpc.max_receive_message_length", -1)])
    server.add_generic_rpc_handlers((sink,))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()

    async def take(request: web.Request) -> web.Response:
        sink.sizes.append(len(await request.read()))
        return web.Response()

    app = web.Application(client_max_size=1 << 30)
    app.router.add_route("*", "/{path:.*}", take)
    runner = web.AppRunner(app, auto_decompress=False)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    http_port = runner.addresses[0][1]
    yield Target(f"http://127.0.0.1:{http_port}", f"127.0.0.1:{port}", "m", "k"), sink.sizes
    await runner.cleanup()
    await server.stop(0)


@pytest.mark.parametrize("name", ATTACKS)
async def test_attack_reaches_its_target_repeatedly(name: str) -> None:
    async with sinks() as (target, sizes):
        attack = asyncio.ensure_future(_run(name, target))
        await until(lambda: len(sizes) >= 3 or attack.done())
        assert not attack.done()
        attack.cancel()
        await asyncio.gather(attack, return_exceptions=True)
    assert max(sizes) < LIMIT


async def _run(name: str, target: Target) -> None:
    await ATTACKS[name].run(target)
