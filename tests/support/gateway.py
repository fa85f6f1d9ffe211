"""The real gateway on a free port, and the real gRPC server with a scripted engine."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import httpx
from prometheus_client.parser import text_string_to_metric_families

from chatrpc_process.tracing.api import OFF, Tracer
from gateway_http.app import Environment
from gateway_http.config import Settings
from gateway_http.server import Server as Gateway
from service.domain.model import LocalModel
from service.domain.sampling import SamplingParams
from service.generation.local_backend import locally_served
from service.rpc.calls.rpcs import SERVICE_NAMES
from service.rpc.server import Server
from service.rpc.serving.lifecycle import Lifecycle
from tests.fakes.embeddings import FakeEmbeddings
from tests.fakes.engine import FakeEngine
from tests.fakes.tokenizer import EOS, ByteTokenizer
from tests.fakes.wait import failsafe
from tests.support.grpc_server import CARD


@asynccontextmanager
async def serving(
    *, tracer: Tracer = OFF, environment: Environment | None = None, **options: Any
) -> AsyncIterator[str]:
    """Run a gateway with these options, but without signal handlers. Yield its URL."""
    async with started(tracer=tracer, environment=environment, **options) as (server, url):
        assert server.started
        yield url


@asynccontextmanager
async def started(
    *, tracer: Tracer = OFF, environment: Environment | None = None, **options: Any
) -> AsyncIterator[tuple[Gateway, str]]:
    """Run a gateway as `serving` does; yield the server and its URL."""
    # Pings are enabled only in their own tests: on a slow machine a ping comes before the data.
    defaults = {"port": 0, "drain_timeout_s": 3, "sse_ping_interval_s": 600}
    settings = Settings(**defaults | options)
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
    """Run the real gRPC server, which checks requests, with an engine that generates "ok".

    Yield its target. The model is called `fake`, and has embeddings.
    """
    engine = FakeEngine()
    engine.answer("ok")
    lifecycle = Lifecycle(SERVICE_NAMES)
    server = Server(lifecycle, request_timeout_s=60, tracer=tracer)
    port = await server.start("127.0.0.1", 0)
    served = locally_served(
        LocalModel(CARD, ByteTokenizer(), engine, SamplingParams(), frozenset({EOS}), 257)
    )
    await lifecycle.serve(replace(served, embeddings=FakeEmbeddings()))
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop()


async def metric(http: httpx.AsyncClient, name: str, labels: dict[str, str]) -> float:
    """Return the sum of the samples of /metrics that have these labels, and possibly others.

    Wait until there is such a sample: a request is counted after its response.
    """
    async with failsafe():
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
