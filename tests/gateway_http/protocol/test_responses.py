"""The fields and events of OpenAI's Responses API, compared with those of its SDK."""

from typing import Any, get_args

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Struct
from openai.types.responses import (
    CustomTool,
    EasyInputMessageParam,
    FunctionTool,
    Response,
    ResponseCustomToolCall,
    ResponseFunctionToolCall,
    ResponseOutputMessage,
    ResponseOutputText,
    ResponseReasoningItem,
    ResponseStreamEvent,
    ResponseUsage,
    input_token_count_params,
    response_create_params,
)

from gateway_http.protocol import responses, responses_request
from gateway_http.protocol.error import InvalidRequest
from gateway_http.protocol.responses_request import decode_request, with_item_types
from tests.gateway_http.sample_bodies import RESPONSES

BODY: dict[str, Any] = {"model": "m", "input": "Hi"}


def fields(struct: type[Struct]) -> set[str]:
    return set(struct.__struct_fields__) | {"type"}


@pytest.mark.parametrize(
    ("struct", "params"),
    [
        (responses_request.ResponsesRequest, response_create_params.ResponseCreateParamsBase),
        (responses_request.InputTokensRequest, input_token_count_params.InputTokenCountParams),
        (responses_request.MessageItem, EasyInputMessageParam),
    ],
)
def test_every_parameter_of_the_sdk_is_declared(struct: type[Struct], params: Any) -> None:
    assert set(params.__annotations__) <= fields(struct)


@pytest.mark.parametrize(
    ("struct", "model", "absent"),
    [
        (
            responses.ResponseObject,
            Response,
            {
                "access_programs",
                "conversation",
                "image",
                "input_transformations",
                "moderation",
                "prompt",
                "prompt_cache_diagnostics",
                "prompt_cache_options",
                "prompt_cache_retention",
                "tool_usage",
            },
        ),
        (responses.OutputMessage, ResponseOutputMessage, {"phase"}),
        (responses.OutputText, ResponseOutputText, set()),
        (responses.ReasoningOutput, ResponseReasoningItem, set()),
        (
            responses.FunctionToolCall,
            ResponseFunctionToolCall,
            {"async_", "caller"},
        ),
        (responses.CustomToolCall, ResponseCustomToolCall, {"async_", "caller"}),
        (responses.ResponseUsage, ResponseUsage, set()),
        (responses_request.ResponseFunctionTool, FunctionTool, {"async_"}),
        (responses_request.ResponseCustomTool, CustomTool, {"async_"}),
    ],
)
def test_every_field_of_the_sdk_is_returned_or_optional(
    struct: type[Struct], model: Any, absent: set[str]
) -> None:
    required = {name for name, field in model.model_fields.items() if field.is_required()}
    assert required <= fields(struct)
    assert set(model.model_fields) - fields(struct) == absent


def test_every_event_is_one_of_the_sdk() -> None:
    union = get_args(ResponseStreamEvent)[0]
    events = {
        get_args(event.model_fields["type"].annotation)[0]: event for event in get_args(union)
    }
    for ours in responses.EVENTS:
        event = events.pop(ours.__struct_config__.tag)
        required = {name for name, field in event.model_fields.items() if field.is_required()}
        assert required <= fields(ours), ours
    # Those of hosted tools, of audio, of the background and of annotations.
    hosted = ("_call.", "_call_", "mcp_", "audio", "queued", "annotation", "compaction")
    assert [name for name in events if not any(word in name for word in hosted)] == []


@pytest.mark.parametrize("body", RESPONSES)
def test_sample_is_decoded(body: dict[str, Any]) -> None:
    assert decode_request(msgspec.json.encode(BODY | body)).model == "m"


def test_type_of_messages_and_references_may_be_absent() -> None:
    items = [{"role": "user", "content": "Hi"}, {"id": "msg_1"}, {"type": None, "id": "msg_2"}]
    request = decode_request(msgspec.json.encode(BODY | {"input": items}))
    assert isinstance(request.input, list)
    assert [type(item) for item in request.input] == [
        responses_request.MessageItem,
        responses_request.ItemReference,
        responses_request.ItemReference,
    ]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(json_values | st.builds(dict, input=json_values))
def test_completion_of_types_changes_only_items(value: Any) -> None:
    content = msgspec.json.encode(value)
    completed = with_item_types(content)
    if completed != content:
        assert isinstance(value, dict)
        decoded = msgspec.json.decode(completed)
        for item, sent in zip(decoded.pop("input"), value.pop("input"), strict=True):
            kind = item.pop("type")
            assert kind in {"message", "item_reference"} or kind == sent["type"]
            assert item == {name: each for name, each in sent.items() if name != "type"}
        assert decoded == value


@given(st.binary(max_size=20))
def test_bytes_that_are_not_a_body_are_unchanged(content: bytes) -> None:
    assert with_item_types(content) in (content, msgspec.json.encode({}))


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"input": [{"role": "nobody", "content": "Hi"}]}, "input[0].role", "invalid_value"),
        ({"input": [{"role": "user"}]}, "input[0].content", "missing_required_parameter"),
        ({"input": [{"type": "web_search_call"}]}, "input[0].type", "invalid_value"),
        ({"input": 5}, "input", "invalid_type"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type", "invalid_value"),
        ({"tools": [{"type": "mcp", "server_label": "s"}]}, "tools[0].type", "invalid_value"),
        ({"tools": [{"type": "function"}]}, "tools[0].name", "missing_required_parameter"),
        ({"tool_choice": {"type": "mcp"}}, "tool_choice.type", "invalid_value"),
        ({"tool_choice": "some"}, "tool_choice", "invalid_value"),
        ({"text": {"format": {"type": "xml"}}}, "text.format.type", "invalid_value"),
        ({"text": {"format": {"type": "json_schema"}}}, "text.format.name", None),
        ({"text": {"verbosity": "loud"}}, "text.verbosity", "invalid_value"),
        ({"reasoning": {"effort": "huge"}}, "reasoning.effort", "invalid_value"),
        ({"include": ["everything"]}, "include[0]", "invalid_value"),
        ({"max_output_tokens": 0}, "max_output_tokens", "integer_below_min_value"),
        ({"top_logprobs": -1}, "top_logprobs", "integer_below_min_value"),
        ({"temperature": "hot"}, "temperature", "invalid_type"),
        ({"metadata": {"a": 1}}, "metadata", "invalid_type"),
        ({"n": 2}, "n", "unknown_parameter"),
        ({"messages": []}, "messages", "unknown_parameter"),
    ],
)
def test_malformed_field_is_named(fields: dict[str, Any], param: str, code: str | None) -> None:
    with pytest.raises(InvalidRequest) as caught:
        decode_request(msgspec.json.encode(BODY | fields))
    error = caught.value.body.error
    assert error.param is not None
    assert error.param.startswith(param)
    assert code is None or error.code == code
