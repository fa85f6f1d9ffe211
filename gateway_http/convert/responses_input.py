"""Converts the input of OpenAI's Responses API to the proto's messages.

The proto has the reasoning, the text and the tool calls of a turn in one message. The Responses API
has an item for each. So several items may become one message: see `grouped`.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from chatrpc.v1 import chat_pb2
from gateway_http.convert import custom_tools
from gateway_http.convert.messages import ROLES, file_content
from gateway_http.convert.response_tools import function_name
from gateway_http.convert.thinking_signature import InvalidSignature, SignedTexts
from gateway_http.protocol import responses_request as openai
from gateway_http.protocol.error import InvalidRequest, UnsupportedParameter
from gateway_http.protocol.request import InputFile

_CALLS = (openai.FunctionCallItem, openai.CustomToolCallItem)


class Placed(NamedTuple):
    """An item, and its path in the body."""

    path: str
    item: openai.Item


class Group:
    """The items that become one message of the proto.

    Args:
        role: The role of the message.

    Attributes:
        items: The items, in their order.
    """

    def __init__(self, role: str) -> None:
        self.role = role
        self.items: list[Placed] = []
        self._has_call = False
        self._has_message = False

    def add(self, placed: Placed) -> None:
        """Append an item."""
        self.items.append(placed)
        self._has_call = self._has_call or isinstance(placed.item, _CALLS)
        self._has_message = self._has_message or isinstance(placed.item, openai.MessageItem)

    def joins(self, role: str, item: openai.Item) -> bool:
        """Return whether an item that follows belongs to the same turn of the model.

        A turn consists of reasoning, text and tool calls in this order. Items after a tool call
        belong to its turn, too: its results follow the whole turn.
        """
        if role != "assistant" or self.role != "assistant":
            return False
        return isinstance(item, _CALLS) or self._has_call or not self._has_message


def grouped(prompt: openai.ResponsePrompt, previous: Sequence[openai.Item] = ()) -> Iterator[Group]:
    """Yield the items of each message of the proto, the instructions first.

    Args:
        prompt: The prompt.
        previous: The items of earlier responses that the input continues.
    """
    if prompt.instructions is not None:
        item = openai.MessageItem(role="developer", content=prompt.instructions)
        instructions = Group("developer")
        instructions.add(Placed("instructions", item))
        yield instructions
    group: Group | None = None
    for placed in _placed(prompt, previous):
        role = _role(placed.item)
        if group is None or not group.joins(role, placed.item):
            if group is not None:
                yield group
            group = Group(role)
        group.add(placed)
    if group is not None:
        yield group


def chat_messages(
    prompt: openai.ResponsePrompt, previous: Sequence[openai.Item] = ()
) -> list[chat_pb2.ChatMessage]:
    """Return the messages of a conversation; see `grouped`.

    Raises:
        InvalidRequest: An item is malformed, not supported, or has a part that it cannot have; or
            there is no item.
    """
    if not prompt.input and not isinstance(prompt.input, str) and not previous:
        raise InvalidRequest(
            "Missing required parameter: 'input'."
            if prompt.input is None
            else "Invalid 'input': empty array. Expected an array with minimum length 1.",
            "input",
            "missing_required_parameter" if prompt.input is None else "empty_array",
        )
    signed = SignedTexts()
    return [_chat_message(group, signed) for group in grouped(prompt, previous)]


def sent_names(
    prompt: openai.ResponsePrompt, previous: Sequence[openai.Item] = ()
) -> dict[str, str]:
    """Return the client's paths of the messages, by their paths in chat completions.

    See `gateway_http.protocol.params.param_of`. A path comes before the beginnings of it.
    """
    names: dict[str, str] = {}
    for i, group in enumerate(grouped(prompt, previous)):
        names |= _group_names(group, f"messages[{i}]")
    return names


def _placed(prompt: openai.ResponsePrompt, previous: Sequence[openai.Item]) -> Iterator[Placed]:
    for item in previous:
        yield Placed("previous_response_id", item)
    if isinstance(prompt.input, str):
        yield Placed("input", openai.MessageItem(role="user", content=prompt.input))
        return
    for i, item in enumerate(prompt.input or ()):
        yield Placed(f"input[{i}]", item)


def _role(item: openai.Item) -> str:
    match item:
        case openai.MessageItem(role=role):
            return role
        case openai.CallOutputItem():
            return "tool"
        case _:
            return "assistant"


def _group_names(group: Group, path: str) -> dict[str, str]:
    names: dict[str, str] = {}
    num_parts = num_calls = 0
    for placed in group.items:
        match placed.item:
            case openai.FunctionCallItem() | openai.CustomToolCallItem() as item:
                call = f"{path}.tool_calls[{num_calls}]"
                is_custom = isinstance(item, openai.CustomToolCallItem)
                arguments = f"{placed.path}.{'input' if is_custom else 'arguments'}"
                names[f"{call}.function.arguments"] = arguments
                names[f"{call}.function"] = names[call] = placed.path
                num_calls += 1
            case openai.ReasoningInputItem():
                names[f"{path}.reasoning_content"] = placed.path
            case openai.CallOutputItem(output=output):
                names[f"{path}.tool_call_id"] = f"{placed.path}.call_id"
                num_parts += _part_names(output, f"{placed.path}.output", path, num_parts, names)
                names[f"{path}.content"] = f"{placed.path}.output"
            case openai.MessageItem(content=content):
                inner = placed.path if _is_text_only(placed.path) else f"{placed.path}.content"
                num_parts += _part_names(content, inner, path, num_parts, names)
                names.setdefault(f"{path}.content", inner)
            case openai.ItemReference():
                pass
    names[path] = group.items[0].path
    return names


def _is_text_only(path: str) -> bool:
    """Return whether a path is that of a string that stands for a whole message."""
    return path in {"instructions", "input"}


def _part_names(
    content: str | Sequence[openai.MessagePart],
    sent_path: str,
    path: str,
    start: int,
    names: dict[str, str],
) -> int:
    """Add the paths of the parts of a content to `names`. Return the number of its parts."""
    if isinstance(content, str):
        names[f"{path}.content[{start}]"] = sent_path
        return 1
    num_parts = 0
    for i, part in enumerate(content):
        if isinstance(part, openai.OutputRefusalPart):
            names[f"{path}.refusal"] = f"{sent_path}[{i}].refusal"
            continue
        own = f"{path}.content[{start + num_parts}]"
        names[f"{own}.image_url.url"] = f"{sent_path}[{i}].image_url"
        names[f"{own}.image_url"] = f"{sent_path}[{i}]"
        names[f"{own}.file"] = f"{sent_path}[{i}]"
        names[own] = f"{sent_path}[{i}]"
        num_parts += 1
    return num_parts


def _chat_message(group: Group, signed: SignedTexts) -> chat_pb2.ChatMessage:
    # Texts of several items are joined once: appending each to the message would copy all of them.
    message = chat_pb2.ChatMessage(
        role=ROLES[group.role],
        reasoning_content="\n\n".join(filter(None, _reasoning_texts(group, signed))),
        refusal="".join(_refusals(group)),
    )
    for path, item in group.items:
        _add(message, item, path)
    return message


def _reasoning_texts(group: Group, signed: SignedTexts) -> Iterator[str]:
    for path, item in group.items:
        if isinstance(item, openai.ReasoningInputItem):
            yield _reasoning(item, path, signed)


def _refusals(group: Group) -> Iterator[str]:
    """Yield the refusals of the model's content. That of others has none."""
    for _, item in group.items:
        if group.role == "assistant" and isinstance(item, openai.MessageItem):
            for part in item.content:
                if isinstance(part, openai.OutputRefusalPart):
                    yield part.refusal


def _add(message: chat_pb2.ChatMessage, item: openai.Item, path: str) -> None:
    """Add an item to a message, without the texts that the message has already."""
    match item:
        case openai.MessageItem(content=content, role=role):
            inner = path if _is_text_only(path) else f"{path}.content"
            _add_content(message, content, inner, is_output=role == "assistant")
        case openai.CallOutputItem(call_id=call_id, output=output):
            message.tool_call_id = call_id
            _add_content(message, output, f"{path}.output")
        case openai.FunctionCallItem():
            name = function_name(item.name, item.namespace)
            _add_call(message, item.call_id, name, item.arguments)
        case openai.CustomToolCallItem():
            name = function_name(item.name, item.namespace)
            _add_call(message, item.call_id, name, custom_tools.arguments(item.input))
        case openai.ReasoningInputItem():
            pass
        case openai.ItemReference():
            raise UnsupportedParameter(path, "References need a store of responses.")


def _add_call(message: chat_pb2.ChatMessage, call_id: str, name: str, arguments: str) -> None:
    message.tool_calls.add(
        id=call_id,
        index=len(message.tool_calls),
        function=chat_pb2.FunctionCall(name=name, arguments_json=arguments),
    )


def _reasoning(item: openai.ReasoningInputItem, path: str, signed: SignedTexts) -> str:
    """Return the text of a reasoning item.

    Raises:
        InvalidRequest: A value of this server is damaged or too large.
    """
    try:
        encrypted = signed.text("", item.encrypted_content or "")
    except InvalidSignature as error:
        param = f"{path}.encrypted_content"
        raise InvalidRequest(f"Invalid '{param}': {error}.", param, "invalid_value") from None
    return encrypted or "\n".join(part.text for part in item.content or item.summary)


def _add_content(
    message: chat_pb2.ChatMessage,
    content: str | Sequence[openai.MessagePart],
    path: str,
    *,
    is_output: bool = False,
) -> None:
    """Add the parts of a content to a message, without the model's refusals.

    Args:
        message: The message.
        content: The content. A string is one part of text.
        path: Its path in the body.
        is_output: True if the content is the model's.
    """
    if isinstance(content, str):
        message.content.add(text=content)
        return
    for i, part in enumerate(content):
        if not (isinstance(part, openai.OutputRefusalPart) and is_output):
            message.content.append(_part(part, f"{path}[{i}]", is_output=is_output))


def _part(part: openai.MessagePart, path: str, *, is_output: bool) -> chat_pb2.ContentPart:
    match part:
        case openai.InputTextPart(text=text):
            return chat_pb2.ContentPart(text=text)
        case openai.OutputTextPart(text=text) if is_output:
            return chat_pb2.ContentPart(text=text)
        case openai.InputImagePart() if not is_output:
            return chat_pb2.ContentPart(image=_image(part, path))
        case openai.InputFilePart() if not is_output:
            return chat_pb2.ContentPart(file=_file(part, path))
    kind = type(part).__struct_config__.tag
    owner = "the assistant's" if is_output else "the client's"
    raise InvalidRequest(
        f"Invalid value for '{path}': {owner} content has no parts of the type '{kind}'.",
        path,
        "invalid_value",
    )


def _image(part: openai.InputImagePart, path: str) -> chat_pb2.ImageContent:
    if part.file_id is not None:
        raise UnsupportedParameter(f"{path}.file_id")
    if part.image_url is None:
        raise InvalidRequest(
            f"Missing required parameter: '{path}.image_url'.",
            f"{path}.image_url",
            "missing_required_parameter",
        )
    return chat_pb2.ImageContent(url=part.image_url, detail=part.detail or "")


def _file(part: openai.InputFilePart, path: str) -> chat_pb2.FileContent:
    if part.file_url is not None:
        raise UnsupportedParameter(f"{path}.file_url")
    return file_content(InputFile(part.file_id, part.file_data, part.filename), path)
