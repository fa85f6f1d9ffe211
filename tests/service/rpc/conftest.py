"""A real gRPC server on a free port, with a scripted engine behind it."""

from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2_grpc

from chatrpc.v1 import (
    chat_pb2,
    chat_service_pb2_grpc,
    completion_service_pb2_grpc,
    model_service_pb2_grpc,
)
from service.domain.model import ModelCard, ServedModel
from service.domain.sampling import SamplingParams
from service.rpc.server import SERVICE_NAMES, Server
from service.rpc.serving.lifecycle import Lifecycle
from tests.fakes.engine import FakeEngine
from tests.fakes.tokenizer import EOS, ByteTokenizer

CARD = ModelCard(
    id="fake",
    aliases=("alias",),
    created=1_700_000_000,
    owned_by="tests",
    root="nowhere",
    max_model_len=1000,
    fingerprint="fp_fake",
)


def params(text: str = "hi", **fields: Any) -> chat_pb2.ChatCompletionParams:
    """The least that a request needs, and `fields`."""
    message = chat_pb2.ChatMessage(
        role=chat_pb2.ROLE_USER, content=[chat_pb2.ContentPart(text=text)]
    )
    given: dict[str, Any] = {"model": "fake", "messages": [message], **fields}
    return chat_pb2.ChatCompletionParams(**given)


@dataclass
class Running:
    """A server under test and the stubs of one client."""

    engine: FakeEngine
    lifecycle: Lifecycle
    server: Server
    channel: grpc.aio.Channel
    port: int
    model: ServedModel
    chat: "chat_service_pb2_grpc.ChatServiceAsyncStub" = field(init=False)
    completions: "completion_service_pb2_grpc.CompletionServiceAsyncStub" = field(init=False)
    models: "model_service_pb2_grpc.ModelServiceAsyncStub" = field(init=False)
    health: Any = field(init=False)  # the type stubs do not know its methods

    def __post_init__(self) -> None:
        self.chat = chat_service_pb2_grpc.ChatServiceStub(self.channel)
        self.completions = completion_service_pb2_grpc.CompletionServiceStub(self.channel)
        self.models = model_service_pb2_grpc.ModelServiceStub(self.channel)
        self.health = health_pb2_grpc.HealthStub(self.channel)


@pytest.fixture
async def starting() -> AsyncIterator[Running]:
    """A server whose model is not loaded yet."""
    engine = FakeEngine()
    model = ServedModel(
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
    """A server that serves the model `fake`, also called `alias`."""
    await starting.lifecycle.serve(starting.model)
    return starting
