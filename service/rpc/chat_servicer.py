"""ChatService: chat completions, whole or streamed."""

import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager

from chatrpc.v1 import chat_pb2, chat_service_pb2, chat_service_pb2_grpc
from service.errors import DeadlinePassed, MissingField
from service.rpc import answers, convert, generation
from service.rpc.interceptor import Context
from service.rpc.lifecycle import Lifecycle
from service.text.answer import TextDelta

# Says "admitted" in so many words: a refused call has initial metadata too, though empty.
_ADMITTED = (("chatrpc-admitted", "1"),)


class ChatServicer(chat_service_pb2_grpc.ChatServiceServicer):
    """Answers what `lifecycle` admits. Leaving a call, however, ends its generation.

    Args:
        max_request_s: the longest a request may take, whatever its caller allows.
    """

    def __init__(self, lifecycle: Lifecycle, max_request_s: float) -> None:
        self._lifecycle = lifecycle
        self._max_request_s = max_request_s

    async def CreateChatCompletion(
        self, request: chat_service_pb2.CreateChatCompletionRequest, context: Context
    ) -> chat_service_pb2.CreateChatCompletionResponse:
        async with self._admitted(request.params, context) as (heading, deltas):
            completion = answers.completion(heading, [delta async for delta in deltas])
        return chat_service_pb2.CreateChatCompletionResponse(completion=completion)

    async def StreamChatCompletion(
        self, request: chat_service_pb2.StreamChatCompletionRequest, context: Context
    ) -> AsyncGenerator[chat_service_pb2.StreamChatCompletionResponse, None]:
        async with self._admitted(request.params, context) as (heading, deltas):
            await context.send_initial_metadata(_ADMITTED)
            chunks = answers.ChunkBuilder(heading)
            async for delta in deltas:
                if (chunk := chunks.push(delta)) is not None:
                    yield chat_service_pb2.StreamChatCompletionResponse(chunk=chunk)

    @asynccontextmanager
    async def _admitted(
        self, params: chat_pb2.ChatCompletionParams, context: Context
    ) -> AsyncIterator[tuple[answers.Heading, AsyncGenerator[TextDelta, None]]]:
        """A request that has passed everything that could refuse it, and its answer to come."""
        if not params.model:
            raise MissingField("model")
        deadline = self._deadline(context)
        with self._lifecycle.admit(params.model) as model:
            model.engine.check_room()
            convert.check_fits(
                params.messages,
                model.tokenizer.max_token_chars,
                model.card.max_model_len,
                params.tools,
            )
            chat = convert.chat_request(params, model.sampling_defaults, model.vocab_size)
            prepared = await generation.prepare(chat, model, deadline)
            num_prompt_tokens = len(prepared.request.prompt_token_ids)
            async with aclosing(generation.generate(model, prepared)) as deltas:
                await anext(deltas)
                yield answers.Heading(model.card, num_prompt_tokens), deltas

    def _deadline(self, context: Context) -> float:
        """When the request must be complete, of `time.monotonic()`."""
        remaining = context.time_remaining()
        if remaining is not None and remaining <= 0:
            raise DeadlinePassed("The deadline has passed.")
        allowed = self._max_request_s if remaining is None else min(remaining, self._max_request_s)
        return time.monotonic() + allowed
