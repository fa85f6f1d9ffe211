"""Conversion of OpenAI's messages to the proto."""

import base64
from typing import Any

import msgspec
import pytest

from chatrpc.v1 import chat_pb2
from gateway_http.convert.messages import chat_message
from gateway_http.protocol.error import InvalidRequest
from gateway_http.protocol.request import Message


def convert(**fields: Any) -> chat_pb2.ChatMessage:
    body = msgspec.json.encode({"role": "user", "content": "Hi"} | fields)
    return chat_message(msgspec.json.decode(body, type=Message), "messages[3]")


def rejection(**fields: Any) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as caught:
        convert(**fields)
    return caught.value


@pytest.mark.parametrize(
    ("part", "wire"),
    [
        ({"type": "text", "text": "a"}, chat_pb2.ContentPart(text="a")),
        (
            {"type": "image_url", "image_url": {"url": "https://x/y.png", "detail": "low"}},
            chat_pb2.ContentPart(image=chat_pb2.ImageContent(url="https://x/y.png", detail="low")),
        ),
        (
            {"type": "input_audio", "input_audio": {"data": "AQI=", "format": "wav"}},
            chat_pb2.ContentPart(audio=chat_pb2.AudioContent(data=b"\x01\x02", format="wav")),
        ),
        (
            {"type": "file", "file": {"file_id": "f", "filename": "a.pdf"}},
            chat_pb2.ContentPart(file=chat_pb2.FileContent(file_id="f", filename="a.pdf")),
        ),
        (
            {"type": "file", "file": {"file_data": "data:application/pdf;base64,AQI="}},
            chat_pb2.ContentPart(file=chat_pb2.FileContent(data=b"\x01\x02")),
        ),
        (
            {"type": "text", "text": "a", "prompt_cache_breakpoint": {}},
            chat_pb2.ContentPart(text="a"),
        ),
    ],
)
def test_content_part_is_converted(part: dict[str, Any], wire: chat_pb2.ContentPart) -> None:
    assert list(convert(content=[part]).content) == [wire]


@pytest.mark.parametrize("data", ["?", "äöü", "A"])
def test_file_is_base64(data: str) -> None:
    error = rejection(content=[{"type": "file", "file": {"file_data": data}}]).body.error
    assert error.param == "messages[3].content[0].file.file_data"


def test_assistant_with_tool_calls_needs_no_content() -> None:
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": '{"a":1}'}}
    message = convert(role="assistant", content=None, tool_calls=[call, call | {"index": 7}])
    assert not message.content
    assert [piece.index for piece in message.tool_calls] == [0, 1]
    assert message.tool_calls[0].function.arguments_json == '{"a":1}'


def test_arguments_may_come_unwrapped() -> None:
    call = {"id": "c", "function": {"name": "f", "arguments": {"b": 1, "a": 2}}}
    message = convert(role="assistant", tool_calls=[call])
    assert message.tool_calls[0].function.arguments_json == '{"b":1,"a":2}'


def test_message_of_a_response_is_accepted_in_a_request() -> None:
    message = convert(
        role="assistant",
        content="Hello",
        refusal=None,
        annotations=[],
        audio=None,
        function_call=None,
        tool_calls=None,
        reasoning_content="Hm.",
    )
    assert message.reasoning_content == "Hm."
    assert message.content[0].text == "Hello"


def test_refusal_part_is_the_refusal() -> None:
    message = convert(role="assistant", content=[{"type": "refusal", "refusal": "No."}])
    assert message.refusal == "No."
    assert not message.content


@pytest.mark.parametrize("role", ["system", "developer", "user", "tool"])
def test_missing_content_is_rejected_except_for_the_assistant(role: str) -> None:
    error = rejection(role=role, content=None).body.error
    assert (error.param, error.code) == ("messages[3].content", "missing_required_parameter")


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"role": "function"}, "messages[3].role"),
        ({"role": "assistant", "audio": {"id": "a"}}, "messages[3].audio"),
        ({"role": "assistant", "function_call": {"name": "f"}}, "messages[3].function_call"),
    ],
)
def test_field_without_equivalent_is_rejected(fields: dict[str, Any], param: str) -> None:
    assert rejection(**fields).body.error.param == param


def test_large_base64_survives() -> None:
    data = bytes(range(256)) * 100
    part = {"type": "file", "file": {"file_data": base64.b64encode(data).decode()}}
    assert convert(content=[part]).content[0].file.data == data
