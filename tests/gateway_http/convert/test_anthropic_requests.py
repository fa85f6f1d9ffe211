"""The parameters of Anthropic's Messages API."""

from typing import Any, TypeVar

import msgspec
import pytest

from chatrpc.v1 import chat_pb2
from gateway_http.convert.anthropic_requests import params, sent_names, tokenize_request
from gateway_http.protocol.anthropic import UNSUPPORTED, CountTokensRequest, MessagesRequest
from gateway_http.protocol.error import InvalidRequest
from gateway_http.protocol.params import param_of

BODY = {"model": "m", "max_tokens": 16, "messages": [{"role": "user", "content": "Hi"}]}


Body = TypeVar("Body")


def decoded(body: dict[str, Any], kind: type[Body]) -> Body:
    return msgspec.json.decode(msgspec.json.encode(body), type=kind)


def converted(**fields: Any) -> chat_pb2.ChatCompletionParams:
    return params(decoded(BODY | fields, MessagesRequest))


def test_sampling_parameters_are_converted() -> None:
    sampling = converted(temperature=0.5, top_p=0.25, top_k=3, stop_sequences=["a"]).sampling
    assert sampling == chat_pb2.SamplingParams(
        max_completion_tokens=16, temperature=0.5, top_p=0.25, top_k=3, stop=["a"]
    )


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        ({"type": "auto"}, chat_pb2.ToolChoice(mode=chat_pb2.ToolChoice.MODE_AUTO)),
        ({"type": "any"}, chat_pb2.ToolChoice(mode=chat_pb2.ToolChoice.MODE_REQUIRED)),
        ({"type": "none"}, chat_pb2.ToolChoice(mode=chat_pb2.ToolChoice.MODE_NONE)),
        ({"type": "tool", "name": "f"}, chat_pb2.ToolChoice(function_name="f")),
    ],
)
def test_tool_choice_is_converted(choice: Any, expected: chat_pb2.ToolChoice) -> None:
    assert converted(tool_choice=choice).tool_choice == expected


def test_parallel_tool_use_can_be_disabled() -> None:
    for disabled in (True, False):
        choice = {"type": "any", "disable_parallel_tool_use": disabled}
        wanted = converted(tool_choice=choice)
        assert wanted.HasField("parallel_tool_calls") is disabled
        assert not wanted.parallel_tool_calls


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, chat_pb2.REASONING_EFFORT_UNSPECIFIED),
        ({"thinking": {"type": "adaptive"}}, chat_pb2.REASONING_EFFORT_UNSPECIFIED),
        ({"thinking": {"type": "disabled"}}, chat_pb2.REASONING_EFFORT_NONE),
        (
            {"thinking": {"type": "enabled", "budget_tokens": 4096}},
            chat_pb2.REASONING_EFFORT_LOW,
        ),
        (
            {"thinking": {"type": "enabled", "budget_tokens": 4097}},
            chat_pb2.REASONING_EFFORT_MEDIUM,
        ),
        (
            {"thinking": {"type": "enabled", "budget_tokens": 31999}},
            chat_pb2.REASONING_EFFORT_HIGH,
        ),
        (
            {
                "thinking": {"type": "enabled", "budget_tokens": 1024},
                "output_config": {"effort": "max"},
            },
            chat_pb2.REASONING_EFFORT_MAX,
        ),
        (
            {"thinking": {"type": "disabled"}, "output_config": {"effort": "max"}},
            chat_pb2.REASONING_EFFORT_NONE,
        ),
    ],
)
def test_thinking_becomes_the_reasoning_effort(fields: Any, expected: int) -> None:
    assert converted(**fields).reasoning_effort == expected
    body = {name: value for name, value in BODY.items() if name != "max_tokens"}
    counted = tokenize_request(decoded(body | fields, CountTokensRequest)).conversation
    assert counted.reasoning_effort == expected


def test_output_format_becomes_the_response_format() -> None:
    wanted = {"format": {"type": "json_schema", "schema": {"type": "integer"}}}
    response_format = converted(output_config=wanted).response_format
    assert response_format.json_schema.schema_json == '{"type":"integer"}'
    assert response_format.json_schema.strict


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_unsupported_parameter_is_rejected(name: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        converted(**{name: "a"})
    assert caught.value.body.error.param == name


def test_edits_of_the_context_are_those_of_the_template() -> None:
    converted(context_management={"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]})
    with pytest.raises(InvalidRequest) as caught:
        converted(context_management={"edits": [{"type": "clear_tool_uses_20250919"}]})
    assert caught.value.body.error.param == "context_management.edits[0].type"


@pytest.mark.parametrize(
    ("field", "param"),
    [
        ("sampling.max_completion_tokens", "max_tokens"),
        ("sampling.stop[1]", "stop_sequences[1]"),
        ("response_format.json_schema.schema_json", "output_config.format.schema"),
        ("tools[0].function.parameters_json_schema", "tools[0].input_schema"),
        ("tools[0].function.name", "tools[0].name"),
        ("tool_choice.function_name", "tool_choice"),
        ("user", "metadata.user_id"),
        ("reasoning_effort", "thinking"),
        ("prompt.continue_final_message", "messages"),
    ],
)
def test_field_of_the_service_has_the_name_of_the_client(field: str, param: str) -> None:
    request = decoded(BODY | {"tools": [{"name": "f"}]}, MessagesRequest)
    assert param_of(field, sent_names(request)) == param
