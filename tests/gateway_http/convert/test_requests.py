"""Conversion of OpenAI's chat requests to the proto."""

import json
from typing import Any

import pytest
from google.protobuf import json_format

from chatrpc.v1 import chat_pb2
from gateway_http.convert import requests
from gateway_http.protocol.decode import decoder
from gateway_http.protocol.error import InvalidRequest
from gateway_http.protocol.params import param_of
from gateway_http.protocol.request import UNSUPPORTED, ChatCompletionRequest
from tests.gateway_http.sample_bodies import SAMPLING

decode = decoder(ChatCompletionRequest)


def params(**fields: Any) -> chat_pb2.ChatCompletionParams:
    body = {"model": "m", "messages": [{"role": "user", "content": "Hi"}]} | fields
    return requests.params(decode(json.dumps(body).encode()))


def rejection(**fields: Any) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as caught:
        params(**fields)
    return caught.value


def test_request_with_every_sampling_parameter_sets_every_sampling_field() -> None:
    body = SAMPLING | {"structured_outputs": None}
    given = {field.name for field, _ in params(**body).sampling.ListFields()}
    assert given == set(chat_pb2.SamplingParams.DESCRIPTOR.fields_by_name)


def test_smallest_request_sets_nothing_else() -> None:
    assert params() == chat_pb2.ChatCompletionParams(
        messages=[
            chat_pb2.ChatMessage(role=chat_pb2.ROLE_USER, content=[chat_pb2.ContentPart(text="Hi")])
        ],
        sampling=chat_pb2.SamplingParams(),
        prompt=chat_pb2.PromptOptions(),
    )


@pytest.mark.parametrize(
    ("fields", "wire"),
    [
        ({"temperature": 0}, {"sampling": {"temperature": 0.0}}),
        ({"top_p": 0.5, "min_p": 0.25}, {"sampling": {"topP": 0.5, "minP": 0.25}}),
        ({"top_k": -1}, {"sampling": {"topK": 0}}),
        ({"repeat_penalty": 1.5}, {"sampling": {"repetitionPenalty": 1.5}}),
        ({"max_tokens": -1}, {}),
        ({"max_completion_tokens": -1, "max_tokens": 5}, {}),
        ({"n_predict": 5, "cache_prompt": True}, {"sampling": {"maxCompletionTokens": 5}}),
        ({"n_predict": -1}, {}),
        ({"stop": ""}, {}),
        ({"stop": [""]}, {"sampling": {"stop": [""]}}),
        ({"max_tokens": 5}, {"sampling": {"maxCompletionTokens": 5}}),
        (
            {"max_tokens": 5, "max_completion_tokens": 0},
            {"sampling": {"maxCompletionTokens": 0}},
        ),
        ({"seed": -(2**63)}, {"sampling": {"seed": str(-(2**63))}}),
        ({"stop": "x"}, {"sampling": {"stop": ["x"]}}),
        ({"stop": ["x", "y"]}, {"sampling": {"stop": ["x", "y"]}}),
        ({"logit_bias": {"5": -100, "6": 1.5}}, {"sampling": {"logitBias": {"5": -100, "6": 1.5}}}),
        ({"ignore_eos": True, "min_tokens": 3}, {"sampling": {"ignoreEos": True, "minTokens": 3}}),
        ({"stop_token_ids": [1, 2]}, {"sampling": {"stopTokenIds": [1, 2]}}),
        ({"tools": []}, {}),
        ({"tool_choice": "none"}, {"toolChoice": {"mode": "MODE_NONE"}}),
        (
            {"tool_choice": {"type": "function", "function": {"name": "f"}}},
            {"toolChoice": {"functionName": "f"}},
        ),
        (
            {
                "tool_choice": {
                    "type": "allowed_tools",
                    "allowed_tools": {
                        "mode": "required",
                        "tools": [{"type": "function", "function": {"name": "f"}}],
                    },
                }
            },
            {"toolChoice": {"allowedTools": {"mode": "MODE_REQUIRED", "functionNames": ["f"]}}},
        ),
        (
            {"tools": [{"type": "function", "function": {"name": "f", "strict": False}}]},
            {"tools": [{"function": {"name": "f", "strict": False}}]},
        ),
        ({"response_format": {"type": "text"}}, {"responseFormat": {"text": {}}}),
        ({"response_format": {"type": "json_object"}}, {"responseFormat": {"jsonObject": {}}}),
        (
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "s", "schema": {"b": 1, "a": 2}, "strict": True},
                }
            },
            {
                "responseFormat": {
                    "jsonSchema": {"name": "s", "schemaJson": '{"b": 1, "a": 2}', "strict": True}
                }
            },
        ),
        ({"structured_outputs": {"regex": "a+"}}, {"responseFormat": {"regex": "a+"}}),
        (
            {"structured_outputs": {"choice": ["a", "b"]}},
            {"responseFormat": {"choice": {"choices": ["a", "b"]}}},
        ),
        (
            {"structured_outputs": {"json": {"type": "object"}}},
            {"responseFormat": {"jsonSchema": {"schemaJson": '{"type": "object"}'}}},
        ),
        ({"structured_outputs": {"grammar": "x"}}, {"responseFormat": {"grammar": "x"}}),
        ({"structured_outputs": {"json_object": True}}, {"responseFormat": {"jsonObject": {}}}),
        ({"regex": "a+", "grammar": "", "json_schema": None}, {"responseFormat": {"regex": "a+"}}),
        ({"ebnf": "x"}, {"responseFormat": {"grammar": "x"}}),
        ({"grammar": "x"}, {"responseFormat": {"grammar": "x"}}),
        (
            {"json_schema": {"a": 1}},
            {"responseFormat": {"jsonSchema": {"schemaJson": '{"a": 1}'}}},
        ),
        (
            {"json_schema": '{"a": 1}'},
            {"responseFormat": {"jsonSchema": {"schemaJson": '{"a": 1}'}}},
        ),
        ({"json_schema": ""}, {}),
        ({"logprobs": False, "top_logprobs": 0}, {"logprobs": False, "topLogprobs": 0}),
        ({"reasoning_effort": "none"}, {"reasoningEffort": "REASONING_EFFORT_NONE"}),
        ({"reasoning": {"effort": "low"}}, {"reasoningEffort": "REASONING_EFFORT_LOW"}),
        ({"reasoning": {"enabled": False}}, {"reasoningEffort": "REASONING_EFFORT_NONE"}),
        ({"reasoning": {"enabled": True, "exclude": True, "summary": "auto"}}, {}),
        ({"include_reasoning": False}, {}),
        ({"verbosity": "low"}, {"verbosity": "VERBOSITY_LOW"}),
        ({"modalities": ["text", "audio"]}, {"modalities": ["MODALITY_TEXT", "MODALITY_AUDIO"]}),
        (
            {"audio": {"voice": "alto", "format": "wav"}},
            {"audio": {"voice": "alto", "format": "wav"}},
        ),
        (
            {"prediction": {"type": "content", "content": "x"}},
            {"prediction": {"content": [{"text": "x"}]}},
        ),
        (
            {"chat_template_kwargs": {"enable_thinking": False}},
            {"prompt": {"chatTemplateKwargsJson": '{"enable_thinking":false}'}},
        ),
        (
            {"enable_thinking": False},
            {"prompt": {"chatTemplateKwargsJson": '{"enable_thinking":false}'}},
        ),
        (
            {"enable_thinking": False, "chat_template_kwargs": {"enable_thinking": True}},
            {"prompt": {"chatTemplateKwargsJson": '{"enable_thinking":true}'}},
        ),
        ({"continue_final_message": True}, {"prompt": {"continueFinalMessage": True}}),
        ({"priority": -1, "cache_salt": "s"}, {"priority": -1, "cacheSalt": "s"}),
        (
            {"user": "u", "store": True, "metadata": {"a": "b"}, "service_tier": "auto"},
            {"user": "u", "store": True, "metadata": {"a": "b"}, "serviceTier": "auto"},
        ),
        ({"prompt_cache_retention": "24h", "prompt_cache_options": {"mode": "x"}}, {}),
    ],
)
def test_field_has_its_place(fields: dict[str, Any], wire: dict[str, Any]) -> None:
    expected = params()
    expected.MergeFrom(json_format.ParseDict(wire, chat_pb2.ChatCompletionParams()))
    assert params(**fields) == expected


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_unsupported_parameter_is_rejected_by_name(name: str) -> None:
    error = rejection(**{name: "x"}).body.error
    assert (error.param, error.code) == (name, "unsupported_parameter")
    assert params(**{name: None}) == params()


def test_refusal_names_what_to_use_instead() -> None:
    assert "'tools'" in rejection(functions=[]).body.error.message


@pytest.mark.parametrize("stream", [None, False])
def test_stream_options_need_a_stream(stream: bool | None) -> None:
    error = rejection(stream=stream, stream_options={"include_usage": True}).body.error
    assert error.param == "stream_options"


@pytest.mark.parametrize("given", [{}, {"regex": "a", "grammar": "b"}])
def test_structured_outputs_has_one_field(given: dict[str, str]) -> None:
    assert rejection(structured_outputs=given).body.error.param == "structured_outputs"


def test_response_format_with_structured_outputs_is_rejected() -> None:
    both = {"response_format": {"type": "text"}, "structured_outputs": {"regex": "a"}}
    assert rejection(**both).body.error.param == "structured_outputs"


@pytest.mark.parametrize(
    "fields",
    [
        {"response_format": {"type": "text"}, "regex": "a"},
        {"structured_outputs": {"regex": "a"}, "regex": "a"},
        {"grammar": "a", "regex": "a"},
        {"ebnf": "a", "json_schema": {}},
    ],
)
def test_two_names_of_the_format_are_rejected(fields: dict[str, Any]) -> None:
    error = rejection(**fields).body.error
    assert error.param in fields
    assert all(f"'{name}'" in error.message for name in fields)


def test_reasoning_budget_is_rejected_by_its_path() -> None:
    assert rejection(reasoning={"max_tokens": 5}).body.error.param == "reasoning.max_tokens"


@pytest.mark.parametrize(
    ("fields", "field", "sent_name"),
    [
        ({"n_predict": 5}, "sampling.max_completion_tokens", "n_predict"),
        ({"regex": "a"}, "response_format.regex", "regex"),
        ({"ebnf": "a"}, "response_format.grammar", "ebnf"),
        ({"grammar": "a"}, "response_format.grammar", "grammar"),
        ({"json_schema": {}}, "response_format.json_schema.schema_json.a", "json_schema.a"),
        ({"reasoning": {"effort": "low"}}, "reasoning_effort", "reasoning.effort"),
        ({"enable_thinking": True}, "prompt.chat_template_kwargs_json", "enable_thinking"),
    ],
)
def test_error_names_the_parameter_that_was_sent(
    fields: dict[str, Any], field: str, sent_name: str
) -> None:
    body = {"model": "m", "messages": [{"role": "user", "content": "Hi"}]} | fields
    names = requests.chat_names(decode(json.dumps(body).encode()))
    assert param_of(field, names) == sent_name
