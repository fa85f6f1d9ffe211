"""The `ChatBackend` over upstreams."""

import asyncio
import time
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import AbstractContextManager, aclosing, contextmanager
from dataclasses import dataclass

from service.deadline import deadline_scope
from service.domain.backend import (
    BackendLoad,
    CallContext,
    GenerationRequest,
    ModelSpec,
    Prompt,
    TextDelta,
)
from service.domain.chat import ChatRequest, Image
from service.domain.engine import Caller, EngineStats
from service.domain.sampling import SamplingParams
from service.streams.admission import Admission
from service.upstream.dialects import Names
from service.upstream.discovery import check_model
from service.upstream.failover import with_failover
from service.upstream.failures import Failures
from service.upstream.pool import Member, UpstreamPool
from service.upstream.requests import UpstreamRequest, upstream_request
from service.upstream.responses import ResponseReader
from service.upstream.wire import Completion

# The body of a request with more characters is made off the event loop.
_MAX_CHARS_ON_LOOP = 32 << 10
# Time for the numbers of tokens after the last output. Some upstreams send none.
_USAGE_TIMEOUT_S = 2.0


@dataclass(frozen=True, slots=True)
class UpstreamModel:
    """The model that the upstreams serve.

    Attributes:
        id: The model's id for clients.
        upstream_id: Its id for the upstreams.
    """

    id: str
    upstream_id: str
    max_model_len: int
    names: Names


class UpstreamBackend:
    """`service.domain.backend.ChatBackend` for a model that upstreams serve.

    Args:
        max_num_seqs: Maximum number of sequences at the upstreams, as far as shares of callers are
            concerned. `max_queue_size` more are sent.
    """

    tokenizer = None

    def __init__(
        self, model: UpstreamModel, pool: UpstreamPool, max_num_seqs: int, max_queue_size: int
    ) -> None:
        self._model = model
        self._pool = pool
        self._max_num_seqs = max_num_seqs
        self._admission = Admission(max_num_seqs, max_queue_size)

    @property
    def spec(self) -> ModelSpec:
        return ModelSpec(
            self._model.max_model_len,
            self._admission.capacity,
            SamplingParams(),  # those that a request does not set are the upstream's
            takes_images=self._model.names.has("messages.content.image"),
            unsupported_fields=self._model.names.unsupported_fields,
        )

    def load(self) -> BackendLoad:
        return BackendLoad(self._admission.num_inside, self._max_num_seqs)

    def stats(self) -> EngineStats:
        return EngineStats(max_num_seqs=self._max_num_seqs, num_running=self._admission.num_inside)

    def reserve(self, caller: Caller, num_sequences: int) -> AbstractContextManager[None]:
        return self._reserved(caller, num_sequences)

    @contextmanager
    def _reserved(self, caller: Caller, num_sequences: int) -> Iterator[None]:
        self._admission.enter(caller, num_sequences, time.monotonic())
        try:
            yield
        finally:
            self._admission.note_end(num_sequences, time.monotonic())
            self._admission.leave(caller, num_sequences)

    async def prepare(self, request: GenerationRequest, call: CallContext) -> "UpstreamGeneration":
        arguments = request, call, self._model.upstream_id, self._model.names
        if _num_chars(request) > _MAX_CHARS_ON_LOOP:
            async with deadline_scope(call.deadline):
                sent = await call.workers.text(upstream_request, *arguments)
        else:
            sent = upstream_request(*arguments)
        return UpstreamGeneration(self._model, self._pool, request, sent, call.deadline)


class UpstreamGeneration:
    """`service.domain.backend.Generation` of a request to an upstream."""

    def __init__(
        self,
        model: UpstreamModel,
        pool: UpstreamPool,
        request: GenerationRequest,
        sent: UpstreamRequest,
        deadline: float,
    ) -> None:
        self._model = model
        self._pool = pool
        self._request = request
        self._sent = sent
        self._deadline = deadline
        is_chat = isinstance(request, ChatRequest)
        self._failures = Failures(
            model.names,
            "chat completions" if is_chat else "text completions",
            model.id,
            request.messages_field if isinstance(request, ChatRequest) else request.prompts_field,
        )

    @property
    def prompts(self) -> Sequence[Prompt]:
        if isinstance(self._request, ChatRequest):
            return [Prompt()]
        # If the upstream echoes the prompts, they come with the output.
        has_text = not self._sent.has_upstream_echo
        return [
            Prompt(prompt if has_text and isinstance(prompt, str) else "")
            for prompt in self._request.prompts
        ]

    async def deltas(self) -> AsyncGenerator[TextDelta, None]:
        """See `service.domain.backend.Generation.deltas`.

        If an upstream fails before its first token, the request is sent to another one.
        """
        yield TextDelta()
        async with aclosing(with_failover(self._pool, self._attempt)) as deltas:
            async for delta in deltas:
                yield delta

    async def _attempt(self, member: Member) -> AsyncGenerator[TextDelta, None]:
        """Yield the deltas of the response of one upstream.

        Raises:
            AttemptFailed, UpstreamDown, UpstreamInvalidResponse: The upstream failed.
        """
        reader = ResponseReader(self._request, has_upstream_echo=self._sent.has_upstream_echo)
        all_pieces = member.upstream.pieces(self._sent, self._failures, lambda: reader.is_complete)
        end_s = name = None
        async with aclosing(all_pieces) as pieces:
            while True:
                async with deadline_scope(self._deadline):
                    piece = await _next(pieces, end_s)
                    if piece is None:
                        break
                    if piece.model != name:  # no check interrupts a response that has begun
                        name = piece.model
                        await check_model(member.upstream, self._model.upstream_id, name)
                for delta in reader.push(piece):
                    yield delta
                if reader.is_finished and end_s is None:
                    end_s = asyncio.get_running_loop().time() + _USAGE_TIMEOUT_S
        yield reader.finish()


async def _next(pieces: AsyncGenerator[Completion, None], end_s: float | None) -> Completion | None:
    """Return the next piece; None at the end of the response, or when `end_s` has passed.

    Args:
        end_s: Time in seconds of the event loop; None if there is no limit.
    """
    try:
        async with asyncio.timeout_at(end_s) as scope:
            return await anext(pieces, None)
    except TimeoutError:
        if not scope.expired():
            raise
        return None


def _num_chars(request: GenerationRequest) -> int:
    """Return about how many characters the body of a request has."""
    if isinstance(request, ChatRequest):
        texts = sum(len(message.content or "") for message in request.messages)
        parts = (part for message in request.messages for part in message.parts)
        images = sum(len(part.url) for part in parts if isinstance(part, Image))
        return texts + images + sum(len(tool.schema) for tool in request.tools)
    return sum(len(prompt) for prompt in request.prompts)
