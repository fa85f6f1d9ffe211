"""Between OpenAI's text completions and the wire's."""

from collections.abc import Sequence

from msgspec import UNSET, UnsetType

from chatrpc.v1 import chat_pb2, completion_pb2
from gateway_http.convert import chat_completions
from gateway_http.convert.logprobs import Token, completion_logprobs, prompt_logprobs
from gateway_http.convert.sampling import (
    refuse_unserved,
    response_format,
    sampling_params,
    spelling,
)
from gateway_http.protocol import completion as openai
from gateway_http.protocol.error import InvalidRequest, UnsupportedParameter
from gateway_http.protocol.response import Usage
from gateway_http.protocol.sampling import StreamOptions

# An absent limit is 16 in a text completion. A larger one than fits is lowered by the service.
_UNLIMITED = 2**32 - 1


def params(request: openai.CompletionRequest) -> completion_pb2.CompletionParams:
    """Raises InvalidRequest for what the wire cannot say."""
    refuse_unserved(request, openai.UNSERVED)
    if request.best_of is not None and request.best_of != (request.n or 1):
        raise UnsupportedParameter("best_of", "Send 'n' and choose among the choices.")
    return completion_pb2.CompletionParams(
        model=request.model,
        prompts=prompts(request.prompt),
        sampling=sampling_params(request, unlimited=_UNLIMITED),
        echo=request.echo,
        logprobs=request.logprobs,
        prompt_logprobs=request.prompt_logprobs,
        response_format=response_format(request),
        return_token_ids=request.return_token_ids,
        add_special_tokens=request.add_special_tokens,
        truncate_prompt_tokens=request.truncate_prompt_tokens,
        priority=request.priority,
        cache_salt=request.cache_salt,
        suffix=request.suffix,
        user=request.user,
    )


def names(request: openai.CompletionRequest) -> dict[str, str]:
    """How this client calls what the service may find wrong."""
    single = isinstance(request.prompt, str) or isinstance(request.prompt[0], int)
    return spelling(request) | ({"prompt[0]": "prompt"} if single else {})


def prompts(prompt: str | openai.Prompts) -> list[completion_pb2.CompletionPrompt]:
    if isinstance(prompt, str):
        return [completion_pb2.CompletionPrompt(text=prompt)]
    texts = [item for item in prompt if isinstance(item, str)]
    tokens = [item for item in prompt if isinstance(item, int)]
    lists = [item for item in prompt if isinstance(item, list)]
    if len(prompt) not in {len(texts), len(tokens), len(lists)}:
        raise InvalidRequest(
            "Invalid 'prompt': send strings, token ids or lists of token ids, not a mixture.",
            "prompt",
            "invalid_type",
        )
    if texts:
        return [completion_pb2.CompletionPrompt(text=text) for text in texts]
    return [
        completion_pb2.CompletionPrompt(token_ids=completion_pb2.TokenIds(ids=ids))
        for ids in ([tokens] if tokens else lists)
    ]


def completion(
    answer: completion_pb2.Completion, request: openai.CompletionRequest
) -> openai.Completion:
    return openai.Completion(
        id=answer.id,
        created=answer.create_time.seconds,
        model=answer.model,
        choices=[_choice(choice, request) for choice in answer.choices],
        usage=chat_completions.usage(answer.usage),
        system_fingerprint=answer.system_fingerprint or UNSET,
    )


class CompletionStream:
    """The pieces of one streamed text completion; usage comes last, where it was asked for."""

    def __init__(self, request: openai.CompletionRequest) -> None:
        wanted = request.stream_options or StreamOptions()
        self._request = request
        self._include_usage = bool(wanted.include_usage)
        self._running_usage = self._include_usage and bool(wanted.continuous_usage_stats)
        self._head = completion_pb2.CompletionChunk()
        self._usage = chat_pb2.Usage()
        self.is_started = False

    def push(self, chunk: completion_pb2.CompletionChunk) -> list[openai.Completion]:
        if chunk.id:
            self._head = chunk
        self._usage.completion_tokens += sum(delta.num_tokens for delta in chunk.choices)
        if chunk.HasField("usage"):
            self._usage = chunk.usage
        self.is_started = self.is_started or bool(chunk.choices)
        usage: Usage | UnsetType | None = None if self._include_usage else UNSET
        if self._running_usage:
            usage = chat_completions.usage(self._usage)
        return [self._piece([_choice(delta, self._request)], usage) for delta in chunk.choices]

    def finish(self) -> list[openai.Completion]:
        """What follows the last of the wire's chunks."""
        return [self._piece([], chat_completions.usage(self._usage))] if self._include_usage else []

    def _piece(
        self, choices: list[openai.CompletionChoice], usage: Usage | UnsetType | None
    ) -> openai.Completion:
        return openai.Completion(
            id=self._head.id,
            created=self._head.create_time.seconds,
            model=self._head.model,
            choices=choices,
            usage=usage,
            system_fingerprint=self._head.system_fingerprint or UNSET,
        )


def _choice(
    choice: completion_pb2.CompletionChoice | completion_pb2.CompletionChoiceDelta,
    request: openai.CompletionRequest,
) -> openai.CompletionChoice:
    prompt_tokens = choice.prompt_tokens if request.echo and request.logprobs is not None else ()
    told: Sequence[Token] = [*prompt_tokens, *choice.logprobs]
    return openai.CompletionChoice(
        index=choice.index,
        text=choice.text,
        finish_reason=chat_completions.finish_reason(choice.finish_reason)
        if choice.finish_reason
        else None,
        logprobs=completion_logprobs(told, choice.text_offsets),
        stop_reason=chat_completions.stop_reason(choice.matched_stop),
        token_ids=list(choice.token_ids) or UNSET,
        prompt_token_ids=list(choice.prompt_token_ids) or UNSET,
        prompt_logprobs=prompt_logprobs(choice.prompt_tokens, has_first=True)
        if request.prompt_logprobs is not None
        else UNSET,
    )
