"""ChatService: chat completions, unary or streamed."""

from collections.abc import AsyncGenerator
from contextlib import aclosing

from chatrpc.v1 import chat_pb2, chat_service_pb2, chat_service_pb2_grpc
from service.domain.chat import ChatRequest
from service.rpc.calls.context import Context
from service.rpc.calls.initial_metadata import with_admission_metadata
from service.rpc.decode.chat import chat_request
from service.rpc.decode.options import priority
from service.rpc.decode.sampling import num_choices
from service.rpc.encode.chat import ChatEncoder
from service.rpc.generation_calls import AdmittedGeneration, Decoder, GenerationCalls

_DECODER = Decoder(
    service="ChatService",
    num_sequences=lambda params, most: num_choices(params.sampling, most),
    priority=priority,
    request=chat_request,
)


class ChatServicer(chat_service_pb2_grpc.ChatServiceServicer):
    """Generates chat completions. Cancelling a call aborts its generation."""

    def __init__(self, calls: GenerationCalls) -> None:
        self._calls = calls

    async def CreateChatCompletion(
        self, request: chat_service_pb2.CreateChatCompletionRequest, context: Context
    ) -> chat_service_pb2.CreateChatCompletionResponse:
        async with self._calls.admitted(
            _DECODER, request.params, context, is_streamed=False
        ) as generation:
            encoder = _encoder(generation)
            deltas = [delta async for delta in generation.deltas]
            completion = await self._calls.encode(encoder.completion, deltas, deltas)
        return chat_service_pb2.CreateChatCompletionResponse(completion=completion)

    async def StreamChatCompletion(
        self, request: chat_service_pb2.StreamChatCompletionRequest, context: Context
    ) -> AsyncGenerator[chat_service_pb2.StreamChatCompletionResponse, None]:
        async with (
            self._calls.admitted(_DECODER, request.params, context, is_streamed=True) as generation,
            aclosing(with_admission_metadata(self._chunks(generation), context)) as chunks,
        ):
            async for chunk in chunks:
                yield chat_service_pb2.StreamChatCompletionResponse(chunk=chunk)

    async def _chunks(
        self, generation: AdmittedGeneration[ChatRequest]
    ) -> AsyncGenerator[chat_pb2.ChatCompletionChunk, None]:
        encoder = _encoder(generation)
        async for delta in generation.deltas:
            chunk = await self._calls.encode(encoder.chunk, delta, [delta])
            if chunk is not None:
                yield chunk


def _encoder(generation: AdmittedGeneration[ChatRequest]) -> ChatEncoder:
    return ChatEncoder(generation.model.card, generation.request, generation.prompts[0])
