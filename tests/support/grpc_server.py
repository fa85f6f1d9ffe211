"""A gRPC server on a free port with a scripted engine and the options of a test."""

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
from grpc_health.v1 import health_pb2_grpc

from chatrpc.v1 import (
    chat_pb2,
    chat_service_pb2_grpc,
    classification_service_pb2_grpc,
    completion_service_pb2_grpc,
    decision_service_pb2_grpc,
    embedding_service_pb2_grpc,
    model_service_pb2_grpc,
)
from chatrpc_process.access.keys import load_keys
from chatrpc_process.files.watched import Watched
from service.domain.grammar import Grammars
from service.domain.model import LocalModel, ModelCard
from service.domain.sampling import SamplingParams
from service.generation.local_backend import locally_served
from service.rpc.calls.authorization import Access
from service.rpc.calls.rpcs import SERVICE_NAMES
from service.rpc.server import Server, ServiceExtension
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
    engine="fake",
)


def params(text: str = "hi", **fields: Any) -> chat_pb2.ChatCompletionParams:
    """Return the required parameters of a request, and `fields`."""
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
    model: LocalModel
    chat: "chat_service_pb2_grpc.ChatServiceAsyncStub" = field(init=False)
    completions: "completion_service_pb2_grpc.CompletionServiceAsyncStub" = field(init=False)
    decisions: "decision_service_pb2_grpc.DecisionServiceAsyncStub" = field(init=False)
    embeddings: "embedding_service_pb2_grpc.EmbeddingServiceAsyncStub" = field(init=False)
    classifications: "classification_service_pb2_grpc.ClassificationServiceAsyncStub" = field(
        init=False
    )
    models: "model_service_pb2_grpc.ModelServiceAsyncStub" = field(init=False)
    health: Any = field(init=False)  # the type stubs lack its methods

    def __post_init__(self) -> None:
        self.chat = chat_service_pb2_grpc.ChatServiceStub(self.channel)
        self.completions = completion_service_pb2_grpc.CompletionServiceStub(self.channel)
        self.decisions = decision_service_pb2_grpc.DecisionServiceStub(self.channel)
        self.embeddings = embedding_service_pb2_grpc.EmbeddingServiceStub(self.channel)
        self.classifications = classification_service_pb2_grpc.ClassificationServiceStub(
            self.channel
        )
        self.models = model_service_pb2_grpc.ModelServiceStub(self.channel)
        self.health = health_pb2_grpc.HealthStub(self.channel)


@asynccontextmanager
async def served(
    keys: Path | None = None,
    extensions: Sequence[Callable[[Lifecycle], ServiceExtension]] = (),
    path: Path | None = None,
    engine: FakeEngine | None = None,
    grammars: Grammars | None = None,
    **options: Any,
) -> AsyncIterator[Running]:
    """Run a server of the model `fake`.

    Args:
        keys: A file of API keys.
        extensions: Make further services of the server.
        path: The directory of the model's files.
        engine: The engine; by default it generates "ok".
        options: Further arguments of `Server`.
    """
    if engine is None:
        engine = FakeEngine()
        engine.answer("ok")
    model = LocalModel(
        CARD,
        ByteTokenizer(),
        engine,
        SamplingParams(),
        frozenset({EOS}),
        257,
        grammars=grammars,
        path=path,
    )
    lifecycle = Lifecycle(SERVICE_NAMES)
    access = None if keys is None else Access(Watched(lambda: load_keys(keys), keys))
    options = {
        "request_timeout_s": 60,
        "extensions": [make(lifecycle) for make in extensions],
        **options,
    }
    server = Server(lifecycle, access=access, **options)
    port = await server.start("127.0.0.1", 0)
    await lifecycle.serve(locally_served(model))
    # The window does not grow, so writes to a client that does not read soon block.
    small = [("grpc.http2.bdp_probe", 0), ("grpc.use_local_subchannel_pool", 1)]
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", small) as channel:
        yield Running(engine, lifecycle, server, channel, port, model)
    await server.stop()
