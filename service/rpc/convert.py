"""The wire to the domain and back. Pure: everything a message can get wrong is found here, by name.

A field path in an error is the field's place in `ChatCompletionParams`, such as `messages[0].role`.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp

from chatrpc.v1 import chat_pb2, model_service_pb2
from service.errors import (
    ContextLengthExceeded,
    InvalidField,
    MissingField,
    UnsupportedField,
)
from service.rpc.options import refuse_unserved
from service.rpc.tools import response_format, tools_and_mode
from service.types import (
    ChatRequest,
    FinishReason,
    Message,
    ModelCard,
    PromptOptions,
    SamplingParams,
    ToolCall,
)

MAX_STOP_STRINGS = 64
MAX_STOP_STRING_LENGTH = 256  # characters
MAX_STOP_TOKEN_IDS = 1024
MAX_TEMPLATE_KWARGS_LENGTH = 65_536  # characters
MAX_CACHE_SALT_LENGTH = 512  # characters

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

# The scalars of the wire's SamplingParams that are taken over as they are, by the domain's names.
_NAMES = {
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "min_p": "min_p",
    "seed": "seed",
    "max_completion_tokens": "max_tokens",
    "ignore_eos": "ignore_eos",
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
        sampling=_sampling(params.sampling, defaults, vocab_size),
        prompt=prompt_options(params.prompt, params.reasoning_effort),
        cache_salt=_cache_salt(params.cache_salt),
        tools=tools,
        tool_mode=tool_mode,
        has_parallel_calls=not params.HasField("parallel_tool_calls") or params.parallel_tool_calls,
        response_format=response_format(params, tool_mode),
    )


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
        InvalidField: the template's arguments are not a JSON object.
    """
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
        add_generation_prompt=not proto.HasField("add_generation_prompt")
        or proto.add_generation_prompt,
    )


def check_fits(
    protos: Sequence[chat_pb2.ChatMessage],
    max_token_chars: int,
    max_model_len: int,
    tools: Sequence[chat_pb2.Tool] = (),
) -> None:
    """Refuse a conversation that cannot fit, by its size alone, before any work is done on it.

    Raises:
        ContextLengthExceeded: with a number of tokens that the prompt has at the least.
    """
    if len(protos) >= max_model_len:  # each is a token, at the least
        raise ContextLengthExceeded(len(protos), max_model_len)
    num_chars = sum(
        sum(len(part.text) for part in proto.content)
        + len(proto.refusal)
        + len(proto.reasoning_content)
        + sum(len(call.function.arguments_json) for call in proto.tool_calls)
        for proto in protos
    ) + sum(len(tool.function.description) for tool in tools)
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


def check_token_ids(token_ids: Sequence[int], vocab_size: int, path: str) -> None:
    """Raise InvalidField for the first id that the vocabulary does not have."""
    if token_ids and max(token_ids) >= vocab_size:
        i = next(i for i, token_id in enumerate(token_ids) if token_id >= vocab_size)
        raise InvalidField(
            f"{path}[{i}]", f"{token_ids[i]} is not a token id; the vocabulary has {vocab_size}."
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
    if content is None and not (role == "assistant" and proto.tool_calls):
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


def _sampling(
    proto: chat_pb2.SamplingParams, defaults: SamplingParams, vocab_size: int
) -> SamplingParams:
    given = {field.name: value for field, value in proto.ListFields()}
    for name, low, high in (("temperature", 0.0, 2.0), ("top_p", 0.0, 1.0), ("min_p", 0.0, 1.0)):
        _check_within(name, given.get(name, low), low, high)
    if given.get("max_completion_tokens", 1) < 1:
        raise InvalidField(
            "sampling.max_completion_tokens", "max_completion_tokens must be at least 1."
        )
    if len(proto.stop_token_ids) > MAX_STOP_TOKEN_IDS:
        raise InvalidField(
            "sampling.stop_token_ids", f"At most {MAX_STOP_TOKEN_IDS} stop tokens are taken."
        )
    check_token_ids(proto.stop_token_ids, vocab_size, "sampling.stop_token_ids")
    return replace(
        defaults,
        **{_NAMES[name]: value for name, value in given.items() if name in _NAMES},
        stop=_stop_strings(proto.stop),
        stop_token_ids=frozenset(proto.stop_token_ids),
    )


def _stop_strings(strings: Sequence[str]) -> tuple[str, ...]:
    if len(strings) > MAX_STOP_STRINGS:
        raise InvalidField("sampling.stop", f"At most {MAX_STOP_STRINGS} stop strings are taken.")
    for i, string in enumerate(strings):
        if not 1 <= len(string) <= MAX_STOP_STRING_LENGTH:
            raise InvalidField(
                f"sampling.stop[{i}]",
                f"A stop string has 1 to {MAX_STOP_STRING_LENGTH} characters.",
            )
    return tuple(strings)


def _cache_salt(salt: str) -> str:
    if len(salt) > MAX_CACHE_SALT_LENGTH:
        raise InvalidField(
            "cache_salt", f"A cache salt has at most {MAX_CACHE_SALT_LENGTH} characters."
        )
    return salt


def _check_within(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:  # true for NaN too
        raise InvalidField(
            f"sampling.{name}", f"{name} must be between {low:g} and {high:g}, not {value:g}."
        )


def _json_object(text: str, path: str) -> dict[str, Any]:
    if len(text) > MAX_TEMPLATE_KWARGS_LENGTH:
        raise InvalidField(
            path, f"The template's arguments have at most {MAX_TEMPLATE_KWARGS_LENGTH} characters."
        )
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidField(path, "The template's arguments are not valid JSON.") from error
    if not isinstance(value, dict):
        raise InvalidField(path, "The template's arguments must be a JSON object.")
    for key in value:
        if not re.fullmatch(r"[A-Za-z_]\w*", key):
            raise InvalidField(path, f"{key!r} cannot be the name of a template argument.")
    return value


def _enum_name(enum: Any, value: int, path: str) -> str:
    try:
        return str(enum.Name(value))
    except ValueError as error:
        raise InvalidField(path, f"{value} is not a value of this enum.") from error
