"""CompletionService: text completions, unary or streamed."""

from collections.abc import AsyncGenerator
from contextlib import aclosing

from chatrpc.v1 import completion_pb2, completion_service_pb2, completion_service_pb2_grpc
from service.domain.completion import CompletionRequest
from service.rpc.calls.context import Context
from service.rpc.calls.initial_metadata import with_admission_metadata
from service.rpc.decode.completion import completion_request, num_sequences
from service.rpc.decode.options import priority
from service.rpc.encode.completion import CompletionEncoder
from service.rpc.generation_calls import AdmittedGeneration, Decoder, GenerationCalls

_DECODER = Decoder(
    service="CompletionService",
    num_sequences=num_sequences,
    priority=priority,
    request=completion_request,
)


class CompletionServicer(completion_service_pb2_grpc.CompletionServiceServicer):
    """Generates text completions. Cancelling a call aborts its generation."""

    def __init__(self, calls: GenerationCalls) -> None:
        self._calls = calls

    async def CreateCompletion(
        self, request: completion_service_pb2.CreateCompletionRequest, context: Context
    ) -> completion_service_pb2.CreateCompletionResponse:
        async with self._calls.admitted(
            _DECODER, request.params, context, is_streamed=False
        ) as generation:
            encoder = _encoder(generation)
            deltas = [delta async for delta in generation.deltas]
            completion = await self._calls.encode(encoder.completion, deltas, deltas)
        return completion_service_pb2.CreateCompletionResponse(completion=completion)

    async def StreamCompletion(
        self, request: completion_service_pb2.StreamCompletionRequest, context: Context
    ) -> AsyncGenerator[completion_service_pb2.StreamCompletionResponse, None]:
        async with (
            self._calls.admitted(_DECODER, request.params, context, is_streamed=True) as generation,
            aclosing(with_admission_metadata(self._chunks(generation), context)) as chunks,
        ):
            async for chunk in chunks:
                yield completion_service_pb2.StreamCompletionResponse(chunk=chunk)

    async def _chunks(
        self, generation: AdmittedGeneration[CompletionRequest]
    ) -> AsyncGenerator[completion_pb2.CompletionChunk, None]:
        encoder = _encoder(generation)
        async for delta in generation.deltas:
            chunk = await self._calls.encode(encoder.chunk, delta, [delta])
            if chunk is not None:
                yield chunk


def _encoder(generation: AdmittedGeneration[CompletionRequest]) -> CompletionEncoder:
    return CompletionEncoder(generation.model.card, generation.request, generation.prompts)
