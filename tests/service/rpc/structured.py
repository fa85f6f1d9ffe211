"""A served model with grammars, and calls of it, for tests of structured output."""

from typing import Any

from chatrpc.v1 import chat_pb2, chat_service_pb2
from service.domain.model import ChatFormats, LocalModel
from service.domain.sampling import SamplingParams
from service.generation.local_backend import locally_served
from service.text.grammars import CompiledGrammars
from tests.fakes.engine import FakeEngine
from tests.fakes.tokenizer import EOS, ByteTokenizer
from tests.support.grpc_server import CARD, Running, params
from tests.support.rpc_errors import rpc_error


async def serve(
    running: Running,
    engine: FakeEngine,
    grammars: CompiledGrammars | None,
    formats: ChatFormats | None = None,
) -> Running:
    """Replace the model called `fake` by one of `engine`, and return `running`."""
    model = locally_served(
        LocalModel(
            CARD,
            ByteTokenizer(),
            engine,
            SamplingParams(),
            frozenset({EOS}),
            vocab_size=257,
            formats=formats or ChatFormats(),
            grammars=grammars,
        )
    )
    running.engine = engine
    await running.lifecycle.serve(model)
    return running


async def complete(running: Running, **fields: Any) -> chat_pb2.ChatCompletion:
    request = chat_service_pb2.CreateChatCompletionRequest(params=params(**fields))
    return (await running.chat.CreateChatCompletion(request)).completion


async def stream(running: Running, **fields: Any) -> list[chat_pb2.ChatCompletionChunk]:
    request = chat_service_pb2.StreamChatCompletionRequest(params=params(**fields))
    return [response.chunk async for response in running.chat.StreamChatCompletion(request)]


async def rejected(running: Running, **fields: Any) -> Any:
    request = chat_service_pb2.CreateChatCompletionRequest(params=params(**fields))
    return await rpc_error(running.chat.CreateChatCompletion(request))
