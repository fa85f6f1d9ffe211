"""A gRPC server that requires API keys, and a client of it."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
from grpc_health.v1 import health_pb2_grpc

from chatrpc.v1 import (
    chat_service_pb2,
    chat_service_pb2_grpc,
    model_service_pb2_grpc,
)
from chatrpc_process.access.keys import load_keys
from chatrpc_process.files.watched import Watched
from service.domain.model import LocalModel
from service.domain.sampling import SamplingParams
from service.generation.local_backend import locally_served
from service.rpc.calls.authorization import Access
from service.rpc.calls.rpcs import SERVICE_NAMES
from service.rpc.server import Server
from service.rpc.serving.lifecycle import Lifecycle
from tests.fakes.engine import FakeEngine
from tests.fakes.tokenizer import EOS, ByteTokenizer
from tests.support.api_keys import SECRET
from tests.support.grpc_server import CARD, params

MINE = (("authorization", f"Bearer {SECRET}"),)


class Guarded:
    """A server that requires API keys, and a client of it."""

    def __init__(
        self, engine: FakeEngine, watched: Watched[Any] | None, channel: grpc.aio.Channel, port: int
    ) -> None:
        self.engine = engine
        self.port = port
        self.keys: Any = watched
        self.chat: Any = chat_service_pb2_grpc.ChatServiceStub(channel)
        self.models: Any = model_service_pb2_grpc.ModelServiceStub(channel)
        self.health: Any = health_pb2_grpc.HealthStub(channel)

    def create(self, metadata: Any = MINE, **fields: Any) -> Any:
        request = chat_service_pb2.CreateChatCompletionRequest(params=params(**fields))
        return self.chat.CreateChatCompletion(request, metadata=metadata)

    def stream(self, metadata: Any = MINE) -> Any:
        request = chat_service_pb2.StreamChatCompletionRequest(params=params())
        return self.chat.StreamChatCompletion(request, metadata=metadata)


@asynccontextmanager
async def guarded(path: Path | None) -> AsyncIterator[Guarded]:
    """Run a server with the keys of this file. If it is None, no key is required."""
    engine = FakeEngine()
    engine.answer("ok")
    watched = None if path is None else Watched(lambda: load_keys(path), path)
    lifecycle = Lifecycle(SERVICE_NAMES)
    server = Server(lifecycle, request_timeout_s=60, access=Access(watched))
    port = await server.start("127.0.0.1", 0)
    await lifecycle.serve(
        locally_served(
            LocalModel(CARD, ByteTokenizer(), engine, SamplingParams(), frozenset({EOS}), 257)
        )
    )
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield Guarded(engine, watched, channel, port)
    await server.stop()
