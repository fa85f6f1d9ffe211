"""From the wire's whole answers to OpenAI's, and the parts that chunks share with them."""

from collections.abc import Iterable

from msgspec import UNSET, UnsetType

from chatrpc.v1 import chat_pb2, model_service_pb2
from gateway_http.convert.logprobs import LEAST_LOGPROB, prompt_logprobs
from gateway_http.protocol import response as openai

_FINISH_REASONS: dict[int, openai.FinishReason] = {
    chat_pb2.FINISH_REASON_STOP: "stop",
    chat_pb2.FINISH_REASON_LENGTH: "length",
    chat_pb2.FINISH_REASON_TOOL_CALLS: "tool_calls",
    chat_pb2.FINISH_REASON_CONTENT_FILTER: "content_filter",
}


def completion(answer: chat_pb2.ChatCompletion) -> openai.ChatCompletion:
    return openai.ChatCompletion(
        id=answer.id,
        created=answer.create_time.seconds,
        model=answer.model,
        choices=[_choice(choice) for choice in answer.choices],
        usage=usage(answer.usage),
        system_fingerprint=answer.system_fingerprint or UNSET,
        prompt_token_ids=list(answer.prompt_token_ids) or UNSET,
        prompt_logprobs=prompt_logprobs(answer.prompt_logprobs, has_first=False),
    )


def model(served: model_service_pb2.Model) -> openai.Model:
    return openai.Model(
        id=served.id,
        created=served.create_time.seconds,
        owned_by=served.owned_by,
        max_model_len=served.max_model_len or UNSET,
        root=served.root or UNSET,
    )


def usage(counted: chat_pb2.Usage) -> openai.Usage:
    return openai.Usage(
        prompt_tokens=counted.prompt_tokens,
        completion_tokens=counted.completion_tokens,
        total_tokens=counted.prompt_tokens + counted.completion_tokens,
        prompt_tokens_details=openai.PromptTokensDetails(counted.cached_prompt_tokens),
        completion_tokens_details=openai.CompletionTokensDetails(counted.reasoning_tokens),
    )


def finish_reason(reason: int) -> openai.FinishReason:
    return _FINISH_REASONS[reason]


def stop_reason(matched: chat_pb2.MatchedStop) -> str | int | UnsetType:
    match matched.WhichOneof("stop"):
        case "text":
            return matched.text
        case "token_id":
            return matched.token_id
        case None:
            return UNSET


def logprobs(tokens: Iterable[chat_pb2.TokenLogprob]) -> openai.Logprobs | None:
    """None where there are none: the service returns one for each token when they are asked for."""
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


def _choice(choice: chat_pb2.Choice) -> openai.Choice:
    return openai.Choice(
        index=choice.index,
        message=_message(choice.message),
        finish_reason=finish_reason(choice.finish_reason),
        logprobs=logprobs(choice.logprobs),
        stop_reason=stop_reason(choice.matched_stop),
        token_ids=list(choice.token_ids) or UNSET,
    )


def _message(message: chat_pb2.ChatMessage) -> openai.Message:
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
        reasoning_content=message.reasoning_content or UNSET,
        tool_calls=calls or UNSET,
    )
