"""The steps of a generation call, which chat and text completions share."""

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from service.deadline import deadline_scope
from service.domain.backend import (
    CallContext,
    GenerationRequest,
    ModelSpec,
    Prompt,
    ServedModel,
    TextDelta,
)
from service.domain.engine import Caller
from service.errors import InvalidField, MissingField, UnsupportedMethod
from service.rpc.calls.caller import (
    current_caller,
    note_prompts,
    note_timings,
    received_bytes,
    reserve_exactly,
)
from service.rpc.calls.context import Context
from service.rpc.calls.deadline import deadline_of
from service.rpc.calls.work_pools import WorkPools
from service.rpc.serving.lifecycle import Lifecycle

# A response in one message has at most 32 MiB. A log probability with its token takes 20 to 60
# bytes.
MAX_LOGPROBS_AT_ONCE = 400_000
# Messages of more bytes than this are decoded off the event loop. Decoding a smaller one takes less
# time than passing it to a thread.
_MAX_DECODED_ON_LOOP = 4 << 10
# If the deltas and log probabilities together are more than this, they are encoded off the event
# loop.
MAX_ENCODED_ON_LOOP = 500

Params = TypeVar("Params", bound="_ModelParams")
AnyRequest = TypeVar("AnyRequest", bound=GenerationRequest)
Encoded = TypeVar("Encoded")


class _ModelParams(Protocol):
    """A proto with the parameters of a generation."""

    model: str


@dataclass(frozen=True, slots=True)
class Decoder(Generic[Params, AnyRequest]):
    """The functions that decode the parameters of one kind of generation.

    Each function raises InvalidField or a subclass.

    Attributes:
        service: Name of the gRPC service.
        num_sequences: Returns the number of sequences that the parameters ask for. Its second
            argument is the maximum.
        priority: Returns the priority of the request.
        request: Returns the request.
    """

    service: str
    num_sequences: Callable[[Params, int], int]
    priority: Callable[[Params, Caller], int]
    request: Callable[[Params, ModelSpec], AnyRequest]


@dataclass(frozen=True, slots=True)
class AdmittedGeneration(Generic[AnyRequest]):
    """A generation that can no longer be rejected."""

    model: ServedModel
    request: AnyRequest
    prompts: Sequence[Prompt]
    deltas: AsyncGenerator[TextDelta, None]


class GenerationCalls:
    """Runs the generations of the servicers.

    Args:
        pools: Threads for work that would block the event loop.
        request_timeout_s: Maximum duration of a request in seconds, even if its deadline is later.
    """

    def __init__(self, lifecycle: Lifecycle, pools: WorkPools, request_timeout_s: float) -> None:
        self._lifecycle = lifecycle
        self._pools = pools
        self._request_timeout_s = request_timeout_s

    @asynccontextmanager
    async def admitted(
        self,
        decoder: Decoder[Params, AnyRequest],
        params: Params,
        context: Context,
        *,
        is_streamed: bool,
    ) -> AsyncIterator[AdmittedGeneration[AnyRequest]]:
        """Admit a generation. It is aborted when the context is left.

        Args:
            params: The proto with the parameters of the request.
            is_streamed: True if each delta is sent in a message of its own.

        Raises:
            ChatrpcError: The request is rejected.
        """
        if not params.model:
            raise MissingField("model")
        deadline = deadline_of(context, self._request_timeout_s)
        model = self._lifecycle.admit(params.model, context)
        backend, caller = model.chat, current_caller()
        if backend is None:
            raise UnsupportedMethod(decoder.service, model.card.id)
        spec = backend.spec
        num_sequences = decoder.num_sequences(params, spec.max_sequences)
        with backend.reserve(caller, num_sequences):
            call = CallContext(caller, deadline, decoder.priority(params, caller), self._pools)
            async with deadline_scope(deadline):
                is_long = received_bytes() > _MAX_DECODED_ON_LOOP
                request = await self._run(decoder.request, params, spec, is_long=is_long)
            generation = await backend.prepare(request, call)
            prompts = generation.prompts
            _check_num_logprobs(request, prompts, spec.max_model_len, is_streamed=is_streamed)
            max_tokens = _max_tokens(request)
            note_prompts(prompts, request.n, max_tokens)
            reserve_exactly(prompts, request.n, max_tokens, spec.max_model_len)
            async with (
                aclosing(generation.deltas()) as deltas,
                aclosing(_with_timings_noted(deltas)) as noted,
            ):
                await anext(noted)
                yield AdmittedGeneration(model, request, prompts, noted)

    async def encode(
        self, encode: Callable[..., Encoded], value: Any, deltas: Sequence[TextDelta]
    ) -> Encoded:
        """Return `encode(value)`. If `deltas` are many, it is called off the event loop."""
        num_encoded = len(deltas) + sum([delta.num_logprobs for delta in deltas])
        if num_encoded > MAX_ENCODED_ON_LOOP:
            return await self._pools.text(encode, value)
        return encode(value)

    async def _run(
        self, function: Callable[..., Encoded], *arguments: Any, is_long: bool
    ) -> Encoded:
        return await self._pools.text(function, *arguments) if is_long else function(*arguments)


async def _with_timings_noted(
    deltas: AsyncGenerator[TextDelta, None],
) -> AsyncGenerator[TextDelta, None]:
    async for delta in deltas:
        if delta.timings is not None:
            note_timings(delta.prompt_index, delta.timings)
        yield delta


def _max_tokens(request: GenerationRequest) -> int | None:
    """Return the maximum number of generated tokens, at least 1; None if there is none."""
    max_tokens = request.sampling.max_tokens
    return None if max_tokens is None else max(1, max_tokens)


def _check_num_logprobs(
    request: GenerationRequest, prompts: Sequence[Prompt], max_model_len: int, *, is_streamed: bool
) -> None:
    """Check that the log probabilities fit into one message.

    Raises:
        InvalidField: They do not fit.
    """
    of_prompts = of_outputs = 0
    max_tokens = _max_tokens(request)
    for prompt in prompts:
        num_tokens = prompt.num_tokens or 0
        if request.num_prompt_logprobs is not None:
            of_prompts += request.n * num_tokens * (1 + request.num_prompt_logprobs)
        if request.num_logprobs is not None:
            room = max_model_len - num_tokens
            most = room if max_tokens is None else min(max_tokens, room)
            of_outputs += request.n * most * (1 + request.num_logprobs)
    if of_prompts > MAX_LOGPROBS_AT_ONCE:
        raise InvalidField(
            "prompt_logprobs",
            f"At most {MAX_LOGPROBS_AT_ONCE} log probabilities of prompt tokens are returned.",
        )
    if not is_streamed and of_outputs > MAX_LOGPROBS_AT_ONCE:
        raise InvalidField(
            "logprobs",
            f"At most {MAX_LOGPROBS_AT_ONCE} log probabilities are returned in one message, and "
            f"this response could have {of_outputs}. Stream it, or limit its tokens.",
        )
