"""Checks of the number of elements in a message before it is parsed."""

from contextlib import suppress
from typing import Any

import pytest
from google.protobuf.message import DecodeError, Message
from hypothesis import given
from hypothesis import strategies as st

from chatrpc.v1 import (
    chat_pb2,
    chat_service_pb2,
    completion_pb2,
    completion_service_pb2,
    model_service_pb2,
)
from service.errors import InvalidField
from service.rpc.calls.message_elements import MAX_ELEMENTS, check_num_elements

MANY = MAX_ELEMENTS + 1


def chat(**fields: object) -> Message:
    params = chat_pb2.ChatCompletionParams(model="m", **fields)  # type: ignore[arg-type]
    return chat_service_pb2.CreateChatCompletionRequest(params=params)


def text(*prompts: completion_pb2.CompletionPrompt) -> Message:
    params = completion_pb2.CompletionParams(model="m", prompts=prompts)
    return completion_service_pb2.CreateCompletionRequest(params=params)


def ids(num_ids: int) -> completion_pb2.CompletionPrompt:
    return completion_pb2.CompletionPrompt(
        token_ids=completion_pb2.TokenIds(ids=[20_000] * num_ids)
    )


def parts(num_parts: int) -> chat_pb2.ChatMessage:
    return chat_pb2.ChatMessage(content=[chat_pb2.ContentPart(text="")] * num_parts)


def calls(num_calls: int) -> chat_pb2.ChatMessage:
    return chat_pb2.ChatMessage(tool_calls=[chat_pb2.ToolCall()] * num_calls)


def count(message: Any) -> None:  # the type stubs define two classes of descriptors
    check_num_elements(message.SerializeToString(), message.DESCRIPTOR)


@pytest.mark.parametrize(
    ("message", "field"),
    [
        (chat(messages=[parts(MANY)]), "messages.content"),
        (chat(messages=[chat_pb2.ChatMessage()] * MANY), "messages"),
        (chat(messages=[calls(MANY)]), "messages.tool_calls"),
        (chat(tools=[chat_pb2.Tool()] * MANY), "tools"),
        (chat(modalities=[chat_pb2.MODALITY_TEXT] * 8_000_000), "modalities"),
        (chat(metadata={str(i): "" for i in range(MANY)}), "metadata"),
        (chat(sampling=chat_pb2.SamplingParams(stop=[""] * MANY)), "sampling.stop"),
        (text(ids(2_000_000)), "prompts.token_ids.ids"),
        (text(*[completion_pb2.CompletionPrompt()] * MANY), "prompts"),
        (
            model_service_pb2.TokenizeRequest(
                conversation=model_service_pb2.Conversation(messages=[parts(MANY)])
            ),
            "conversation.messages.content",
        ),
        (model_service_pb2.DetokenizeRequest(token_ids=[20_000] * 2_000_000), "token_ids"),
    ],
)
def test_too_many_elements_are_rejected_and_named(message: Message, field: str) -> None:
    with pytest.raises(InvalidField, match="at most 100000 elements") as caught:
        count(message)
    assert caught.value.field == field


@pytest.mark.parametrize(
    "message",
    [
        chat(messages=[parts(1)] * 8191),
        chat(messages=[parts(1)] * 10, metadata={"k" * 300_000: "v"}),
        text(*[ids(8191)] * 128),
        text(completion_pb2.CompletionPrompt(text="x" * 5_000_000)),
    ],
)
def test_large_messages_of_few_elements_are_allowed(message: Message) -> None:
    count(message)


@pytest.mark.parametrize("filler", [b"\xff", b"\x80", b"\x0a", b"\x0b", b"\x7f", b"\x07"])
def test_invalid_bytes_end_the_count(filler: bytes) -> None:
    descriptor = chat_service_pb2.CreateChatCompletionRequest.DESCRIPTOR
    with suppress(InvalidField):  # some of these bytes are many fields
        check_num_elements(filler * 1_000_000, descriptor)


@given(st.binary(max_size=60), st.integers(0, 3))
def test_every_valid_message_is_counted_without_an_error(data: bytes, repeats: int) -> None:
    """Messages are padded, because only large ones are counted."""
    kind = chat_service_pb2.CreateChatCompletionRequest
    padding = b"\x7a" + b"\xc0\x9a\x0c" + b"x" * 200_000  # an unknown field
    data = padding + data * (repeats + 1)
    try:
        kind.FromString(data)
    except DecodeError:
        return
    check_num_elements(data, kind.DESCRIPTOR)
