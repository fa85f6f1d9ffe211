"""Converts text completions between OpenAI's JSON and the proto."""

from collections.abc import Sequence

from msgspec import UNSET, UnsetType

from chatrpc.v1 import completion_pb2
from gateway_http.convert import chat_completions, sampling
from gateway_http.convert.inputs import is_single, texts_or_token_ids
from gateway_http.convert.logprobs import Token, completion_logprobs, prompt_logprobs
from gateway_http.convert.stream_state import StreamState
from gateway_http.protocol import completion as openai
from gateway_http.protocol.error import UnsupportedParameter
from gateway_http.protocol.response import Usage

# The output limit for `max_tokens: -1`. It must be set, since the service's default is 16. The
# service lowers a limit that exceeds the context.
_UNLIMITED = 2**32 - 1


def params(request: openai.CompletionRequest) -> completion_pb2.CompletionParams:
    """Convert a body. The result has no model: the service may have another name for it.

    Raises:
        InvalidRequest: The proto has no equivalent of a field.
    """
    sampling.check_supported(request, openai.UNSUPPORTED)
    if request.best_of is not None and request.best_of != (request.n or 1):
        raise UnsupportedParameter("best_of", "Send 'n' and choose among the choices.")
    return completion_pb2.CompletionParams(
        prompts=prompts(request.prompt),
        sampling=sampling.sampling_params(request, unlimited=_UNLIMITED),
        echo=request.echo,
        logprobs=request.logprobs,
        prompt_logprobs=request.prompt_logprobs,
        response_format=sampling.response_format(request),
        return_token_ids=request.return_token_ids,
        add_special_tokens=request.add_special_tokens,
        truncate_prompt_tokens=request.truncate_prompt_tokens,
        priority=request.priority,
        cache_salt=request.cache_salt,
        suffix=request.suffix,
        user=request.user,
    )


def sent_names(request: openai.CompletionRequest) -> dict[str, str]:
    """Return the names under which a client sent parameters, as `sampling.sent_names` does.

    A single prompt is named `prompt`, without an index.
    """
    single = {"prompt[0]": "prompt"} if is_single(request.prompt) else {}
    return sampling.sent_names(request) | single


def prompts(prompt: str | openai.Prompts) -> list[completion_pb2.CompletionPrompt]:
    """Convert `prompt`. Raises InvalidRequest if it mixes texts, token ids and lists of them."""
    texts, token_ids = texts_or_token_ids(prompt, "prompt")
    if texts:
        return [completion_pb2.CompletionPrompt(text=text) for text in texts]
    return [
        completion_pb2.CompletionPrompt(token_ids=completion_pb2.TokenIds(ids=ids))
        for ids in token_ids
    ]


def completion(
    whole: completion_pb2.Completion, model: str, request: openai.CompletionRequest
) -> openai.Completion:
    """Convert a completion.

    Args:
        whole: The completion.
        model: The name of its model for clients.
        request: The body of its request.
    """
    return openai.Completion(
        id=whole.id,
        created=whole.create_time.seconds,
        model=model,
        choices=[_choice(choice, request) for choice in whole.choices],
        usage=chat_completions.usage(whole.usage),
        system_fingerprint=whole.system_fingerprint or UNSET,
    )


class CompletionStream:
    """Converts the chunks of one streamed text completion. Usage comes last, if requested."""

    def __init__(self, request: openai.CompletionRequest) -> None:
        self._request = request
        self._state = StreamState(request.stream_options, completion_pb2.CompletionChunk())
        self.is_started = False

    def push(self, chunk: completion_pb2.CompletionChunk, model: str) -> list[openai.Completion]:
        """Convert a chunk.

        Args:
            chunk: The chunk.
            model: The name of its model for clients. Only that of the first chunk is used.
        """
        self._state.add(chunk, model)
        self.is_started = self.is_started or bool(chunk.choices)
        usage = self._state.usage_so_far
        return [self._chunk([_choice(delta, self._request)], usage) for delta in chunk.choices]

    def finish(self) -> list[openai.Completion]:
        """Return the chunks that follow the service's last chunk."""
        usage = self._state.final_usage
        return [] if usage is None else [self._chunk([], usage)]

    def _chunk(
        self, choices: list[openai.CompletionChoice], usage: Usage | UnsetType | None
    ) -> openai.Completion:
        state = self._state
        return openai.Completion(
            id=state.id,
            created=state.created,
            model=state.model,
            choices=choices,
            usage=usage,
            system_fingerprint=state.fingerprint,
        )


def _choice(
    choice: completion_pb2.CompletionChoice | completion_pb2.CompletionChoiceDelta,
    request: openai.CompletionRequest,
) -> openai.CompletionChoice:
    prompt_tokens = choice.prompt_tokens if request.echo and request.logprobs is not None else ()
    tokens: Sequence[Token] = [*prompt_tokens, *choice.logprobs]
    return openai.CompletionChoice(
        index=choice.index,
        text=choice.text,
        finish_reason=chat_completions.finish_reason(choice.finish_reason)
        if choice.finish_reason
        else None,
        logprobs=completion_logprobs(tokens, choice.text_offsets),
        stop_reason=chat_completions.stop_reason(choice.matched_stop),
        token_ids=list(choice.token_ids) or UNSET,
        prompt_token_ids=list(choice.prompt_token_ids) or UNSET,
        prompt_logprobs=prompt_logprobs(choice.prompt_tokens, has_first=True)
        if request.prompt_logprobs is not None
        else UNSET,
    )
