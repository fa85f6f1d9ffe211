"""The embedded model through a second service and gateway, whose upstream is the first gateway.

Every response must be that of the first gateway.
"""

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import openai
import pytest

from tests.support.make_serve import MODEL, Served
from tests.support.programs import Gateway, RealService

pytestmark = pytest.mark.slow

QUESTION: list[Any] = [{"role": "user", "content": "Name two colours, in one short sentence."}]
CHAT: dict[str, Any] = {
    "model": MODEL,
    "messages": QUESTION,
    "temperature": 0,
    "max_completion_tokens": 24,
}
TEXT: dict[str, Any] = {"model": MODEL, "prompt": "The sky is", "temperature": 0, "max_tokens": 8}
TOOLS: list[Any] = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string", "maxLength": 8}},
                "required": ["city"],
                "additionalProperties": False,
            },
        },
    }
]
IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}
SCHEMA: dict[str, Any] = {
    "type": "json_schema",
    "json_schema": {"name": "x", "schema": {"enum": ["red", "blue"]}},
}


@pytest.fixture(scope="module")
def second(served: Served) -> Iterator[openai.OpenAI]:
    """Return a client of the second gateway."""
    upstream = ("--engine", "openai", "--upstream-url", served.base_url)
    service = RealService(*upstream)
    programs: list[Any] = [service]
    try:
        asyncio.run(service.ready())
        gateway = Gateway(upstream=service.target)
        programs.append(gateway)
        asyncio.run(gateway.ready())
        with openai.OpenAI(base_url=f"{gateway.url}/v1", api_key="x", max_retries=0) as client:
            yield client
    finally:
        for program in reversed(programs):
            program.close()


def plain(response: Any) -> Any:
    """Return a response without the ids and times, and whether a prefix was cached."""
    body = response.model_dump(mode="json")
    for name in ("id", "created", "system_fingerprint"):
        body.pop(name)
    for choice in body["choices"]:
        for call in (choice.get("message") or {}).get("tool_calls") or ():
            call.pop("id")
    if body.get("usage"):
        body["usage"].pop("prompt_tokens_details")
    return body


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"temperature": 0.9, "seed": 5, "top_p": 0.9, "n": 2},
        {"logprobs": True, "top_logprobs": 2},
        {"stop": ["."], "extra_body": {"stop_token_ids": [2], "min_tokens": 2}},
        {"extra_body": {"return_token_ids": True}},
        {"extra_body": {"prompt_logprobs": 1}},
        {"extra_body": {"structured_outputs": {"regex": "[a-f]{5}"}}},
        {"response_format": SCHEMA},
        {"tools": TOOLS, "tool_choice": "required"},
        {"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "get_weather"}}},
        {"max_completion_tokens": 2, "extra_body": {"top_k": 3, "repetition_penalty": 1.2}},
    ],
)
def test_chat_completion_is_that_of_the_upstream(
    client: openai.OpenAI, second: openai.OpenAI, fields: dict[str, Any]
) -> None:
    given = CHAT | fields
    direct = plain(client.chat.completions.create(**given))
    assert plain(second.chat.completions.create(**given)) == direct
    assert direct["choices"][0]["message"]


@pytest.mark.parametrize(
    "fields",
    [
        {"logprobs": 1},
        {"echo": True},
        {"echo": True, "logprobs": 1, "max_tokens": 0},
        {"echo": True, "logprobs": 0},
        {"prompt": ["The sky is", "Grass is"], "n": 2, "logprobs": 0},
        {"prompt": [504, 7405, 314], "extra_body": {"return_token_ids": True}},
        {"prompt": [504, 7405, 314], "echo": True, "logprobs": 1},
        {"stop": [","], "extra_body": {"ignore_eos": True}},
    ],
)
def test_text_completion_is_that_of_the_upstream(
    client: openai.OpenAI, second: openai.OpenAI, fields: dict[str, Any]
) -> None:
    given = TEXT | fields
    direct = plain(client.completions.create(**given))
    assert plain(second.completions.create(**given)) == direct


def joined(stream: Any) -> Any:
    """Return what a streamed chat completion contains, and its usage."""
    text, reasons, usage = "", [], None
    calls: dict[int, list[str]] = {}
    for chunk in stream:
        usage = chunk.usage or usage
        for choice in chunk.choices:
            text += choice.delta.content or ""
            if choice.finish_reason:
                reasons.append(choice.finish_reason)
            for call in choice.delta.tool_calls or ():
                found = calls.setdefault(call.index, ["", ""])
                found[0] += call.function.name or ""
                found[1] += call.function.arguments or ""
    return text, reasons, calls, usage and (usage.prompt_tokens, usage.completion_tokens)


@pytest.mark.parametrize(
    "fields",
    [{}, {"tools": TOOLS, "tool_choice": "required"}, {"n": 2, "temperature": 1, "seed": 1}],
)
def test_streamed_chat_completion_is_that_of_the_upstream(
    client: openai.OpenAI, second: openai.OpenAI, fields: dict[str, Any]
) -> None:
    given = {**CHAT, **fields, "stream": True, "stream_options": {"include_usage": True}}

    def streamed(create: Callable[..., Any]) -> Any:
        if fields.get("n"):  # the choices arrive in any order
            return sorted(joined(create(**given))[1])
        return joined(create(**given))

    direct = streamed(client.chat.completions.create)
    assert streamed(second.chat.completions.create) == direct


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"top_p": 0.5, "temperature": 3}, "temperature"),
        ({"messages": [{"role": "user", "content": "word " * 9000}]}, "messages"),
        ({"messages": [{"role": "user", "content": [IMAGE]}]}, "messages[0].content[0]"),
        (
            {
                "response_format": {
                    **SCHEMA,
                    "json_schema": {"name": "x", "schema": {"$ref": "#/a"}},
                }
            },
            "response_format",
        ),
    ],
)
def test_rejection_is_that_of_the_upstream(
    second: openai.OpenAI, fields: dict[str, Any], param: str
) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        second.chat.completions.create(**CHAT | fields)
    assert caught.value.param == param


def test_model_shows_that_it_is_remote(second: openai.OpenAI) -> None:
    [model] = second.models.list().data
    assert model.id == MODEL
    assert model.model_dump()["engine"] == "openai"
