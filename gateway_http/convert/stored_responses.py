"""Converts responses to the form in which they are stored, and their items back."""

from collections.abc import Iterable

import msgspec

from gateway_http.protocol.responses import ResponseObject
from gateway_http.protocol.responses_request import (
    InputTextPart,
    Item,
    MessageItem,
    MessagePart,
    OutputTextPart,
    ResponsesRequest,
)

_PREFIXES = {
    "message": "msg",
    "function_call": "fc",
    "custom_tool_call": "ctc",
    "function_call_output": "fco",
    "custom_tool_call_output": "ctco",
    "reasoning": "rs",
    "item_reference": "ref",
}
_encode = msgspec.json.encode
_decode: msgspec.json.Decoder[Item] = msgspec.json.Decoder(Item)


def input_items(request: ResponsesRequest, response: ResponseObject) -> list[tuple[str, bytes]]:
    """Return the items of a request's input, each with its id.

    They get what the API returns and requests may lack: an id, a status, and parts of a content.
    """
    items = request.input
    if isinstance(items, str):
        items = [MessageItem(role="user", content=items)]
    suffix = response.id.removeprefix("resp_")
    return [_stored(item, f"{suffix}_in{i}") for i, item in enumerate(items or ())]


def output_items(response: ResponseObject) -> list[tuple[str, bytes]]:
    """Return the items of a response's output, each with its id."""
    return [(item.id, _encode(item)) for item in response.output]


def items(bodies: Iterable[bytes]) -> list[Item]:
    """Return stored items as items of an input."""
    return [_decode.decode(body) for body in bodies]


def _stored(item: Item, suffix: str) -> tuple[str, bytes]:
    kind = str(type(item).__struct_config__.tag)
    item_id = item.id if isinstance(item.id, str) and item.id else f"{_PREFIXES[kind]}_{suffix}"
    item = msgspec.structs.replace(item, id=item_id, status=item.status or "completed")
    if isinstance(item, MessageItem):
        item.content = [_with_annotations(part) for part in _parts(item)]
    return item_id, _encode(item)


def _parts(item: MessageItem) -> list[MessagePart]:
    if not isinstance(item.content, str):
        return item.content
    kind = OutputTextPart if item.role == "assistant" else InputTextPart
    return [kind(text=item.content)]


def _with_annotations(part: MessagePart) -> MessagePart:
    if isinstance(part, OutputTextPart) and part.annotations is None:
        return msgspec.structs.replace(part, annotations=[])
    return part
