"""Structured outputs and tool calls with the real OpenAI client and the embedded model.

The model is small and was not trained for tool calls.
"""

import json
import re
from typing import Any

import jsonschema
import openai
import pytest
from pydantic import BaseModel

from tests.support.make_serve import MODEL

pytestmark = pytest.mark.slow

WEATHER: dict[str, Any] = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "maxLength": 20},
        "unit": {"type": "string", "enum": ["celsius", "fahrenheit"]},
    },
    "required": ["city", "unit"],
    "additionalProperties": False,
}
TOOLS: list[Any] = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "The weather in a city",
            "parameters": WEATHER,
        },
    }
]
QUESTION: list[Any] = [{"role": "user", "content": "What is the weather in Paris?"}]


class Person(BaseModel):
    name: str
    age: int


def test_json_schema_is_enforced(client: openai.OpenAI) -> None:
    person = {
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 20},
            "age": {"type": "integer", "minimum": 0, "maximum": 150},
        },
        "required": ["name", "age"],
        "additionalProperties": False,
    }
    asked: list[Any] = [{"role": "user", "content": "Invent a person."}]
    for seed in range(3):
        completion = client.chat.completions.create(
            model=MODEL,
            messages=asked,
            seed=seed,
            max_completion_tokens=200,
            response_format={
                "type": "json_schema",
                "json_schema": {"name": "person", "schema": person, "strict": True},
            },
        )
        assert completion.choices[0].finish_reason == "stop"
        jsonschema.validate(json.loads(completion.choices[0].message.content or ""), person)


def test_pydantic_model_is_parsed_from_the_completion(client: openai.OpenAI) -> None:
    completion = client.chat.completions.parse(
        model=MODEL,
        messages=[{"role": "user", "content": "Ada is 36 years old. Who is she, as JSON?"}],
        temperature=0,
        max_completion_tokens=200,
        response_format=Person,
    )
    assert isinstance(completion.choices[0].message.parsed, Person)


def test_regex_and_choice_are_enforced(client: openai.OpenAI) -> None:
    def ask(**fields: Any) -> str:
        completion = client.chat.completions.create(
            model=MODEL,
            messages=QUESTION,
            max_completion_tokens=60,
            extra_body={"structured_outputs": fields},
        )
        return completion.choices[0].message.content or ""

    assert re.fullmatch(r"\d{2}-[a-f]{3}", ask(regex=r"\d{2}-[a-f]{3}"))
    assert ask(choice=["sunny", "rainy"]) in ("sunny", "rainy")


@pytest.mark.parametrize(
    ("choice", "finish_reason"),
    [
        ("required", "tool_calls"),
        ({"type": "function", "function": {"name": "get_weather"}}, "stop"),
    ],
)
def test_forced_tool_call_has_valid_arguments(
    client: openai.OpenAI, choice: Any, finish_reason: str
) -> None:
    completion = client.chat.completions.create(
        model=MODEL,
        messages=QUESTION,
        tools=TOOLS,
        tool_choice=choice,
        parallel_tool_calls=False,
        max_completion_tokens=200,
    )
    [said] = completion.choices
    assert said.finish_reason == finish_reason
    assert said.message.content is None
    [call] = said.message.tool_calls or []
    assert call.type == "function"
    assert call.function.name == "get_weather"
    jsonschema.validate(json.loads(call.function.arguments), WEATHER)


def test_tool_calls_without_an_end_marker_finish(client: openai.OpenAI) -> None:
    completion = client.chat.completions.create(
        model=MODEL,
        messages=QUESTION,
        tools=TOOLS,
        tool_choice="required",
        n=2,
        temperature=0,
        max_completion_tokens=400,
    )
    for choice in completion.choices:
        assert choice.finish_reason == "tool_calls"
        calls = [call.to_json() for call in choice.message.tool_calls or []]
        assert calls
        functions = [json.dumps(json.loads(call)["function"]) for call in calls]
        assert len(set(functions)) == len(functions)


def test_stream_helper_of_the_client_collects_a_forced_tool_call(client: openai.OpenAI) -> None:
    with client.chat.completions.stream(
        model=MODEL,
        messages=QUESTION,
        tools=TOOLS,
        tool_choice="required",
        parallel_tool_calls=False,
        max_completion_tokens=200,
    ) as stream:
        kinds = {event.type for event in stream}
        completion = stream.get_final_completion()
    assert "tool_calls.function.arguments.delta" in kinds
    [call] = completion.choices[0].message.tool_calls or []
    jsonschema.validate(json.loads(call.function.arguments), WEATHER)


def test_conversation_with_a_tool_result_is_completed(client: openai.OpenAI) -> None:
    called = {
        "id": "call_1",
        "type": "function",
        "function": {"name": "get_weather", "arguments": '{"city": "Paris"}'},
    }
    messages: list[Any] = [
        *QUESTION,
        {"role": "assistant", "content": None, "tool_calls": [called]},
        {"role": "tool", "tool_call_id": "call_1", "content": "Sunny, 25 degrees"},
    ]
    completion = client.chat.completions.create(
        model=MODEL, messages=messages, tools=TOOLS, tool_choice="none", max_completion_tokens=30
    )
    assert completion.choices[0].message.content
    assert completion.choices[0].message.tool_calls is None


def test_unsupported_response_format_is_rejected(client: openai.OpenAI) -> None:
    schema: dict[str, Any] = {
        "properties": {"x": {"items": {"type": "string"}, "uniqueItems": True}}
    }
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(
            model=MODEL,
            messages=QUESTION,
            response_format={
                "type": "json_schema",
                "json_schema": {"name": "x", "schema": schema, "strict": True},
            },
        )
    assert caught.value.param == "response_format.json_schema.schema.properties.x.uniqueItems"
    assert "can enforce unique items only if" in caught.value.message
