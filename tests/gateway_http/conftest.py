"""The real gateway on a free port, before a fake service that does as it is told."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from chatrpc_process.tracing.api import OFF, Tracer
from gateway_http.app import Environment
from gateway_http.config import Settings
from gateway_http.server import Server as Gateway
from service.domain.model import ServedModel
from service.domain.sampling import SamplingParams
from service.rpc.server import SERVICE_NAMES, Server
from service.rpc.serving.lifecycle import Lifecycle
from tests.fakes.chat_service import FakeService
from tests.fakes.engine import FakeEngine
from tests.fakes.tokenizer import EOS, ByteTokenizer
from tests.service.rpc.conftest import CARD


@asynccontextmanager
async def serving(
    *, tracer: Tracer = OFF, environment: Environment | None = None, **options: Any
) -> AsyncIterator[str]:
    """Run a gateway with these options, as in production but for signals; yield its URL."""
    async with started(tracer=tracer, environment=environment, **options) as (server, url):
        assert server.started
        yield url


@asynccontextmanager
async def started(
    *, tracer: Tracer = OFF, environment: Environment | None = None, **options: Any
) -> AsyncIterator[tuple[Gateway, str]]:
    """Run a gateway as `serving` does; yield the server and its URL."""
    settings = Settings(**{"port": 0, "drain_timeout_s": 3} | options)
    server = Gateway(settings, environment or Environment(tracer=tracer))
    with server.bind() as listener:
        server.config.load()
        server.lifespan = server.config.lifespan_class(server.config)
        await server.startup(sockets=[listener])
        scheme = "https" if "tls_certificate" in options else "http"
        try:
            yield server, f"{scheme}://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            await server.shutdown(sockets=[listener])


@asynccontextmanager
async def checking_service(tracer: Tracer = OFF) -> AsyncIterator[str]:
    """The real gRPC surface, which checks what it is asked, over an engine that says "ok"; its
    target. The model is called `fake`.
    """
    engine = FakeEngine()
    engine.answer("ok")
    lifecycle = Lifecycle(SERVICE_NAMES)
    server = Server(lifecycle, request_timeout_s=60, tracer=tracer)
    port = await server.start("127.0.0.1", 0)
    await lifecycle.serve(
        ServedModel(CARD, ByteTokenizer(), engine, SamplingParams(), frozenset({EOS}), 257)
    )
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop()


@pytest.fixture
async def service() -> AsyncIterator[FakeService]:
    async with FakeService() as service:
        yield service


@pytest.fixture
async def url(service: FakeService) -> AsyncIterator[str]:
    async with serving(upstream=service.target, sse_ping_interval_s=600) as url:
        yield url


@pytest.fixture
async def pinging_url(service: FakeService) -> AsyncIterator[str]:
    """The URL of a gateway that sends a ping as soon as a stream waits. On a slow machine every
    stream waits, so pings may come anywhere in its streams.
    """
    async with serving(upstream=service.target, sse_ping_interval_s=0.05) as url:
        yield url


@pytest.fixture
async def http(url: str) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(
        base_url=url,
        timeout=10,
        verify=False,  # noqa: S501  # plain HTTP: loading certificates takes longer than most tests
    ) as client:
        yield client


@pytest.fixture
def body() -> dict[str, Any]:
    """The smallest request."""
    return {"model": "org/tiny", "messages": [{"role": "user", "content": "Hi"}]}


async def metric(http: httpx.AsyncClient, name: str, labels: dict[str, str]) -> float:
    """The sum of the samples of /metrics that have these labels, and maybe others, once there are
    any: a request is counted after its response.
    """
    async with asyncio.timeout(120):
        while True:
            page = (await http.get("/metrics")).text
            found = [
                sample.value
                for family in text_string_to_metric_families(page)
                for sample in family.samples
                if sample.name == name and labels.items() <= sample.labels.items()
            ]
            if found:
                return sum(found)
            await asyncio.sleep(0.01)
