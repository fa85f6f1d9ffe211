"""Fixtures: a real gRPC server on a free port, with a scripted engine."""

from collections.abc import AsyncIterator

import grpc
import pytest

from service.domain.model import LocalModel
from service.domain.sampling import SamplingParams
from service.generation.local_backend import locally_served
from service.rpc.calls.rpcs import SERVICE_NAMES
from service.rpc.server import Server
from service.rpc.serving.lifecycle import Lifecycle
from tests.fakes.engine import FakeEngine
from tests.fakes.tokenizer import EOS, ByteTokenizer
from tests.support.grpc_server import CARD, Running


@pytest.fixture
async def starting() -> AsyncIterator[Running]:
    """Run a server whose model is not loaded yet."""
    engine = FakeEngine()
    model = LocalModel(
        CARD, ByteTokenizer(), engine, SamplingParams(), frozenset({EOS}), vocab_size=257
    )
    lifecycle = Lifecycle(SERVICE_NAMES)
    server = Server(lifecycle, request_timeout_s=60)
    port = await server.start("127.0.0.1", 0)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield Running(engine, lifecycle, server, channel, port, model)
    await server.stop()


@pytest.fixture
async def running(starting: Running) -> Running:
    """Run a server with the model `fake`, also called `alias`."""
    await starting.lifecycle.serve(locally_served(starting.model))
    return starting
