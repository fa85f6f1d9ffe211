"""The limits that the OpenAPI document states are those that the service enforces."""

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from gateway_http.convert import completions, requests
from gateway_http.endpoints import ENDPOINTS
from gateway_http.openapi.document import document
from gateway_http.protocol.completion import CompletionRequest
from gateway_http.protocol.decode import decoder
from gateway_http.protocol.error import InvalidRequest
from gateway_http.protocol.request import ChatCompletionRequest
from service.domain.backend import ModelSpec
from service.domain.sampling import SamplingParams
from service.errors import InvalidField
from service.rpc.decode.chat import chat_request
from service.rpc.decode.completion import completion_request

SCHEMAS = document(ENDPOINTS, "1.0")["components"]["schemas"]
# Every token id that the document allows is in the vocabulary.
SPEC = ModelSpec(1000, 300, SamplingParams(), vocab_size=2**32)
# The only valid value of `best_of` is that of `n`.
WITHOUT_RANGE = {"best_of"}

Check = Callable[[dict[str, Any]], None]
Schema = dict[str, Any]


def check_chat(body: dict[str, Any]) -> None:
    """Raise for a body that the gateway or the service rejects."""
    required = {"model": "m", "messages": [{"role": "user", "content": "Hi"}], "logprobs": True}
    decoded = decoder(ChatCompletionRequest)(json.dumps(required | body).encode())
    chat_request(requests.params(decoded), SPEC)


def check_completion(body: dict[str, Any]) -> None:
    """Raise for a body that the gateway or the service rejects."""
    required = {"model": "m", "prompt": "x", "max_tokens": -1}
    decoded = decoder(CompletionRequest)(json.dumps(required | body).encode())
    completion_request(completions.params(decoded), SPEC)


CHECKS: dict[str, Check] = {
    "ChatCompletionRequest": check_chat,
    "CompletionRequest": check_completion,
}


def values(name: str, schema: Schema) -> Iterator[tuple[Any, bool]]:
    """Yield values at the limits of a schema with True, and values beyond them with False."""
    for branch in schema.get("anyOf", [schema]):
        match branch.get("type"):
            case "integer" | "number":
                yield from numbers(branch)
            case "string":
                for size, is_valid in sizes(branch, "minLength", "maxLength"):
                    # An empty `stop` is the same as null.
                    yield "x" * size, is_valid or (name == "stop" and size == 0)
            case "array":
                each = branch["items"]
                for size, is_valid in sizes(branch, "minItems", "maxItems"):
                    yield [element(name, each, i) for i in range(size)], is_valid
                yield from (([one], is_valid) for one, is_valid in values(f"{name}[]", each))
            case "object" if isinstance(branch.get("additionalProperties"), dict):
                each = branch["additionalProperties"]
                for size, is_valid in sizes(branch, "minProperties", "maxProperties"):
                    yield {str(i): element(name, each, i) for i in range(size)}, is_valid
                for size, is_valid in sizes(branch.get("propertyNames", {}), "", "maxLength"):
                    yield {"x" * size: element(name, each, 0)}, is_valid
                yield from (({"1": one}, is_valid) for one, is_valid in values(f"{name}[]", each))


def numbers(schema: Schema) -> Iterator[tuple[float, bool]]:
    step = 1 if schema["type"] == "integer" else 0.01
    if "minimum" in schema:
        yield from ((schema["minimum"], True), (schema["minimum"] - step, False))
    if "exclusiveMinimum" in schema:
        yield from ((schema["exclusiveMinimum"] + step, True), (schema["exclusiveMinimum"], False))
    if "maximum" in schema:
        yield from ((schema["maximum"], True), (schema["maximum"] + step, False))


def sizes(schema: Schema, least: str, most: str) -> Iterator[tuple[int, bool]]:
    if least in schema:
        yield from ((schema[least], True), (schema[least] - 1, False))
    if most in schema:
        yield from ((schema[most], True), (schema[most] + 1, False))


def element(name: str, schema: Any, i: int) -> Any:
    """Return a valid element of a list or a map."""
    match name:
        case "messages":
            return {"role": "user", "content": "Hi"}
        case "tools":
            return function_tool(f"f{i}")
    match schema.get("type"):
        case "array":
            return [element(name, schema["items"], i)]
        case "string":
            return "x"
        case _:
            return 1


def function_tool(name: str) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name}}


# Functions that put a field of a part into the body of a chat completion.
PARTS: dict[tuple[str, str], Callable[[Any], dict[str, Any]]] = {
    ("FunctionDefinition", "name"): lambda name: {"tools": [function_tool(name)]},
    ("AllowedTools", "tools"): lambda tools: {
        "tools": [function_tool(f"f{i}") for i in range(128)],
        "tool_choice": {
            "type": "allowed_tools",
            "allowed_tools": {"mode": "auto", "tools": tools},
        },
    },
}
CASES = [
    (body, name, value, is_valid)
    for body in CHECKS
    for name, schema in SCHEMAS[body]["properties"].items()
    if name not in WITHOUT_RANGE
    for value, is_valid in values(name, schema)
]


def accepts(body: str, fields: dict[str, Any]) -> bool:
    try:
        CHECKS[body](fields)
    except (InvalidRequest, InvalidField):
        return False
    return True


def test_documented_limits_are_those_of_the_service() -> None:
    wrong = [
        (body, name, str(value)[:80], is_valid)
        for body, name, value, is_valid in CASES
        if accepts(body, {name: value}) != is_valid
    ]
    assert not wrong


@pytest.mark.parametrize(("part", "name"), PARTS)
def test_documented_limits_of_a_part_are_those_of_the_service(part: str, name: str) -> None:
    for value, is_valid in values(name, SCHEMAS[part]["properties"][name]):
        assert accepts("ChatCompletionRequest", PARTS[part, name](value)) == is_valid


@pytest.mark.parametrize(
    ("body", "name"),
    [
        ("ChatCompletionRequest", "temperature"),
        ("ChatCompletionRequest", "top_logprobs"),
        ("ChatCompletionRequest", "stop"),
        ("ChatCompletionRequest", "logit_bias"),
        ("ChatCompletionRequest", "metadata"),
        ("ChatCompletionRequest", "tools"),
        ("CompletionRequest", "prompt"),
        ("CompletionRequest", "logprobs"),
    ],
)
def test_limited_field_has_values_on_both_sides_of_its_limits(body: str, name: str) -> None:
    assert {valid for b, n, _, valid in CASES if (b, n) == (body, name)} == {True, False}
