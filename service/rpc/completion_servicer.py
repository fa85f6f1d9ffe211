"""CompletionService: text completions, whole or streamed."""

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager

from chatrpc.v1 import completion_pb2, completion_service_pb2, completion_service_pb2_grpc
from service.errors import MissingField
from service.rpc.calls.caller import current_caller
from service.rpc.calls.context import Context
from service.rpc.calls.deadline import deadline_of
from service.rpc.calls.initial_metadata import announced
from service.rpc.calls.work_pools import WorkPools
from service.rpc.completion_generation import ChoiceDelta, generate, prepare
from service.rpc.decode.completion import num_sequences
from service.rpc.encode.completion import CompletionBuilder
from service.rpc.encode.logprobs import check_number
from service.rpc.serving.lifecycle import Lifecycle


class CompletionServicer(completion_service_pb2_grpc.CompletionServiceServicer):
    """Answers what `lifecycle` admits. Leaving a call, however, ends its generation.

    Args:
        pools: Where requests are prepared.
        request_timeout_s: the longest a request may take, whatever its caller allows.
    """

    def __init__(self, lifecycle: Lifecycle, pools: WorkPools, request_timeout_s: float) -> None:
        self._lifecycle = lifecycle
        self._pools = pools
        self._max_request_s = request_timeout_s

    async def CreateCompletion(
        self, request: completion_service_pb2.CreateCompletionRequest, context: Context
    ) -> completion_service_pb2.CreateCompletionResponse:
        async with self._admitted(request.params, context, is_streamed=False) as answering:
            builder, chunks = answering
            completion = builder.whole([chunk async for chunk in chunks])
        return completion_service_pb2.CreateCompletionResponse(completion=completion)

    async def StreamCompletion(
        self, request: completion_service_pb2.StreamCompletionRequest, context: Context
    ) -> AsyncGenerator[completion_service_pb2.StreamCompletionResponse, None]:
        async with (
            self._admitted(request.params, context, is_streamed=True) as (_, answer),
            aclosing(announced(answer, context)) as chunks,
        ):
            async for chunk in chunks:
                yield completion_service_pb2.StreamCompletionResponse(chunk=chunk)

    @asynccontextmanager
    async def _admitted(
        self, params: completion_pb2.CompletionParams, context: Context, *, is_streamed: bool
    ) -> AsyncIterator[
        tuple[CompletionBuilder, AsyncGenerator[completion_pb2.CompletionChunk, None]]
    ]:
        """A request that has passed everything that could refuse it, and its answer to come."""
        if not params.model:
            raise MissingField("model")
        deadline = deadline_of(context, self._max_request_s)
        model = self._lifecycle.admit(params.model, context)
        num_choices = num_sequences(params, model.engine.max_request_sequences)
        with model.engine.reserve(current_caller(), num_choices):
            prepared = await prepare(params, model, deadline, self._pools)
            check_number(prepared.requests, model.card.max_model_len, is_streamed=is_streamed)
            async with aclosing(generate(model, prepared)) as deltas:
                await anext(deltas)
                builder = CompletionBuilder(
                    prepared.completion, prepared.prompts, model.card, model.tokenizer, self._pools
                )
                async with aclosing(_chunks(deltas, builder)) as chunks:
                    yield builder, chunks


async def _chunks(
    deltas: AsyncIterator[ChoiceDelta | None], builder: CompletionBuilder
) -> AsyncGenerator[completion_pb2.CompletionChunk, None]:
    async for delta in deltas:
        if delta is not None and (chunk := await builder.push(delta)) is not None:
            yield chunk
