"""The items of OpenAI's Responses API as messages of the proto."""

import itertools
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from chatrpc.v1 import chat_pb2
from gateway_http.convert.responses_input import chat_messages, grouped
from gateway_http.convert.responses_requests import params, sent_names
from gateway_http.protocol.error import InvalidRequest
from gateway_http.protocol.params import param_of
from gateway_http.protocol.responses_request import ResponsesRequest, decode_request

USER = {"role": "user", "content": "Hi"}
TEXT = {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "t"}]}
CALL = {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"}
CUSTOM = {"type": "custom_tool_call", "call_id": "d", "name": "g", "input": 'a"\n'}
RESULT = {"type": "function_call_output", "call_id": "c", "output": "1"}
REASONING = {
    "type": "reasoning",
    "summary": [],
    "content": [{"type": "reasoning_text", "text": "r"}],
}
IMAGE = {"type": "input_image", "image_url": "https://a/b.png"}


def request(*items: dict[str, Any], **fields: Any) -> ResponsesRequest:
    return decode_request(msgspec.json.encode({"model": "m", "input": items} | fields))


def kinds(*items: dict[str, Any]) -> list[list[str]]:
    """Return the kinds of the items of each message."""
    return [
        [placed.item.__struct_config__.tag for placed in group.items]  # type: ignore[misc]
        for group in grouped(request(*items))
    ]


@pytest.mark.parametrize(
    ("items", "expected"),
    [
        ([USER, REASONING, TEXT, CALL, RESULT], [1, 3, 1]),
        ([REASONING, CALL, CALL, RESULT, REASONING, CALL], [3, 1, 2]),
        ([TEXT, TEXT], [1, 1]),
        ([CALL, TEXT, RESULT], [2, 1]),
        ([TEXT, REASONING, TEXT], [1, 2]),
        ([CALL, REASONING, CUSTOM, RESULT], [3, 1]),
    ],
)
def test_items_of_a_turn_are_one_message(items: list[Any], expected: list[int]) -> None:
    assert [len(group) for group in kinds(*items)] == expected


@given(st.lists(st.sampled_from([USER, REASONING, TEXT, CALL, CUSTOM, RESULT]), min_size=1))
def test_no_item_is_lost_and_results_follow_a_whole_turn(items: list[Any]) -> None:
    messages = chat_messages(request(*items))
    assert len([m for m in messages if m.role == chat_pb2.ROLE_TOOL]) == items.count(RESULT)
    calls = [call for message in messages for call in message.tool_calls]
    assert len(calls) == items.count(CALL) + items.count(CUSTOM)
    texts = [part.text for message in messages for part in message.content]
    assert texts.count("t") == items.count(TEXT)
    assert sum(m.reasoning_content.count("r") for m in messages) == items.count(REASONING)
    for before, after in itertools.pairwise(messages):
        assert not (before.tool_calls and after.role == chat_pb2.ROLE_ASSISTANT)


def test_large_turn_is_converted_in_time() -> None:
    """A time that is quadratic in the number of items would be minutes."""
    refusal = {"role": "assistant", "content": [{"type": "refusal", "refusal": "n" * 40}] * 5_000}
    [message] = chat_messages(request(*[REASONING] * 5_000, refusal, CALL))
    assert message.reasoning_content == "\n\n".join("r" * 5_000)
    assert message.refusal == "n" * 200_000
    assert len(message.tool_calls) == 1


def test_instructions_come_first() -> None:
    first, second = chat_messages(request(USER, instructions="Be brief."))
    assert (first.role, first.content[0].text) == (chat_pb2.ROLE_DEVELOPER, "Be brief.")
    assert second.role == chat_pb2.ROLE_USER


def test_input_of_a_custom_tool_is_its_argument() -> None:
    [message] = chat_messages(request(CUSTOM))
    assert message.tool_calls[0].function.arguments_json == '{"input":"a\\"\\n"}'


def test_reasoning_of_another_server_is_its_summary() -> None:
    item = {
        "type": "reasoning",
        "id": "rs_1",
        "summary": [{"type": "summary_text", "text": "Short."}],
        "encrypted_content": "gAAAAA",
    }
    [message] = chat_messages(request(item))
    assert message.reasoning_content == "Short."


@pytest.mark.parametrize(
    ("items", "param"),
    [
        (
            [{"role": "user", "content": [{"type": "output_text", "text": "t"}]}],
            "input[0].content[0]",
        ),
        ([{"role": "assistant", "content": [IMAGE]}], "input[0].content[0]"),
        ([{"role": "user", "content": [{"type": "input_image"}]}], "input[0].content[0].image_url"),
        (
            [{"role": "user", "content": [{"type": "input_image", "file_id": "f"}]}],
            "input[0].content[0].file_id",
        ),
        (
            [{"role": "user", "content": [{"type": "input_file", "file_url": "u"}]}],
            "input[0].content[0].file_url",
        ),
        (
            [{"role": "user", "content": [{"type": "input_file", "file_data": "?"}]}],
            "input[0].content[0].file_data",
        ),
        (
            [USER, {"type": "reasoning", "summary": [], "encrypted_content": "chatrpc-text:x"}],
            "input[1].encrypted_content",
        ),
        ([USER, {"type": "item_reference", "id": "msg_1"}], "input[1]"),
        ([], "input"),
    ],
)
def test_invalid_item_is_named(items: list[Any], param: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        params(request(*items))
    assert caught.value.body.error.param == param


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"background": True}, "background"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"prompt": {"id": "pmpt_1"}}, "prompt"),
        ({"moderation": {"model": "m"}}, "moderation"),
        ({"context_management": [{"type": "compaction"}]}, "context_management"),
        ({"stream_options": {"include_obfuscation": False}}, "stream_options"),
    ],
)
def test_unsupported_parameter_is_named(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        params(request(USER, **fields))
    assert caught.value.body.error.param == param


@pytest.mark.parametrize(
    "fields", [{"background": False}, {"store": False}, {"store": None}, {"conversation": None}]
)
def test_parameter_without_effect_is_accepted(fields: dict[str, Any]) -> None:
    params(request(USER, **fields))


@pytest.mark.parametrize(
    ("field", "param"),
    [
        ("messages", "input"),
        ("messages[0].content", "instructions"),
        ("messages[1].content[0].image.url", "input[0].content[0].image_url"),
        ("messages[1].content[1].file.data", "input[0].content[1].file_data"),
        ("messages[2].reasoning_content", "input[1]"),
        ("messages[2].content[0]", "input[2].content[0]"),
        ("messages[2].tool_calls[0].function.arguments_json", "input[3].arguments"),
        ("messages[2].tool_calls[1].function.name", "input[4].name"),
        ("messages[3].tool_call_id", "input[5].call_id"),
        ("messages[3].content", "input[5].output"),
        ("tools[0].function.parameters_json_schema.a", "tools[0].parameters.a"),
        ("tools[0].function.name", "tools[0].name"),
        ("tools[1].function.parameters_json_schema", "tools[1].format.definition"),
        ("tool_choice.function_name", "tool_choice"),
        ("tool_choice.allowed_tools.function_names", "tool_choice.tools"),
        ("sampling.max_completion_tokens", "max_output_tokens"),
        ("sampling.temperature", "temperature"),
        ("response_format.json_schema.schema_json", "text.format.schema"),
        ("reasoning_effort", "reasoning.effort"),
        ("top_logprobs", "top_logprobs"),
        ("metadata", "metadata"),
    ],
)
def test_error_of_the_service_has_the_name_of_the_client(field: str, param: str) -> None:
    files = [IMAGE, {"type": "input_file", "file_data": "QQ=="}]
    items: list[Any] = [{"role": "user", "content": files}, REASONING, TEXT, CALL, CUSTOM, RESULT]
    tools = [{"type": "function", "name": "f"}, {"type": "custom", "name": "g"}]
    body = request(*items, instructions="Be brief.", tools=tools)
    assert param_of(field, sent_names(body)) == param


def test_string_is_the_message_of_a_user() -> None:
    body = decode_request(b'{"model": "m", "input": "Hi"}')
    [message] = chat_messages(body)
    assert (message.role, message.content[0].text) == (chat_pb2.ROLE_USER, "Hi")
    assert param_of("messages[0].content[0]", sent_names(body)) == "input"
