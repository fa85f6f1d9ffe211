"""Decodes the parameters of chat completions: protobuf to the domain.

The field of an error is a path in `ChatCompletionParams`, such as `messages[0].role`.
"""

import base64
from collections.abc import Sequence

from chatrpc.v1 import chat_pb2
from service.domain.backend import ModelSpec
from service.domain.chat import ChatRequest, Image, Message, ToolCall
from service.errors import (
    ContextLengthExceeded,
    InvalidField,
    MissingField,
    UnsupportedField,
)
from service.rpc.decode.options import cache_salt, check_alternatives
from service.rpc.decode.prompt import prompt_options
from service.rpc.decode.sampling import num_choices, sampling_params
from service.rpc.decode.tools import check_num_tools, response_format, tools_and_mode
from service.rpc.decode.unsupported import check_model_supports, check_unsupported

_ROLES = {
    chat_pb2.ROLE_SYSTEM: "system",
    chat_pb2.ROLE_DEVELOPER: "developer",
    chat_pb2.ROLE_USER: "user",
    chat_pb2.ROLE_ASSISTANT: "assistant",
    chat_pb2.ROLE_TOOL: "tool",
}

# Other URLs, such as those of files, would be read by an upstream with its own rights.
_IMAGE_SCHEMES = ("http:", "https:", "data:")
_PARTS = {"image": "image_url", "audio": "input_audio", "file": "file"}


def chat_request(params: chat_pb2.ChatCompletionParams, spec: ModelSpec) -> ChatRequest:
    """Check parameters and fill in the model's defaults.

    Raises:
        InvalidField or a subclass: The first error found.
    """
    check_fits(params.messages, spec, params.tools)
    check_unsupported(params)
    check_model_supports(params, spec.unsupported_fields)
    tools, tool_mode = tools_and_mode(params)
    return ChatRequest(
        model=params.model,
        messages=messages(params.messages, takes_images=spec.takes_images),
        sampling=sampling_params(params.sampling, spec),
        prompt=prompt_options(params.prompt, params.reasoning_effort),
        cache_salt=cache_salt(params.cache_salt),
        n=num_choices(params.sampling),
        num_logprobs=_num_logprobs(params, spec),
        num_prompt_logprobs=_num_prompt_logprobs(params, spec),
        returns_token_ids=params.return_token_ids,
        tools=tools,
        tool_mode=tool_mode,
        has_parallel_calls=not params.HasField("parallel_tool_calls") or params.parallel_tool_calls,
        response_format=response_format(params, tool_mode),
    )


def messages(
    protos: Sequence[chat_pb2.ChatMessage], path: str = "messages", *, takes_images: bool = False
) -> tuple[Message, ...]:
    """Return the messages of a conversation.

    Args:
        takes_images: True if they may have images.

    Raises:
        InvalidField or a subclass.
    """
    if not protos:
        raise InvalidField(path, "At least one message is required.")
    return tuple(
        _message(proto, f"{path}[{i}]", takes_images=takes_images) for i, proto in enumerate(protos)
    )


def check_fits(
    protos: Sequence[chat_pb2.ChatMessage],
    spec: ModelSpec,
    tools: Sequence[chat_pb2.Tool] = (),
    path: str = "messages",
) -> None:
    """Reject a conversation that is too large for the context, by its size, before other work.

    Raises:
        ContextLengthExceeded: The conversation is too large. The error has the minimum number of
            tokens of its prompt.
        InvalidField: A message has more parts or calls than a prompt can have tokens.
    """
    max_model_len, max_token_chars = spec.max_model_len, spec.max_token_chars
    if len(protos) >= max_model_len:  # each message has at least one token
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
    if max_token_chars is None:
        return
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


def _message(proto: chat_pb2.ChatMessage, path: str, *, takes_images: bool) -> Message:
    role = _ROLES.get(proto.role)
    if role is None:
        if proto.role == chat_pb2.ROLE_UNSPECIFIED:
            raise MissingField(f"{path}.role")
        raise InvalidField(f"{path}.role", f"{proto.role} is not a role.")
    parts = _parts(proto.content, f"{path}.content", takes_images=takes_images)
    has_image = any(isinstance(part, Image) for part in parts)
    content = "".join(part for part in parts if isinstance(part, str)) if parts else None
    if proto.refusal:  # chat templates have no refusals, so it becomes content
        content = f"{content}\n{proto.refusal}" if content else proto.refusal
    # An assistant message with tool calls, or cut off in its reasoning, has no content.
    may_be_empty = role == "assistant" and (proto.tool_calls or proto.reasoning_content)
    if content is None and not may_be_empty:
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
        parts=parts if has_image else (),
    )


def _parts(
    protos: Sequence[chat_pb2.ContentPart], path: str, *, takes_images: bool
) -> tuple[str | Image, ...]:
    parts: list[str | Image] = []
    for i, proto in enumerate(protos):
        kind = proto.WhichOneof("part")
        if kind is None:
            raise MissingField(f"{path}[{i}]")
        if kind == "text":
            parts.append(proto.text)
        elif kind == "image" and takes_images:
            parts.append(_image(proto.image, f"{path}[{i}].image"))
        else:
            taken = "text and images" if takes_images else "text"
            raise UnsupportedField(
                f"{path}[{i}]", f"This model takes only {taken}, not {_PARTS[kind]} parts."
            )
    return tuple(parts)


def _image(proto: chat_pb2.ImageContent, path: str) -> Image:
    match proto.WhichOneof("source"):
        case "url":
            if not proto.url.lower().startswith(_IMAGE_SCHEMES):
                raise InvalidField(f"{path}.url", "must be an http:, https: or data: URL.")
            return Image(proto.url, proto.detail)
        case "data":
            if not proto.mime_type:
                raise MissingField(f"{path}.mime_type")
            encoded = base64.b64encode(proto.data).decode()
            return Image(f"data:{proto.mime_type};base64,{encoded}", proto.detail)
        case None:
            raise MissingField(f"{path}.url")


def _tool_call(proto: chat_pb2.ToolCall, path: str) -> ToolCall:
    if not proto.function.name:
        raise MissingField(f"{path}.function.name")
    return ToolCall(proto.id, proto.function.name, proto.function.arguments_json)


def _num_logprobs(params: chat_pb2.ChatCompletionParams, spec: ModelSpec) -> int | None:
    """Return the number of alternatives to each token; None if none are to be returned."""
    if params.HasField("top_logprobs"):
        if not params.logprobs:
            raise InvalidField("top_logprobs", "needs logprobs to be true.")
        check_alternatives("top_logprobs", params.top_logprobs, spec)
    return params.top_logprobs if params.logprobs else None


def _num_prompt_logprobs(params: chat_pb2.ChatCompletionParams, spec: ModelSpec) -> int | None:
    if not params.HasField("prompt_logprobs"):
        return None
    check_alternatives("prompt_logprobs", params.prompt_logprobs, spec)
    return params.prompt_logprobs
