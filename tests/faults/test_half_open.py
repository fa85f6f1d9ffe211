"""A peer that disappears without closing its connections, for example by a loss of power."""

import asyncio
import socket

import httpx
import pytest

from service.domain.engine import FinishReason, TokenOutput
from service.domain.model import LocalModel
from service.domain.sampling import SamplingParams
from service.generation.local_backend import locally_served
from service.rpc.calls.rpcs import SERVICE_NAMES
from service.rpc.server import OPTIONS, Server
from service.rpc.serving.lifecycle import Lifecycle
from tests.fakes.chat_service import Admit, Delta, FakeService, Finish, Hold
from tests.fakes.engine import FakeEngine
from tests.fakes.tokenizer import EOS, ByteTokenizer
from tests.fakes.wait import failsafe, until
from tests.support.gateway import serving, started
from tests.support.grpc_server import CARD
from tests.support.programs import Client, http_client
from tests.support.raw_http import RawClient
from tests.support.tcp_proxy import TcpProxy

pytestmark = pytest.mark.slow

# The service's options with shorter times of pings.
_TIMES = {
    "grpc.keepalive_time_ms": 200,
    "grpc.keepalive_timeout_ms": 300,
    "grpc.http2.ping_timeout_ms": 300,
}
SHORT_PINGS = tuple((name, _TIMES.get(name, value)) for name, value in OPTIONS)


@pytest.mark.parametrize("has_output", [False, True], ids=["silent", "streaming"])
async def test_vanished_grpc_client_frees_its_generation(has_output: bool) -> None:
    engine = FakeEngine()
    never = asyncio.Event()
    engine.script = [*([TokenOutput((97,))] if has_output else []), never]
    lifecycle = Lifecycle(SERVICE_NAMES)
    server = Server(lifecycle, request_timeout_s=600, options=SHORT_PINGS)
    port = await server.start("127.0.0.1", 0)
    await lifecycle.serve(
        locally_served(
            LocalModel(CARD, ByteTokenizer(), engine, SamplingParams(), frozenset({EOS}), 257)
        )
    )
    async with TcpProxy(port) as proxy, Client(proxy.target) as gone:
        stream = gone.stream()
        await stream.initial_metadata()
        await until(lambda: engine.num_running == 1)
        proxy.freeze()
        await until(lambda: engine.num_running == 0)
        async with Client(f"127.0.0.1:{port}") as client:
            engine.script = [TokenOutput((97,), FinishReason.LENGTH)]
            assert (await client.create()).completion.usage.completion_tokens == 1
    await server.stop()


BODY = {"model": "org/tiny", "messages": [{"role": "user", "content": "Hi"}]}


async def test_vanished_service_is_a_timeout_error(
    service: FakeService,
) -> None:
    service.script = [Admit(), Delta("Hello"), Hold(), Finish()]
    async with (
        TcpProxy(service.port) as proxy,
        serving(upstream=proxy.target, request_timeout_s=1) as url,
        http_client(url) as http,
        RawClient(url) as stream,
    ):
        await stream.post(BODY | {"stream": True})
        await stream.read_until(b"Hello")
        proxy.freeze()
        whole = await http.post("/v1/chat/completions", json=BODY)
        assert whole.status_code == 504
        assert whole.json()["error"]["code"] == "timeout"
        assert b'"code":"timeout"' in await stream.read_until(b"[DONE]")
        await service.cancelled()  # by the deadline, without a message of the gateway

        proxy.thaw()
        service.script = [Admit(), Delta("Hello"), Finish()]
        proxy.cut()
        async with failsafe():
            while (await http.post("/v1/chat/completions", json=BODY)).status_code != 200:
                await asyncio.sleep(0.02)


async def test_http_connections_use_tcp_keepalive(service: FakeService) -> None:
    """A test cannot make a host disappear, so it checks the options of the sockets."""
    async with started(upstream=service.target) as (server, url), httpx.AsyncClient() as http:
        assert (await http.get(f"{url}/healthz")).status_code == 200
        [connection] = server.server_state.connections
        connected: socket.socket = connection.transport.get_extra_info("socket")
        assert connected.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        if hasattr(socket, "TCP_KEEPIDLE"):
            idle_s, interval_s, count = (
                connected.getsockopt(socket.IPPROTO_TCP, option)
                for option in (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT)
            )
            assert idle_s + interval_s * count <= 120
        if hasattr(socket, "TCP_USER_TIMEOUT"):
            assert 0 < connected.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) <= 120_000
