"""Bodies with one mistake each, and the errors that OpenAI's clients receive."""

import contextlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway_http.protocol.completion import CompletionRequest
from gateway_http.protocol.decode import decoder
from gateway_http.protocol.error import InvalidRequest
from gateway_http.protocol.request import ChatCompletionRequest

decode = decoder(ChatCompletionRequest)
HI = {"role": "user", "content": "Hi"}


def refusal(body: bytes) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as caught:
        decode(body)
    return caught.value


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"model": None}, "model", "invalid_type"),
        ({"model": 1}, "model", "invalid_type"),
        ({"messages": []}, "messages", "empty_array"),
        ({"messages": "Hi"}, "messages", "invalid_type"),
        ({"messages": [{"content": "Hi"}]}, "messages[0].role", "missing_required_parameter"),
        ({"messages": [HI, HI | {"role": "bot"}]}, "messages[1].role", "invalid_value"),
        ({"messages": [HI | {"content": 1}]}, "messages[0].content", "invalid_type"),
        ({"messages": [HI | {"mood": 1}]}, "messages[0].mood", "unknown_parameter"),
        (
            {"messages": [HI | {"content": [{"type": "smell"}]}]},
            "messages[0].content[0].type",
            "invalid_value",
        ),
        (
            {"messages": [HI | {"content": [{"type": "text"}]}]},
            "messages[0].content[0].text",
            "missing_required_parameter",
        ),
        ({"n": 0}, "n", "integer_below_min_value"),
        ({"n": 129}, "n", "integer_above_max_value"),
        ({"n": 1.5}, "n", "invalid_type"),
        ({"n": True}, "n", "invalid_type"),
        ({"max_tokens": -2}, "max_tokens", "integer_below_min_value"),
        ({"truncate_prompt_tokens": -1}, "truncate_prompt_tokens", "integer_below_min_value"),
        ({"prompt_logprobs": -1}, "prompt_logprobs", "integer_below_min_value"),
        ({"max_tokens": 2**32}, "max_tokens", "integer_above_max_value"),
        ({"seed": 2**63}, "seed", "integer_above_max_value"),
        ({"seed": -(2**63) - 1}, "seed", "integer_below_min_value"),
        ({"temperature": 1e39}, "temperature", "decimal_above_max_value"),
        ({"temperature": -1e39}, "temperature", "decimal_below_min_value"),
        ({"temperature": "hot"}, "temperature", "invalid_type"),
        ({"stop": 1}, "stop", "invalid_type"),
        ({"stop": ["a", 1]}, "stop[1]", "invalid_type"),
        ({"logit_bias": {"a": 1}}, "logit_bias", "invalid_type"),
        ({"logit_bias": {"-1": 1}}, "logit_bias", "integer_below_min_value"),
        ({"reasoning_effort": "heroic"}, "reasoning_effort", "invalid_value"),
        ({"response_format": {"type": "xml"}}, "response_format.type", "invalid_value"),
        ({"tool_choice": "maybe"}, "tool_choice", "invalid_value"),
        ({"tools": [{"type": "custom"}]}, "tools[0].type", "invalid_value"),
        ({"stream_options": {"foo": 1}}, "stream_options.foo", "unknown_parameter"),
        ({"foo": 1}, "foo", "unknown_parameter"),
    ],
)
def test_error_of_mismatch_names_the_parameter(
    fields: dict[str, Any], param: str, code: str
) -> None:
    error = refusal(json.dumps({"model": "m", "messages": [HI]} | fields).encode()).body.error

    assert (error.param, error.code, error.type) == (param, code, "invalid_request_error")
    assert "`" not in error.message
    assert "$" not in error.message


def test_messages_are_those_of_openai() -> None:
    assert refusal(b"{}").body.error.message == "Missing required parameter: 'model'."
    unknown = refusal(b'{"model":"m","messages":[{"role":"user"}],"foo":1}')
    assert unknown.body.error.message == "Unrecognized request argument supplied: foo"
    wrong = refusal(b'{"model":"m","messages":[{"role":"user","content":1}]}')
    assert wrong.body.error.message == (
        "Invalid type for 'messages[0].content': "
        "expected a string or an array, but got an integer instead."
    )


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"null",
        b"[]",
        b'"text"',
        b"{",
        b'{"model":"m"} {}',
        b'{"model":"\xff","messages":[]}',
        b'\xef\xbb\xbf{"model":"m"}',
        b'{"model":"\\ud800","messages":[]}',
        b'{"model":"m","messages":[{"role":"user","content":"\\udc00"}]}',
        b'{"model":"m","temperature":NaN}',
        b'{"model":"m","temperature":Infinity}',
        b'{"model":"m","temperature":1e999}',
        b'{"model":"m","seed":' + b"9" * 10_000 + b"}",
        b'{"model":"m","metadata":' + b"[" * 200_000,
        b'{"model":"m","chat_template_kwargs":' + b'{"a":' * 50_000 + b"1" + b"}" * 50_001,
    ],
)
def test_malformed_body_is_rejected(body: bytes) -> None:
    assert refusal(body).status == 400


@pytest.mark.parametrize(
    ("body", "key"),
    [
        (b'{"model":"m","model":"n","messages":[{"role":"user"}]}', "model"),
        (b'{"model":"m","messages":[{"role":"user","content":"a","content":"b"}]}', "content"),
        (
            b'{"model":"m","messages":[{"role":"user"}],"chat_template_kwargs":{"a":1,"a":2}}',
            "a",
        ),
    ],
)
def test_duplicate_key_is_rejected(body: bytes, key: str) -> None:
    error = refusal(body).body.error
    assert error.param == key
    assert "twice" in error.message


@pytest.mark.parametrize(
    "ids", ["[" + "7, " * 20_000 + "7]", "[[ " + "1," * 20_000 + "1 ], [10, 2]]"]
)
def test_duplicate_key_beside_long_list_of_numbers_is_rejected(ids: str) -> None:
    body = f'{{"model":"m","prompt":{ids},"user":"a","user":"b"}}'
    with pytest.raises(InvalidRequest) as caught:
        decoder(CompletionRequest)(body.encode())
    assert caught.value.body.error.param == "user"


def test_different_keys_that_are_long_lists_of_numbers_are_accepted() -> None:
    keys = ["[" + "1," * 20_000 + f"{last}]" for last in (1, 2)]
    kwargs = json.dumps(dict.fromkeys(keys, 0))
    hi = json.dumps(HI)
    decode(f'{{"model":"m","messages":[{hi}],"chat_template_kwargs":{kwargs}}}'.encode())


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"", "it is empty"),
        (b"\xef\xbb\xbf \n", "it is empty"),
        (b'{"model": "m"', "it ends in the middle of a value (byte 13)"),
        (b'{"model": "\xff"}', "it is not valid UTF-8 (byte 11)"),
        ('{"model": "m"}'.encode("utf-16"), "it is not valid UTF-8 (byte 0)"),
        (b'{"model":"m","messages":[{"role":"user"}]} {}', "trailing characters (byte 44)"),
        (b"{'model': 'm'}", "object keys must be strings (byte 1)"),
        (b'{"model" "m"}', "expected ':' (byte 9)"),
    ],
)
def test_error_of_malformed_body_states_the_reason(body: bytes, reason: str) -> None:
    message = refusal(body).body.error.message
    assert message == f"We could not parse the JSON body of your request: {reason}."


def test_byte_order_mark_is_skipped() -> None:
    body = json.dumps({"model": "é", "messages": [HI]}, ensure_ascii=False).encode("utf-8-sig")
    assert decode(body).model == "é"


def test_quotation_in_error_is_cut() -> None:
    error = refusal(json.dumps({"model": "m", "messages": [HI], "x" * 100_000: 1}).encode())
    assert len(error.body.error.message) < 1000


def test_null_is_the_same_as_absent() -> None:
    named = {"temperature", "stop", "tools", "stream_options", "response_format", "functions"}
    request = decode(json.dumps({"model": "m", "messages": [HI]} | dict.fromkeys(named)).encode())
    assert all(getattr(request, name) is None for name in named)


@pytest.mark.parametrize(
    "number", [str(10**30), "18446744073709551617", "1e400", "0.1000", "1E19", "-0.0"]
)
def test_numbers_in_schema_are_unchanged(number: str) -> None:
    schema = f'{{"b": {number}, "a": null}}'
    tool = f'{{"type": "function", "function": {{"name": "f", "parameters": {schema}}}}}'
    body = f'{{"model": "m", "messages": [{json.dumps(HI)}], "tools": [{tool}]}}'
    request = decode(body.encode())
    assert request.tools
    assert bytes(request.tools[0].function.parameters).decode() == schema


@given(st.binary(max_size=200))
def test_any_bytes_are_decoded_or_rejected(body: bytes) -> None:
    with contextlib.suppress(InvalidRequest):
        decode(body)


@pytest.mark.parametrize("request_id", ["", "a b", "é", "x" * 129, "a\n"])
def test_error_of_request_id_states_the_valid_characters(request_id: str) -> None:
    body = json.dumps({"model": "m", "messages": [HI], "request_id": request_id}).encode()
    error = refusal(body).body.error
    assert (error.param, error.code) == ("request_id", "invalid_value")
    assert error.message == (
        "Invalid 'request_id': expected 1 to 128 printable ASCII characters without spaces."
    )
