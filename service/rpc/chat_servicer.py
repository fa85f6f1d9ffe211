"""ChatService: chat completions, whole or streamed."""

from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from typing import Any, TypeVar

from chatrpc.v1 import chat_pb2, chat_service_pb2, chat_service_pb2_grpc
from service.errors import MissingField
from service.rpc import generation
from service.rpc.calls.caller import current_caller
from service.rpc.calls.context import Context
from service.rpc.calls.deadline import deadline_of
from service.rpc.calls.initial_metadata import announced
from service.rpc.calls.work_pools import WorkPools
from service.rpc.decode import chat as decode
from service.rpc.encode import chat as encode
from service.rpc.encode.logprobs import check_number
from service.rpc.serving.lifecycle import Lifecycle
from service.text.output_text import TextDelta

Made = TypeVar("Made")


class ChatServicer(chat_service_pb2_grpc.ChatServiceServicer):
    """Answers what `lifecycle` admits. Leaving a call, however, ends its generation.

    Args:
        pools: Where requests are prepared.
        request_timeout_s: the longest a request may take, whatever its caller allows.
    """

    def __init__(self, lifecycle: Lifecycle, pools: WorkPools, request_timeout_s: float) -> None:
        self._lifecycle = lifecycle
        self._pools = pools
        self._max_request_s = request_timeout_s

    async def CreateChatCompletion(
        self, request: chat_service_pb2.CreateChatCompletionRequest, context: Context
    ) -> chat_service_pb2.CreateChatCompletionResponse:
        async with self._admitted(request.params, context, is_streamed=False) as answering:
            heading, deltas = answering
            said = [delta async for delta in deltas]
            completion = await self._made(
                encode.completion, heading, said, is_long=any(d.logprobs for d in said)
            )
        return chat_service_pb2.CreateChatCompletionResponse(completion=completion)

    async def StreamChatCompletion(
        self, request: chat_service_pb2.StreamChatCompletionRequest, context: Context
    ) -> AsyncGenerator[chat_service_pb2.StreamChatCompletionResponse, None]:
        async with (
            self._admitted(request.params, context, is_streamed=True) as answering,
            aclosing(announced(self._chunks(*answering), context)) as chunks,
        ):
            async for chunk in chunks:
                yield chat_service_pb2.StreamChatCompletionResponse(chunk=chunk)

    @asynccontextmanager
    async def _admitted(
        self, params: chat_pb2.ChatCompletionParams, context: Context, *, is_streamed: bool
    ) -> AsyncIterator[tuple[encode.Heading, AsyncGenerator[TextDelta, None]]]:
        """A request that has passed everything that could refuse it, and its answer to come."""
        if not params.model:
            raise MissingField("model")
        deadline = deadline_of(context, self._max_request_s)
        model = self._lifecycle.admit(params.model, context)
        num_choices = decode.num_choices(params.sampling, model.engine.max_request_sequences)
        with model.engine.reserve(current_caller(), num_choices):
            prepared = await generation.prepare(params, model, deadline, self._pools)
            check_number([prepared.request], model.card.max_model_len, is_streamed=is_streamed)
            async with aclosing(generation.generate(model, prepared)) as deltas:
                await anext(deltas)
                heading = encode.Heading(
                    model.card,
                    model.tokenizer,
                    prepared.request.prompt_token_ids,
                    num_choices,
                    prepared.chat.returns_token_ids,
                )
                yield heading, deltas

    async def _chunks(
        self, heading: encode.Heading, deltas: AsyncGenerator[TextDelta, None]
    ) -> AsyncGenerator[chat_pb2.ChatCompletionChunk, None]:
        builder = encode.ChunkBuilder(heading)
        async for delta in deltas:
            is_long = bool(delta.prompt_logprobs)
            if (chunk := await self._made(builder.push, delta, is_long=is_long)) is not None:
                yield chunk

    async def _made(self, make: Callable[..., Made], *arguments: Any, is_long: bool) -> Made:
        """The result of `make`, called off the event loop where it takes a while."""
        return await self._pools.text(make, *arguments) if is_long else make(*arguments)
