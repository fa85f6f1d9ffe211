"""Unknown keys with the value null, which clients send back from other servers' responses."""

import json
from typing import Any

import pytest

from gateway_http.protocol.completion import CompletionRequest
from gateway_http.protocol.decode import decoder
from gateway_http.protocol.error import InvalidRequest
from gateway_http.protocol.request import ChatCompletionRequest
from gateway_http.protocol.tokens import TokenizeRequest
from gateway_http.protocol.unknown_nulls import without_unknown_nulls
from tests.gateway_http.sample_bodies import CHAT, CONVERSATION

decode = decoder(ChatCompletionRequest)
UNKNOWN = {"provider_specific_fields": None, "reasoning_details": None}


def with_nulls(value: Any) -> Any:
    """Add unknown nulls to every object of a declared type in a request."""
    if isinstance(value, list):
        return [with_nulls(item) for item in value]
    if isinstance(value, dict):
        opaque = {"logit_bias", "metadata", "chat_template_kwargs", "parameters", "schema"}
        return {k: v if k in opaque else with_nulls(v) for k, v in value.items()} | UNKNOWN
    return value


def test_unknown_nulls_are_absent_in_every_object() -> None:
    fields = {name: value for name, value in CHAT.items() if name != "structured_outputs"}
    body = {"model": "m", "messages": CONVERSATION} | fields
    assert decode(json.dumps(with_nulls(body)).encode()) == decode(json.dumps(body).encode())


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        (CompletionRequest, {"model": "m", "prompt": "x", "stream_options": {}}),
        (TokenizeRequest, {"messages": [{"role": "user", "content": "x"}]}),
    ],
)
def test_unknown_nulls_are_absent_in_other_requests(kind: type, body: dict[str, Any]) -> None:
    decode: Any = decoder(kind)
    assert decode(json.dumps(with_nulls(body)).encode()) == decode(json.dumps(body).encode())


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"messages": [{"role": "user", "content": "x", "mood": 0} | UNKNOWN]}, "messages[0].mood"),
        (UNKNOWN | {"mood": False}, "mood"),
        ({"tools": [{"type": "function", "function": {"name": None} | UNKNOWN}]}, None),
        ({"messages": [{"role": None, "content": "x"} | UNKNOWN]}, "messages[0].role"),
    ],
)
def test_other_mistake_beside_unknown_null_is_rejected(
    fields: dict[str, Any], param: str | None
) -> None:
    body = {"model": "m", "messages": [{"role": "user", "content": "x"}]} | fields
    with pytest.raises(InvalidRequest) as caught:
        decode(json.dumps(body).encode())
    assert caught.value.body.error.param == param or param is None


def test_values_of_no_declared_type_are_unchanged() -> None:
    schema = (
        b'{"const": null, "x": null, "enum": [1.50, 9007199254740993], "properties":{"a":null}}'
    )
    body = (
        b'{"a": null, "model": "m", "messages": [{"role": "user", "content": "x", "b": null}], '
        b'"chat_template_kwargs": {"c": null}, "response_format": {"type": "json_schema", '
        b'"json_schema": {"name": "s", "d": null, "schema": %s}}}' % schema
    )
    request = decode(body)
    assert request.chat_template_kwargs == {"c": None}
    assert bytes(request.response_format.json_schema.schema) == schema  # type: ignore[union-attr]
    kept = without_unknown_nulls(body, ChatCompletionRequest)
    assert kept.replace(schema, b"").count(b"null") == 1


def test_duplicate_unknown_null_is_rejected() -> None:
    with pytest.raises(InvalidRequest, match="occurs twice"):
        decode(
            b'{"model": "m", "messages": [{"role": "user", "content": "x"}], "a": null, "a": null}'
        )
