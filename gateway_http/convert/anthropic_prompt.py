"""Converts the conversation of Anthropic's Messages API to the proto's messages.

The proto has one message for each tool result, and one for the system prompt. Anthropic's API has
tool results in messages of the user, and the system prompt beside the messages. So one of its
messages may become several: see `grouped`.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from chatrpc.v1 import chat_pb2
from gateway_http.convert.json_text import raw_text
from gateway_http.convert.messages import ROLES
from gateway_http.convert.thinking_signature import InvalidSignature, SignedTexts
from gateway_http.protocol import anthropic
from gateway_http.protocol.error import InvalidRequest, UnsupportedParameter

# The blocks of the groups of a role.
_BLOCKS: Mapping[str, tuple[type, ...]] = {
    "system": (anthropic.TextBlockParam,),
    "user": (
        anthropic.TextBlockParam,
        anthropic.ImageBlockParam,
        anthropic.DocumentBlockParam,
        anthropic.SearchResultBlockParam,
    ),
    "assistant": (
        anthropic.TextBlockParam,
        anthropic.ThinkingBlockParam,
        anthropic.RedactedThinkingBlockParam,
        anthropic.ToolUseBlockParam,
    ),
    "tool": (anthropic.ToolResultBlockParam,),
}


class Placed(NamedTuple):
    """A block, and its path in the body."""

    path: str
    block: anthropic.ContentBlockParam


class Group(NamedTuple):
    """The blocks that become one message of the proto. A tool result is one by itself."""

    role: str
    path: str
    blocks: list[Placed]


def grouped(prompt: anthropic.Prompt) -> Iterator[Group]:
    """Yield the blocks of each message of the proto, the system prompt first."""
    if prompt.system:
        yield Group("system", "system", list(_placed(prompt.system, "system")))
    for i, message in enumerate(prompt.messages):
        path = f"messages[{i}]"
        group = Group(message.role, path, [])
        for placed in _placed(message.content, f"{path}.content"):
            if isinstance(placed.block, anthropic.ToolResultBlockParam):
                if group.blocks:
                    yield group
                    group = Group(message.role, path, [])
                yield Group("tool" if message.role == "user" else message.role, path, [placed])
            else:
                group.blocks.append(placed)
        if group.blocks or not message.content:
            yield group


def chat_messages(prompt: anthropic.Prompt) -> list[chat_pb2.ChatMessage]:
    """Return the messages of a conversation.

    Raises:
        InvalidRequest: A block is malformed, not supported, or not allowed in its message.
    """
    signed = SignedTexts()
    return [_chat_message(group, signed) for group in grouped(prompt)]


def continues_last(prompt: anthropic.Prompt) -> bool:
    """Return whether the model continues the last message, which is the assistant's."""
    last = prompt.messages[-1]
    return last.role == "assistant" and not any(
        isinstance(placed.block, anthropic.ToolUseBlockParam)
        for placed in _placed(last.content, "")
    )


def tools(prompt: anthropic.Prompt) -> list[chat_pb2.Tool]:
    """Return the tools.

    Raises:
        InvalidRequest: A tool is one that Anthropic's servers run.
    """
    return [_tool(tool, f"tools[{i}]") for i, tool in enumerate(prompt.tools or ())]


def sent_names(prompt: anthropic.Prompt) -> dict[str, str]:
    """Return the client's paths of the messages and tools, by their paths in OpenAI's API.

    See `gateway_http.protocol.params.param_of`. A path comes before the beginnings of it.
    """
    names: dict[str, str] = {}
    for i, group in enumerate(grouped(prompt)):
        names |= _group_names(group, f"messages[{i}]")
    for i in range(len(prompt.tools or ())):
        names[f"tools[{i}].function.parameters"] = f"tools[{i}].input_schema"
        names[f"tools[{i}].function"] = f"tools[{i}]"
    return names


def _group_names(group: Group, path: str) -> dict[str, str]:
    names: dict[str, str] = {}
    num_parts = num_calls = 0
    for placed in group.blocks:
        match placed.block:
            case anthropic.ToolUseBlockParam():
                call = f"{path}.tool_calls[{num_calls}]"
                names[f"{call}.function.arguments"] = f"{placed.path}.input"
                names[f"{call}.function"] = names[call] = placed.path
                num_calls += 1
            case anthropic.ThinkingBlockParam():
                names[f"{path}.reasoning_content"] = f"{placed.path}.thinking"
            case anthropic.RedactedThinkingBlockParam():
                pass
            case anthropic.ToolResultBlockParam(content=content):
                names[f"{path}.tool_call_id"] = f"{placed.path}.tool_use_id"
                if isinstance(content, list):
                    for i in range(len(content)):
                        names[f"{path}.content[{i}]"] = f"{placed.path}.content[{i}]"
                names[f"{path}.content"] = f"{placed.path}.content"
            case anthropic.ImageBlockParam():
                names[f"{path}.content[{num_parts}].image_url"] = f"{placed.path}.source"
                names[f"{path}.content[{num_parts}]"] = placed.path
                num_parts += 1
            case _:
                names[f"{path}.content[{num_parts}]"] = placed.path
                num_parts += 1
    if group.role != "tool":
        names[f"{path}.content"] = group.path if group.role == "system" else f"{group.path}.content"
    names[path] = group.path
    return names


def _placed(content: str | Sequence[anthropic.ContentBlockParam], path: str) -> Iterator[Placed]:
    """Yield the blocks of a content. A string is a block of text."""
    if isinstance(content, str):
        yield Placed(path, anthropic.TextBlockParam(text=content))
        return
    for i, block in enumerate(content):
        yield Placed(f"{path}[{i}]", block)


def _chat_message(group: Group, signed: SignedTexts) -> chat_pb2.ChatMessage:
    message = chat_pb2.ChatMessage(role=ROLES[group.role])
    reasoning: list[str] = []  # joined once: appending to the message would copy all of it
    for placed in group.blocks:
        if not isinstance(placed.block, _BLOCKS[group.role]):
            kind = type(placed.block).__struct_config__.tag
            raise InvalidRequest(
                f"Invalid value for '{placed.path}': a message of the role '{group.role}' has no "
                f"blocks of the type '{kind}'.",
                placed.path,
                "invalid_value",
            )
        if isinstance(placed.block, anthropic.ThinkingBlockParam):
            reasoning.append(_reasoning(placed.block, placed.path, signed))
        else:
            _add(message, placed)
    message.reasoning_content = "".join(reasoning)
    return message


def _reasoning(block: anthropic.ThinkingBlockParam, path: str, signed: SignedTexts) -> str:
    try:
        return signed.text(block.thinking, block.signature)
    except InvalidSignature as error:
        param = f"{path}.signature"
        raise InvalidRequest(f"Invalid '{param}': {error}.", param, "invalid_value") from None


def _add(message: chat_pb2.ChatMessage, placed: Placed) -> None:
    """Add a block that is not reasoning to a message."""
    path = placed.path
    match placed.block:
        case anthropic.RedactedThinkingBlockParam():
            pass
        case anthropic.ToolUseBlockParam() as call:
            message.tool_calls.add(
                id=call.id,
                index=len(message.tool_calls),
                function=chat_pb2.FunctionCall(
                    name=call.name, arguments_json=raw_text(call.input) or "{}"
                ),
            )
        case anthropic.ToolResultBlockParam() as result:
            message.tool_call_id = result.tool_use_id
            message.content.extend(_result_parts(result, path))
        case block:
            message.content.append(_part(block, path))


def _result_parts(
    result: anthropic.ToolResultBlockParam, path: str
) -> Iterator[chat_pb2.ContentPart]:
    if result.is_error:
        yield chat_pb2.ContentPart(text="Error: ")
    for placed in _placed(result.content or "", f"{path}.content"):
        yield _part(placed.block, placed.path)


def _part(block: anthropic.ContentBlockParam, path: str) -> chat_pb2.ContentPart:
    """Return a part of a message's content."""
    match block:
        case anthropic.TextBlockParam(text=text):
            return chat_pb2.ContentPart(text=text)
        case anthropic.ImageBlockParam(source=anthropic.UrlSource(url=url)):
            return chat_pb2.ContentPart(image=chat_pb2.ImageContent(url=url))
        case anthropic.ImageBlockParam(source=anthropic.EncodedSource() as source):
            return chat_pb2.ContentPart(
                image=chat_pb2.ImageContent(data=source.data, mime_type=source.media_type)
            )
        case anthropic.DocumentBlockParam() | anthropic.SearchResultBlockParam():
            if block.citations is not None and block.citations.enabled:
                raise UnsupportedParameter(f"{path}.citations")
            return _document(block)
    raise TypeError(f"{type(block).__name__} is no part of a content")


def _document(
    block: anthropic.DocumentBlockParam | anthropic.SearchResultBlockParam,
) -> chat_pb2.ContentPart:
    match block:
        case anthropic.SearchResultBlockParam():
            texts = [block.title, block.source, *(part.text for part in block.content)]
        case anthropic.DocumentBlockParam(source=anthropic.EncodedSource(data=data)):
            return chat_pb2.ContentPart(
                file=chat_pb2.FileContent(data=data, filename=block.title or "")
            )
        case anthropic.DocumentBlockParam(source=anthropic.TextSource(data=text)):
            texts = [block.title or "", block.context or "", text]
    return chat_pb2.ContentPart(text="\n".join(filter(None, texts)))


def _tool(tool: anthropic.ToolParam, path: str) -> chat_pb2.Tool:
    if tool.type not in {None, "custom"}:
        raise InvalidRequest(
            f"Unsupported value for '{path}.type': tools of the type '{tool.type[:64]}' are not "
            "supported. Only the client's own tools are.",
            f"{path}.type",
            "unsupported_value",
        )
    return chat_pb2.Tool(
        function=chat_pb2.FunctionDefinition(
            name=tool.name,
            description=tool.description or "",
            parameters_json_schema=raw_text(tool.input_schema),
            strict=tool.strict,
        )
    )
