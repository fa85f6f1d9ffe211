"""The wire to the domain and back. Pure: everything a message can get wrong is found here, by name.

A field path in an error is the field's place in `ChatCompletionParams`, such as `messages[0].role`.
"""

import json
import re
from collections.abc import Sequence
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp

from chatrpc.v1 import chat_pb2, completion_pb2, model_service_pb2
from chatrpc.v1.limits import LIMITS
from service.domain.chat import ChatRequest, Message, PromptOptions, ToolCall
from service.domain.engine import Caller, FinishReason
from service.domain.model import ModelCard
from service.domain.sampling import SamplingParams
from service.errors import (
    ContextLengthExceeded,
    InvalidField,
    MissingField,
    UnsupportedField,
)
from service.rpc.decode.sampling import sampling_params
from service.rpc.decode.tools import check_num_tools, response_format, tools_and_mode
from service.rpc.decode.unsupported import refuse_unserved

MAX_TEMPLATE_KWARGS_DEPTH = 32  # arrays and objects within one another

_MAX_N = int(LIMITS["SamplingParams.n"].maximum)

_ROLES = {
    chat_pb2.ROLE_SYSTEM: "system",
    chat_pb2.ROLE_DEVELOPER: "developer",
    chat_pb2.ROLE_USER: "user",
    chat_pb2.ROLE_ASSISTANT: "assistant",
    chat_pb2.ROLE_TOOL: "tool",
}

_FINISH_REASONS = {
    FinishReason.STOP: chat_pb2.FINISH_REASON_STOP,
    FinishReason.LENGTH: chat_pb2.FINISH_REASON_LENGTH,
    FinishReason.TOOL_CALLS: chat_pb2.FINISH_REASON_TOOL_CALLS,
}

_PARTS = {"image": "image_url", "audio": "input_audio", "file": "file"}


def chat_request(
    params: chat_pb2.ChatCompletionParams, defaults: SamplingParams, vocab_size: int
) -> ChatRequest:
    """Check a request whole and fill in the model's defaults.

    Raises:
        InvalidField, or one of its kinds: the first mistake found.
    """
    refuse_unserved(params)
    tools, tool_mode = tools_and_mode(params)
    return ChatRequest(
        model=params.model,
        messages=messages(params.messages),
        sampling=sampling_params(params.sampling, defaults, vocab_size),
        prompt=prompt_options(params.prompt, params.reasoning_effort),
        cache_salt=cache_salt(params.cache_salt),
        n=num_choices(params.sampling),
        num_logprobs=_num_logprobs(params),
        num_prompt_logprobs=_num_prompt_logprobs(params),
        returns_token_ids=params.return_token_ids,
        tools=tools,
        tool_mode=tool_mode,
        has_parallel_calls=not params.HasField("parallel_tool_calls") or params.parallel_tool_calls,
        response_format=response_format(params, tool_mode),
    )


def num_choices(sampling: chat_pb2.SamplingParams, max_choices: int = _MAX_N) -> int:
    """How many choices a request asks for.

    Args:
        max_choices: How many the service has room for.

    Raises:
        InvalidField: There are none, or more than may be.
    """
    n = sampling.n if sampling.HasField("n") else 1
    most = min(max_choices, _MAX_N)
    if not 1 <= n <= most:
        raise InvalidField("sampling.n", f"must be between 1 and {most}, not {n}.")
    return n


def priority(
    params: chat_pb2.ChatCompletionParams | completion_pb2.CompletionParams, caller: Caller
) -> int:
    """The priority of a request: its own, or 0, or the most urgent one that its caller may set.

    Raises:
        InvalidField: It is more urgent than the caller may set.
    """
    if not params.HasField("priority"):
        return max(0, caller.min_priority)
    if params.priority < caller.min_priority:
        raise InvalidField(
            "priority",
            f"This API key may not set a priority below {caller.min_priority}, such as "
            f"{params.priority}.",
        )
    return params.priority


def messages(protos: Sequence[chat_pb2.ChatMessage], path: str = "messages") -> tuple[Message, ...]:
    """The conversation.

    Raises:
        InvalidField, or one of its kinds.
    """
    if not protos:
        raise InvalidField(path, "At least one message is required.")
    return tuple(_message(proto, f"{path}[{i}]") for i, proto in enumerate(protos))


def prompt_options(
    proto: chat_pb2.PromptOptions, effort: chat_pb2.ReasoningEffort.ValueType
) -> PromptOptions:
    """How to render the conversation. The effort reaches a reasoning model through its template.

    Raises:
        InvalidField: the template's arguments are not a JSON object, or options contradict.
    """
    continues = proto.continue_final_message
    if continues and proto.add_generation_prompt:
        raise InvalidField(
            "prompt.continue_final_message",
            "excludes add_generation_prompt.",
        )
    limits = LIMITS["PromptOptions.truncate_prompt_tokens"]
    if proto.HasField("truncate_prompt_tokens") and not limits.allow(proto.truncate_prompt_tokens):
        raise InvalidField("prompt.truncate_prompt_tokens", f"must be {limits.range}.")
    kwargs: dict[str, Any] = {}
    if effort == chat_pb2.REASONING_EFFORT_NONE:
        kwargs["enable_thinking"] = False
    elif effort != chat_pb2.REASONING_EFFORT_UNSPECIFIED:
        name = _enum_name(chat_pb2.ReasoningEffort, effort, "reasoning_effort")
        kwargs["reasoning_effort"] = name.removeprefix("REASONING_EFFORT_").lower()
    if proto.HasField("chat_template_kwargs_json"):
        path = "prompt.chat_template_kwargs_json"
        kwargs |= _json_object(proto.chat_template_kwargs_json, path)
    return PromptOptions(
        template_kwargs=kwargs,
        add_generation_prompt=(
            proto.add_generation_prompt
            if proto.HasField("add_generation_prompt")
            else not continues
        ),
        continue_final_message=continues,
        truncate_prompt_tokens=(
            proto.truncate_prompt_tokens if proto.HasField("truncate_prompt_tokens") else None
        ),
    )


def check_fits(
    protos: Sequence[chat_pb2.ChatMessage],
    max_token_chars: int,
    max_model_len: int,
    tools: Sequence[chat_pb2.Tool] = (),
    path: str = "messages",
) -> None:
    """Refuse a conversation that cannot fit, by its size only, before any work is done on it.

    Raises:
        ContextLengthExceeded: with a number of tokens that the prompt has at the least.
        InvalidField: A message has more parts or calls than a prompt can have tokens.
    """
    if len(protos) >= max_model_len:  # each is a token, at the least
        raise ContextLengthExceeded(len(protos), max_model_len)
    for i, proto in enumerate(protos):
        for name in ("content", "tool_calls"):
            if len(getattr(proto, name)) > max_model_len:
                raise InvalidField(
                    f"{path}[{i}].{name}",
                    f"A message has at most as many parts and calls as the model's context has "
                    f"tokens, {max_model_len}.",
                )
    check_num_tools(tools)
    num_chars = sum(
        sum(len(part.text) for part in proto.content)
        + len(proto.refusal)
        + len(proto.reasoning_content)
        + sum(len(call.function.arguments_json) for call in proto.tool_calls)
        for proto in protos
    ) + sum(
        len(tool.function.description) + len(tool.function.parameters_json_schema) for tool in tools
    )
    if num_chars >= max_token_chars * max_model_len:
        raise ContextLengthExceeded(num_chars // max_token_chars, max_model_len)


def finish_reason(reason: FinishReason | None) -> chat_pb2.FinishReason.ValueType:
    return chat_pb2.FINISH_REASON_UNSPECIFIED if reason is None else _FINISH_REASONS[reason]


def matched_stop(matched: str | int | None) -> chat_pb2.MatchedStop | None:
    if matched is None:
        return None
    if isinstance(matched, str):
        return chat_pb2.MatchedStop(text=matched)
    return chat_pb2.MatchedStop(token_id=matched)


def model_proto(card: ModelCard) -> model_service_pb2.Model:
    return model_service_pb2.Model(
        id=card.id,
        create_time=Timestamp(seconds=card.created),
        owned_by=card.owned_by,
        max_model_len=card.max_model_len,
        aliases=card.aliases,
        root=card.root,
    )


def _message(proto: chat_pb2.ChatMessage, path: str) -> Message:
    role = _ROLES.get(proto.role)
    if role is None:
        if proto.role == chat_pb2.ROLE_UNSPECIFIED:
            raise MissingField(f"{path}.role")
        raise InvalidField(f"{path}.role", f"{proto.role} is not a role.")
    content = _text(proto.content, f"{path}.content")
    if proto.refusal:  # templates know no refusals: it is what the assistant said
        content = f"{content}\n{proto.refusal}" if content else proto.refusal
    # An assistant that called functions, or that was cut off while it reasoned, has said nothing.
    is_silent = role == "assistant" and (proto.tool_calls or proto.reasoning_content)
    if content is None and not is_silent:
        raise MissingField(f"{path}.content")
    if role == "tool" and not proto.tool_call_id:
        raise MissingField(f"{path}.tool_call_id")
    if proto.tool_calls and role != "assistant":
        raise InvalidField(f"{path}.tool_calls", "Only assistant messages have tool calls.")
    return Message(
        role=role,
        content=content,
        name=proto.name or None,
        tool_calls=tuple(
            _tool_call(call, f"{path}.tool_calls[{i}]") for i, call in enumerate(proto.tool_calls)
        ),
        tool_call_id=proto.tool_call_id or None,
        reasoning_content=proto.reasoning_content or None,
    )


def _text(parts: Sequence[chat_pb2.ContentPart], path: str) -> str | None:
    """The text of the parts, joined; None if there is no part."""
    for i, part in enumerate(parts):
        kind = part.WhichOneof("part")
        if kind is None:
            raise MissingField(f"{path}[{i}]")
        if kind != "text":
            raise UnsupportedField(
                f"{path}[{i}]", f"This model reads text alone, not {_PARTS[kind]} parts."
            )
    return "".join(part.text for part in parts) if parts else None


def _tool_call(proto: chat_pb2.ToolCall, path: str) -> ToolCall:
    if not proto.function.name:
        raise MissingField(f"{path}.function.name")
    return ToolCall(proto.id, proto.function.name, proto.function.arguments_json)


def _num_logprobs(params: chat_pb2.ChatCompletionParams) -> int | None:
    """How many alternatives are wanted beside each token's log probability; None: not even that."""
    if params.HasField("top_logprobs"):
        if not params.logprobs:
            raise InvalidField("top_logprobs", "needs logprobs to be true.")
        _check_alternatives("top_logprobs", params.top_logprobs)
    return params.top_logprobs if params.logprobs else None


def _num_prompt_logprobs(params: chat_pb2.ChatCompletionParams) -> int | None:
    if not params.HasField("prompt_logprobs"):
        return None
    _check_alternatives("prompt_logprobs", params.prompt_logprobs)
    return params.prompt_logprobs


def _check_alternatives(name: str, count: int) -> None:
    limits = LIMITS[f"ChatCompletionParams.{name}"]
    if not limits.allow(count):
        raise InvalidField(name, f"must be {limits.range}, not {count}.")


def cache_salt(salt: str) -> str:
    max_size = LIMITS["ChatCompletionParams.cache_salt"].max_size
    if len(salt) > max_size:
        raise InvalidField("cache_salt", f"A cache salt has at most {max_size} characters.")
    return salt


def _json_object(text: str, path: str) -> dict[str, Any]:
    max_size = LIMITS["PromptOptions.chat_template_kwargs_json"].max_size
    if len(text) > max_size:
        raise InvalidField(path, f"The template's arguments have at most {max_size} characters.")
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidField(path, "The template's arguments are not valid JSON.") from error
    if not isinstance(value, dict):
        raise InvalidField(path, "The template's arguments must be a JSON object.")
    if _depth(value) > MAX_TEMPLATE_KWARGS_DEPTH:
        raise InvalidField(
            path, f"The template's arguments are nested deeper than {MAX_TEMPLATE_KWARGS_DEPTH}."
        )
    for key in value:
        if not re.fullmatch(r"[A-Za-z_]\w*", key):
            raise InvalidField(path, f"{key!r} cannot be the name of a template argument.")
    return value


def _depth(value: Any) -> int:
    """How many arrays and objects stand within one another; no deeper than JSON can be parsed."""
    depth, level = 0, [value]
    while level := [item for item in level if isinstance(item, dict | list)]:
        depth += 1
        level = [
            item for each in level for item in (each.values() if isinstance(each, dict) else each)
        ]
    return depth


def _enum_name(enum: Any, value: int, path: str) -> str:
    try:
        return str(enum.Name(value))
    except ValueError as error:
        raise InvalidField(path, f"{value} is not a value of this enum.") from error
