"""Converts whole chat completions to OpenAI's JSON, and the parts that chunks share with them."""

from collections.abc import Iterable
from typing import Literal

from msgspec import UNSET, UnsetType

from chatrpc.v1 import chat_pb2
from gateway_http.convert.logprobs import LEAST_LOGPROB, prompt_logprobs
from gateway_http.protocol import response as openai
from gateway_http.protocol.request import ChatCompletionRequest

_FINISH_REASONS: dict[int, openai.FinishReason] = {
    chat_pb2.FINISH_REASON_STOP: "stop",
    chat_pb2.FINISH_REASON_LENGTH: "length",
    chat_pb2.FINISH_REASON_TOOL_CALLS: "tool_calls",
    chat_pb2.FINISH_REASON_CONTENT_FILTER: "content_filter",
}


def completion(
    whole: chat_pb2.ChatCompletion, model: str, request: ChatCompletionRequest
) -> openai.ChatCompletion:
    """Convert a completion.

    Args:
        whole: The completion.
        model: The name of its model for clients.
        request: The body of its request.
    """
    returns_reasoning = request.returns_reasoning
    return openai.ChatCompletion(
        id=whole.id,
        created=whole.create_time.seconds,
        model=model,
        choices=[_choice(choice, returns_reasoning=returns_reasoning) for choice in whole.choices],
        usage=usage(whole.usage),
        system_fingerprint=whole.system_fingerprint or UNSET,
        prompt_token_ids=list(whole.prompt_token_ids) or UNSET,
        prompt_logprobs=prompt_logprobs(whole.prompt_logprobs, has_first=False),
        service_tier=service_tier(request),
    )


def service_tier(request: ChatCompletionRequest) -> Literal["default"] | UnsetType:
    """Return the tier of a response. Requests that name no tier get none."""
    return UNSET if request.service_tier is None else "default"


def usage(counted: chat_pb2.Usage) -> openai.Usage:
    """Convert the token counts."""
    return openai.Usage(
        prompt_tokens=counted.prompt_tokens,
        completion_tokens=counted.completion_tokens,
        total_tokens=counted.prompt_tokens + counted.completion_tokens,
        prompt_tokens_details=openai.PromptTokensDetails(counted.cached_prompt_tokens),
        completion_tokens_details=openai.CompletionTokensDetails(counted.reasoning_tokens),
    )


def finish_reason(reason: int) -> openai.FinishReason:
    """Convert a `FinishReason`, which must not be FINISH_REASON_UNSPECIFIED."""
    return _FINISH_REASONS[reason]


def stop_reason(matched: chat_pb2.MatchedStop) -> str | int | UnsetType:
    """Return the stop string or the id of the stop token that ended the output, as vLLM does."""
    match matched.WhichOneof("stop"):
        case "text":
            return matched.text
        case "token_id":
            return matched.token_id
        case None:
            return UNSET


def logprobs(tokens: Iterable[chat_pb2.TokenLogprob]) -> openai.Logprobs | None:
    """Convert log probabilities. Return None if there are none: the client requested none."""
    content = [
        openai.TokenLogprob(
            token=token.token,
            logprob=max(token.logprob, LEAST_LOGPROB),
            bytes=list(token.token_bytes),
            top_logprobs=[
                openai.TopLogprob(top.token, max(top.logprob, LEAST_LOGPROB), list(top.token_bytes))
                for top in token.top
            ],
        )
        for token in tokens
    ]
    return openai.Logprobs(content) if content else None


def _choice(choice: chat_pb2.Choice, *, returns_reasoning: bool) -> openai.Choice:
    return openai.Choice(
        index=choice.index,
        message=_message(choice.message, returns_reasoning=returns_reasoning),
        finish_reason=finish_reason(choice.finish_reason),
        logprobs=logprobs(choice.logprobs),
        stop_reason=stop_reason(choice.matched_stop),
        token_ids=list(choice.token_ids) or UNSET,
    )


def _message(message: chat_pb2.ChatMessage, *, returns_reasoning: bool) -> openai.Message:
    text = "".join(part.text for part in message.content)
    calls = [
        openai.ToolCall(
            id=call.id,
            type="function",
            function=openai.FunctionCall(call.function.arguments_json, call.function.name),
        )
        for call in message.tool_calls
    ]
    return openai.Message(
        content=text or (None if calls or message.refusal else ""),
        refusal=message.refusal or None,
        reasoning_content=(returns_reasoning and message.reasoning_content) or UNSET,
        tool_calls=calls or UNSET,
    )
