"""POST /tokenize and /detokenize, as clients of vLLM and of llama.cpp send them."""

from typing import Any

import httpx
import pytest

from tests.fakes.chat_service import EOS, MODEL, FakeService, model


@pytest.mark.parametrize("path", ["/tokenize", "/v1/tokenize"])
async def test_text_is_tokenized_in_vllms_form(http: httpx.AsyncClient, path: str) -> None:
    answer = await http.post(path, json={"model": MODEL, "prompt": "hé"})
    assert answer.json() == {"count": 3, "max_model_len": 2048, "tokens": [104, 195, 169]}


@pytest.mark.parametrize(
    ("fields", "adds"),
    [
        ({"prompt": "a"}, None),
        ({"prompt": "a", "add_special_tokens": True}, True),
        ({"prompt": "a", "add_special_tokens": False}, False),
        ({"content": "a"}, False),
        ({"content": "a", "add_special": True, "parse_special": True}, True),
    ],
)
async def test_special_tokens_follow_the_options(
    http: httpx.AsyncClient, service: FakeService, fields: dict[str, Any], adds: bool | None
) -> None:
    answer = await http.post("/tokenize", json={"model": MODEL} | fields)
    asked = service.calls[0].params
    assert (asked.add_special_tokens if asked.HasField("add_special_tokens") else None) == adds
    assert answer.json()["tokens"] == [97, EOS] if adds else [97]


async def test_conversation_is_tokenized_through_the_template(
    http: httpx.AsyncClient, service: FakeService
) -> None:
    answer = await http.post(
        "/tokenize",
        json={
            "messages": [{"role": "user", "content": "hi"}],
            "add_generation_prompt": False,
            "chat_template_kwargs": {"a": 1},
            "return_token_strs": True,
        },
    )
    assert answer.json()["token_strs"] == ["h", "i"]
    asked = service.calls[-1].params
    assert asked.model == MODEL  # the request named no model
    assert not asked.conversation.prompt.add_generation_prompt
    assert asked.conversation.prompt.HasField("add_generation_prompt")
    assert asked.conversation.prompt.chat_template_kwargs_json == '{"a":1}'


async def test_llama_cpps_pieces(http: httpx.AsyncClient) -> None:
    answer = await http.post("/tokenize", json={"content": "aé", "with_pieces": True})
    assert answer.json()["tokens"] == [
        {"id": 97, "piece": "a"},
        {"id": 195, "piece": [195]},
        {"id": 169, "piece": [169]},
    ]


async def test_long_text_is_tokenized_off_the_event_loop(http: httpx.AsyncClient) -> None:
    """The body and the response are too large to be converted on the event loop."""
    asked = {"content": "a" * 100_000, "with_pieces": True}
    answer = (await http.post("/tokenize", json=asked)).json()
    assert answer["count"] == 100_000
    assert answer["tokens"] == [{"id": 97, "piece": "a"}] * 100_000


@pytest.mark.parametrize(
    ("body", "param", "code"),
    [
        ({}, "prompt", "missing_required_parameter"),
        ({"prompt": "a", "content": "b"}, "content", "invalid_value"),
        ({"prompt": "a", "messages": []}, "messages", "empty_array"),
        ({"prompt": 1}, "prompt", "invalid_type"),
        ({"prompt": "a", "add_generation_prompt": True}, "add_generation_prompt", "invalid_value"),
        ({"content": "a", "parse_special": False}, "parse_special", "unsupported_parameter"),
        ({"prompt": "a", "tools": []}, "tools", "invalid_value"),
        ({"prompt": "a", "chat_template": "x"}, "chat_template", "unsupported_parameter"),
        (
            {"messages": [{"role": "user", "content": "x"}], "add_special_tokens": True},
            "add_special_tokens",
            "unsupported_parameter",
        ),
        ({"prompt": "a", "mood": 1}, "mood", "unknown_parameter"),
    ],
)
async def test_invalid_parameter_is_named(
    http: httpx.AsyncClient, body: dict[str, Any], param: str, code: str
) -> None:
    answer = await http.post("/tokenize", json=body)
    error = answer.json()["error"]
    assert (answer.status_code, error["param"], error["code"]) == (400, param, code)


@pytest.mark.parametrize("path", ["/detokenize", "/v1/detokenize"])
async def test_token_ids_are_detokenized(http: httpx.AsyncClient, path: str) -> None:
    answer = await http.post(path, json={"tokens": [104, 195, 169]})
    assert answer.json() == {"prompt": "hé", "content": "hé"}
    refused = await http.post(path, json={"model": MODEL, "tokens": [300]})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "tokens[0]")


async def test_no_model_to_tokenize_for(http: httpx.AsyncClient, service: FakeService) -> None:
    service.models = []
    answer = await http.post("/tokenize", json={"prompt": "a"})
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
    assert answer.json()["error"]["code"] == "service_unavailable"
    service.models = [model("first"), model("second")]
    await http.post("/tokenize", json={"prompt": "a"})
    assert service.calls[-1].params.model == "first"
